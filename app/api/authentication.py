"""Who is calling: an API key, and the organization it acts for."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from uuid import UUID

from app.services import Services
from core import api_keys, ids
from core.api_keys import Credential
from core.errors import AuthenticationFailed, InvalidId, NotFound, PermissionDenied, ValidationFailed

CACHE_S = 5.0
CACHE_MAX = 10_000


class RecentKeys:
    """Keys that were found valid a moment ago, for event ingestion alone: acceptance looks at them again within its
    batch, so a revoked key accepts nothing even while it is cached here."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[Credential, float]] = OrderedDict()

    def get(self, text: str) -> Credential | None:
        found = self._known.get(text)
        return found[0] if found is not None and found[1] > time.monotonic() else None

    def put(self, text: str, credential: Credential) -> None:
        self._known[text] = (credential, time.monotonic() + CACHE_S)
        self._known.move_to_end(text)
        if len(self._known) > CACHE_MAX:
            self._known.popitem(last=False)


async def authenticate(headers: Mapping[str, str], services: Services, recent: RecentKeys | None = None) -> Credential:
    """The credential in `X-API-Key` or `Authorization: Bearer`. Raises `AuthenticationFailed`."""
    text = _key_in(headers)
    known = recent.get(text) if recent is not None else None
    if known is not None:
        return known
    async with services.database.session() as session:
        credential = await api_keys.authenticate(session, services.sealer, text)
    if recent is not None:
        recent.put(text, credential)
    return credential


def _key_in(headers: Mapping[str, str]) -> str:
    given = headers.get("x-api-key")
    if given:
        return given.strip()
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    raise AuthenticationFailed


def require(credential: Credential, scope: str) -> None:
    if scope not in credential.scopes:
        raise PermissionDenied(f"This key lacks the scope {scope}", details={"required_scope": scope})


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
