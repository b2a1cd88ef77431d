"""What stands in Redis is not to be trusted: poison, doubled hints, hints that nobody can look up for now."""

from __future__ import annotations

import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from arq.constants import job_key_prefix, retry_key_prefix

from core import hints
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import SLACK_S, SWEEP_S, until
from tests.platform import HANGS_S

Play = Callable[[Scenario], None]
JOB_EXPIRES_MS = 300_000
JOB = "cron:keep_house"
MOST_LINES = 600  # some 200 jobs are poison, and each could leave a traceback of 40


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def _job(**fields: Any) -> bytes:
    """As arq writes it: try, function, arguments, keyword arguments, enqueued at."""
    return orjson.dumps({"t": None, "f": JOB, "a": [], "k": {}, "et": int(time.time() * 1_000)} | fields)


def _poison(bomb: Path) -> dict[str, bytes]:
    return {
        "pickled": pickle.dumps({"t": None, "f": JOB, "a": (Bomb(bomb),), "k": {}, "et": 1}),
        "no JSON": b"{not json",
        "no object": b"[1, 2]",
        "too deep": b"[" * 100_000,
        "an empty text": b"",
        "fields missing": orjson.dumps({"f": JOB}),
        "unknown function": _job(f="os.system", a=["touch " + str(bomb)]),
        "function that is no name": _job(f=[JOB]),
        "arguments that are none": _job(a=7),
        "keyword arguments that are none": _job(k=[1]),
        "a try that is no number": _job(t="one"),
        "a time that is no number": _job(et="yesterday"),
        "a time beyond all time": _job(et=10**18),
        "with arguments": _job(a=[1, 2]),
        "of a later version": _job(k={"days": 2}),
        "of an earlier version": _job(f="deliver", a=[[uuid4().hex]]),
    }


def _poisonous_hints(bomb: Path) -> list[bytes]:
    unknown = [uuid4().hex for _ in range(100_000)]
    return [
        pickle.dumps(Bomb(bomb)),
        b"{not json",
        b"[" * 100_000,
        b"",
        b"\xff\xfe",
        *map(
            orjson.dumps,
            (
                7,
                {"version": 2, "deliveries": unknown[:2]},
                [[]],
                [7, None, {}],
                [["order-1", None, 7, {}]],
                unknown[0],
                [unknown[:100]],
                [unknown],
                [unknown[at : at + 3] for at in range(0, 1_500, 3)],  # few enough to be read and looked up
            ),
        ),
    ]


def test_poison_in_the_queue_harms_nothing_and_is_not_run(play: Play, seed: int, tmp_path: Path) -> None:
    bomb = tmp_path / "executed"

    async def scenario(fleet: Fleet) -> None:
        web, worker = await fleet.start()
        await fleet.subscribe("/ok")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await fleet.hints_flow()
            logged = fleet.lines_logged()
            poison = _poison(bomb)
            for name in fleet.rng.sample(list(poison), len(poison)):
                await fleet.pause(0.0, 0.1)
                await _enqueue(fleet, f"poison {name}".encode(), poison[name])
            await _malform(fleet)
            poisonous = _poisonous_hints(bomb)
            for one in fleet.rng.sample(poisonous, len(poisonous)):
                await fleet.pause(0.0, 0.1)
                assert await fleet.parts.redis("RPUSH", fleet.rng.choice(hints.LISTS), one)
            await until(lambda: _is_gone(fleet), HANGS_S, "all poison is out of the queue", every_s=0.1)
            print(f"hints flow {await fleet.hints_flow():.1f} s after all poison is gone")
            await fleet.delivered(len(producer.accepted), within_s=SWEEP_S + 2 * SLACK_S)
        print(ledger := await settle(fleet, producer))
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert (web.exit_code, worker.exit_code) == (None, None)
        assert not bomb.exists()
        lines = fleet.lines_logged() - logged
        print(f"{lines} lines logged")
        assert lines < MOST_LINES

    play(scenario)


async def _enqueue(fleet: Fleet, job_id: bytes, job: bytes, score: float | str | None = None) -> None:
    now_ms = int(time.time() * 1_000)
    await fleet.parts.redis("SET", job_key_prefix.encode() + job_id, job, "PX", JOB_EXPIRES_MS)
    await fleet.parts.redis("ZADD", hints.JOBS, now_ms if score is None else score, job_id)


async def _malform(fleet: Fleet) -> None:
    """Poison beside the job's text: its id, its score, the keys that belong to it."""
    redis = fleet.parts.redis
    for number in range(150):  # more than arq reads at once
        await redis("ZADD", hints.JOBS, 0, f"poison of score 0, {number}")
        await redis("ZADD", hints.JOBS, 1, f"poison without a job, {number}")
    await _enqueue(fleet, b"poison \xff\xfe", _job())
    await _enqueue(fleet, b"poison from before all time", _job(), "-inf")
    await redis("LPUSH", f"{job_key_prefix}poison list", "x")
    await redis("ZADD", hints.JOBS, 2, "poison list")
    await redis("SET", f"{retry_key_prefix}poison of many tries", "many")
    await _enqueue(fleet, b"poison of many tries", _job())


async def _is_gone(fleet: Fleet) -> bool:
    waiting = await fleet.parts.redis("ZRANGE", hints.JOBS, 0, -1)
    return waiting is not None and not any(job_id.startswith(b"poison") for job_id in waiting)


def test_hints_doubled_to_two_workers_send_each_webhook_once(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.start_worker()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        doubled = 0
        async with producer.producing():
            until_s = time.monotonic() + 1.5
            while time.monotonic() < until_s or doubled <= len(producer.accepted) + 50:
                rows = await fleet.query(
                    "SELECT organization_id, subscription_id, id AS delivery_id FROM deliveries"
                    " ORDER BY id DESC LIMIT 20"
                )
                batch = [hints.Hint(**row) for row in rows]
                for _ in range(3):
                    fleet.rng.shuffle(batch)
                    await fleet.parts.redis("RPUSH", hints.PROMPT, hints.pack(batch))
                doubled += len(batch)
        print(f"{doubled} hints doubled;", ledger := await settle(fleet, producer))
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert doubled > ledger.accepted

    play(scenario)


def test_hints_that_can_not_be_looked_up_at_a_stop_lose_nothing(play: Play, seed: int) -> None:
    """A worker asks the database for the limits of subscriptions that are new to it, and somebody holds them."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.make_tenant()
        await fleet.parts.redis("CONFIG", "RESETSTAT")
        await fleet.start_web()
        await fleet.subscribe("/slow/0.05")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await producer.accepts(5)  # from now on the web process has no question about subscriptions
            async with fleet.session() as other, other.transaction():
                await other.execute("LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE")
                first = await fleet.start_worker(altered={"FAULTS_CONSTANTS": "worker.listener.MAX_TAKING=2"})
                await until(lambda: _two_are_taken(fleet), HANGS_S, "two batches of hints wait", every_s=0.1)
                first.send(signal.SIGTERM)
                assert await first.wait() == 0
            assert "sending" not in await fleet.states()
            second = await fleet.start_worker()
            print(f"hints flow {await fleet.hints_flow():.1f} s after a worker with room started")
        ledger = await settle(fleet, producer)
        print(ledger)
        assert (ledger.repeats, ledger.dead) == (0, 0)
        assert second.exit_code is None

    play(scenario)


async def _two_are_taken(fleet: Fleet) -> bool:
    """And no more of those that were written since the statistics were reset."""
    left = await fleet.parts.redis("LLEN", hints.PROMPT) or 0
    said = await fleet.parts.redis("INFO", "commandstats") or {}
    written = said.get("cmdstat_rpush", {}).get("calls", 0)
    return bool(left >= 10 and written - left in (2, 3))  # one may have come between the two looks
