"""Making, renaming and deleting organizations."""

from __future__ import annotations

from uuid import UUID

from app import views
from app.caller import Caller
from core import erasure, organizations
from core.models import Organization


async def create(caller: Caller, name: str) -> Organization:
    """Raises `ValidationFailed`."""
    async with caller.transaction() as session:
        organization = await organizations.create(session, name)
        shown = views.organization(organization)
        caller.audit(session, "organization.created", shown["id"], after=shown, organization_id=organization.id)
    return organization


async def rename(caller: Caller, organization_id: UUID, name: str) -> Organization:
    """Raises `NotFound`, `ValidationFailed`, or `Conflict` for another version than the caller has seen."""
    async with caller.transaction() as session:
        organization = await organizations.get(session, organization_id, lock=True)
        caller.check_version(organization.version)
        before = views.organization(organization)
        await organizations.rename(session, organization, name)
        after = views.organization(organization)
        caller.audit(
            session, "organization.updated", after["id"], before=before, after=after, organization_id=organization.id
        )
    return organization


async def delete(caller: Caller, organization_id: UUID) -> Organization:
    """Ends it at once; workers erase what it had. Raises `NotFound`, or `Conflict` as `rename`."""
    async with caller.transaction() as session:
        organization = await organizations.get(session, organization_id)
        caller.check_version(organization.version)
        return await erasure.mark(session, organization.id, caller.actor)
