"""What runs in a soak, a web process and two workers on services of their own, and how each fault is done to it.

Each part has a lock, so that no two faults harm the same one at the same time; different ones are harmed together as
chance has it. Whatever ends is started again, as a supervisor would.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import aiohttp
import asyncpg

from bench import usage
from cli.process import Process
from core.secrets import signing
from tests.faults.fleet import Fleet
from tests.faults.parts import Parts
from tests.faults.scene import TIMEOUT_MS, Harm
from tests.faults.soak.plan import LEASE_MARGIN_S, Fault
from tests.faults.soak.producer import TYPES
from tests.faults.soak.receiver import Behaviour, SoakReceiver

BACK_WITHIN_S = 60.0  # for whatever is started or asked while other things are down
GRACE_S = 30
REPLAY_RATE = 500
# A fault that had to wait so long for others is left out: on a machine that is too slow for the plan they would follow
# one upon the other, and nothing would ever run between them.
TOO_LATE_S = 20.0
BREAKER_MS = 1_000  # so that it opens and closes often
REST_S = 1.0  # for a part after a fault
WEB, WORKERS = "web", ("worker 1", "worker 2")

PATIENT = {"backoff_strategy": "exponential", "base_delay_ms": 200, "max_delay_ms": 3_000, "max_attempts": 100}
HASTY = {"backoff_strategy": "fixed", "base_delay_ms": 200, "max_attempts": 4}  # gives up within a fault
# Every event goes to the first and to one or two of the others.
SUBSCRIPTIONS: list[tuple[list[str], dict[str, Any], Behaviour]] = [
    (["*"], PATIENT, Behaviour()),
    ([TYPES[0]], PATIENT, Behaviour(slow_s=(0.0, 0.3))),
    ([TYPES[1]], PATIENT, Behaviour(fails=0.05)),
    ([TYPES[2]], HASTY, Behaviour()),
    (["stock.*"], HASTY, Behaviour(fails=0.02)),
    ([TYPES[3]], PATIENT, Behaviour(slow_s=(0.0, 0.05))),
]
MOODS = {
    "receiver fails": "fails",
    "receiver hangs": "hangs",
    "receiver resets": "resets",
    "receiver closes": "closes",
}


def fan_out(number: int) -> list[int]:
    """The subscriptions that event `number` goes to."""
    event_type = TYPES[number % len(TYPES)]
    wanted = {"*", event_type, event_type.partition(".")[0] + ".*"}
    return [index for index, (patterns, _, _) in enumerate(SUBSCRIPTIONS) if wanted.intersection(patterns)]


class _TooLate(Exception):
    """The fault's turn came so late that it is left out."""


class Stage:
    """Use it as an async context manager: `make` gives one that runs."""

    def __init__(self, parts: Parts, fleet: Fleet, receiver: SoakReceiver) -> None:
        self.parts = parts
        self.fleet = fleet
        self.receiver = receiver
        self.processes: dict[str, Process] = {}
        self.subscriptions: list[str] = []  # their ids, in the order of SUBSCRIPTIONS
        self.done: Counter[str] = Counter()
        self.left_out = 0
        self.failed: list[str] = []  # faults that could not be done or undone: the run proves nothing then
        self.diary: list[str] = []
        self.ending = asyncio.Event()
        self.began = time.monotonic()
        self._locks: dict[str, asyncio.Lock] = {}

    @classmethod
    @asynccontextmanager
    async def make(cls, folder: Path, seed: int) -> AsyncIterator[Stage]:
        parts = Parts()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(parts.stop)
            await parts.start()
            url = await parts.fresh()
            receiver = stack.enter_context(SoakReceiver([behaviour for _, _, behaviour in SUBSCRIPTIONS], seed))
            fleet = Fleet(parts, url, cast(Any, receiver), folder, seed)  # of the receiver it uses only `url`
            stack.push_async_callback(fleet.end)
            stage = cls(parts, fleet, receiver)
            await fleet.make_tenant()
            await asyncio.gather(*(stage._start(name) for name in (WEB, *WORKERS)))
            for index in range(len(SUBSCRIPTIONS)):
                await stage._subscribe(index)
            yield stage

    async def _subscribe(self, index: int) -> None:
        patterns, policy, _ = SUBSCRIPTIONS[index]
        secret = signing.generate_secret(self.receiver.rng.randbytes)
        self.receiver.add_secret(index, secret, GRACE_S)
        body = {
            "url": self.receiver.url(f"/s/{index}"),
            "events": patterns,
            "timeout_ms": TIMEOUT_MS,
            "retry_policy": policy,
            "authentication": {"secret": secret},
            "circuit_breaker": {"timeout_ms": BREAKER_MS},
        }
        created = await self.insist("POST", "/v1/webhooks/subscriptions", body)
        self.subscriptions.append(created["subscription_id"])

    # --- doing ---

    async def play(self, faults: list[Fault]) -> None:
        """Does each at its moment; returns when all are over and undone."""
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, self.began + fault.at_s - time.monotonic())):
                        await self.ending.wait()
                if self.ending.is_set():
                    return
                group.create_task(self._do(fault))

    async def _do(self, fault: Fault) -> None:
        try:
            await DO[fault.kind](self, fault)
        except _TooLate:
            self.left_out += 1
        except Exception as error:
            self.failed.append(f"{fault}: {error!r}")
            self._note(fault, f"FAILED {error!r}")
        else:
            self.done[fault.kind] += 1

    def _note(self, fault: Fault, what: str) -> None:
        moment = time.monotonic()
        self.diary.append(f"{moment - self.began:9.2f} s  [{moment:.2f}]  {fault.number:4} {fault.kind}: {what}")

    @asynccontextmanager
    async def _holding(self, fault: Fault, *parts: str) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for part in sorted(parts):  # in one order, so that no two wait for each other
                await stack.enter_async_context(self._locks.setdefault(part, asyncio.Lock()))
            if time.monotonic() > self.began + fault.at_s + TOO_LATE_S or self.ending.is_set():
                raise _TooLate
            self._note(fault, f"begins with {', '.join(parts)}")
            yield
            self._note(fault, "is over")
            await asyncio.sleep(REST_S)

    @asynccontextmanager
    async def _harming(self) -> AsyncIterator[None]:
        """What is sent and not recorded at some moment of this block may come twice."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.fleet.harms.append(Harm(began, time.monotonic()))

    async def insist(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One call to the API, repeated with the same `Idempotency-Key` until it is answered with 2xx."""
        headers = {"X-API-Key": self.fleet.key}
        if method == "POST":
            headers["Idempotency-Key"] = str(uuid4())
        timeout = aiohttp.ClientTimeout(total=8)
        deadline = time.monotonic() + BACK_WITHIN_S
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as client:
            while True:
                said = "nothing"
                with suppress(aiohttp.ClientError, OSError, TimeoutError):
                    async with client.request(method, self.fleet.url + path, json=body) as answer:
                        said = f"{answer.status} {await answer.text()}"
                        if answer.ok:
                            data: dict[str, Any] = (await answer.json())["data"]
                            return data
                assert said == "nothing" or said.startswith("503"), f"{method} {path}: {said}"
                assert time.monotonic() < deadline, f"{method} {path} is not answered: {said}"
                await asyncio.sleep(0.1)

    async def _start(self, name: str) -> None:
        """Starts one of our processes, again and again while what it needs is away or the machine is too busy."""
        deadline = time.monotonic() + BACK_WITHIN_S
        kind = WEB if name == WEB else "worker"
        while True:
            async with self._locks.setdefault(f"start of a {kind}", asyncio.Lock()):
                try:
                    self.processes[name] = await (
                        self.fleet.start_web()
                        if name == WEB
                        else self.fleet.start_worker(LEASE_MARGIN_S=str(LEASE_MARGIN_S))
                    )
                except AssertionError:
                    await self._end_strays(kind)
                else:
                    return
            assert time.monotonic() < deadline, f"{name} does not start:\n{self.fleet.logs()}"
            await asyncio.sleep(0.2)

    async def _end_strays(self, kind: str) -> None:
        """One that was not ready in time might be so later, beside the one that is started in its place."""
        for process in self.fleet._processes:
            if process.command.name == kind and process not in self.processes.values():
                process.kill()
                await process.wait()

    async def _kill(self, fault: Fault, *names: str) -> None:
        async with self._holding(fault, *names):
            async with self._harming():
                for name in names:
                    self.processes[name].send(signal.SIGKILL)
                for name in names:
                    await self.processes[name].wait()
            await asyncio.sleep(fault.lasts_s)
            await asyncio.gather(*(self._start(name) for name in names))

    # --- web and worker ---

    async def kill_web(self, fault: Fault) -> None:
        async with self._holding(fault, WEB):
            self.processes[WEB].send(signal.SIGKILL)
            await self.processes[WEB].wait()
            await asyncio.sleep(fault.lasts_s)
            await self._start(WEB)

    async def kill_worker(self, fault: Fault) -> None:
        await self._kill(fault, _one_of(WORKERS, fault))

    async def kill_web_and_worker(self, fault: Fault) -> None:
        await self._kill(fault, WEB, _one_of(WORKERS, fault))

    async def kill_both_workers(self, fault: Fault) -> None:
        await self._kill(fault, *WORKERS)

    async def rolling_restart(self, fault: Fault) -> None:
        """Nothing is harmed by this: each is asked to end, and must by itself, with code 0."""
        for name in (*WORKERS, WEB):
            async with self._holding(fault, name):
                asked_at = time.monotonic()
                self.processes[name].send(signal.SIGTERM)
                code = await self.processes[name].wait()
                took_s = time.monotonic() - asked_at
                await self._start(name)
                assert code == 0, f"{name} ended with {code}"
                assert took_s < 11, f"{name} took {took_s:.1f} s to end"

    async def stop_worker(self, fault: Fault) -> None:
        name = _one_of(WORKERS, fault)
        async with self._holding(fault, name), self._harming():
            self.processes[name].send(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            self.processes[name].send(signal.SIGCONT)

    async def stop_web(self, fault: Fault) -> None:
        async with self._holding(fault, WEB):
            self.processes[WEB].send(signal.SIGSTOP)
            await asyncio.sleep(fault.lasts_s)
            self.processes[WEB].send(signal.SIGCONT)

    # --- Valkey ---

    async def flush_valkey(self, fault: Fault) -> None:
        async with self._holding(fault, "valkey"):
            assert await self.parts.redis("FLUSHALL")

    async def kill_valkey(self, fault: Fault) -> None:
        async with self._holding(fault, "valkey"):
            await self.parts.valkey.kill()
            await asyncio.sleep(fault.lasts_s)
            await self.parts.restart_valkey_empty()

    async def stop_valkey(self, fault: Fault) -> None:
        async with self._holding(fault, "valkey"):
            self.parts.valkey.freeze()
            await asyncio.sleep(fault.lasts_s)
            self.parts.valkey.thaw()

    # --- PostgreSQL ---

    async def kill_postgres(self, fault: Fault) -> None:
        async with self._holding(fault, "postgres"), self._harming():
            await self.parts.postgres.kill()
            await asyncio.sleep(fault.lasts_s)
            await self.parts.postgres.start()

    async def stop_postgres(self, fault: Fault) -> None:
        async with self._holding(fault, "postgres"), self._harming():
            self.parts.postgres.freeze()
            await asyncio.sleep(fault.lasts_s)
            self.parts.postgres.thaw()

    async def cut_connections(self, fault: Fault) -> None:
        """Some or all of the platform's, in the midst of whatever they do. It harms no more than a failed statement."""
        share = (0.3, 0.6, 1.0)[fault.pick % 3]
        async with self._holding(fault, "postgres"):
            found = await self.fleet.query("SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'hookwright%'")
            chosen = random.Random(fault.pick).sample(found, max(1, round(share * len(found)))) if found else []
            await self.fleet.query(
                "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid", [r[0] for r in chosen]
            )

    # --- receivers ---

    async def receiver_away(self, fault: Fault) -> None:
        async with self._holding(fault, "receiver"):
            self.receiver.go_away()
            await asyncio.sleep(fault.lasts_s)
            self.receiver.come_back()

    async def receiver_mood(self, fault: Fault) -> None:
        index = fault.pick % len(SUBSCRIPTIONS)
        async with self._holding(fault, f"mood of {index}"):
            self.receiver.behaviours[index].mood = MOODS[fault.kind]
            await asyncio.sleep(fault.lasts_s)
            self.receiver.behaviours[index].mood = "ok"

    # --- people ---

    async def pause_and_resume(self, fault: Fault) -> None:
        index = fault.pick % len(SUBSCRIPTIONS)
        path = f"/v1/webhooks/subscriptions/{self.subscriptions[index]}"
        async with self._holding(fault, f"status of {index}"):
            await self.insist("POST", f"{path}/pause", {})
            await asyncio.sleep(fault.lasts_s)
            await self.insist("POST", f"{path}/resume", {})

    async def rotate_secret(self, fault: Fault) -> None:
        index = fault.pick % len(SUBSCRIPTIONS)
        path = f"/v1/webhooks/subscriptions/{self.subscriptions[index]}/secret/rotate"
        async with self._holding(fault, f"secret of {index}"):
            secret = signing.generate_secret(random.Random(fault.pick << 32 | fault.number).randbytes)
            self.receiver.add_secret(index, secret, GRACE_S + BACK_WITHIN_S)
            await self.insist("POST", path, {"secret": secret, "grace_period_s": GRACE_S})

    async def move(self, fault: Fault) -> None:
        index = fault.pick % len(SUBSCRIPTIONS)
        path = f"/v1/webhooks/subscriptions/{self.subscriptions[index]}"
        async with self._holding(fault, f"URL of {index}"):
            await self.insist("PATCH", path, {"url": self.receiver.url(f"/s/{index}/{fault.number}")})

    async def replay_dead(self, fault: Fault) -> None:
        async with self._holding(fault, "replays"):
            body = {"filters": {"status": "dead"}, "rate_per_second": REPLAY_RATE}
            created = await self.insist("POST", "/v1/replays", body)
            self._note(fault, f"replays {created['total']}")

    # --- looking ---

    def memory_mb(self) -> dict[str, float]:
        pids = {name: process.pid for name, process in self.processes.items() if process.exit_code is None}
        for name, part in (("postgres", self.parts.postgres), ("valkey", self.parts.valkey)):
            if part.runs:
                pids[name] = part.pid
        found = {}
        for name, pid in pids.items():
            with suppress(FileNotFoundError, ProcessLookupError):
                found[name] = usage.memory_mb(pid, "VmRSS")
        return found

    async def look(self) -> dict[str, Any] | None:
        """Counts by state and how long the oldest is due; None when the database does not answer."""
        statement = (
            "SELECT state, count(*), extract(epoch FROM max(now() - due_at))::float8 AS overdue_s"
            " FROM deliveries GROUP BY state"
        )
        try:
            async with asyncio.timeout(20):
                rows = await self.fleet.query(statement)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return None
        counts: dict[str, Any] = {row["state"]: row["count"] for row in rows}
        return counts | {"overdue_s": max((row["overdue_s"] or 0.0 for row in rows), default=0.0)}


_OURS = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'hookwright%' ORDER BY pid"


def _one_of(names: tuple[str, ...], fault: Fault) -> str:
    return names[fault.pick % len(names)]


DO: dict[str, Callable[[Stage, Fault], Awaitable[None]]] = {
    "kill web": Stage.kill_web,
    "kill worker": Stage.kill_worker,
    "kill web and worker": Stage.kill_web_and_worker,
    "kill both workers": Stage.kill_both_workers,
    "rolling restart": Stage.rolling_restart,
    "stop worker past its lease": Stage.stop_worker,
    "stop web": Stage.stop_web,
    "flush valkey": Stage.flush_valkey,
    "kill valkey, empty": Stage.kill_valkey,
    "stop valkey": Stage.stop_valkey,
    "kill postgres": Stage.kill_postgres,
    "stop postgres": Stage.stop_postgres,
    "cut connections": Stage.cut_connections,
    "receiver away": Stage.receiver_away,
    **dict.fromkeys(MOODS, Stage.receiver_mood),
    "pause and resume": Stage.pause_and_resume,
    "rotate secret": Stage.rotate_secret,
    "move to another URL": Stage.move,
    "replay dead letters": Stage.replay_dead,
}
