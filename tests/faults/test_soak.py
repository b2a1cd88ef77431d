"""The soak in short, and whether its plan and its books are what they say. `make soak` is the long form."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.scene import Harm
from tests.faults.soak import books, plan, stage
from tests.faults.soak.books import Books, Windows
from tests.faults.soak.receiver import NOTHING, OK, Request

ROOT = Path(__file__).parents[2]
HOUR_S = 3_600


def test_a_short_soak_ends_with_an_exact_ledger(seed: int) -> None:
    argv = [sys.executable, "-m", "tests.faults.soak", "--seconds", "12", "--rate", "100", "--seed", str(seed)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "ledger: exact" in done.stdout


def test_the_same_seed_is_the_same_scenario() -> None:
    assert plan.draw(7, HOUR_S) == plan.draw(7, HOUR_S)
    assert plan.digest(plan.draw(7, HOUR_S)) != plan.digest(plan.draw(8, HOUR_S))


def test_every_kind_of_fault_comes_as_often_as_its_weight_says() -> None:
    assert set(stage.DO) == set(plan.KINDS)
    for seed in range(20):
        counts = Counter(fault.kind for fault in plan.draw(seed, HOUR_S))
        assert all(counts[kind] >= 10 * plan.KINDS[kind].weight / 2 for kind in plan.KINDS)


def test_in_the_middle_third_no_process_of_ours_is_ended() -> None:
    for seconds in (20, HOUR_S):
        for fault in plan.draw(3, seconds):
            assert not plan.KINDS[fault.kind].ends_our_processes or not seconds / 3 <= fault.at_s <= seconds * 2 / 3


# --- the books notice ---

HARM = Harm(100.0, 102.0)


def told(at: float, status_code: int | None = 200, duration_ms: int = 20) -> dict[str, Any]:
    kind = None if status_code == 200 else "timeout" if status_code is None else "status"
    return {"at": at, "duration_ms": duration_ms, "status_code": status_code, "error_kind": kind}


@pytest.mark.parametrize(
    ("requests", "attempts", "expected"),
    [
        # What needs no explaining: a retry after no answer, or after a failure.
        ([(50, NOTHING), (51, OK)], [told(50, None, 1000), told(51)], {}),
        # Killed after the answer, before the record: the first is told of by nobody, and comes again.
        ([(99, OK), (106, OK)], [told(106)], {"unrecorded": 1, "harmed": 1}),
        # Recorded by a worker that had lost its lease.
        ([(101, OK), (107, OK)], [told(101), told(107)], {"harmed": 1}),
        # The answer came after the worker's deadline.
        ([(50.9, OK), (51.5, OK)], [told(50, None, 1000), told(51.4)], {"late": 1}),
        # And these are faults.
        ([(50, OK), (51, OK)], [told(50), told(51)], "a webhook came again after a 200"),
        ([(50, OK)], [], "a request that no attempt tells of"),
        ([(103, OK), (106, OK)], [told(103), told(106)], "a webhook came again after a 200"),
        ([(90, OK), (106, OK)], [told(90), told(106)], "a webhook came again after a 200"),
        ([(99, OK), (99.5, OK)], [told(99), told(99.5)], "a webhook came again after a 200"),
    ],
)
def test_a_repeat_is_explained_or_a_fault(
    requests: list[tuple[float, int]], attempts: list[dict[str, Any]], expected: dict[str, int] | str
) -> None:
    scene: Any = SimpleNamespace(
        fleet=SimpleNamespace(harms=[HARM]), receiver=SimpleNamespace(stalls=[]), began=time.monotonic()
    )
    found = Books()
    seen = [Request(0, 1, at, said) for at, said in requests]
    books._explain_one(found, scene, Windows(scene), 6, seen, attempts)
    if isinstance(expected, str):
        assert [what for what in found.faults if what.startswith(expected)]
        assert "NOT EXACT" in str(found)
    else:
        assert not found.faults
        assert dict(found.counts) == expected


def test_what_was_sent_before_a_kill_may_be_noted_after_it_by_a_receiver_that_stood_still() -> None:
    scene: Any = SimpleNamespace(
        fleet=SimpleNamespace(harms=[HARM]), receiver=SimpleNamespace(stalls=[(101.9, 104.0)]), began=0.0
    )
    assert Windows(scene).explain(104.1)
    assert not Windows(scene).explain(105.0)
