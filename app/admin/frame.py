"""The frame of the pages: who may see one, that forms are our own, and how whatever goes wrong is shown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlencode

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.admin import forms
from app.admin.visit import Visit
from app.api import calls
from core.access import users
from core.access.models import Role
from core.access.sign_in import SignInThrottled
from core.errors import (
    AuthenticationFailed,
    HookwrightError,
    MethodNotAllowed,
    PermissionDenied,
    Unavailable,
    ValidationFailed,
)

Handler = Callable[[Visit], Awaitable[Response]]

TITLES = {
    400: "That can't be done so",
    401: "You are not signed in",
    403: "Not allowed",
    404: "There is nothing here",
    405: "That can't be done here",
    409: "That can't be done now",
    413: "That is too much",
    415: "That is no form of ours",
    429: "Please wait",
    503: "Not available just now",
}


@dataclass(frozen=True, slots=True)
class Page:
    """One method of one page: what handles it, and who may: users from a role on, or anybody, for the reason given.
    `takes`: names a setting that bounds a text in its form, in bytes."""

    handler: Handler
    role: Role | None = None
    public: str = ""
    takes: str = ""

    def __post_init__(self) -> None:
        if (self.role is None) == (not self.public):
            raise ValueError("a page names a role, or the reason why anybody may see it")


class PageResource:
    """All methods of one page, as an ASGI application."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages

    @property
    def pages(self) -> dict[str, Page]:
        return dict(self._pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        visit = Visit(Request(scope, receive, send))
        try:
            response = await self._answer(visit)
        except HookwrightError as error:
            response = failure(visit, error)
        except ClientDisconnect:
            response = Response(status_code=400)  # nobody reads it
        except Exception as error:
            response = failure(visit, calls.unforeseen(error, visit.request_id))
        await visit.finish(response)(scope, receive, send)

    async def _answer(self, visit: Visit) -> Response:
        request = visit.request
        method = "GET" if request.method == "HEAD" else request.method
        page = self._pages.get(method)
        if page is None:
            raise MethodNotAllowed(details={"allow": sorted(self._pages)})
        changes = method != "GET"
        if changes:
            forms.check_origin(request.headers, visit.public_url)
        await visit.find_session()
        if page.role is not None:
            if visit.user is None:
                if changes:
                    raise AuthenticationFailed("Your session has ended, so nothing was done. Sign in and try again.")
                return visit.redirect(f"/sign-in?{urlencode({'next': visit.location})}")
            _check_role(visit.user.role, page.role)
        if changes:
            text_bytes = getattr(visit.services.settings, page.takes) if page.takes else 0
            visit.form = await forms.read(request, forms.MAX_BYTES + forms.ENCODED * text_bytes)
            session_token = visit.session_token if visit.user is not None else None
            # A page for anybody may have been shown before this browser signed in, in another tab.
            forms.check_token(visit.form, session_token, visit.visitor if page.public else None)
        response = await page.handler(visit)
        await visit.settle()
        return response


def failure(visit: Visit, error: HookwrightError) -> Response:
    """The page that says what went wrong."""
    code = 429 if isinstance(error, SignInThrottled) else error.status
    response = visit.render(
        "errors/show.html",
        code,
        title=TITLES.get(code, "Something failed on our side"),
        error=error,
        code=code,
        faults=[said for value in error.details.values() if isinstance(value, list) for said in value]
        if isinstance(error, ValidationFailed)
        else [],
    )
    if isinstance(error, Unavailable | SignInThrottled):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.details.get("allow", []))
    return response


def wants_page(request: Request) -> bool:
    """Whether the reader of an error is a browser, rather than a program."""
    path: str = request.scope["path"]
    return path != "/v1" and not path.startswith("/v1/") and "text/html" in request.headers.get("accept", "")


def _check_role(role: str, needed: Role) -> None:
    if not users.may(role, needed):
        raise PermissionDenied(f"This needs the role {needed}, and yours is {role}. An admin can change it.")
