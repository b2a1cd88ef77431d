"""Redis answers, and badly: late, that its memory is full, that it takes no writes, that a password is wanted, or with
data of another kind. What is true of an absent Redis must be true of an ill one: nothing waits for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from core import hints
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer, Try
from tests.faults.scene import SLACK_S, SWEEP_S, until
from tests.platform import HANGS_S

Play = Callable[[Scenario], None]
ACCEPTED_WITHIN_S = 1.0
LINES_PER_S = 4.0  # of web and worker together: each looks for Redis about once a second, and says so once
LINES_AT_ONCE = 15
PASSWORD = "wanted-from-now-on"


def test_slow_or_standing_still_nobody_waits_for_it(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await fleet.hints_flow()
            began, logged = time.monotonic(), fleet.lines_logged()
            for _ in range(3):
                # Shorter than the time that clients wait, or longer: late answers, or none.
                await fleet.parts.redis("CLIENT", "PAUSE", fleet.rng.randrange(300, 1_500), "ALL")
                await fleet.pause(0.2, 0.8)
            fleet.parts.valkey.freeze()
            try:
                await fleet.pause(2.0, 2.5)
                await _is_served(fleet, producer)
            finally:
                fleet.parts.valkey.thaw()
            healed_s = await fleet.hints_flow()
        _check_acceptance(producer, began)
        _no_flood(fleet, began, logged)
        print(f"hints flow {healed_s:.1f} s after it is back;", ledger := await settle(fleet, producer))
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert (web.exit_code, worker.exit_code) == (None, None)

    play(scenario)


@dataclass(frozen=True)
class Refusal:
    """How Redis is told to refuse, and to stop it. Nothing undoes what has no `undo`: the worker has to."""

    said: str  # in what it answers; the log shows that it did
    do: tuple[str, ...]
    undo: tuple[str, ...] | None
    needs: str | None = None


REFUSALS = {
    "its memory is full": Refusal(
        "OOM|used memory", ("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")
    ),
    "it has too few replicas": Refusal(
        "NOREPLICAS|good replicas",
        ("CONFIG", "SET", "min-replicas-to-write", "1"),
        ("CONFIG", "SET", "min-replicas-to-write", "0"),
    ),
    "it is a replica": Refusal("READONLY|read only", ("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    "it wants a password": Refusal(
        "NOAUTH|Authentication",
        ("CONFIG", "SET", "requirepass", PASSWORD),
        ("CONFIG", "SET", "requirepass", ""),
        PASSWORD,
    ),
    "its list of hints is no list": Refusal(
        "a list of hints in Redis was something else", ("SET", hints.PROMPT, "something else"), None
    ),
    "its queue of jobs is no queue": Refusal(
        "a queue in Redis was something else", ("SET", hints.JOBS, "something else"), None
    ),
}


def test_refusing_in_every_way_it_holds_nobody_up_and_heals(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await fleet.hints_flow()
            for name in fleet.rng.sample(list(REFUSALS), len(REFUSALS)):
                refusal = REFUSALS[name]
                began, logged = time.monotonic(), fleet.lines_logged()
                async with _refusing(fleet, refusal):
                    await fleet.pause(0.8, 1.4)
                    await _is_served(fleet, producer)
                healed_s = await fleet.hints_flow()
                _check_acceptance(producer, began)
                lines = _no_flood(fleet, began, logged)
                print(f"{name}: hints flow {healed_s:.1f} s after; {lines} lines logged")
                words = refusal.said.split("|")
                said = fleet.log_of(web) + fleet.log_of(worker)
                assert any(word in said for word in words), f"{name}: Redis did not refuse"
        print(ledger := await settle(fleet, producer))
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert (web.exit_code, worker.exit_code) == (None, None)

    play(scenario)


@asynccontextmanager
async def _refusing(fleet: Fleet, refusal: Refusal) -> AsyncIterator[None]:
    redis = fleet.parts.redis
    assert await redis(*refusal.do) is not None
    try:
        if refusal.needs:  # who is connected stays let in, so they must connect anew
            await redis("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes", password=refusal.needs)
        yield
    finally:
        if refusal.undo is not None:
            assert await redis(*refusal.undo, password=refusal.needs) is not None
        else:
            await until(lambda: _is_mended(fleet, refusal.do[1]), HANGS_S, f"{refusal.do[1]} is mended", every_s=0.1)


async def _is_mended(fleet: Fleet, key: str) -> bool:
    return await fleet.parts.redis("TYPE", key) not in (None, "string", b"string")


async def _is_served(fleet: Fleet, producer: Producer) -> None:
    """What is accepted by now is delivered by the sweep, and more is accepted."""
    await producer.accepts(10)
    await fleet.delivered(len(producer.accepted), within_s=SWEEP_S + 2 * SLACK_S)


def _check_acceptance(producer: Producer, began: float) -> None:
    tries = producer.since(began)
    assert {one.status for one in tries} == {202}
    almost_all_s, before_s = _almost_all_s(tries), _almost_all_s([one for one in producer.tries() if one.ended < began])
    # What is slow on a busy machine was so before.
    assert almost_all_s < max(ACCEPTED_WITHIN_S, 3 * before_s), f"acceptance waited {almost_all_s:.1f} s for Redis"


def _almost_all_s(tries: Sequence[Try]) -> float:
    """In how many seconds 95 % of them were answered."""
    took_s = sorted(one.ended - one.began for one in tries)
    return took_s[len(took_s) * 95 // 100]


def _no_flood(fleet: Fleet, began: float, before: int) -> int:
    """Returns how many lines were logged since `began`, when there were `before` of them."""
    lines = fleet.lines_logged() - before
    assert lines <= LINES_AT_ONCE + LINES_PER_S * (time.monotonic() - began), f"{lines} lines were logged"
    return lines
