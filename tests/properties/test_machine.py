"""The delivery state machine on real PostgreSQL, any operation in any order, against the plain model of `model.py`.

After each step everything that is stored equals the model; after each example everything can still be brought to its
end, so no order of operations leaves a delivery that nobody would ever touch again.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.engine import make_url
from sqlmodel.ext.asyncio.session import AsyncSession

from core import deliveries, replays, settling, subscriptions
from core.deliveries import Choice, Claimed, Finish, Park, ParkedRoom, Verdict
from core.deliveries import Due as DueDelivery
from core.egress import EgressPolicy
from core.errors import Conflict
from core.models import ItemOutcome, ReplayAction, ReplayStatus, Subscription, SubscriptionStatus
from core.secrets.sealing import Sealer
from core.states import PARKING, DeadReason, PendingReason, State
from core.storage.database import Database
from tests.platform import SECRET_KEY
from tests.properties.model import (
    ADVANCING,
    TAKING,
    UNFINISHED,
    Due,
    Model,
    ModelDelivery,
    ModelReplay,
    ModelSubscription,
)
from tests.seeds import Seeds, claim_due, tried
from tests.services import as_owner

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "50"))
STEPS = 50
MARGIN_S = 300.0  # no lease and no delay ends by itself while an example runs
LATER_S = 3600.0
MOST = 6  # deliveries

SUCCESS = (Verdict(State.DELIVERED), 200, None)
VERDICTS: dict[str, tuple[Verdict, int | None, str | None]] = {
    "2xx": SUCCESS,
    "2xx, and disable": (Verdict(State.DELIVERED, disables=True), 200, None),
    "retry": (Verdict(State.PENDING, PendingReason.RETRY, LATER_S), 503, "status"),
    "retry at once": (Verdict(State.PENDING, PendingReason.RETRY, 0.0), None, "timeout"),
    "exhausted": (Verdict(State.DEAD, DeadReason.EXHAUSTED), 500, "status"),
    "aborted": (Verdict(State.DEAD, DeadReason.ABORTED), 400, "status"),
    "gone": (Verdict(State.DEAD, DeadReason.GONE, disables=True), 410, "status"),
}
RULES = subscriptions.Rules(EgressPolicy(), Sealer([SECRET_KEY]), 1_000)
STATUS_AFTER = {
    "pause": SubscriptionStatus.PAUSED,
    "resume": SubscriptionStatus.ACTIVE,
    "delete": SubscriptionStatus.DELETED,
}
WHICH = st.integers(0, 7)
UNTRIED = "handed back untried"
VERDICT = st.sampled_from([*VERDICTS, UNTRIED])
STATUSES = st.sampled_from(["dead", "dead,delivered", "discarded", "pending", "pending,sending,delivered,dead"])
# As good as TRUNCATE for some dozens of rows, and twenty times as quick with a partition a day.
EMPTY = "; ".join(
    f"DELETE FROM {table}" for table in ("replay_items", "replays", "attempts", "deliveries", "subscriptions")
)
# What became due in one statement is claimed in any order, and what did in two, in that of the clock. Hypothesis calls
# a test flaky whose same choices lead elsewhere, so what a limit leaves out is the same each time.
IN_ORDER = """
UPDATE deliveries SET due_at = now() - interval '1 minute' + number * interval '1 ms'
FROM unnest($1::uuid[]) WITH ORDINALITY AS due (due_id, number) WHERE id = due_id
"""


class Machine(RuleBasedStateMachine):
    """Every choice is a number, which counts through what there is at that moment.

    Claims are kept for ever, so that stale ones come back at any later time.
    """

    seeds: Seeds
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.claimed: list[Claimed] = []  # every one ever made
        self.recorded: list[list[Finish]] = []
        self._error_before = sys.exc_info()[1]
        self.do(self.seeds.driver.execute(EMPTY))

    def do(self, work: Awaitable[Any]) -> Any:
        async def wait() -> Any:
            return await work

        return self.loop.run_until_complete(wait())

    @property
    def driver(self) -> Any:
        return self.seeds.driver

    # --- what there is ---

    @initialize(deliveries=st.integers(1, 3))
    def begin(self, deliveries: int) -> None:
        for _ in range(2):
            self.subscribe()
        for number in range(deliveries):
            self.accept(number)

    @precondition(lambda self: len(self.live()) < 2)
    @rule()
    def subscribe(self) -> None:
        self.model.subscriptions[self.do(self.seeds.subscription(timeout_ms=30_000))] = ModelSubscription()

    @precondition(lambda self: len(self.model.deliveries) < MOST and self.live())
    @rule(which=WHICH)
    def accept(self, which: int) -> None:
        subscription_id = pick(self.live(), which)
        if self.model.subscriptions[subscription_id].status not in TAKING:
            return  # acceptance makes none for it
        work = self.seeds.delivery(State.PENDING, reason="new", subscription_id=subscription_id)
        self.model.deliveries[self.do(work)] = ModelDelivery(subscription_id)

    def live(self) -> list[UUID]:
        return [one for one, model in self.model.subscriptions.items() if model.status != SubscriptionStatus.DELETED]

    def delivery(self, which: int) -> UUID:
        return pick(list(self.model.deliveries), which)

    def held(self) -> list[Claimed]:
        return [one for one in self.claimed if self.model.holds(one)]

    # --- workers ---

    @rule(which=st.sets(WHICH, min_size=1, max_size=3))
    def claim(self, which: set[int]) -> None:
        """As a hint asks for it: by their ids, whether or not they are due."""
        asked = {self.delivery(one) for one in which}
        claimed = self.do(deliveries.claim(self.driver, sorted(asked), margin_s=MARGIN_S))
        self._claimed(claimed, asked & self.model.due())

    @precondition(lambda self: self.model.due())
    @rule(limit=st.integers(1, 4))
    def claim_due(self, limit: int) -> None:
        """As the sweep does."""
        self._claim_due(limit)

    @precondition(lambda self: self.model.due())
    @rule(verdict=VERDICT)
    def work(self, verdict: str) -> None:
        """All that a worker does with one delivery, and nothing in between."""
        for claimed in self._claim_due(1):
            if claimed.subscription_status == SubscriptionStatus.PAUSED:
                self._hold([claimed])
            else:
                self._finish([finish_of(claimed, verdict)])

    @precondition(lambda self: self.model.due())
    @rule(reason=st.sampled_from(sorted(PARKING)), later=st.booleans())
    def park(self, reason: PendingReason, later: bool) -> None:
        """The sweep finds no room for anything that is due."""
        found: set[UUID] = set()

        async def choose(due: Sequence[DueDelivery]) -> list[Choice | Park]:
            found.update(one.id for one in due)
            return [Park(reason, LATER_S if later else 0.0)] * len(due)

        swept = self.do(deliveries.sweep(self.driver, 4 * MOST, choose, margin_s=MARGIN_S))
        assert (swept.claims, found) == ([], self.model.due())
        for one in found:
            self.model.deliveries[one].to(State.PENDING, reason, Due.LATER if later else Due.NOW)

    @precondition(lambda self: self.model.parked())
    @rule(which=WHICH, limit=st.integers(1, 4))
    def claim_parked(self, which: int, limit: int) -> None:
        """There is room for one subscription, whatever the time."""
        self._claim_parked(pick(list(self.model.subscriptions), which), limit)

    def _claim_parked(self, subscription_id: UUID, limit: int) -> list[Claimed]:
        parked = self.model.parked(subscription_id)
        claimed = self.do(deliveries.claim_parked(self.driver, [ParkedRoom(subscription_id, limit)], margin_s=MARGIN_S))
        assert len(claimed) == min(limit, len(parked))
        return self._claimed(claimed, parked & {one.id for one in claimed})

    def _claim_due(self, limit: int) -> list[Claimed]:
        due = self.model.due()
        self.do(self.driver.execute(IN_ORDER, sorted(due)))
        claimed = self.do(claim_due(self.driver, limit, margin_s=MARGIN_S))
        assert len(claimed) == min(limit, len(due))
        return self._claimed(claimed, due & {one.id for one in claimed})

    def _claimed(self, claimed: list[Claimed], expected: set[UUID]) -> list[Claimed]:
        assert {one.id for one in claimed} == expected
        for one in claimed:
            delivery, subscription = self.model.deliveries[one.id], self.model.subscription_of(one.id)
            seen = (one.series, one.attempt_count, one.replay_id, one.subscription_version, one.subscription_status)
            assert seen == (
                *(delivery.series, delivery.count, delivery.replay),
                *(subscription.version, subscription.status),
            )
            assert one.waiting_reason is delivery.waiting_reason
            self.model.claimed(one)
        in_order = sorted(claimed, key=lambda one: one.id)  # a plan returns them in any
        self.claimed += in_order
        return in_order

    @precondition(lambda self: self.held())
    @rule(which=WHICH, verdict=VERDICT)
    def record_one_that_is_held(self, which: int, verdict: str) -> None:
        self._finish([finish_of(pick(self.held(), which), verdict)])

    @precondition(lambda self: self.held())
    @rule(which=WHICH, edited=st.booleans())
    def the_receiver_asks_to_be_disabled(self, which: int, edited: bool) -> None:
        """A person who edits it in the meantime wins."""
        claimed = pick(self.held(), which)
        if edited and claimed.subscription_id in self.live():
            self._edit(claimed.subscription_id)
        self._finish([finish_of(claimed, "gone")])

    @precondition(lambda self: self.claimed)
    @rule(ended=st.dictionaries(WHICH, VERDICT, min_size=1, max_size=4))
    def record(self, ended: dict[int, str]) -> None:
        """Outcomes of the claims of now, or of any before, in one batch."""
        batch = [finish_of(one, ended[which]) for which, one in enumerate(reversed(self.claimed)) if which in ended]
        if batch:
            self._finish(batch)
            self.recorded.append(batch)

    @precondition(lambda self: self.recorded)
    @rule(which=WHICH)
    def record_again(self, which: int) -> None:
        """The answer to the first time was lost: it stands once, and nothing that came since is undone."""
        assert not any(self.do(deliveries.finish(self.driver, pick(self.recorded, which))))

    def _finish(self, batch: list[Finish]) -> None:
        moved = self.do(deliveries.finish(self.driver, batch))
        expected = [self.model.finish(one) for one in batch]
        assert moved == expected
        told = [one.claimed for one, has in zip(batch, moved, strict=True) if has and one.verdict.disables]
        self.model.disable(told)

    @precondition(lambda self: self.claimed)
    @rule(which=st.sets(WHICH, min_size=1, max_size=3))
    def hold(self, which: set[int]) -> None:
        self._hold([one for index, one in enumerate(reversed(self.claimed)) if index in which])

    def _hold(self, held: list[Claimed]) -> None:
        current = [one for one in held if self.model.holds(one)]
        if held:
            self.do(deliveries.hold(self.driver, held))
        for one in held:
            self.model.hold(one)
        # What is put off by a second only: a second may pass here, so make it an hour.
        moved = "UPDATE deliveries SET due_at = due_at + interval '1 hour' WHERE id = ANY($1) AND due_at IS NOT NULL"
        self.do(self.driver.execute(moved, [one.id for one in current]))

    @precondition(lambda self: any(one.due is Due.LATER for one in self.model.deliveries.values()))
    @rule(which=st.none() | WHICH)
    def time_passes(self, which: int | None) -> None:
        """For one or for all: leases end, and pauses between attempts."""
        self._make_due(list(self.model.deliveries) if which is None else [self.delivery(which)])

    def _make_due(self, delivery_ids: list[UUID]) -> None:
        waiting = [one for one in delivery_ids if self.model.deliveries[one].due is Due.LATER]
        past = "UPDATE deliveries SET due_at = now() - interval '1 second' WHERE id = ANY($1)"
        self.do(self.driver.execute(past, waiting))
        for one in waiting:
            self.model.deliveries[one].due = Due.NOW

    @precondition(lambda self: not all(one.settled for one in self.model.subscriptions.values()))
    @rule()
    def settle(self) -> None:
        self.do(settling.settle_all(self.seeds.database))
        self.model.settle()

    @precondition(lambda self: any(one.status in ADVANCING for one in self.model.replays.values()))
    @rule()
    def tick(self) -> None:
        self._tick()

    def _tick(self) -> None:
        self.do(self.driver.execute("UPDATE replays SET paced_at = now() - interval '1 second'"))
        due = self.do(replays.tick(self.seeds.database))
        assert sorted(one.delivery_id for one in due) == sorted(self.model.tick())

    # --- people ---

    @precondition(lambda self: self.live())
    @rule(which=WHICH, operation=st.sampled_from(["pause", "pause", "resume", "resume", "delete"]))
    def change(self, which: int, operation: str) -> None:
        """What follows from it is left to `settle`: the process that did this died, or is slow."""
        subscription_id = pick(self.live(), which)
        model = self.model.subscriptions[subscription_id]
        work = self._with_subscription(subscription_id, getattr(subscriptions, operation))
        if operation == "pause" and model.status is SubscriptionStatus.DISABLED:
            assert self.do(_refused(work))
            return
        self.do(work)
        to = STATUS_AFTER[operation]
        if model.status is not to:
            model.to(to)

    def _edit(self, subscription_id: UUID) -> None:
        async def describe(session: AsyncSession, row: Subscription) -> None:
            await subscriptions.update_fields(session, RULES, row, {"description": "Another"})

        self.do(self._with_subscription(subscription_id, describe))
        self.model.subscriptions[subscription_id].version += 1

    async def _with_subscription(
        self, subscription_id: UUID, change: Callable[[AsyncSession, Subscription], Awaitable[Any]]
    ) -> None:
        async with self.seeds.database.session() as session:
            row = await subscriptions.get(session, self.seeds.organization_id, subscription_id, lock=True)
            await change(session, row)

    @rule(which=WHICH)
    def discard(self, which: int) -> None:
        delivery_id = self.delivery(which)
        refused = self.do(_refused(deliveries.discard(self.driver, self.seeds.organization_id, delivery_id)))
        assert refused is not self.model.discard(delivery_id)

    @rule(which=WHICH)
    def redact(self, which: int) -> None:
        """Its event's other deliveries are others' business: here, each has an event of its own."""
        delivery_id = self.delivery(which)

        async def work() -> list[UUID]:
            event_id = await self.driver.fetchval("SELECT event_id FROM deliveries WHERE id = $1", delivery_id)
            async with self.driver.transaction():
                return await deliveries.redact(self.driver, event_id)

        assert self.do(work()) == ([] if self.model.deliveries[delivery_id].redacted else [delivery_id])
        self.model.redact(delivery_id)

    @rule(which=WHICH)
    def replay_one(self, which: int) -> None:
        delivery_id = self.delivery(which)

        async def work() -> Any:
            async with self.seeds.database.session() as session:
                return await replays.replay_one(session, self.seeds.organization_id, delivery_id, created_by="test")

        if not self.model.can_replay(delivery_id):
            assert self.do(_refused(work()))
            return
        replay_id: UUID = self.do(work()).id
        items = {delivery_id: ItemOutcome.WAITING}
        self.model.replays[replay_id] = ModelReplay(1, ReplayStatus.RUNNING, items)
        self.model.replay(delivery_id, replay_id)

    @precondition(lambda self: sum(one.status in ADVANCING for one in self.model.replays.values()) < 2)
    @rule(statuses=STATUSES, rate=st.sampled_from([1, 1_000]), action=st.sampled_from(ReplayAction))
    def replay_or_discard_many(self, statuses: str, rate: int, action: ReplayAction) -> None:
        async def work() -> Any:
            async with self.seeds.database.session() as session:
                return await replays.create(
                    session,
                    self.seeds.organization_id,
                    {"status": statuses},
                    rate_per_second=rate,
                    created_by="test",
                    action=action,
                )

        replay, _ = self.do(work())
        chosen = {
            one: ItemOutcome.WAITING
            for one, delivery in self.model.deliveries.items()
            if delivery.state in statuses.split(",")
        }
        status = ReplayStatus.QUEUED if chosen else ReplayStatus.COMPLETED
        self.model.replays[replay.id] = ModelReplay(rate, status, chosen, action)

    @precondition(lambda self: self.model.replays)
    @rule(which=WHICH, operation=st.sampled_from(sorted(replays.OPERATIONS)))
    def operate(self, which: int, operation: str) -> None:
        self._operate(pick(list(self.model.replays)[::-1], which), operation)

    def _operate(self, replay_id: UUID, operation: str) -> None:
        async def work() -> None:
            async with self.seeds.database.session() as session:
                await replays.operate(session, self.seeds.organization_id, replay_id, operation)

        model = self.model.replays[replay_id]
        allowed, after = replays.OPERATIONS[operation]
        assert self.do(_refused(work())) is (model.status not in allowed)
        if model.status in allowed:
            model.status = after

    # --- what holds after each step ---

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        self.deliveries_are_as_the_model_says()
        self.attempts_are_as_the_model_says()
        self.replays_are_as_the_model_says()
        self.subscriptions_are_as_the_model_says()
        self.whatever_is_unfinished_somebody_will_move_on()

    def deliveries_are_as_the_model_says(self) -> None:
        rows = self.do(self.driver.fetch(_DELIVERIES))
        stored = {row["id"]: tuple(row)[1:] for row in rows}
        assert stored == {
            one: (
                *(delivery.state, delivery.reason, delivery.due, delivery.token, delivery.series, delivery.count),
                *(delivery.replay, delivery.status_code, delivery.error_kind, delivery.redacted),
            )
            for one, delivery in self.model.deliveries.items()
        }

    def attempts_are_as_the_model_says(self) -> None:
        rows = self.do(self.driver.fetch("SELECT delivery_id, series, number, replay_id FROM attempts ORDER BY id"))
        expected = [(one, *attempt) for one, delivery in self.model.deliveries.items() for attempt in delivery.attempts]
        assert sorted(map(str, map(tuple, rows))) == sorted(map(str, expected))

    def replays_are_as_the_model_says(self) -> None:
        rows = self.do(self.driver.fetch("SELECT id, status, total, sent, succeeded, failed, skipped FROM replays"))
        assert {row["id"]: tuple(row)[1:] for row in rows} == {
            one: (replay.status, *replay.counters) for one, replay in self.model.replays.items()
        }
        items = self.do(self.driver.fetch("SELECT replay_id, delivery_id, outcome FROM replay_items"))
        assert {tuple(row) for row in items} == {
            (one, delivery_id, outcome)
            for one, replay in self.model.replays.items()
            for delivery_id, outcome in replay.items.items()
        }

    def subscriptions_are_as_the_model_says(self) -> None:
        rows = self.do(self.driver.fetch("SELECT id, status, version, settled FROM subscriptions"))
        assert {row["id"]: tuple(row)[1:] for row in rows} == {
            one: (model.status, model.version, model.settled) for one, model in self.model.subscriptions.items()
        }

    def whatever_is_unfinished_somebody_will_move_on(self) -> None:
        for one, delivery in self.model.deliveries.items():
            subscription = self.model.subscription_of(one)
            waits = delivery.state in UNFINISHED and delivery.due is Due.NEVER
            assert not waits or not subscription.settled or subscription.status in ("paused", "disabled")

    # --- the end ---

    def teardown(self) -> None:
        """From here, every delivery and every replay comes to its end when nothing more befalls them."""
        if sys.exc_info()[1] is not self._error_before:
            return  # a step has failed, and says more
        for which in range(len(self.live())):
            self.change(which, "resume")
        for replay_id, replay in self.model.replays.items():
            if replay.status is ReplayStatus.PAUSED:
                self._operate(replay_id, "resume")
        self.settle()
        for _ in range(len(self.model.replays) * MOST + 1):
            if not self._something_is_left():
                break
            self._tick()
            self._make_due(list(self.model.deliveries))
            claims = self._claim_due(MOST)
            for subscription_id in self.model.subscriptions:
                claims += self._claim_parked(subscription_id, MOST)
            for claimed in claims:
                self._finish([finish_of(claimed, "2xx")])
        self.everything_is_as_the_model_says()
        assert not self._something_is_left()
        super().teardown()

    def _something_is_left(self) -> bool:
        return any(one.state in UNFINISHED for one in self.model.deliveries.values()) or any(
            one.status in ADVANCING for one in self.model.replays.values()
        )


_DELIVERIES = """
SELECT id, state, reason, CASE WHEN due_at IS NULL THEN 'never' WHEN due_at <= now() THEN 'now' ELSE 'later' END,
    lease_token, series, attempt_count, replay_id, status_code, error_kind, redacted_at IS NOT NULL
FROM deliveries
"""


def pick(among: Sequence[Any], which: int) -> Any:
    return among[which % len(among)]


def finish_of(claimed: Claimed, name: str) -> Finish:
    without = deliveries.verdict_without_sending(claimed)
    if without is not None:  # its subscription was disabled or deleted when it was claimed
        return Finish(claimed, without)
    if name == UNTRIED:
        return Finish(claimed, Verdict(State.PENDING, claimed.waiting_reason, 0.0))
    verdict, status_code, error_kind = VERDICTS[name]
    return Finish(claimed, verdict, tried(status_code, error_kind))


async def _refused(work: Awaitable[Any]) -> bool:
    try:
        await work
    except Conflict:
        return True
    return False


def test_any_order_of_operations_leaves_what_the_model_says(database_url: str, owner_url: str) -> None:
    with asyncio.Runner() as runner:

        async def prepare() -> Seeds:
            database = Database(database_url, pool_size=3)
            stack.push_async_callback(database.close)
            seeds = Seeds(database, await stack.enter_async_context(database.driver()))
            await seeds.prepare()
            return seeds

        # What is tried here is what statements do, not whether the disk keeps it.
        name = make_url(owner_url).database
        runner.run(as_owner(owner_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off'))
        stack = AsyncExitStack()
        try:
            Machine.seeds, Machine.loop = runner.run(prepare()), runner.get_loop()
            run_state_machine_as_test(
                Machine,
                settings=settings(
                    max_examples=EXAMPLES,
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())
