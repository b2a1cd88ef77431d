"""A platform under test as the outside sees it: a tenant, a receiver, the database; and what was done to it."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
from sqlalchemy.engine import make_url

from cli.supervisor.ports import why_not_200
from core import organizations
from core.access import api_keys
from core.secrets import sealing
from core.storage.database import Database
from tests.platform import HANGS_S, SECRET_KEY
from tests.receiver import Receiver, Recorded
from tests.services import plain_url

# The shortest that settings and API allow, so that a lost worker's lease ends soon.
TIMEOUT_MS = 1_000
LEASE_MARGIN_S = 2.0
LEASE_S = TIMEOUT_MS / 1_000 + LEASE_MARGIN_S
SWEEP_S = 0.2
SLACK_S = 15.0  # what a busy machine may add to any bound; without what is promised it would be a minute, or for ever
LONG = os.environ.get("FAULT_LONG") == "1"  # outages of up to a minute; else long enough to pass every timeout of ours
QUICK_RETRIES = {"backoff_strategy": "fixed", "base_delay_ms": 100, "max_attempts": 20}

# Ends the platform's connections.
CUT = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'hookwright-%'
"""


@dataclass(frozen=True)
class Harm:
    """Something that was done to a process that sends or records; it may explain a duplicate."""

    began: float
    ended: float


async def until(condition: Callable[[], Awaitable[Any]], within_s: float, what: str, *, every_s: float = 0.02) -> float:
    """Polls until it holds; returns how long that took. AssertionError after `within_s`."""
    began = time.monotonic()
    while not await condition():
        assert time.monotonic() - began < within_s, f"{what}: not within {within_s:.1f} s"
        await asyncio.sleep(every_s)
    return time.monotonic() - began


class Scene:
    def __init__(self, url: str, database_url: str, receiver: Receiver, seed: int) -> None:
        self.url = url
        self.database_url = database_url
        self.receiver = receiver
        self.rng = random.Random(seed)
        self.harms: list[Harm] = []
        self.key = ""
        self._kept: Any = None  # a session for `query`, while nobody uses it

    @property
    def database_name(self) -> str:
        return make_url(self.database_url).database or ""

    async def make_tenant(self) -> None:
        database = Database(self.database_url, pool_size=2)
        try:
            async with database.session() as session:
                organization = await organizations.create(session, "Faults")
            self.key = await self._make_key(database, organization.id)
        finally:
            await database.close()

    async def make_key(self) -> str:
        """Another API key of the tenant's, which no web process has seen yet."""
        [row] = await self.query("SELECT id FROM organizations")
        database = Database(self.database_url, pool_size=2)
        try:
            return await self._make_key(database, row["id"])
        finally:
            await database.close()

    async def _make_key(self, database: Database, organization_id: UUID) -> str:
        sealer = sealing.Sealer([SECRET_KEY])
        async with database.session() as session:
            _, key = await api_keys.create(session, sealer, organization_id=organization_id, name="producer")
        return key

    async def subscribe(self, path: str, **fields: Any) -> str:
        body = {
            "url": self.receiver.url(path),
            "events": ["*"],
            "timeout_ms": TIMEOUT_MS,
            "retry_policy": QUICK_RETRIES,
            "circuit_breaker": {"failure_threshold": 1000},  # which would hold back what is to be retried at once
        } | fields
        created = await self._call("POST", "/v1/webhooks/subscriptions", body, 201)
        subscription_id: str = created["subscription_id"]
        return subscription_id

    async def post(self, event_id: str) -> str:
        """Posts one event; returns its `evt_` id once it is accepted."""
        body = {"event_type": "order.paid", "event_id": event_id, "data": {"total": 1}}
        shown: str = (await self._call("POST", "/v1/events", body, 202))["event_id"]
        return shown

    async def move(self, subscription_id: str, path: str) -> None:
        """Gives the subscription another URL, for what is claimed from now on."""
        body = {"url": self.receiver.url(path)}
        await self._call("PATCH", f"/v1/webhooks/subscriptions/{subscription_id}", body, 200)

    async def _call(self, method: str, path: str, body: dict[str, Any], expect: int) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession(headers={"X-API-Key": self.key}) as client,
            client.request(method, self.url + path, json=body) as answer,
        ):
            assert answer.status == expect, await answer.text()
            data: dict[str, Any] = (await answer.json())["data"]
            return data

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Any]:
        """Another session of the platform's database (asyncpg's own, which ships no types)."""
        connection = await asyncpg.connect(plain_url(self.database_url))
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    async def query(self, statement: str, *values: Any) -> list[Any]:
        """In a session that is kept for the next one: to sign in costs both sides more than what is polled for."""
        session, self._kept = self._kept, None
        if session is None or session.is_closed():
            # Without prepared statements: tests change columns.
            session = await asyncpg.connect(plain_url(self.database_url), statement_cache_size=0)
        try:
            rows: list[Any] = await session.fetch(statement, *values)
        except BaseException:
            session.terminate()
            raise
        if self._kept is None:
            self._kept = session
        else:
            await session.close(timeout=5)
        return rows

    def close(self) -> None:
        if self._kept is not None:
            self._kept.terminate()
            self._kept = None

    async def cut(self) -> int:
        """Ends the platform's connections to PostgreSQL; returns how many there were."""
        [row] = await self.query(CUT)
        cut: int = row["count"]
        return cut

    async def states(self) -> dict[str, int]:
        rows = await self.query("SELECT state, count(*) FROM deliveries GROUP BY state")
        return {row["state"]: row["count"] for row in rows}

    async def received(self, count: int, within_s: float = HANGS_S) -> list[Recorded]:
        async def enough() -> bool:
            return len(self.receiver.requests) >= count

        await until(enough, within_s, f"{count} requests at the receiver")
        return self.receiver.requests

    async def delivered(self, count: int, within_s: float = HANGS_S) -> float:
        """Waits until so many deliveries are delivered; returns how long it took."""

        async def enough() -> bool:
            return (await self.states()).get("delivered", 0) >= count

        return await until(enough, within_s, f"{count} deliveries delivered")

    async def why_not(self, path: str) -> str | None:
        """None when GET answers 200."""
        return await why_not_200("127.0.0.1", int(self.url.rpartition(":")[2]), path)

    async def pause(self, low_s: float, high_s: float) -> None:
        """A random moment later: what is harmed must not know when."""
        await asyncio.sleep(self.rng.uniform(low_s, high_s))
