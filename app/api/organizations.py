"""Organizations and their API keys, for the holder of a platform key."""

from __future__ import annotations

from sqlmodel import col

from app import views
from app.actions import api_keys as acts_on_keys
from app.actions import organizations as acts
from app.api import answers, lists
from app.api.calls import Call
from app.api.inputs import ApiKeyIn, ApiKeyPatch, OrganizationIn
from app.api.replies import Reply
from core import ids, organizations
from core.errors import ValidationFailed
from core.models import ApiKey, Organization


async def create(call: Call) -> Reply:
    organization = await acts.create(call, call.read(OrganizationIn).name)
    return Reply(views.organization(organization), 201, "Organization created", version=organization.version)


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
    organization = await acts.rename(call, call.path_id(ids.ORGANIZATION), given.name)
    return Reply(views.organization(organization), message="Organization updated", version=organization.version)


async def delete(call: Call) -> Reply:
    organization = await acts.delete(call, call.path_id(ids.ORGANIZATION))
    return Reply(views.deleted_organization(organization), 202, "Organization deleted; what it had is being erased")


async def create_key(call: Call) -> Reply:
    given = call.read(ApiKeyIn)
    key, text = await acts_on_keys.create(
        call, call.organization_id, name=given.name, scopes=given.scopes, tier=given.tier
    )
    return Reply(views.api_key(key) | {"key": text}, 201, "API key created; it is shown only this once")


async def index_keys(call: Call) -> Reply:
    query = lists.parse(call.request, answers.ApiKey)
    _no_filters(query)
    async with call.transaction() as session:
        return await lists.run(
            session, query, ApiKey, [col(ApiKey.organization_id) == call.organization_id], views.api_key
        )


async def update_key(call: Call) -> Reply:
    given = call.read(ApiKeyPatch)
    key = await acts_on_keys.update(
        call, call.path_id(ids.API_KEY), call.organization_id, name=given.name, tier=given.tier
    )
    return Reply(views.api_key(key), message="API key updated")


async def revoke_key(call: Call) -> Reply:
    key = await acts_on_keys.revoke(call, call.path_id(ids.API_KEY), call.organization_id)
    return Reply(views.api_key(key), message="API key revoked")


def _no_filters(query: lists.ListQuery) -> None:
    if query.filters:
        raise ValidationFailed.of("filters", "This list has no filters")
