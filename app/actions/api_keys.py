"""Making, changing and revoking API keys."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app import views
from app.caller import Caller
from core.access import api_keys
from core.models import ApiKey, RateTier


async def create(
    caller: Caller,
    organization_id: UUID | None,
    *,
    name: str,
    scopes: Sequence[str] | None = None,
    tier: str = RateTier.DEFAULT,
) -> tuple[ApiKey, str]:
    """The key's record, and the key, which can't be shown again. Without an organization it is a platform key.

    Raises `ValidationFailed`, and `Conflict` when the organization has as many as it may.
    """
    async with caller.transaction() as session:
        key, text = await api_keys.create(
            session, caller.services.sealer, organization_id=organization_id, name=name, scopes=scopes, tier=tier
        )
        shown = views.api_key(key)
        caller.audit(session, "api_key.created", shown["id"], after=shown, organization_id=organization_id)
    return key, text


async def update(
    caller: Caller, key_id: UUID, organization_id: UUID | None, *, name: str | None = None, tier: str | None = None
) -> ApiKey:
    """Raises `NotFound`, also where the key is not of the organization that is named, or `ValidationFailed`."""
    async with caller.transaction() as session:
        key = await api_keys.get(session, key_id, organization_id)
        before = views.api_key(key)
        await api_keys.update_fields(session, key, name=name, tier=tier)
        after = views.api_key(key)
        if after != before:
            caller.audit(
                session, "api_key.updated", after["id"], before=before, after=after, organization_id=key.organization_id
            )
    return key


async def revoke(caller: Caller, key_id: UUID, organization_id: UUID | None) -> ApiKey:
    """Ends a key at once. Raises `NotFound` like `update`."""
    async with caller.transaction() as session:
        before = views.api_key(await api_keys.get(session, key_id, organization_id))
        key = await api_keys.revoke(session, key_id, organization_id)
        after = views.api_key(key)
        if after != before:
            caller.audit(
                session, "api_key.revoked", after["id"], before=before, after=after, organization_id=key.organization_id
            )
    return key
