"""One request for a page: who makes it, and how it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app import assets, views
from app.admin import badges, cookies, forms, links, wording
from app.admin.forms import Form
from app.admin.navigation import Entry
from app.api import calls
from app.caller import Work, finish
from app.services import Services
from core import audit, ids, timestamps
from core.access import sessions, users
from core.access.models import Role, User, UserSession
from core.access.sign_in import Browser, SignedIn
from core.audit import Actor
from core.errors import Conflict, InvalidId, NotFound

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parents[2] / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "machine_time": timestamps.show,
    "time": wording.time,
    "exact_time": wording.exact_time,
    "number": wording.number,
    "percent": wording.percent,
    "duration": wording.duration,
    "size": wording.size,
    "json": wording.pretty,
}
TEMPLATES.globals |= {
    "FORM_TOKEN": forms.TOKEN,
    "asset": assets.url,
    "library": assets.library_url,
    "badge_of": badges.of,
    "Role": Role,
    "link_of": links.link_of,
    "show_id": ids.show,
    "time_of": ids.time_of,
}

MAX_PATH = 500  # characters of a path to go on to


@dataclass
class Visit:
    """What a handler knows of its request."""

    request: Request
    user: User | None = None
    session: UserSession | None = None
    form: Form = field(default_factory=lambda: Form(FormData()))
    _new_visitor: str | None = None
    _after_commit: list[Work] = field(default_factory=list)

    @property
    def services(self) -> Services:
        services: Services = self.request.app.state.services
        return services

    @property
    def public_url(self) -> str:
        return self.services.settings.public_url

    @cached_property
    def request_id(self) -> str:
        return calls.request_id_of(self.request)

    async def find_session(self) -> None:
        """Who is signed in, if anybody."""
        token = self.session_token
        if token is None:
            return
        async with self.services.database.session() as session:
            found = await sessions.find(session, token, is_seen=not self.is_by_itself)
        if found is not None:
            self.user, self.session = found

    @property
    def is_by_itself(self) -> bool:
        """Whether a page asks, to keep itself fresh (`live` of templates/shared/ui.html). It does so for as long as it
        is open: if that counted, whoever leaves a browser open would never be signed out."""
        return self.request.method == "GET" and self.request.headers.get("hx-request") == "true"

    @property
    def session_token(self) -> str | None:
        return cookies.get(self.request, cookies.SESSION, self.public_url)

    @property
    def visitor(self) -> str | None:
        """The cookie of somebody who need not be signed in."""
        return cookies.get(self.request, cookies.VISITOR, self.public_url)

    @property
    def form_token(self) -> str:
        """For the forms of the page that is shown."""
        if self.user is not None and self.session_token is not None:
            return forms.token_for(self.session_token)
        if self._new_visitor is None and self.visitor is None:
            self._new_visitor = cookies.new_value()
        return forms.token_for(self._new_visitor or self.visitor or "")

    @property
    def me(self) -> User:
        """Of a page that only somebody who has signed in gets to."""
        assert self.user is not None  # nosec B101 # noqa: S101 - the frame has seen to it
        return self.user

    @property
    def here(self) -> UserSession:
        """The session that the request came in; as `me`."""
        assert self.session is not None  # nosec B101 # noqa: S101 - the frame has seen to it
        return self.session

    @property
    def browser(self) -> Browser:
        return Browser(self._address, self.request.headers.get("user-agent"), self.request_id, self.session_token)

    @property
    def actor(self) -> Actor:
        """Who does it, for the audit log."""
        return self.browser.anybody if self.user is None else self.browser.actor(self.user)

    @property
    def _address(self) -> str | None:
        return self.request.client.host if self.request.client is not None else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        async with self.services.database.session() as session:
            yield session

    def audit(
        self,
        session: AsyncSession,
        action: str,
        resource: str,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        organization_id: UUID | None = None,
    ) -> None:
        """As `app.caller` says."""
        audit.record(session, self.actor, action, resource, organization_id=organization_id, before=before, after=after)

    def after_commit(self, work: Work) -> None:
        """As `app.caller` says."""
        self._after_commit.append(work)

    def check_version(self, current: int) -> None:
        """Raises `Conflict` when the form was filled in from another version, which is in its field `version`."""
        if self.form.text("version") not in ("", str(current)):
            raise Conflict("It was changed meanwhile. Look at it again and repeat your change.")

    def shown_url(self, url: str) -> str:
        """Where a subscription's deliveries go, as this user may see it: what follows the `?` may be a credential."""
        address, _, query = url.partition("?")
        return f"{address}?{views.HIDDEN}" if query and not self.may(Role.OPERATOR) else url

    def may(self, role: Role) -> bool:
        """Whether who is signed in has this role or more: for what a page offers."""
        return self.user is not None and users.may(self.user.role, role)

    @property
    def navigation(self) -> list[Entry]:
        """What the head of the page leads to."""
        entries: Sequence[Entry] = self.request.app.state.navigation
        return [entry for entry in entries if self.may(entry.role)]

    @property
    def location(self) -> str:
        """Path and query of the page, as the browser shows them."""
        path: str = self.request.scope["path"]
        return f"{path}?{self.request.url.query}" if self.request.url.query else path

    def path_id(self, prefix: str, name: str = "id") -> UUID:
        """The id in the path. One that can't be an id is not found."""
        try:
            return ids.parse(prefix, self.request.path_params[name])
        except InvalidId:
            raise NotFound from None

    def render(self, template: str, status: int = 200, **context: Any) -> Response:
        """A page. Templates know the visit as `visit`, and `errors` by field: empty unless given."""
        text = TEMPLATES.get_template(template).render({"visit": self, "errors": {}, **context})
        return HTMLResponse(text, status)

    def redirect(self, path: str) -> Response:
        """To a page of ours; after a form, so that a reload does not send it again (RFC 9110, section 15.4.4)."""
        return RedirectResponse(path, 303)

    def signed_in(self, done: SignedIn, path: str) -> Response:
        """On to `path`, with the cookie of the new session."""
        response = self.redirect(path)
        cookies.put(response, cookies.SESSION, done.token, self.public_url)
        cookies.drop(response, cookies.VISITOR, self.public_url)
        return response

    async def settle(self) -> None:
        """Does what was left for after the commit."""
        await finish(self._after_commit, self.request_id)

    def finish(self, response: Response) -> Response:
        """What every page's answer carries."""
        response.headers["X-Request-ID"] = self.request_id
        response.headers["Cache-Control"] = "no-store"  # pages show what only their reader may see
        if self._new_visitor is not None:
            cookies.put(response, cookies.VISITOR, self._new_visitor, self.public_url)
        return response


def local_path(given: str) -> str:
    """Where to go after signing in: `given` if it is a path of ours, else the start page. None of ours is longer than
    `MAX_PATH`, and it is kept while somebody is at the identity provider.

    Browsers read `\\` as `/`, drop tabs and line feeds, and take `//host` for another host.
    """
    if len(given) > MAX_PATH:
        return "/"
    if not given.startswith("/") or given.startswith("//") or "\\" in given or not given.isprintable():
        return "/"
    parts = urlsplit(given)
    return given if not parts.scheme and not parts.netloc else "/"
