"""The whole platform inside one test: the web application, optionally a worker, and a client that speaks to both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from starlette.applications import Starlette

from app import main as web
from app.services import Services
from core import ids, organizations, settings
from core.access import api_keys
from core.storage.database import Database
from worker import main as worker
from worker.engine import Engine

HANGS_S = 90.0  # what has not come by then never comes, however busy the machine
SECRET_KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


def environment(database_url: str, redis_url: str, **more: str) -> dict[str, str]:
    """Settings that let a test call its own receivers; `more` by their names without the prefix."""
    values = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SECRET_KEYS": SECRET_KEY,
        "EGRESS_ALLOW": "127.0.0.0/8",
        "EGRESS_ALLOW_HTTP": "true",
        "SWEEP_INTERVAL_S": "0.1",
        "RATE_LIMIT_DEFAULT": "off",  # tests look often; those of the limits set their own
    } | more
    return {f"HOOKWRIGHT_{name}": value for name, value in values.items()}


@dataclass
class Platform:
    app: Starlette
    client: httpx.AsyncClient  # acts for `organization_id` with every scope
    organization_id: UUID
    key: str
    key_id: UUID
    platform_key: str
    engine: Engine | None

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def database(self) -> Database:
        return self.services.database

    async def call(self, method: str, path: str, body: Any = None, expect: int | None = None, **headers: str) -> Any:
        """The JSON of an answer; fails unless its status is `expect` (any 2xx by default)."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.client.request(method, path, json=body, headers=names)
        wanted = response.is_success if expect is None else response.status_code == expect
        assert wanted, f"{method} {path}: {response.status_code} {response.text[:2000]}"
        return response.json() if response.content else None

    async def subscribe(self, url: str, events: list[str] | None = None, **fields: Any) -> dict[str, Any]:
        body = {"url": url, "events": events or ["*"], **fields}
        created: dict[str, Any] = (await self.call("POST", "/v1/webhooks/subscriptions", body, 201))["data"]
        return created

    async def send(self, event_type: str = "order.paid", data: Any = None, **fields: Any) -> dict[str, Any]:
        body = {"event_type": event_type, "data": data if data is not None else {"total": 1}, **fields}
        accepted: dict[str, Any] = (await self.call("POST", "/v1/events", body))["data"]
        return accepted

    async def deliveries(self, **filters: str) -> list[dict[str, Any]]:
        query = "&".join(f"filters[{name}]={value}" for name, value in filters.items())
        found: list[dict[str, Any]] = (await self.call("GET", f"/v1/deliveries?limit=200&{query}"))["data"]
        return found

    async def settled(self, count: int, status: str, within_s: float = HANGS_S, **filters: str) -> list[dict[str, Any]]:
        """Waits until `count` deliveries are in `status`; returns them."""

        async def there() -> list[dict[str, Any]] | None:
            found = await self.deliveries(status=status, **filters)
            return found if len(found) >= count else None

        return await eventually(there, within_s, f"{count} deliveries {status}")

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        async with self.database.driver() as driver:
            rows: list[Any] = await driver.fetch(statement, *values)
            return rows


async def eventually(
    look: Callable[[], Awaitable[Any]], within_s: float = HANGS_S, what: str = "what was waited for"
) -> Any:
    """Looks again and again until the result is true; AssertionError after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come within {within_s} s"
        await asyncio.sleep(0.01)


@asynccontextmanager
async def platform(
    database_url: str, redis_url: str, *, with_worker: bool = True, **more: str
) -> AsyncIterator[Platform]:
    chosen = settings.load(environment(database_url, redis_url, **more))
    app = web.create(chosen)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        services: Services = app.state.services
        async with services.database.session() as session:
            organization = await organizations.create(session, "Test")
            row, key = await api_keys.create(session, services.sealer, organization_id=organization.id, name="test")
            _, platform_key = await api_keys.create(session, services.sealer, organization_id=None, name="platform")
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://hookwright.test", headers={"X-API-Key": key}
            )
        )
        engine = await stack.enter_async_context(worker.working(chosen)) if with_worker else None
        yield Platform(app, client, organization.id, key, row.id, platform_key, engine)


def shown(platform: Platform) -> str:
    return ids.show(ids.ORGANIZATION, platform.organization_id)
