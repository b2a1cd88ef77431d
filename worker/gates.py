"""How much of each subscription a worker may have under way: its limits, its circuit breaker, and what was measured.

A gate says how many more deliveries of its subscription may be claimed now. What it does not let through stays in the
database, where it costs neither an attempt nor a slot.

- **Limits** are the subscription's own, and each worker has a share of them (`worker.membership`).
- **The window** starts small and grows with each success, so an endpoint that hangs from the start holds a handful of
  slots. A failure halves it. After an outage it may no more than double each second, so that an endpoint that comes
  back is not flooded (TCP's slow start, RFC 5681, with seconds for round trips).
- **Lanes** keep the slow from the quick: an endpoint that takes long, or fails again and again, is served from slots
  of its own, until it was quick and successful a few times.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from uuid import UUID

from core.limiting.breaker import BreakerSettings, BreakerState
from core.limiting.limits import Limits

FIRST_WINDOW = 2
RAMP_START = 2  # what an endpoint may have under way in an outage and right after it; then it doubles each second
SLOW_S = 1.0  # an answer that takes longer makes an endpoint slow, and so does one that is still out
QUICK_S = 0.5  # below that on average it is quick again
FAILURES_IN_A_ROW = 3
SUCCESSES_IN_A_ROW = 3
SMOOTHING = 0.2  # of the newest answer in the average duration
BURST_S = 0.1  # how much of a rate may be saved up
UNSENDABLE_ROOM = 100  # deliveries at a time that will only be discarded or held
MAX_GATES = 20_000

Share = Callable[[UUID, int], int]
Circuit = Callable[[UUID, BreakerSettings], BreakerState]
Move = Callable[["Gate", bool], bool]


class Gate:
    """One subscription, in one worker."""

    __slots__ = (
        "average_s",
        "breaker",
        "circuit",
        "id",
        "limits",
        "organization_id",
        "outage",
        "peak",
        "proven",
        "ramp_from",
        "row_bad",
        "row_good",
        "sending",
        "sends",
        "slots",
        "slow",
        "started",
        "tokens",
        "tokens_at",
        "turns",
        "version",
        "window",
    )

    def __init__(self, subscription_id: UUID) -> None:
        self.id = subscription_id
        self.organization_id: UUID | None = None  # until its settings are known
        self.version = 0
        self.limits = Limits()
        self.breaker = BreakerSettings()
        self.sends = True  # False: it is paused, disabled or deleted, and its deliveries only pass through
        self.slow = False
        self.proven = False  # it has succeeded here, and was not slow since
        self.slots = 0  # held by deliveries of it, from the claim until their outcome is recorded
        self.started: set[UUID] = set()  # deliveries reserved, claimed or being sent
        self.sending: dict[UUID, float] = {}  # since when those are that are being sent, the longest first
        self.window = FIRST_WINDOW
        self.peak = 0  # the most that was under way since there was nothing
        self.outage = False  # it failed again and again, and has not succeeded since
        self.ramp_from: float | None = None  # when it came back
        self.average_s = 0.0
        self.row_good = self.row_bad = 0
        self.tokens = 0.0
        self.tokens_at = 0.0
        self.circuit = BreakerState.CLOSED  # when it was last asked for room
        self.turns = 0  # in which something that was parked for it was claimed

    @property
    def is_unproven(self) -> bool:
        """Whether it is served from the quick lane without having answered yet."""
        return not self.slow and not self.proven

    def is_idle(self) -> bool:
        return not self.slots and not self.started


class Gates:
    """All gates of a worker. `share`: how much of a subscription's whole number is this worker's; `may_open`: how many
    of so many requests at once; `circuit`: the state of its breaker. `move`: moves the slots of a gate to the slow lane
    or back, unless there is no place for them."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        share: Share,
        may_open: Share,
        circuit: Circuit,
        move: Move,
    ) -> None:
        self._clock = clock
        self._share = share
        self._may_open = may_open
        self._circuit = circuit
        self._move = move
        self._gates: OrderedDict[UUID, Gate] = OrderedDict()  # the longest unused first
        self._holding: set[Gate] = set()  # those that hold slots

    def __getitem__(self, subscription_id: UUID) -> Gate:
        gate = self._gates.get(subscription_id)
        if gate is None:
            gate = self._gates[subscription_id] = Gate(subscription_id)
            self._forget_some()
        return gate

    def configure(
        self, gate: Gate, organization_id: UUID, version: int, limits: Limits, breaker: BreakerSettings
    ) -> None:
        if not gate.slots:  # or they would not be given back to whom they were taken from
            gate.organization_id = organization_id
        if version >= gate.version:
            gate.version, gate.limits, gate.breaker = version, limits, breaker

    # --- how much room there is ---

    def room(self, gate: Gate) -> int:
        """How many more of its deliveries may be claimed now."""
        room = self._most(gate) - len(gate.started)
        if room <= 0:
            return 0
        return room if gate.limits.per_second is None or not gate.sends else min(room, self._tokens(gate))

    def is_overrun(self, gate: Gate) -> bool:
        """Whether more of it is under way than may be, or was begun than its rate allows."""
        if gate.limits.per_second is not None and (gate.tokens < 0 or not self._rate(gate)):
            return True
        return len(gate.started) > self._most(gate)

    def _most(self, gate: Gate) -> int:
        if not gate.sends:
            return UNSENDABLE_ROOM
        gate.circuit = self._circuit(gate.id, gate.breaker)
        if gate.circuit is BreakerState.OPEN:
            gate.outage = True
            return 0
        most = self._may_open(gate.id, gate.limits.max_in_flight)
        window = gate.window if gate.ramp_from is None and not gate.outage else self._window(gate)
        if gate.circuit is BreakerState.HALF_OPEN:
            most = min(most, self._may_open(gate.id, gate.breaker.half_open_max_calls))
        return most if most < window else window

    def is_held_up(self, gate: Gate) -> bool:
        """Whether its deliveries had better wait in the database than in this worker's memory."""
        return gate.slow or gate.circuit is not BreakerState.CLOSED or self.is_anothers(gate)

    def is_anothers(self, gate: Gate) -> bool:
        """Whether its limits are too small to be shared by all workers, and this one has no part in them."""
        limits = gate.limits
        return not self._share(gate.id, limits.max_in_flight) or (
            limits.per_second is not None and not self._rate(gate)
        )

    def _window(self, gate: Gate) -> int:
        if gate.outage:
            return min(gate.window, RAMP_START)
        if gate.ramp_from is None:
            return gate.window
        doublings = min(10.0, self._clock() - gate.ramp_from)
        return min(gate.window, int(RAMP_START * 2**doublings))

    def _tokens(self, gate: Gate) -> int:
        """How many deliveries its rate allows now."""
        mine, now = self._rate(gate), self._clock()
        gate.tokens = min(1.0 + mine * BURST_S, gate.tokens + (now - gate.tokens_at) * mine)
        gate.tokens_at = now
        return int(gate.tokens) if mine else 0

    def _rate(self, gate: Gate) -> float:
        """This worker's part of its rate. One too low to divide belongs to one worker."""
        rate = gate.limits.per_second
        assert rate is not None  # nosec B101 # noqa: S101 - for the type checker; the caller has looked
        parts = max(1, int(rate))  # of at least one delivery a second, so that no worker's part is a trickle
        return rate * self._share(gate.id, parts) / parts

    # --- what happens ---

    def start(self, gate: Gate, delivery_id: UUID) -> None:
        """A delivery of it is about to be claimed."""
        self._gates.move_to_end(gate.id)
        gate.peak = max(gate.peak if gate.started else 0, len(gate.started) + 1)
        gate.started.add(delivery_id)
        gate.slots += 1
        self._holding.add(gate)
        if gate.limits.per_second is not None:
            gate.tokens -= 1

    def send(self, gate: Gate, delivery_id: UUID) -> None:
        """It is being sent. What it waited for until now says nothing about its endpoint."""
        gate.sending[delivery_id] = self._clock()

    def withdraw(self, gate: Gate, delivery_id: UUID) -> None:
        """It was not claimed after all, or handed back untried."""
        gate.sending.pop(delivery_id, None)
        if delivery_id in gate.started:
            gate.started.discard(delivery_id)
            if gate.limits.per_second is not None:
                gate.tokens += 1

    def end(self, gate: Gate, delivery_id: UUID, *, ok: bool, stalls: bool) -> None:
        """An attempt came to an end. `stalls`: it failed in a way that asks for less (no answer, 429, 5xx)."""
        sent_at = gate.sending.pop(delivery_id, None)
        if sent_at is None:
            return
        gate.started.discard(delivery_id)
        took_s = self._clock() - sent_at
        gate.average_s += SMOOTHING * (took_s - gate.average_s)
        if ok:
            gate.row_good, gate.row_bad = gate.row_good + 1, 0
            gate.proven = True
            if gate.outage:
                gate.outage, gate.ramp_from, gate.window = False, self._clock(), FIRST_WINDOW
            elif gate.ramp_from is not None and self._window(gate) >= gate.limits.max_in_flight:
                gate.ramp_from = None
            if 2 * gate.peak >= gate.window:  # only by what is used (RFC 7661)
                gate.window = min(gate.limits.max_in_flight, gate.window + 1)
        else:
            gate.row_good, gate.row_bad = 0, gate.row_bad + 1
            if stalls:
                gate.window = max(1, gate.window // 2)
                gate.outage = gate.outage or gate.row_bad >= FAILURES_IN_A_ROW
        self._judge(gate)

    def release(self, gate: Gate) -> None:
        """The slot of a delivery of it is free again."""
        gate.slots -= 1
        if not gate.slots:
            self._holding.discard(gate)

    def holding(self) -> list[Gate]:
        """Those that hold slots."""
        return list(self._holding)

    def watch(self) -> None:
        """Puts those into the slow lane whose answers are out for long; to be called a few times a second."""
        before = self._clock() - SLOW_S
        for gate in self._holding:
            if not gate.slow and gate.sending and next(iter(gate.sending.values())) < before:
                self._put(gate, slow=True)

    def _judge(self, gate: Gate) -> None:
        if not gate.slow and (gate.average_s > SLOW_S or gate.row_bad >= FAILURES_IN_A_ROW):
            self._put(gate, slow=True)
        elif gate.slow and gate.average_s < QUICK_S and gate.row_good >= SUCCESSES_IN_A_ROW:
            self._put(gate, slow=False)

    def _put(self, gate: Gate, *, slow: bool) -> None:
        if self._move(gate, slow):
            gate.slow, gate.proven = slow, not slow

    def _forget_some(self) -> None:
        if len(self._gates) <= MAX_GATES:
            return
        for gate in list(self._idle())[: MAX_GATES // 10]:
            del self._gates[gate.id]

    def _idle(self) -> Iterator[Gate]:
        return (gate for gate in self._gates.values() if gate.is_idle())
