"""What the tests of the HTTP API share: running against a platform, further tenants and keys, and the envelope."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import httpx
from starlette.applications import Starlette

from app import main as web
from core import ids, organizations, settings
from core.access import api_keys
from tests.platform import Platform, environment, platform

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
FAST = {"backoff_strategy": "fixed", "base_delay_ms": 1, "max_attempts": 1}  # one attempt, then the dead letter
URL = "https://example.com/hook"
SUBSCRIPTIONS = "/v1/webhooks/subscriptions"
JSON = {"Content-Type": "application/json"}


def run(
    database_url: str,
    redis_url: str,
    check: Callable[[Platform], Awaitable[None]],
    *,
    with_worker: bool = False,
    **more: str,
) -> None:
    """Runs `check` on a platform of its own; `more` are settings."""

    async def main() -> None:
        async with platform(database_url, redis_url, with_worker=with_worker, **more) as p:
            await check(p)

    asyncio.run(main())


@asynccontextmanager
async def another_app(p: Platform, database_url: str, redis_url: str, **more: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a second web process on the same database; `more` are settings."""
    app: Starlette = web.create(settings.load(environment(database_url, redis_url, **more)))
    async with app.router.lifespan_context(app), client(app, p.key) as other:
        yield other


def client(app: Starlette, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://hookwright.test", headers={"X-API-Key": key}
    )


async def make_key(p: Platform, organization_id: UUID | None, scopes: Sequence[str] | None = None) -> str:
    async with p.services.database.session() as session:
        _, text = await api_keys.create(
            session, p.services.sealer, organization_id=organization_id, name="a key", scopes=scopes
        )
    return text


async def make_organization(p: Platform, name: str = "Another") -> UUID:
    async with p.services.database.session() as session:
        return (await organizations.create(session, name)).id


def shown_organization(id_: UUID) -> str:
    return ids.show(ids.ORGANIZATION, id_)


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The `error` of an answer, its envelope looked at field for field."""
    assert response.status_code == status, f"{response.request.url}: {response.status_code} {response.text[:1000]}"
    body = response.json()
    assert list(body) == ["data", "error", "message", "toast", "responseType"]
    assert (body["data"], body["toast"], body["responseType"]) == (None, False, "error")
    error: dict[str, Any] = body["error"]
    assert list(error) == ["code", "message", "details", "request_id", "timestamp"]
    assert error["code"] == code
    assert error["message"] == body["message"] != ""
    assert error["request_id"] == response.headers["x-request-id"]
    assert TIME.fullmatch(error["timestamp"])
    assert response.headers["content-type"] == "application/json"
    return error


def faults_of(response: httpx.Response) -> dict[str, list[str]]:
    """The `details` of a refused request."""
    details: dict[str, list[str]] = error_of(response, 400, "VALIDATION_FAILED")["details"]
    return details


def success_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The whole body of an answer, its envelope looked at field for field."""
    assert response.status_code == status, f"{response.request.url}: {response.status_code} {response.text[:1000]}"
    body: dict[str, Any] = response.json()
    assert list(body) == ["data", "meta", "message", "toast", "responseType"]
    assert (body["toast"], body["responseType"]) == (False, "success")
    assert body["meta"]["request_id"] == response.headers["x-request-id"]
    assert isinstance(body["meta"]["processing_time_ms"], int)
    return body
