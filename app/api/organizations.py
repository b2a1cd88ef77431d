"""Organizations and their API keys, for the holder of a platform key."""

from __future__ import annotations

from sqlmodel import col

from app import views
from app.api import answers, lists
from app.api.calls import Call
from app.api.inputs import ApiKeyIn, ApiKeyPatch, OrganizationIn
from app.api.replies import Reply
from core import api_keys, erasure, ids, organizations
from core.errors import ValidationFailed
from core.models import ApiKey, Organization


async def create(call: Call) -> Reply:
    given = call.read(OrganizationIn)
    async with call.transaction() as session:
        organization = await organizations.create(session, given.name)
        shown = views.organization(organization)
        call.audit(session, "organization.created", shown["id"], after=shown, organization_id=organization.id)
    return Reply(shown, 201, "Organization created", version=organization.version)


async def index(call: Call) -> Reply:
    query = lists.parse(call.request, answers.Organization)
    _no_filters(query)
    async with call.transaction() as session:
        return await lists.run(
            session, query, Organization, [col(Organization.deleted_at).is_(None)], views.organization
        )


async def show(call: Call) -> Reply:
    async with call.transaction() as session:
        organization = await organizations.get(session, call.path_id(ids.ORGANIZATION))
    return Reply(views.organization(organization), version=organization.version)


async def update(call: Call) -> Reply:
    given = call.read(OrganizationIn)
    async with call.transaction() as session:
        organization = await organizations.get(session, call.path_id(ids.ORGANIZATION), lock=True)
        call.check_version(organization.version)
        before = views.organization(organization)
        await organizations.rename(session, organization, given.name)
        after = views.organization(organization)
        call.audit(
            session, "organization.updated", after["id"], before=before, after=after, organization_id=organization.id
        )
    return Reply(after, message="Organization updated", version=organization.version)


async def delete(call: Call) -> Reply:
    async with call.transaction() as session:
        organization = await organizations.get(session, call.path_id(ids.ORGANIZATION))
        call.check_version(organization.version)
        organization = await erasure.mark(session, organization.id, call.actor)
    return Reply(views.deleted_organization(organization), 202, "Organization deleted; what it had is being erased")


async def create_key(call: Call) -> Reply:
    given = call.read(ApiKeyIn)
    async with call.transaction() as session:
        key, text = await api_keys.create(
            session,
            call.services.sealer,
            organization_id=call.organization_id,
            name=given.name,
            scopes=given.scopes,
            tier=given.tier,
        )
        shown = views.api_key(key)
        call.audit(session, "api_key.created", shown["id"], after=shown)
    return Reply(shown | {"key": text}, 201, "API key created; it is shown only this once")


async def index_keys(call: Call) -> Reply:
    query = lists.parse(call.request, answers.ApiKey)
    _no_filters(query)
    async with call.transaction() as session:
        return await lists.run(
            session, query, ApiKey, [col(ApiKey.organization_id) == call.organization_id], views.api_key
        )


async def update_key(call: Call) -> Reply:
    given = call.read(ApiKeyPatch)
    async with call.transaction() as session:
        key = await api_keys.get(session, call.path_id(ids.API_KEY), call.organization_id)
        before = views.api_key(key)
        await api_keys.update_fields(session, key, name=given.name, tier=given.tier)
        after = views.api_key(key)
        if after != before:
            call.audit(session, "api_key.updated", after["id"], before=before, after=after)
    return Reply(after, message="API key updated")


async def revoke_key(call: Call) -> Reply:
    async with call.transaction() as session:
        key = await api_keys.get(session, call.path_id(ids.API_KEY), call.organization_id)
        before = views.api_key(key)
        after = views.api_key(await api_keys.revoke(session, key.id, call.organization_id))
        if after != before:
            call.audit(session, "api_key.revoked", after["id"], before=before, after=after)
    return Reply(after, message="API key revoked")


def _no_filters(query: lists.ListQuery) -> None:
    if query.filters:
        raise ValidationFailed.of("filters", "This list has no filters")
