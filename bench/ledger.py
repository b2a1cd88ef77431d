"""The books of one scenario: nothing lost, nothing doubled, nothing made up."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.children import Heard
from bench.load import Outcome
from bench.platform import Platform
from core import ids


@dataclass(frozen=True)
class Ledger:
    """Deliveries are counted in the database, receipts at the receiver, 202s at the load generator."""

    accepted: int  # 202s
    stored: int  # events in the database
    fanout: int
    delivered: int
    dead: int
    pending: int  # sending included
    other: int  # discarded: there should be none
    received: int  # distinct, by subscription and webhook-id
    requests: int  # repeated ones included
    strangers: int  # webhook-ids that came and were not accepted
    faults: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        return not self.faults

    def line(self) -> str:
        told = (
            f"accepted {self.accepted} × {self.fanout} = delivered {self.delivered} + dead {self.dead} + "
            f"pending {self.pending}; received {self.received} distinct in {self.requests} requests"
        )
        return f"{told}: exact" if self.exact else f"{told}: NOT EXACT: {'; '.join(self.faults)}"


async def settle(platform: Platform, event_type: str, fanout: int, outcome: Outcome, heard: Heard) -> Ledger:
    """Compares what the three saw of one event type."""
    events = await platform.query("SELECT id FROM events WHERE event_type = $1", event_type)
    rows = await platform.query(
        "SELECT state, count(*) FROM deliveries WHERE event_type = $1 GROUP BY state", event_type
    )
    by_state = {row["state"]: row["count"] for row in rows}
    stored = {ids.show(ids.EVENT, row["id"]) for row in events}
    accepted = set(outcome.ids)
    received = [webhook_id for of_path in heard.first_at.values() for webhook_id in of_path]
    ledger = Ledger(
        accepted=len(outcome.ids),
        stored=len(stored),
        fanout=fanout,
        delivered=by_state.get("delivered", 0),
        dead=by_state.get("dead", 0),
        pending=by_state.get("pending", 0) + by_state.get("sending", 0),
        other=by_state.get("discarded", 0),
        received=len(received),
        requests=heard.requests,
        strangers=sum(one not in accepted for one in received),
    )
    ledger.faults.extend(_faults(ledger, outcome, accepted == stored))
    return ledger


def _faults(ledger: Ledger, outcome: Outcome, same_ids: bool) -> list[str]:
    faults = []
    refused = {status: count for status, count in outcome.statuses.items() if status != "202"}
    if refused or outcome.unanswered:
        faults.append(f"answers other than 202: {refused}, none at all: {outcome.unanswered} {outcome.examples[:2]}")
    if not same_ids:
        faults.append(f"{ledger.stored} events are stored, and not just those that were accepted")
    if ledger.accepted * ledger.fanout != ledger.delivered + ledger.dead + ledger.pending:
        faults.append("accepted is not delivered + dead + pending")
    if ledger.other:
        faults.append(f"{ledger.other} deliveries discarded")
    if ledger.received != ledger.delivered:
        faults.append("received is not delivered")
    if ledger.strangers:
        faults.append(f"{ledger.strangers} webhooks came that were not accepted")
    if ledger.requests != ledger.received:
        faults.append(f"{ledger.requests - ledger.received} duplicates, and nothing was killed")
    return faults
