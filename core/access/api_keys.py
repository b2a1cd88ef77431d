"""API keys: 256 random bits, shown once, stored as a keyed hash, found by their first characters.

Nobody is kept from trying keys: 2^256 of them need no lock-out, and a lock would be a way to shut out others. For
the same reason a keyed hash will do where passwords need a slow one."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids
from core.access.access_tokens import Claims
from core.errors import AuthenticationFailed, NotFound, ValidationFailed, quoted
from core.limiting.quotas import MAX_API_KEYS, check_room
from core.listing.lists import REACH, Walk
from core.models import ApiKey, Organization, RateTier
from core.organizations import check_name
from core.secrets.sealing import Sealer

MARK = "sk_live_"
UNKNOWN = "This API key is not known here"
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
    tier: str
    ends_at: datetime | None = None  # of an access token; a key holds until it is revoked


def check_scopes(scopes: Iterable[str], *, platform: bool) -> list[str]:
    """Raises `ValidationFailed` naming what is unknown, or what an organization's key can't have."""
    allowed = ALL_SCOPES if platform else ORGANIZATION_SCOPES
    chosen = list(dict.fromkeys(scopes))
    wrong = [scope for scope in chosen if scope not in allowed]
    if wrong or not chosen:
        what = f"{', '.join(map(quoted, wrong))[:200]} can't be given; " if wrong else ""
        raise ValidationFailed.of("scopes", f"{what}choose from: {', '.join(allowed)}")
    return chosen


def check_tier(tier: str) -> str:
    """Raises `ValidationFailed` for one that there is not."""
    if tier not in set(RateTier):
        raise ValidationFailed.of("tier", f"Must be one of: {', '.join(RateTier)}")
    return tier


async def create(
    session: AsyncSession,
    sealer: Sealer,
    *,
    organization_id: UUID | None,
    name: str,
    scopes: Sequence[str] | None = None,
    tier: str = RateTier.DEFAULT,
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
        tier=check_tier(tier),
    )
    session.add(key)
    await session.flush()
    return key, text


async def authenticate(session: AsyncSession, sealer: Sealer, text: str) -> Credential:
    """Whose key this is. Raises `AuthenticationFailed` when there is none such, it was revoked, or its organization was
    deleted."""
    if not text.startswith(MARK) or not _is_plain(text):
        raise AuthenticationFailed(UNKNOWN)
    key, deleted = await _find(session, col(ApiKey.prefix) == text[:PREFIX_CHARS])
    if key is None or not _fits(sealer, key, text):
        raise AuthenticationFailed(UNKNOWN)
    _check_lives(key, deleted)
    await _note_use(session, sealer, key, text)
    return Credential(key.id, key.name, key.organization_id, frozenset(key.scopes), key.tier)


async def authenticate_token(session: AsyncSession, sealer: Sealer, claims: Claims) -> Credential:
    """Whose access token it is that says so. It ends with its API key: raises `AuthenticationFailed` when that was
    revoked or its organization was deleted. It never has a scope that its key has not."""
    key, deleted = await _find(session, col(ApiKey.id) == claims.key_id)
    if key is None or key.organization_id != claims.organization_id:
        raise AuthenticationFailed("The API key of this access token is not known here")
    _check_lives(key, deleted)
    await _note_use(session, sealer, key)
    return Credential(
        key.id, key.name, key.organization_id, claims.scopes & frozenset(key.scopes), key.tier, claims.ends_at
    )


async def _find(session: AsyncSession, which: ColumnElement[bool]) -> tuple[ApiKey | None, bool]:
    """The key, and whether its organization is marked as deleted."""
    query = (
        select(ApiKey, col(Organization.deleted_at))
        .join(Organization, col(ApiKey.organization_id) == col(Organization.id), isouter=True)
        .where(which)
    )
    key, deleted_at = (await session.exec(query)).one_or_none() or (None, None)
    return key, deleted_at is not None


def _check_lives(key: ApiKey, organization_deleted: bool) -> None:
    if key.revoked_at is not None:
        raise AuthenticationFailed("This API key has been revoked")
    if organization_deleted:
        raise AuthenticationFailed("The organization of this API key has been deleted")


def _is_plain(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _fits(sealer: Sealer, key: ApiKey, text: str) -> bool:
    expected = sealer.keyed_hash_with(key.hash_key_id, text.encode())
    return expected is not None and hmac.compare_digest(expected, key.hash)


async def _note_use(session: AsyncSession, sealer: Sealer, key: ApiKey, text: str | None = None) -> None:
    """Keeps `last_used_at`. With the key itself at hand, moves its hash to the newest secret key, so that older ones
    can be retired."""
    now = datetime.now(UTC)
    changes: dict[str, Any] = {}
    if key.last_used_at is None or now - key.last_used_at >= USED_EVERY:
        changes["last_used_at"] = now
    if text is not None and key.hash_key_id != sealer.key_ids[0]:
        key_id, digest = sealer.keyed_hash(text.encode())
        changes |= {"last_used_at": now, "hash": digest, "hash_key_id": key_id}
    if changes:
        await session.exec(update(ApiKey).where(col(ApiKey.id) == key.id).values(**changes))


def walk(organization_id: UUID | None = None, *, platform: bool = False, revoked: bool | None = None) -> Walk:
    """The keys of one organization, with `platform` those of none, else all; `revoked`: only those that are, or not."""
    of = [col(ApiKey.organization_id) == organization_id] if organization_id is not None else []
    if platform:
        of = [col(ApiKey.organization_id).is_(None)]
    ended = col(ApiKey.revoked_at)
    checked = [] if revoked is None else [ended.is_not(None) if revoked else ended.is_(None)]
    return Walk(ApiKey, of, checked, REACH)


async def find(session: AsyncSession, key_id: UUID) -> ApiKey:
    """Whosever it is. Raises `NotFound`."""
    key = await session.get(ApiKey, key_id)
    if key is None:
        raise _unknown(key_id)
    return key


async def get(session: AsyncSession, key_id: UUID, organization_id: UUID | None = None) -> ApiKey:
    """The key, locked. Raises `NotFound`; `organization_id` narrows the search to one tenant."""
    query = select(ApiKey).where(ApiKey.id == key_id).with_for_update()
    if organization_id is not None:
        query = query.where(ApiKey.organization_id == organization_id)
    key = (await session.exec(query)).one_or_none()
    if key is None:
        raise _unknown(key_id)
    return key


def _unknown(key_id: UUID) -> NotFound:
    return NotFound(f"There is no API key {ids.show(ids.API_KEY, key_id)}")


async def update_fields(
    session: AsyncSession, key: ApiKey, *, name: str | None = None, tier: str | None = None
) -> None:
    """Changes what is given. Raises `ValidationFailed`."""
    if name is not None:
        key.name = check_name(name)
    if tier is not None:
        key.tier = check_tier(tier)
    session.add(key)
    await session.flush()


async def revoke(session: AsyncSession, key_id: UUID, organization_id: UUID | None = None) -> ApiKey:
    """Ends a key and its access tokens at once, in every process. Raises `NotFound` like `get`."""
    key = await get(session, key_id, organization_id)
    if key.revoked_at is None:
        key.revoked_at = datetime.now(UTC)
        session.add(key)
    return key
