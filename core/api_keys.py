"""API keys: 256 random bits, shown once, stored as a keyed hash, found by their first characters."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.errors import AuthenticationFailed, NotFound, ValidationFailed, quoted
from core.models import ApiKey
from core.organizations import check_name
from core.quotas import MAX_API_KEYS, check_room
from core.sealing import Sealer

MARK = "sk_live_"
PREFIX_CHARS = len(MARK) + 10  # 60 bits of the key: enough to find it by, far too few to guess the rest
USED_EVERY = timedelta(minutes=1)  # how exact `last_used_at` is

EVENTS_WRITE = "events.write"
EVENTS_READ = "events.read"
SUBSCRIPTIONS_READ = "subscriptions.read"
SUBSCRIPTIONS_WRITE = "subscriptions.write"
DELIVERIES_READ = "deliveries.read"
DELIVERIES_REPLAY = "deliveries.replay"
ORGANIZATIONS_ADMIN = "organizations.admin"

ORGANIZATION_SCOPES = (
    EVENTS_WRITE,
    EVENTS_READ,
    SUBSCRIPTIONS_READ,
    SUBSCRIPTIONS_WRITE,
    DELIVERIES_READ,
    DELIVERIES_REPLAY,
)
ALL_SCOPES = (*ORGANIZATION_SCOPES, ORGANIZATIONS_ADMIN)


@dataclass(frozen=True, slots=True)
class Credential:
    """Who is calling. `organization_id` None: a platform key, which acts for the organization it names."""

    key_id: UUID
    name: str
    organization_id: UUID | None
    scopes: frozenset[str]


def check_scopes(scopes: Iterable[str], *, platform: bool) -> list[str]:
    """Raises `ValidationFailed` naming what is unknown, or what an organization's key can't have."""
    allowed = ALL_SCOPES if platform else ORGANIZATION_SCOPES
    chosen = list(dict.fromkeys(scopes))
    wrong = [scope for scope in chosen if scope not in allowed]
    if wrong or not chosen:
        what = f"{', '.join(map(quoted, wrong))[:200]} can't be given; " if wrong else ""
        raise ValidationFailed.of("scopes", f"{what}choose from: {', '.join(allowed)}")
    return chosen


async def create(
    session: AsyncSession,
    sealer: Sealer,
    *,
    organization_id: UUID | None,
    name: str,
    scopes: Sequence[str] | None = None,
) -> tuple[ApiKey, str]:
    """Makes a key, with every scope it can have unless some are chosen. Returns its record and the key itself, which
    can't be shown again. Raises `ValidationFailed`, and `Conflict` when the organization has as many as it may."""
    platform = organization_id is None
    every = ALL_SCOPES if platform else ORGANIZATION_SCOPES
    chosen = check_scopes(every if scopes is None else scopes, platform=platform)
    name = check_name(name)
    if organization_id is not None:
        advice = "revoke those that nobody uses"
        live = col(ApiKey.revoked_at).is_(None)
        await check_room(session, organization_id, ApiKey, live, most=MAX_API_KEYS, advice=advice)
    text = MARK + secrets.token_urlsafe(32)
    key_id, digest = sealer.keyed_hash(text.encode())
    key = ApiKey(
        id=ids.new_id(),
        organization_id=organization_id,
        name=name,
        prefix=text[:PREFIX_CHARS],
        hash=digest,
        hash_key_id=key_id,
        scopes=chosen,
    )
    session.add(key)
    await session.flush()
    return key, text


async def authenticate(session: AsyncSession, sealer: Sealer, text: str) -> Credential:
    """Whose key this is. Raises `AuthenticationFailed` when there is none such, or it was revoked."""
    query = select(ApiKey).where(ApiKey.prefix == text[:PREFIX_CHARS])
    key = (await session.exec(query)).one_or_none() if text.startswith(MARK) and _is_plain(text) else None
    if key is None or not _fits(sealer, key, text):
        raise AuthenticationFailed("This API key is not known here")
    if key.revoked_at is not None:
        raise AuthenticationFailed("This API key has been revoked")
    await _note_use(session, sealer, key, text)
    return Credential(key.id, key.name, key.organization_id, frozenset(key.scopes))


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _fits(sealer: Sealer, key: ApiKey, text: str) -> bool:
    expected = sealer.keyed_hash_with(key.hash_key_id, text.encode())
    return expected is not None and hmac.compare_digest(expected, key.hash)


async def _note_use(session: AsyncSession, sealer: Sealer, key: ApiKey, text: str) -> None:
    """Keeps `last_used_at`, and moves the hash to the newest secret key so that older ones can be retired."""
    now = datetime.now(UTC)
    key_id, digest = sealer.keyed_hash(text.encode())
    if key.hash_key_id == key_id and key.last_used_at is not None and now - key.last_used_at < USED_EVERY:
        return
    await session.exec(
        update(ApiKey).where(col(ApiKey.id) == key.id).values(last_used_at=now, hash=digest, hash_key_id=key_id)
    )


async def get(session: AsyncSession, key_id: UUID, organization_id: UUID | None = None) -> ApiKey:
    """The key, locked. Raises `NotFound`; `organization_id` narrows the search to one tenant."""
    query = select(ApiKey).where(ApiKey.id == key_id).with_for_update()
    if organization_id is not None:
        query = query.where(ApiKey.organization_id == organization_id)
    key = (await session.exec(query)).one_or_none()
    if key is None:
        raise NotFound(f"There is no API key {ids.show(ids.API_KEY, key_id)}")
    return key


async def revoke(session: AsyncSession, key_id: UUID, organization_id: UUID | None = None) -> ApiKey:
    """Ends a key at once, in every process. Raises `NotFound` like `get`."""
    key = await get(session, key_id, organization_id)
    if key.revoked_at is None:
        key.revoked_at = datetime.now(UTC)
        session.add(key)
    return key
