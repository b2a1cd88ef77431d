"""Is the process up (`/healthz`), and can the platform do its work (`/readyz`)?"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from arq.constants import health_check_key_suffix
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from app.api import calls
from app.services import Services
from core import hints

CHECK_TIMEOUT_S = 2.0


async def healthz(request: Request) -> JSONResponse:
    return _answer(request, {"status": "ok"})


async def readyz(request: Request) -> JSONResponse:
    """200 when database, Redis and at least one worker answer, else 503; each part's state by name."""
    services: Services = request.app.state.services
    checks: dict[str, Callable[[], Awaitable[str]]] = {
        "database": lambda: _database(services),
        "redis": lambda: _redis(services),
        "workers": lambda: _workers(services),
    }
    states = await asyncio.gather(*(_state(check) for check in checks.values()))
    ready = all(state == "ok" for state in states)
    body = {"status": "ready" if ready else "not ready", "checks": dict(zip(checks, states, strict=True))}
    return _answer(request, body, 200 if ready else 503)


def _answer(request: Request, body: dict[str, Any], status: int = 200) -> JSONResponse:
    return JSONResponse(body, status, {"X-Request-ID": calls.request_id_of(request), "Cache-Control": "no-store"})


async def _state(check: Callable[[], Awaitable[str]]) -> str:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return await check()
    except Exception as error:  # whatever is wrong with it, it is not ready, and the kind of error says more than that
        return f"does not answer ({type(error).__name__})"


async def _database(services: Services) -> str:
    async with services.database.driver() as driver:
        await driver.fetchval("SELECT 1 FROM organizations LIMIT 1")
    return "ok"


async def _redis(services: Services) -> str:
    await services.redis.ping()
    return "ok"


async def _workers(services: Services) -> str:
    alive = await services.redis.exists(hints.JOBS + health_check_key_suffix)
    return "ok" if alive else "no worker has been seen in the last seconds"


def routes() -> list[BaseRoute]:
    return [Route("/healthz", healthz), Route("/readyz", readyz)]
