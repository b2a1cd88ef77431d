"""The web application: put together here, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from app import routes
from app.api import calls, replies
from app.services import Services
from core import hints
from core.acceptance import Acceptance
from core.access_tokens import AccessTokens
from core.breakers import Breakers
from core.database import Database
from core.egress import EgressPolicy
from core.errors import HookwrightError, MethodNotAllowed, NotFound
from core.hints import Hints
from core.rate_limits import RateLimits
from core.sealing import Sealer
from core.settings import Settings
from core.subscriptions import Rules


class Application(Starlette):
    """Starlette, with a short way to the resources whose path has no parameters: a look-up instead of its middleware
    and its routes, which are a tenth of what accepting an event costs. It loses nothing, since a resource answers all
    methods and errors itself and there is no middleware of ours; whatever is not found here goes the long way.
    """

    def __init__(self, *, routes: Sequence[BaseRoute], **options: Any) -> None:
        super().__init__(routes=routes, **options)
        self.router.redirect_slashes = False  # a redirect of a POST is a trap, and would not come in the envelope
        self.resources = {
            route.path: route.app
            for route in routes
            if isinstance(route, Route) and isinstance(route.app, calls.Resource) and not route.param_convertors
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        resource = self.resources.get(scope["path"]) if scope["type"] == "http" else None
        if resource is None:
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await resource(scope, receive, send)


def create(settings: Settings) -> Application:
    """The ASGI application. It connects to its services when the server starts it."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with _services(settings) as services:
            app.state.services = services
            yield

    return Application(
        routes=routes.routes(),
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_routed, Exception: _not_routed},
    )


@asynccontextmanager
async def _services(settings: Settings) -> AsyncIterator[Services]:
    database = Database(settings.database_url, pool_size=settings.database_pool_size, name="hookwright-web")
    redis = hints.connect(settings.redis_url)
    sealer = Sealer(settings.secret_keys)
    sender = Hints(redis)
    acceptance = Acceptance(database, sender.send, sealer)
    policy = EgressPolicy(allow=settings.egress_allow, deny=settings.egress_deny, allow_http=settings.egress_allow_http)
    tokens = AccessTokens(sealer, settings.public_url)
    rate_limits = RateLimits.of(settings, redis)
    acceptance.start()
    rate_limits.start()
    try:
        yield Services(
            settings,
            database,
            redis,
            sender,
            acceptance,
            rules=Rules(policy, sealer),
            access_tokens=tokens,
            rate_limits=rate_limits,
            breakers=Breakers(redis),
        )
    finally:
        await acceptance.close()
        await rate_limits.close()
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
