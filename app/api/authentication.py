"""Who is calling: an API key, or an access token it was exchanged for, and the organization it acts for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

from app.services import Services
from core import ids
from core.access import api_keys
from core.access.api_keys import Credential
from core.errors import AuthenticationFailed, InvalidId, NotFound, PermissionDenied, ValidationFailed

CACHE_S = 5.0
LOOK_AGAIN_S = 1.0
CACHE_MAX = 10_000


class RecentKeys:
    """Keys and access tokens that were found valid a moment ago, for event ingestion alone: acceptance looks at the key
    again within its batch, so a revoked one accepts nothing even while it is cached here. Nor does an access token
    outlive its end here."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Credential, float]] = OrderedDict()

    def get(self, text: str) -> Credential | None:
        """None: it is not known, or it is time to look at it again. Where it is in use, one caller a second is told so
        and the others have what was known: else hundreds of requests would look at it at the same moment."""
        credential, until = self._known.get(text, (None, 0.0))
        now = time.monotonic()
        if credential is None or until > now:
            return credential
        if now < until + CACHE_S:
            self._known[text] = (credential, now + _holds_s(credential, LOOK_AGAIN_S))
        return None

    def put(self, text: str, credential: Credential) -> None:
        self._known[text] = (credential, time.monotonic() + _holds_s(credential, CACHE_S))
        self._known.move_to_end(text)
        if len(self._known) > CACHE_MAX:
            self._known.popitem(last=False)

    def forget(self, text: str) -> None:
        self._known.pop(text, None)


def _holds_s(credential: Credential, most_s: float) -> float:
    if credential.ends_at is None:
        return most_s
    return min(most_s, (credential.ends_at - datetime.now(UTC)).total_seconds())


async def authenticate(headers: Mapping[str, str], services: Services, recent: RecentKeys | None = None) -> Credential:
    """The credential in `X-API-Key` or `Authorization: Bearer`. Raises `AuthenticationFailed`."""
    text = _given(headers)
    known = recent.get(text) if recent is not None else None
    if known is not None:
        return known
    try:
        credential = await _find(text, services)
    except AuthenticationFailed:
        if recent is not None:
            recent.forget(text)
        raise
    if recent is not None:
        recent.put(text, credential)
    return credential


async def _find(text: str, services: Services) -> Credential:
    if text.startswith(api_keys.MARK):
        async with services.database.session() as session:
            return await api_keys.authenticate(session, services.sealer, text)
    claims = services.access_tokens.read(text, datetime.now(UTC))
    async with services.database.session() as session:
        return await api_keys.authenticate_token(session, services.sealer, claims)


def _given(headers: Mapping[str, str]) -> str:
    """An API key from either header, or what may be an access token, which only Bearer brings (RFC 6750)."""
    given = headers.get("x-api-key", "").strip()
    if given:
        if not given.startswith(api_keys.MARK):
            raise AuthenticationFailed("X-API-Key takes an API key, which begins with sk_live_")
        return given
    kind, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if kind.lower() != "bearer" or not value:
        raise AuthenticationFailed
    if not value.startswith(api_keys.MARK) and value.count(".") != 2:
        raise AuthenticationFailed("Authorization: Bearer takes an API key or an access token, and this is neither")
    return value


def require(credential: Credential, scope: str) -> None:
    if scope not in credential.scopes:
        raise PermissionDenied(f"This key or access token lacks the scope {scope}", details={"required_scope": scope})


def organization_of(headers: Mapping[str, str], credential: Credential) -> UUID:
    """The organization that this call is about. A platform key names it; an organization's key can name only its own.

    Whether it exists is for the caller to find out.
    """
    named = headers.get("x-organization-id")
    if credential.organization_id is None:
        if named is None:
            raise ValidationFailed.of(
                "X-Organization-ID", "A platform key must name the organization it acts for in this header"
            )
        return _named(named)
    if named is not None and _named(named) != credential.organization_id:
        raise NotFound("There is no such organization")
    return credential.organization_id


def _named(text: str) -> UUID:
    try:
        return ids.parse(ids.ORGANIZATION, text.strip())
    except InvalidId as error:
        raise ValidationFailed.of("X-Organization-ID", error.message) from None
