"""Rows put straight into the tables, where a test needs a state that the platform would take long to reach."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

from core import deliveries, ids
from core.deliveries import Choice, Claimed, Due, Finish, Park, Tried, Verdict
from core.states import DeadReason, DiscardReason, PendingReason, State
from core.storage.database import Database

MARGIN_S = 10.0
TIMEOUT_S = 15.0
Result = TypeVar("Result")

# A legal row for each state: reason, and whether it has a due time.
LEGAL: dict[State, tuple[str | None, bool]] = {
    State.PENDING: (PendingReason.RETRY, True),
    State.SENDING: (None, True),
    State.DELIVERED: (None, False),
    State.DEAD: (DeadReason.EXHAUSTED, False),
    State.DISCARDED: (DiscardReason.REQUESTED, False),
}


class Seeds:
    """One organization with one subscription, and whatever is planted."""

    def __init__(self, database: Database, driver: Any) -> None:
        self.database = database
        self.driver = driver
        self.organization_id = ids.new_id()
        self.subscription_id = UUID(int=0)

    async def prepare(self) -> None:
        await self.driver.execute("INSERT INTO organizations (id, name) VALUES ($1, 'Test')", self.organization_id)
        self.subscription_id = await self.subscription()

    async def subscription(self, status: str = "active", timeout_ms: int = int(TIMEOUT_S * 1000)) -> UUID:
        subscription_id = ids.new_id()
        await self.driver.execute(
            "INSERT INTO subscriptions (id, organization_id, url, events, status, timeout_ms)"
            " VALUES ($1, $2, 'https://example.com/hook', '{*}', $3, $4)",
            subscription_id,
            self.organization_id,
            status,
            timeout_ms,
        )
        return subscription_id

    async def event(self, event_type: str = "order.paid", at: datetime | None = None) -> UUID:
        event_id = ids.new_id() if at is None else UUID(int=ids.lowest_at(at).int | uuid4().int & (1 << 64) - 1)
        await self.driver.execute(
            "INSERT INTO events (id, organization_id, event_type, occurred_at, payload, data_at, matched_subscriptions)"
            " VALUES ($1, $2, $3, now(), $4, 8, 0)",
            event_id,
            self.organization_id,
            event_type,
            b'{"data":{}}',
        )
        return event_id

    async def delivery(self, state: State = State.PENDING, /, at: datetime | None = None, **columns: Any) -> UUID:
        """A delivery in `state`, due a minute ago where it has a due time; `columns` override."""
        event_id = columns.pop("event_id", None) or (ids.new_id() if at is None else ids.lowest_at(at))
        reason, has_due = LEGAL[state]
        row: dict[str, Any] = {
            "id": ids.new_id.within(event_id),
            "organization_id": self.organization_id,
            "subscription_id": self.subscription_id,
            "event_id": event_id,
            "event_type": "order.paid",
            "state": str(state),
            "reason": reason,
            "due_at": datetime.now(UTC) - timedelta(minutes=1) if has_due else None,
            "lease_token": uuid4() if state is State.SENDING else None,
        } | columns
        places = ", ".join(f"${place}" for place in range(1, len(row) + 1))
        await self.driver.execute(f"INSERT INTO deliveries ({', '.join(row)}) VALUES ({places})", *row.values())
        delivery_id: UUID = row["id"]
        return delivery_id

    async def row(self, delivery_id: UUID) -> dict[str, Any]:
        return dict(await self.driver.fetchrow("SELECT * FROM deliveries WHERE id = $1", delivery_id))

    async def state(self, delivery_id: UUID) -> tuple[str, str | None]:
        row = await self.row(delivery_id)
        return row["state"], row["reason"]

    async def claim(self, *delivery_ids: UUID) -> list[Claimed]:
        return await deliveries.claim(self.driver, delivery_ids, margin_s=MARGIN_S)

    async def claim_one(self, delivery_id: UUID) -> Claimed:
        [claimed] = await self.claim(delivery_id)
        return claimed

    async def make_due(self, delivery_id: UUID) -> None:
        """As if time had passed: a retry's delay, or a lease."""
        await self.driver.execute(
            "UPDATE deliveries SET due_at = now() - interval '1 second' WHERE id = $1", delivery_id
        )

    async def attempts(self, delivery_id: UUID) -> list[dict[str, Any]]:
        rows = await self.driver.fetch("SELECT * FROM attempts WHERE delivery_id = $1 ORDER BY id", delivery_id)
        return [dict(row) for row in rows]


def tried(status_code: int | None = 500, error_kind: str | None = "status", **columns: Any) -> Tried:
    values: dict[str, Any] = {
        "id": ids.new_id(),
        "started_at": datetime.now(UTC),
        "duration_ms": 12,
        "status_code": status_code,
        "error_kind": error_kind,
        "error_message": None,
        "url": "https://example.com/hook",
        "request_headers": "[]",
        "response_headers": None,
        "response_body": None,
    } | columns
    return Tried(**values)


SUCCESS = Verdict(State.DELIVERED)
LATER = Verdict(State.PENDING, PendingReason.RETRY, 60.0)
EXHAUSTED = Verdict(State.DEAD, DeadReason.EXHAUSTED)


def ended(claimed: Claimed, verdict: Verdict = SUCCESS, **columns: Any) -> Finish:
    """The end of a claim with one attempt that fits the verdict."""
    fits = tried(200, None, **columns) if verdict.state is State.DELIVERED else tried(**columns)
    return Finish(claimed, verdict, fits)


def seeded(database_url: str, test: Callable[[Seeds], Awaitable[Result]], pool_size: int = 8) -> Result:
    """Runs `test` with a connection of its own and a prepared organization."""

    async def run() -> Result:
        database = Database(database_url, pool_size=pool_size)
        try:
            async with database.driver() as driver:
                seeds = Seeds(database, driver)
                await seeds.prepare()
                return await test(seeds)
        finally:
            await database.close()

    return asyncio.run(run())


async def claim_due(driver: Any, limit: int, *, margin_s: float) -> list[Claimed]:
    """Leases up to `limit` due deliveries, whosever they are."""

    async def first(due: Sequence[Due]) -> list[Choice | Park]:
        return [Choice.CLAIM if at < limit else Choice.LEAVE for at in range(len(due))]

    return (await deliveries.sweep(driver, 4 * limit, first, margin_s=margin_s)).claims  # so that it finds any rank
