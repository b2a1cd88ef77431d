"""The web application: put together here, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app import health, pages
from app.api import calls, replies, routes
from app.services import Services
from core import hints
from core.acceptance import Acceptance
from core.database import Database
from core.egress import EgressPolicy
from core.errors import HookwrightError, MethodNotAllowed, NotFound
from core.hints import Hints
from core.sealing import Sealer
from core.settings import Settings
from core.subscriptions import Rules


def create(settings: Settings) -> Starlette:
    """The ASGI application. It connects to its services when the server starts it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with _services(settings) as services:
            app.state.services = services
            yield

    app = Starlette(
        routes=[*routes.routes(), *health.routes(), *pages.routes()],
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_routed, Exception: _not_routed},
    )
    app.router.redirect_slashes = False  # a redirect of a POST is a trap, and would not come in the envelope
    return app


@asynccontextmanager
async def _services(settings: Settings) -> AsyncIterator[Services]:
    database = Database(settings.database_url, pool_size=settings.database_pool_size, name="hookwright-web")
    redis = hints.connect(settings.redis_url)
    sealer = Sealer(settings.secret_keys)
    sender = Hints(redis)
    acceptance = Acceptance(database, sender.send, sealer)
    policy = EgressPolicy(allow=settings.egress_allow, deny=settings.egress_deny, allow_http=settings.egress_allow_http)
    acceptance.start()
    try:
        yield Services(settings, database, redis, sender, acceptance, Rules(policy, sealer))
    finally:
        await acceptance.close()
        await sender.close()
        await database.close()


async def _not_routed(request: Request, error: Exception) -> Response:
    """A path or method that no route takes, and what escaped from one that did, in the API's own envelope."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    failure = HookwrightError("Something failed on our side")
    if status == 404:
        failure = NotFound(f"There is nothing at {request.scope['path'][:200]}")
    if status == 405 and isinstance(error, HTTPException):
        allow = (error.headers or {}).get("Allow", "")
        failure = MethodNotAllowed(details={"allow": sorted(allow.split(", "))})
    return replies.failure(failure, calls.request_id_of(request))
