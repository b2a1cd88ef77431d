"""One API call, from authentication to its envelope; and the idempotency of POSTs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api import authentication, body, inputs, replies
from app.api.inputs import Model
from app.api.replies import Lines, Reply
from app.caller import Work, finish
from app.services import Services
from core import audit, idempotency, ids, organizations, timestamps
from core.access.api_keys import Credential
from core.audit import Actor
from core.errors import (
    Conflict,
    HookwrightError,
    InvalidId,
    MethodNotAllowed,
    NotFound,
    Unavailable,
    ValidationFailed,
    quoted,
)
from core.idempotency import IdempotentCall
from core.limiting.rate_limits import INGEST, Verdict
from core.storage.database import driver_of, is_unreachable

log = structlog.get_logger(__name__)

MAX_BODY_BYTES = 262_144
NO_ORGANIZATION = UUID(int=0)  # whose idempotency keys those of platform-wide calls are
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_VERSION = re.compile(r'(?:W/)?"version-([0-9]{1,9})"')


@dataclass(slots=True)
class Call:
    """What a handler knows of its request."""

    request: Request
    headers: Mapping[str, str]  # by lower-case name; of several of one name, the first
    services: Services
    request_id: str
    credential: Credential
    organization_id: UUID
    body: bytes = b""
    idempotent: IdempotentCall | None = None
    _session: AsyncSession | None = None
    _after_commit: list[Work] = field(default_factory=list)

    def read(self, model: type[Model]) -> Model:
        """The body as `model`; an absent body counts as an empty object."""
        return inputs.read(model, self._json())

    def read_part(self, model: type[Model]) -> tuple[Model, dict[str, Any]]:
        """The same as far as it is well-formed, and the faults of the rest."""
        return inputs.read_part(model, self._json())

    def _json(self) -> Any:
        return body.parse(self.headers, self.body) if self.body else {}

    def path_id(self, prefix: str, name: str = "id") -> UUID:
        """The id in the path. One that can't be an id is not found, like one that isn't there."""
        given: str = self.request.path_params[name]
        try:
            return ids.parse(prefix, given)
        except InvalidId:
            raise NotFound(f"{quoted(given)} is the id of nothing; it would be {prefix}_ and 26 characters") from None

    @property
    def branch_id(self) -> str | None:
        """The label in `X-Branch-ID`, in UTF-8 as everything else."""
        given = self.headers.get("x-branch-id", "")
        try:
            return given.encode("latin-1").decode("utf-8") or None  # Starlette has read the bytes as Latin-1
        except UnicodeError:
            raise ValidationFailed.of("X-Branch-ID", "Must be UTF-8") from None

    @property
    def actor(self) -> Actor:
        """Who calls, for the audit log."""
        client = self.request.client
        return Actor(
            ids.show(ids.API_KEY, self.credential.key_id),
            self.credential.name,
            client.host if client is not None else None,
            self.request_id,
        )

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
        """Says in the audit log what this call does, in the transaction in which it does it (`core.audit.record`).
        `organization_id`: whose log it belongs to, where the call itself is not one organization's."""
        of = organization_id or (None if self.organization_id == NO_ORGANIZATION else self.organization_id)
        audit.record(session, self.actor, action, resource, organization_id=of, before=before, after=after)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """The call's one transaction. With an `Idempotency-Key` it holds the key as well."""
        if self._session is not None:
            yield self._session
            return
        async with self.services.database.session() as session:
            yield session

    def after_commit(self, work: Work) -> None:
        """As `app.caller` says."""
        self._after_commit.append(work)

    def check_version(self, current: int) -> None:
        """Raises `Conflict` when `If-Match` names another version than the current one."""
        given = self.headers.get("if-match")
        if given is None or given.strip() == "*":
            return
        match = _VERSION.fullmatch(given.strip())
        if match is None:
            raise ValidationFailed.of("If-Match", 'Must be an ETag of ours, as "version-5"')
        if int(match[1]) != current:
            raise Conflict(
                "It was changed meanwhile; read it again and repeat the change",
                details={"current_version": current, "provided_version": int(match[1])},
            )


Handler = Callable[[Call], Awaitable[Reply]]
LinesHandler = Callable[[Call], Awaitable[Lines]]


@dataclass(frozen=True, slots=True)
class Action:
    """One method of one path: what handles it and what it needs.

    `tenant`: it acts within one organization. `lists`: it answers a list, which query parameters steer; `exports`: the
    same as a whole, in JSON lines; the others take none. `keeps_own_keys`: it handles its `Idempotency-Key` itself,
    because its transaction is shared with other calls. `rechecks_credential`: it looks at the API key again in its own
    transaction, and nothing it says before that depends on what is stored; so one that was valid a moment ago will do.
    `ingests`: it takes events, which the ingest tier limits instead of the key's own. `max_body`: names a setting that
    bounds its body, in bytes. `audited`: what a success is called in the audit log. A method that changes something
    names it, or says in `unaudited` why there is no entry.
    """

    handler: Handler | LinesHandler
    scope: str
    tenant: bool = True
    lists: bool = False
    exports: bool = False
    keeps_own_keys: bool = False
    rechecks_credential: bool = False
    ingests: bool = False
    max_body: str | None = None
    audited: str = ""
    unaudited: str = ""


class Admitted(NamedTuple):
    """A request whose caller is known. `verdict` None: nothing limits it."""

    action: Action
    services: Services
    credential: Credential
    verdict: Verdict | None


class Resource:
    """All methods of one path, as an ASGI application."""

    def __init__(self, actions: dict[str, Action]) -> None:
        self._actions = actions
        self._recent = authentication.RecentKeys()

    @property
    def actions(self) -> dict[str, Action]:
        return dict(self._actions)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        started = time.perf_counter()
        # Looked at a dozen times a call, and Starlette searches its list each time.
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(request.scope["headers"])
        }
        request_id = _request_id(headers)
        admitted: Admitted | None = None
        try:
            admitted = await self._admit(request, headers)
            reply = await self._answer(request, headers, request_id, admitted)
        except HookwrightError as error:
            response = replies.failure(error, request_id)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            response = replies.failure(unforeseen(error, request_id), request_id)
        else:
            if isinstance(reply, Lines):
                response = replies.streaming(reply, request_id)
            else:
                response = replies.success(reply, request_id, round((time.perf_counter() - started) * 1000))
        if admitted is not None and admitted.verdict is not None:
            response.raw_headers += replies.rate_headers(admitted.verdict)
        return response

    async def _admit(self, request: Request, headers: Mapping[str, str]) -> Admitted:
        """Who calls what, and whether that key has a request left."""
        action = self._actions.get("GET" if request.method == "HEAD" else request.method)
        if action is None:
            raise MethodNotAllowed(details={"allow": sorted(self._actions)})
        services: Services = request.app.state.services
        recent = self._recent if action.rechecks_credential else None
        credential = await authentication.authenticate(headers, services, recent)
        tier = INGEST if action.ingests else credential.tier
        return Admitted(action, services, credential, await services.rate_limits.take(credential.key_id, tier))

    async def _answer(
        self, request: Request, headers: Mapping[str, str], request_id: str, admitted: Admitted
    ) -> Reply | Lines:
        action, services, credential, verdict = admitted
        if verdict is not None:
            verdict.check()
        authentication.require(credential, action.scope)
        organization_id = authentication.organization_of(headers, credential) if action.tenant else NO_ORGANIZATION
        _check_address(request, action)
        call = Call(request, headers, services, request_id, credential, organization_id)
        if action.tenant and credential.organization_id is None and not action.keeps_own_keys:
            async with services.database.session() as session:
                await organizations.get(session, organization_id)
        method = request.method
        if method in {"POST", "PATCH"}:
            limit: int = getattr(services.settings, action.max_body) if action.max_body else MAX_BODY_BYTES
            call.body = await body.read(request.receive, headers, limit)
        key = headers.get("idempotency-key")
        if key is not None and method == "POST":
            call.idempotent = idempotency.call(organization_id, method, request.scope["path"], key, call.body)
        reply: Reply | Lines
        if call.idempotent is None or action.keeps_own_keys:
            reply = await action.handler(call)
        else:
            reply = await _once(call, call.idempotent, action.handler)
        await finish(call._after_commit, call.request_id)
        return reply


def _check_address(request: Request, action: Action) -> None:
    """Refuses what no id, name or filter can hold, and parameters that nobody would look at."""
    if "\0" in request.scope["path"]:
        raise NotFound
    if not request.scope["query_string"]:
        return
    if request.query_params and not (action.lists or action.exports):
        given = ", ".join(dict(request.query_params))[:80]
        raise ValidationFailed.of("query", f"This call takes no query parameters; remove {given}")
    if any("\0" in name or "\0" in value for name, value in request.query_params.multi_items()):
        raise ValidationFailed.of("query", "Must not hold NUL characters")


async def _once(call: Call, idempotent: IdempotentCall, handler: Handler | LinesHandler) -> Reply:
    """Runs `handler` in the transaction that claims the key, or gives the first answer again."""
    sealer = call.services.sealer
    async with call.services.database.session() as session:
        driver = await driver_of(session)
        [first] = await idempotency.claim(driver, [idempotent], sealer)
        if isinstance(first, HookwrightError):
            raise first
        if first is not None:
            return repeated(first.data, first.created_at)
        call._session = session
        reply = await handler(call)
        assert isinstance(reply, Reply)  # nosec B101 # noqa: S101 - for the type checker: lines answer a GET alone
        await session.flush()
        await idempotency.store(driver, [(idempotent, reply.data)], sealer)
    return reply


def repeated(data: Any, first_at: Any) -> Reply:
    """The answer to a repeat: 200 and the first result."""
    version = data.get("version") if isinstance(data, dict) else None
    return Reply(data, version=version, meta={"idempotent": True, "original_created_at": timestamps.show(first_at)})


def request_id_of(request: Request) -> str:
    """The caller's `X-Request-ID` when it is sane, else a new one."""
    return _request_id(request.headers)


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id")
    if given is not None and _SANE_REQUEST_ID.fullmatch(given):
        return given
    return f"req_{os.urandom(16).hex()}"


def unforeseen(error: Exception, request_id: str) -> HookwrightError:
    """What to answer when a call or page failed in a way that nobody foresaw; logs it."""
    if is_unreachable(error):
        log.warning("the database does not answer", request_id=request_id, error=repr(error))
        return Unavailable("The database does not answer; try again", retry_after_s=2)
    log.error("a call failed unexpectedly", request_id=request_id, exc_info=error)
    return HookwrightError("Something failed on our side; the request id helps us find it")
