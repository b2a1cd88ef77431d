"""The web application: put together here, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from app import headers, routes
from app.admin import frame, navigation, single_sign_on
from app.admin.visit import Visit
from app.api import calls, replies
from app.services import Services
from core import hints
from core.acceptance import Acceptance
from core.access.access_tokens import AccessTokens
from core.access.oidc import Provider
from core.egress import EgressPolicy
from core.errors import HookwrightError, MethodNotAllowed, NotFound
from core.hints import Hints
from core.limiting.breakers import Breakers
from core.limiting.rate_limits import RateLimits
from core.matching.subscription_checks import SubscriptionChecks
from core.secrets.sealing import Sealer
from core.settings import Settings
from core.stats import Keeper
from core.storage.database import Database
from core.subscriptions import Rules


class Application(Starlette):
    """Starlette, with a short way to the resources whose path has no parameters: a look-up instead of its middleware
    and its routes, which are a tenth of what accepting an event costs. It loses nothing, since a resource answers all
    methods and errors itself and there is no middleware of ours; whatever is not found here goes the long way.

    What goes the long way, which is all that a browser may show, gets `headers`.
    """

    def __init__(self, *, routes: Sequence[BaseRoute], headers: dict[str, str], **options: Any) -> None:
        super().__init__(routes=routes, **options)
        self.headers = headers
        self.router.redirect_slashes = False  # a redirect of a POST is a trap, and would not come in the envelope
        self.resources = {
            route.path: route.app
            for route in routes
            if isinstance(route, Route) and isinstance(route.app, calls.Resource) and not route.param_convertors
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        resource = self.resources.get(scope["path"]) if scope["type"] == "http" else None
        if resource is None:
            await super().__call__(scope, receive, headers.adding(self.headers, send))
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

    app = Application(
        routes=routes.routes(),
        headers=headers.of(settings.public_url),
        lifespan=lifespan,
        exception_handlers={HTTPException: _not_routed, Exception: _not_routed},
    )
    app.state.navigation = navigation.over(routes.PAGES)
    return app


@asynccontextmanager
async def _services(settings: Settings) -> AsyncIterator[Services]:
    database = Database(settings.database_url, pool_size=settings.database_pool_size, name="hookwright-web")
    redis = hints.connect(settings.redis_url)
    sealer = Sealer(settings.secret_keys)
    sender = Hints(redis)
    acceptance = Acceptance(database, sender.send, sealer)
    policy = EgressPolicy(allow=settings.egress_allow, deny=settings.egress_deny, allow_http=settings.egress_allow_http)
    rules = Rules(policy, sealer, settings.max_subscriptions)
    tokens = AccessTokens(sealer, settings.public_url)
    rate_limits = RateLimits.of(settings, redis)
    oidc = _provider(settings)
    keeper = Keeper(database, acceptance.tally)
    acceptance.start()
    keeper.start()
    rate_limits.start()
    try:
        yield Services(
            settings,
            database,
            redis,
            sender,
            acceptance,
            rules=rules,
            access_tokens=tokens,
            rate_limits=rate_limits,
            breakers=Breakers(redis),
            checks=SubscriptionChecks(database),
            oidc=oidc,
        )
    finally:
        await acceptance.close()
        await keeper.close()
        await rate_limits.close()
        await sender.close()
        if oidc is not None:
            await oidc.close()
        await database.close()


def _provider(settings: Settings) -> Provider | None:
    issuer, client_id, secret = settings.oidc_issuer, settings.oidc_client_id, settings.oidc_client_secret
    if issuer is None or client_id is None or secret is None:
        return None
    back = f"{settings.public_url}{single_sign_on.CALLBACK_PATH}"
    return Provider(issuer, client_id, secret, back, settings.oidc_scopes)


async def _not_routed(request: Request, error: Exception) -> Response:
    """A path or method that no route takes, and what escaped from one that did: a page, or the API's envelope."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    failure = HookwrightError("Something failed on our side")
    if status == 404:
        failure = NotFound(f"There is nothing at {request.scope['path'][:200]}")
    if status == 405 and isinstance(error, HTTPException):
        allow = (error.headers or {}).get("Allow", "")
        failure = MethodNotAllowed(details={"allow": sorted(allow.split(", "))})
    if frame.wants_page(request):
        visit = Visit(request)
        with contextlib.suppress(Exception):  # without it only the head of the page lacks something
            await visit.find_session()
        return visit.finish(frame.failure(visit, failure))
    return replies.failure(failure, calls.request_id_of(request))
