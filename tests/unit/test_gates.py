from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from core.ids import new_id
from core.limiting.breaker import BreakerSettings, BreakerState
from core.limiting.limits import Limits
from worker.gates import FIRST_WINDOW, Gate, Gates
from worker.membership import Membership

ONE = new_id()
ORGANIZATION = new_id()


class Scene:
    """Gates with a clock, a share and a circuit that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.circuit = BreakerState.CLOSED
        self.share: Callable[[UUID, int], int] = lambda _, whole: whole
        self.moved: list[tuple[int, bool]] = []
        self.has_place = True
        self.gates = Gates(
            clock=lambda: self.now,
            share=lambda one, whole: self.share(one, whole),
            may_open=lambda one, whole: self.share(one, whole),
            circuit=lambda _, __: self.circuit,
            move=self._move,
        )
        self.gate = self.gates[ONE]

    def _move(self, gate: Gate, slow: bool) -> bool:
        if self.has_place:
            self.moved.append((gate.slots, slow))
        return self.has_place

    def limit(self, **limits: float) -> None:
        self.gates.configure(self.gate, ORGANIZATION, self.gate.version + 1, Limits(**limits), BreakerSettings())  # type: ignore[arg-type]

    @property
    def room(self) -> int:
        return self.gates.room(self.gate)

    def start(self, number: int = 1) -> list[UUID]:
        started = [new_id() for _ in range(number)]
        for one in started:
            self.gates.start(self.gate, one)
            self.gates.send(self.gate, one)
        return started

    def grow(self) -> int:
        """To the limit, by using all there is."""
        before = 0
        while (room := self.room) > before:
            before = room
            self.end(*self.start(room))
        return before

    def end(self, *started: UUID, ok: bool = True, stalls: bool = True, after_s: float = 0.01) -> None:
        self.now += after_s
        for one in started:
            self.gates.end(self.gate, one, ok=ok, stalls=stalls)
            self.gates.release(self.gate)

    def succeed(self, times: int, *, after_s: float = 0.01) -> None:
        for _ in range(times):
            self.end(*self.start(), after_s=after_s)


def test_a_subscription_nobody_knows_gets_a_handful_of_slots_until_it_answers() -> None:
    scene = Scene()
    started = scene.start(scene.room)
    assert (len(started), scene.room) == (FIRST_WINDOW, 0)
    scene.now += 100
    assert scene.room == 0  # time alone earns nothing
    scene.end(*started)
    assert scene.room == 2 * FIRST_WINDOW


def test_the_window_grows_up_to_the_limit_in_a_few_rounds() -> None:
    scene = Scene()
    scene.limit(max_in_flight=50)
    rounds = 0
    while scene.room < 50:
        scene.end(*scene.start(scene.room))
        rounds += 1
    assert rounds <= 5
    scene.end(*scene.start(scene.room))
    assert scene.room == 50


def test_a_failure_now_and_then_halves_the_window_and_no_more() -> None:
    scene = Scene()
    before = scene.grow()
    scene.end(*scene.start(), ok=False)
    assert scene.room == before // 2
    assert scene.grow() == before


def test_a_window_that_is_not_used_does_not_grow() -> None:
    scene = Scene()
    scene.succeed(500)
    assert scene.room <= 4


def test_a_refusal_by_the_receiver_says_nothing_about_its_strength() -> None:
    scene = Scene()
    before = scene.grow()
    scene.end(*scene.start(), ok=False, stalls=False)
    assert scene.room == before


def test_after_an_outage_an_endpoint_may_have_twice_as_much_each_second() -> None:
    scene = Scene()
    scene.grow()
    for _ in range(3):
        scene.end(*scene.start(), ok=False)
    assert scene.room == 2
    scene.now += 3_600  # an hour of silence is no sign of health
    assert scene.room == 2
    seen = []
    for _ in range(9):
        for _ in range(10):
            scene.end(*scene.start(scene.room), after_s=0.0)
        scene.now += 1.0
        seen.append(scene.room)
    assert seen[0] <= 4
    assert all(after <= 2 * before + 1 for before, after in pairwise(seen))
    assert seen[-1] == 200


def test_an_open_breaker_lets_nothing_through_and_a_half_open_one_its_trials() -> None:
    scene = Scene()
    scene.grow()
    scene.circuit = BreakerState.OPEN
    assert scene.room == 0
    scene.circuit = BreakerState.HALF_OPEN
    assert scene.room == 2  # as after any outage
    scene.end(*scene.start())
    scene.now += 5
    for _ in range(5):
        scene.end(*scene.start(scene.room))
    assert scene.room == 3  # half_open_max_calls
    scene.circuit = BreakerState.CLOSED
    assert scene.room > 3


def test_a_rate_is_neither_exceeded_nor_saved_up() -> None:
    scene = Scene()
    scene.limit(max_in_flight=200, per_second=20)
    scene.gate.window = 200
    scene.now += 3_600
    sent = 0
    for _ in range(300):  # three seconds
        room = scene.room
        sent += room
        scene.end(*scene.start(room), after_s=0.01)
    assert 58 <= sent <= 63


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_a_rate_below_one_a_second_waits_between(rate: float) -> None:
    scene = Scene()
    scene.limit(per_second=rate)
    assert scene.room == 1
    scene.end(*scene.start())
    scene.now += 0.9 / rate
    assert scene.room == 0
    scene.now += 0.2 / rate
    assert scene.room == 1


def test_what_was_not_claimed_after_all_costs_nothing_of_the_rate() -> None:
    scene = Scene()
    scene.limit(per_second=1)
    assert scene.room == 1
    [one] = scene.start()
    assert scene.room == 0
    scene.gates.withdraw(scene.gate, one)
    scene.gates.release(scene.gate)
    assert scene.room == 1


def test_who_does_not_answer_is_slow_and_takes_its_slots_along() -> None:
    scene = Scene()
    scene.start(3)
    scene.now += 0.9
    scene.gates.watch()
    assert not scene.gate.slow
    scene.now += 0.2
    scene.gates.watch()
    assert (scene.gate.slow, scene.moved) == (True, [(3, True)])
    assert scene.gates.is_held_up(scene.gate)


def test_who_finds_no_place_in_the_slow_lane_stays() -> None:
    scene = Scene()
    scene.has_place = False
    scene.start()
    scene.now += 5
    scene.gates.watch()
    assert not scene.gate.slow


def test_who_fails_again_and_again_is_slow_and_comes_back_when_it_is_quick() -> None:
    scene = Scene()
    for _ in range(3):
        scene.end(*scene.start(), ok=False)
    assert scene.gate.slow
    scene.succeed(2)
    assert scene.gate.slow
    scene.succeed(1)
    assert not scene.gate.slow
    assert [slow for _, slow in scene.moved] == [True, False]


def test_who_answers_slowly_is_slow_until_its_average_is_quick() -> None:
    scene = Scene()
    for _ in range(20):
        scene.end(*scene.start(), after_s=1.5)
    assert scene.gate.slow
    scene.succeed(4)
    assert scene.gate.slow  # the average still remembers
    scene.succeed(10)
    assert not scene.gate.slow


def test_a_subscription_that_takes_nothing_is_passed_through_past_its_limits() -> None:
    scene = Scene()
    scene.limit(max_in_flight=1, per_second=0.1)
    scene.circuit = BreakerState.OPEN
    scene.gate.sends = False
    assert scene.room == 100
    scene.start(100)
    assert scene.room == 0
    scene.gate.sends = True
    assert scene.gates.is_overrun(scene.gate)


def test_what_passed_through_past_a_rate_is_handed_back_when_it_may_be_sent_again() -> None:
    scene = Scene()
    scene.limit(max_in_flight=200, per_second=1)
    assert scene.room == 1
    scene.gate.window = 200
    scene.gate.sends = False
    started = scene.start(100)
    scene.gate.sends = True
    sent = 0
    for one in started:
        if scene.gates.is_overrun(scene.gate):
            scene.gates.withdraw(scene.gate, one)
        else:
            sent += 1
    assert sent == 1


def test_who_holds_slots_is_known_and_whether_it_has_answered() -> None:
    scene = Scene()
    assert scene.gates.holding() == []
    started = scene.start(2)
    assert (scene.gates.holding(), scene.gate.is_unproven) == ([scene.gate], True)
    scene.end(*started)
    assert (scene.gates.holding(), scene.gate.is_unproven) == ([], False)


def test_a_worker_without_a_share_keeps_no_hints() -> None:
    scene = Scene()
    assert not scene.gates.is_held_up(scene.gate)
    scene.share = lambda _, __: 0
    assert scene.gates.is_held_up(scene.gate)


def test_what_a_claim_waited_for_does_not_count_as_slowness() -> None:
    scene = Scene()
    one = new_id()
    scene.gates.start(scene.gate, one)
    scene.now += 5
    scene.gates.watch()
    assert not scene.gate.slow
    scene.gates.send(scene.gate, one)
    scene.end(one)
    assert scene.gate.average_s < 0.1


def test_an_older_version_does_not_replace_a_newer() -> None:
    scene = Scene()
    scene.gates.configure(scene.gate, ORGANIZATION, 3, Limits(7), BreakerSettings())
    scene.gates.configure(scene.gate, ORGANIZATION, 2, Limits(9), BreakerSettings())
    assert scene.gate.limits == Limits(7)


def test_idle_gates_are_forgotten_and_busy_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.gates.MAX_GATES", 20)
    scene = Scene()
    scene.start()
    others: list[Gate] = [scene.gates[new_id()] for _ in range(50)]
    assert ONE in scene.gates._gates
    assert sum(one.id in scene.gates._gates for one in others) <= 20


# --- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("whole", [0, 1, 2, 5, 200])
def test_the_shares_of_all_workers_add_up(workers: int, whole: int) -> None:
    members = [Membership(uuid4()) for _ in range(workers)]
    everybody = tuple(sorted(one.id for one in members))
    for one in members:
        one._all = everybody
    for _ in range(20):
        subscription_id = new_id()
        shares = [one.share(subscription_id, whole) for one in members]
        assert sum(shares) == whole
        assert max(shares) - min(shares) <= 1


def test_small_shares_fall_to_different_workers() -> None:
    members = [Membership(uuid4()) for _ in range(3)]
    everybody = tuple(sorted(one.id for one in members))
    for one in members:
        one._all = everybody
    chosen = [new_id() for _ in range(300)]
    counts = [sum(one.share(each, 1) for each in chosen) for one in members]
    assert sum(counts) == 300
    assert min(counts) > 60


@pytest.mark.parametrize(("old", "new"), [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("whole", [1, 2, 3, 6, 10, 200])
def test_workers_that_come_and_what_others_have_open_keep_to_the_whole(old: int, new: int, whole: int) -> None:
    members = [Membership(uuid4()) for _ in range(old + new)]
    olds, news = members[:old], members[old:]
    for _ in range(20):
        subscription_id = new_id()
        for one in olds:
            one._all = tuple(sorted(each.id for each in olds))
        open_ = {one.id: one.may_open(subscription_id, whole) for one in olds}
        for one in members:
            one._all = tuple(sorted(each.id for each in members))
        for one in news:
            one._open_before = {subscription_id: open_}
        most = sum(max(open_[one.id], one.may_open(subscription_id, whole)) for one in olds)
        assert most + sum(one.may_open(subscription_id, whole) for one in news) <= whole
        for one in news:  # once that has ended
            one._open_before = {}
        assert sum(one.may_open(subscription_id, whole) for one in members) == whole
