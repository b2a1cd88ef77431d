"""What must be true of deliveries, subscriptions and replays, said in plain Python: no SQL, no clock, no locks.

Time has two values here: what is due is due now, or later, until the test says that the time has come.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from uuid import UUID

from core.deliveries import Claimed, Finish
from core.models import ItemOutcome, ReplayAction, ReplayStatus, SubscriptionStatus
from core.states import PARKING, DiscardReason, PendingReason, State

REPLAYABLE = {State.PENDING, State.DELIVERED, State.DEAD, State.DISCARDED}
DISCARDABLE = {State.PENDING, State.DEAD}
UNFINISHED = {State.PENDING, State.SENDING}
TAKING = {SubscriptionStatus.ACTIVE, SubscriptionStatus.PAUSED}
ADVANCING = {ReplayStatus.QUEUED, ReplayStatus.RUNNING}


class Due(StrEnum):
    NEVER = "never"
    NOW = "now"
    LATER = "later"


@dataclass
class ModelSubscription:
    status: SubscriptionStatus = SubscriptionStatus.ACTIVE
    version: int = 1
    settled: bool = True

    def to(self, status: SubscriptionStatus) -> None:
        self.status = status
        self.version += 1
        self.settled = status is SubscriptionStatus.PAUSED


@dataclass
class ModelDelivery:
    subscription: UUID
    state: State = State.PENDING
    reason: str | None = PendingReason.NEW
    due: Due = Due.NOW
    token: UUID | None = None
    series: int = 0
    count: int = 0
    replay: UUID | None = None
    status_code: int | None = None
    error_kind: str | None = None
    redacted: bool = False  # its event
    attempts: list[tuple[int, int, UUID | None]] = field(default_factory=list)  # series, number, replay

    def to(self, state: State, reason: str | None, due: Due) -> None:
        self.state, self.reason, self.due, self.token = state, reason, due, None

    @property
    def waiting_reason(self) -> PendingReason:
        if self.count:
            return PendingReason.RETRY
        return PendingReason.REPLAY if self.series else PendingReason.NEW


@dataclass
class ModelReplay:
    rate: int
    status: ReplayStatus
    items: dict[UUID, ItemOutcome]  # by delivery
    action: ReplayAction = ReplayAction.REPLAY

    def of(self, *outcomes: ItemOutcome) -> list[UUID]:
        return [delivery_id for delivery_id, outcome in self.items.items() if outcome in outcomes]

    @property
    def open(self) -> bool:
        return bool(self.of(ItemOutcome.WAITING, ItemOutcome.SENT))

    @property
    def has_work(self) -> bool:
        """Something waits to be sent, or nothing is left to be answered."""
        return self.status in ADVANCING and bool(self.of(ItemOutcome.WAITING) or not self.open)

    @property
    def counters(self) -> tuple[int, int, int, int, int]:
        """total, sent, succeeded, failed, skipped"""
        found = list(self.items.values())
        succeeded, failed = found.count(ItemOutcome.SUCCEEDED), found.count(ItemOutcome.FAILED)
        sent = found.count(ItemOutcome.SENT) + succeeded + failed
        return len(found), sent, succeeded, failed, found.count(ItemOutcome.SKIPPED)


@dataclass
class Model:
    subscriptions: dict[UUID, ModelSubscription] = field(default_factory=dict)
    deliveries: dict[UUID, ModelDelivery] = field(default_factory=dict)
    replays: dict[UUID, ModelReplay] = field(default_factory=dict)

    def subscription_of(self, delivery_id: UUID) -> ModelSubscription:
        return self.subscriptions[self.deliveries[delivery_id].subscription]

    def due(self) -> set[UUID]:
        return {
            one
            for one, delivery in self.deliveries.items()
            if delivery.state in UNFINISHED and delivery.due is Due.NOW and delivery.reason not in PARKING
        }

    def parked(self, subscription_id: UUID | None = None) -> set[UUID]:
        return {
            one
            for one, delivery in self.deliveries.items()
            if delivery.state is State.PENDING
            and delivery.reason in PARKING
            and subscription_id in (None, delivery.subscription)
        }

    # --- workers ---

    def claimed(self, claimed: Claimed) -> None:
        delivery = self.deliveries[claimed.id]
        delivery.to(State.SENDING, None, Due.LATER)
        delivery.token = claimed.token

    def holds(self, claimed: Claimed) -> bool:
        delivery = self.deliveries[claimed.id]
        return delivery.state is State.SENDING and delivery.token == claimed.token

    def finish(self, finish: Finish) -> bool:
        """Whether the delivery moves."""
        claimed, verdict, tried = finish.claimed, finish.verdict, finish.tried
        delivery = self.deliveries[claimed.id]
        if tried:
            delivery.attempts.append((claimed.series, claimed.attempt_count + 1, claimed.replay_id))
        if not self.holds(claimed):
            return False
        if tried:
            delivery.count += 1
            delivery.status_code, delivery.error_kind = tried.status_code, tried.error_kind
        due = Due.NEVER if verdict.delay_s is None else Due.LATER if verdict.delay_s else Due.NOW
        delivery.to(verdict.state, verdict.reason, due)
        if delivery.redacted and verdict.state is State.PENDING:
            delivery.to(State.DISCARDED, DiscardReason.EVENT_REDACTED, Due.NEVER)
        if delivery.replay and (tried or delivery.state is not State.PENDING):
            outcome = {State.DELIVERED: ItemOutcome.SUCCEEDED, State.DISCARDED: ItemOutcome.SKIPPED}
            last = verdict.state if tried else delivery.state
            self.replays[delivery.replay].items[claimed.id] = outcome.get(last, ItemOutcome.FAILED)
        return True

    def disable(self, claims: list[Claimed]) -> None:
        """What receivers ask for in one batch: only who was sent under a subscription as it still is, is heard."""
        heard = {
            one.subscription_id
            for one in claims
            if self.subscriptions[one.subscription_id].version == one.subscription_version
            and self.subscriptions[one.subscription_id].status in TAKING
        }
        for subscription_id in heard:
            self.subscriptions[subscription_id].status = SubscriptionStatus.DISABLED
            self.subscriptions[subscription_id].version += 1

    def hold(self, claimed: Claimed) -> None:
        if not self.holds(claimed):
            return
        delivery = self.deliveries[claimed.id]
        if delivery.redacted:
            delivery.to(State.DISCARDED, DiscardReason.EVENT_REDACTED, Due.NEVER)
            if delivery.replay:
                self.replays[delivery.replay].items[claimed.id] = ItemOutcome.SKIPPED
        elif self.subscription_of(claimed.id).status is SubscriptionStatus.PAUSED:
            delivery.to(State.PENDING, PendingReason.PAUSED, Due.NEVER)
        else:
            delivery.to(State.PENDING, delivery.waiting_reason, Due.LATER)

    def settle(self) -> None:
        for subscription_id, subscription in self.subscriptions.items():
            if not subscription.settled and subscription.status is SubscriptionStatus.ACTIVE:
                self.release_held(subscription_id)
            if not subscription.settled and subscription.status is SubscriptionStatus.DELETED:
                self.discard_pending(subscription_id)
            subscription.settled = True

    def release_held(self, subscription_id: UUID) -> None:
        for delivery in self.deliveries.values():
            if delivery.subscription == subscription_id and delivery.reason == PendingReason.PAUSED:
                delivery.to(State.PENDING, delivery.waiting_reason, Due.NOW)

    def discard_pending(self, subscription_id: UUID) -> None:
        for delivery_id, delivery in self.deliveries.items():
            if delivery.subscription == subscription_id and delivery.state is State.PENDING:
                delivery.to(State.DISCARDED, DiscardReason.SUBSCRIPTION_DELETED, Due.NEVER)
                self._unanswered(delivery_id)

    # --- people ---

    def can_replay(self, delivery_id: UUID) -> bool:
        delivery = self.deliveries[delivery_id]
        takes = self.subscription_of(delivery_id).status in TAKING
        return delivery.state in REPLAYABLE and not delivery.redacted and takes

    def replay(self, delivery_id: UUID, replay_id: UUID) -> None:
        if not self.can_replay(delivery_id):
            self.replays[replay_id].items[delivery_id] = ItemOutcome.SKIPPED
            return
        self._unanswered(delivery_id)
        delivery = self.deliveries[delivery_id]
        delivery.to(State.PENDING, PendingReason.REPLAY, Due.NOW)
        delivery.series, delivery.count, delivery.replay = delivery.series + 1, 0, replay_id
        self.replays[replay_id].items[delivery_id] = ItemOutcome.SENT

    def tick(self) -> list[UUID]:
        """Each replay's waiting ones, as many as its rate allows in a second.

        Whose last answer another replay takes away in this very step, is completed by the next.
        """
        due: list[UUID] = []
        for replay_id in [one for one in sorted(self.replays) if self.replays[one].has_work]:
            replay = self.replays[replay_id]
            chosen = sorted(replay.of(ItemOutcome.WAITING))[: replay.rate]
            if replay.action is ReplayAction.REPLAY:
                due += [one for one in chosen if self.can_replay(one)]
            for delivery_id in chosen:
                self._act(delivery_id, replay_id)
            if not replay.open:
                replay.status = ReplayStatus.COMPLETED
            elif chosen:
                replay.status = ReplayStatus.RUNNING
        return due

    def _act(self, delivery_id: UUID, replay_id: UUID) -> None:
        if self.replays[replay_id].action is ReplayAction.REPLAY:
            self.replay(delivery_id, replay_id)
            return
        gone = self.discard(delivery_id)
        self.replays[replay_id].items[delivery_id] = ItemOutcome.SUCCEEDED if gone else ItemOutcome.SKIPPED

    def discard(self, delivery_id: UUID) -> bool:
        delivery = self.deliveries[delivery_id]
        if delivery.state not in DISCARDABLE:
            return False
        delivery.to(State.DISCARDED, DiscardReason.REQUESTED, Due.NEVER)
        self._unanswered(delivery_id)
        return True

    def redact(self, delivery_id: UUID) -> None:
        delivery = self.deliveries[delivery_id]
        delivery.redacted = True
        if delivery.state is State.PENDING:
            delivery.to(State.DISCARDED, DiscardReason.EVENT_REDACTED, Due.NEVER)
            self._unanswered(delivery_id)

    def _unanswered(self, delivery_id: UUID) -> None:
        """It is replayed anew or taken out: what an earlier replay sent and no attempt answered is skipped."""
        replay_id = self.deliveries[delivery_id].replay
        if replay_id and self.replays[replay_id].items[delivery_id] is ItemOutcome.SENT:
            self.replays[replay_id].items[delivery_id] = ItemOutcome.SKIPPED
