"""`POST /oauth/token`: an API key in exchange for an access token that lives for minutes (RFC 6749, section 4.4).

An API key is an OAuth client: its id is the `client_id`, the key itself the `client_secret`. So there is no second kind
of secret, and revoking the key ends it all.

Failed tries are not counted: 256 bits can't be guessed, each try costs as little as any call with a wrong key, and a
lock would let whoever knows a `client_id` shut its owner out. Of a client that is known, each request counts as one of
its key's.

Authlib serves this grant for Flask and Django, with clients and tokens in tables; what is left of it here is below.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

import orjson
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from app.api import body, calls, replies
from app.services import Services
from core import ids
from core.access import access_tokens, api_keys
from core.access.api_keys import Credential
from core.errors import AuthenticationFailed, PayloadTooLarge, RateLimitExceeded
from core.storage.database import is_unreachable

PATH = "/oauth/token"
MAX_BODY_BYTES = 8_192
MAX_FIELDS = 20
FORM = "application/x-www-form-urlencoded"
GRANT = "client_credentials"
NO_MORE: Mapping[str, str] = MappingProxyType({})

log = structlog.get_logger(__name__)


class Refused(Exception):
    """An error answer as RFC 6749 has it in section 5.2."""

    def __init__(self, error: str, description: str, status: int = 400, retry_after_s: int | None = None) -> None:
        self.error = error
        self.description = description
        self.status = status
        self.retry_after_s = retry_after_s
        super().__init__(description)


async def token(request: Request) -> Response:
    limits: list[tuple[bytes, bytes]] = []
    try:
        form = await _form(request)
        client_id, secret = _client(request.headers.get("authorization", ""), form)
        services: Services = request.app.state.services
        credential = await _authenticate(services, client_id, secret)
        verdict = await services.rate_limits.take(credential.key_id, credential.tier)
        if verdict is not None:
            limits = replies.rate_headers(verdict)
            verdict.check()
        answer = _answer(request, 200, _issue(services, credential, form.get("scope", "")))
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it
    except Refused as refused:
        answer = _refuse(request, refused)
    except RateLimitExceeded as error:  # section 5.2 has no word for it; this one is of section 4.1.2.1
        answer = _refuse(request, Refused("temporarily_unavailable", error.message, error.status, error.retry_after_s))
    except Exception as error:
        answer = _refuse(request, _unforeseen(request, error))
    answer.raw_headers += limits
    return answer


async def _form(request: Request) -> dict[str, str]:
    """The parameters of the body. Those without a value count as left out (section 3.2)."""
    if request.scope["query_string"]:
        raise Refused("invalid_request", "The parameters go into the body, not into the URL, which logs keep")
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != FORM:
        raise Refused("invalid_request", f"Content-Type must be {FORM}")
    try:
        text = await body.read(request.receive, request.headers, MAX_BODY_BYTES)
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except PayloadTooLarge as error:
        raise Refused("invalid_request", error.message, error.status) from None
    except ValueError:
        raise Refused("invalid_request", f"The body is no form of at most {MAX_FIELDS} fields in UTF-8") from None
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise Refused("invalid_request", "No parameter may come twice")
    form = {name: value for name, value in pairs if value}
    grant = form.get("grant_type")
    if grant != GRANT:
        raise Refused("unsupported_grant_type" if grant else "invalid_request", f"grant_type must be {GRANT}")
    return form


def _client(authorization: str, form: Mapping[str, str]) -> tuple[str, str]:
    """`client_id` and `client_secret`, by HTTP Basic or in the body (section 2.3.1), and never by both."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "basic":
        try:
            client_id, colon, secret = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")
        except ValueError:  # binascii.Error and UnicodeError are such
            colon = client_id = secret = ""  # nosec B105 # nothing was given
        if not colon:
            raise _unknown("Authorization: Basic takes base64 of client_id:client_secret")
        client_id, secret = unquote_plus(client_id), unquote_plus(secret)
        if "client_secret" in form or form.get("client_id", client_id) != client_id:
            raise Refused("invalid_request", "Name the client once: in Authorization: Basic or in the body")
        return client_id, secret
    if authorization:
        raise _unknown("Here the client authenticates by Authorization: Basic, or in the body")
    if "client_id" not in form or "client_secret" not in form:
        raise _unknown("client_id and client_secret are missing: send them by Authorization: Basic, or in the body")
    return form["client_id"], form["client_secret"]


async def _authenticate(services: Services, client_id: str, secret: str) -> Credential:
    async with services.database.session() as session:
        try:
            credential = await api_keys.authenticate(session, services.sealer, secret)
        except AuthenticationFailed as error:
            raise _unknown(error.message) from None
    if ids.show(ids.API_KEY, credential.key_id) != client_id:
        raise _unknown("client_id is not the id of this API key, which begins with key_")
    return credential


def _unknown(description: str) -> Refused:
    return Refused("invalid_client", description, 401)


def _issue(services: Services, credential: Credential, scope: str) -> dict[str, Any]:
    """All the scopes of the key, or those that were asked for, in the same order at all times."""
    asked = set(scope.split()) or credential.scopes
    beyond = sorted(asked - credential.scopes)
    allowed = [one for one in api_keys.ALL_SCOPES if one in credential.scopes]
    if beyond:
        raise Refused("invalid_scope", f"This API key has not {' '.join(beyond)[:200]}; it has: {' '.join(allowed)}")
    scopes = [one for one in allowed if one in asked]
    made = services.access_tokens.issue(credential.key_id, credential.organization_id, scopes, datetime.now(UTC))
    return {
        "access_token": made,
        "token_type": "Bearer",  # nosec B105 # what RFC 6750 calls it
        "expires_in": access_tokens.LIFETIME_S,
        "scope": " ".join(scopes),
    }


def _unforeseen(request: Request, error: Exception) -> Refused:
    request_id = calls.request_id_of(request)
    if is_unreachable(error):
        log.warning("the database does not answer", request_id=request_id, error=repr(error))
        return Refused("temporarily_unavailable", "The database does not answer; try again", 503, 2)
    log.error("issuing an access token failed unexpectedly", request_id=request_id, exc_info=error)
    return Refused("server_error", "Something failed on our side; the request id helps us find it", 500)


def _refuse(request: Request, refused: Refused) -> Response:
    # Section 5.2: a description is of printable ASCII without quotes and backslashes.
    description = re.sub(r"[^ !#-\[\]-~]", "?", refused.description)
    more = {}
    if refused.retry_after_s is not None:
        more["Retry-After"] = str(refused.retry_after_s)
    if refused.status == 401:
        more["WWW-Authenticate"] = 'Basic realm="Hookwright"'
    return _answer(request, refused.status, {"error": refused.error, "error_description": description}, more)


def _answer(request: Request, status: int, content: dict[str, Any], more: Mapping[str, str] = NO_MORE) -> Response:
    headers = {
        "X-Request-ID": calls.request_id_of(request),
        "Cache-Control": "no-store",
        "Pragma": "no-cache",  # section 5.1 wants both
        **more,
    }
    return Response(orjson.dumps(content), status, headers, "application/json")


def routes() -> list[BaseRoute]:
    return [Route(PATH, token, methods=["POST"])]
