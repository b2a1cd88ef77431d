"""Every path, with what handles it and what a caller needs for it. The one place where access is declared."""

from __future__ import annotations

from starlette.routing import BaseRoute, Mount, Route

from app import health, oauth
from app.admin import (
    account,
    dead_letters,
    go,
    overview,
    set_up,
    settings,
    sign_in,
    single_sign_on,
    subscription_edit,
    users,
)
from app.admin import api_keys as api_keys_page
from app.admin import audit_log as audit_log_page
from app.admin import deliveries as delivery_pages
from app.admin import event_types as event_types_page
from app.admin import events as event_pages
from app.admin import organizations as organizations_page
from app.admin import replays as replays_page
from app.admin import subscriptions as subscriptions_page
from app.admin.frame import Page, PageResource
from app.api import (
    audit_log,
    breakers,
    deliveries,
    event_types,
    events,
    openapi,
    organizations,
    performance,
    replays,
    subscriptions,
)
from app.api.calls import Action, Handler, Resource
from app.assets import Assets
from core.access.api_keys import (
    DELIVERIES_READ,
    DELIVERIES_REPLAY,
    EVENTS_READ,
    EVENTS_WRITE,
    ORGANIZATIONS_ADMIN,
    SUBSCRIPTIONS_READ,
    SUBSCRIPTIONS_WRITE,
)
from core.access.models import Role


def _ingests(handler: Handler, max_body: str) -> Action:
    return Action(
        handler,
        EVENTS_WRITE,
        keeps_own_keys=True,
        rechecks_credential=True,
        ingests=True,
        max_body=max_body,
        unaudited="the event is its own record, and they are many",
    )


# The API: each method names its scope, and one that changes something its entry in the audit log. The busiest first:
# Starlette tries them in order.
API: dict[str, dict[str, Action]] = {
    "/v1/events": {
        "POST": _ingests(events.create, "event_max_bytes"),
        "GET": Action(events.index, EVENTS_READ, lists=True),
    },
    "/v1/events/batch": {"POST": _ingests(events.create_batch, "batch_max_bytes")},
    "/v1/events/{id}": {"GET": Action(events.show, EVENTS_READ)},
    "/v1/events/{id}/redact": {"POST": Action(events.redact, EVENTS_WRITE, audited="event.redacted")},
    "/v1/events/{id}/copy": {
        "POST": Action(
            events.copy, EVENTS_WRITE, keeps_own_keys=True, max_body="event_max_bytes", audited="event.copied"
        )
    },
    "/v1/events/{id}/deliveries": {"GET": Action(events.deliveries, DELIVERIES_READ, lists=True)},
    "/v1/deliveries": {"GET": Action(deliveries.index, DELIVERIES_READ, lists=True)},
    "/v1/deliveries/{id}": {"GET": Action(deliveries.show, DELIVERIES_READ)},
    "/v1/deliveries/{id}/replay": {"POST": Action(deliveries.replay, DELIVERIES_REPLAY, audited="delivery.replayed")},
    "/v1/deliveries/{id}/discard": {
        "POST": Action(deliveries.discard, DELIVERIES_REPLAY, audited="delivery.discarded")
    },
    "/v1/webhooks/subscriptions": {
        "POST": Action(subscriptions.create, SUBSCRIPTIONS_WRITE, audited="subscription.created"),
        "GET": Action(subscriptions.index, SUBSCRIPTIONS_READ, lists=True),
    },
    "/v1/webhooks/subscriptions/check": {
        "POST": Action(
            subscriptions.check,
            SUBSCRIPTIONS_WRITE,
            keeps_own_keys=True,
            unaudited="it looks, and changes nothing",
        )
    },
    "/v1/webhooks/subscriptions/{id}": {
        "GET": Action(subscriptions.show, SUBSCRIPTIONS_READ),
        "PATCH": Action(subscriptions.update, SUBSCRIPTIONS_WRITE, audited="subscription.updated"),
        "DELETE": Action(subscriptions.delete, SUBSCRIPTIONS_WRITE, audited="subscription.deleted"),
    },
    "/v1/webhooks/subscriptions/{id}/pause": {
        "POST": Action(subscriptions.pause, SUBSCRIPTIONS_WRITE, audited="subscription.paused")
    },
    "/v1/webhooks/subscriptions/{id}/resume": {
        "POST": Action(subscriptions.resume, SUBSCRIPTIONS_WRITE, audited="subscription.resumed")
    },
    "/v1/webhooks/subscriptions/{id}/secret/rotate": {
        "POST": Action(subscriptions.rotate_secret, SUBSCRIPTIONS_WRITE, audited="subscription.secret_rotated")
    },
    # It keeps no idempotency key: the repeat of an answer would show the secret and stand in no audit log.
    "/v1/webhooks/subscriptions/{id}/secret/reveal": {
        "POST": Action(
            subscriptions.reveal_secret,
            SUBSCRIPTIONS_WRITE,
            keeps_own_keys=True,
            audited="subscription.secret_revealed",
        )
    },
    "/v1/webhooks/subscriptions/{id}/test": {
        "POST": Action(
            subscriptions.test,
            SUBSCRIPTIONS_WRITE,
            keeps_own_keys=True,
            max_body="event_max_bytes",
            audited="subscription.tested",
        )
    },
    "/v1/webhooks/subscriptions/{id}/deliveries": {
        "GET": Action(subscriptions.deliveries_of, DELIVERIES_READ, lists=True)
    },
    "/v1/webhooks/subscriptions/{id}/circuit-breaker": {"GET": Action(breakers.show, SUBSCRIPTIONS_READ)},
    "/v1/webhooks/subscriptions/{id}/circuit-breaker/history": {
        "GET": Action(breakers.history, SUBSCRIPTIONS_READ, lists=True)
    },
    "/v1/webhooks/subscriptions/{id}/circuit-breaker/reset": {
        "POST": Action(breakers.reset, SUBSCRIPTIONS_WRITE, audited="circuit_breaker.reset")
    },
    "/v1/webhooks/subscriptions/{id}/health": {"GET": Action(performance.health_of, SUBSCRIPTIONS_READ)},
    "/v1/webhooks/subscriptions/{id}/performance": {"GET": Action(performance.of_subscription, DELIVERIES_READ)},
    "/v1/webhooks/performance": {"GET": Action(performance.of_organization, DELIVERIES_READ)},
    "/v1/replays": {
        "POST": Action(replays.create, DELIVERIES_REPLAY, audited="replay.created"),
        "GET": Action(replays.index, DELIVERIES_READ, lists=True),
    },
    "/v1/replays/{id}": {
        "GET": Action(replays.show, DELIVERIES_READ),
        "PATCH": Action(replays.update, DELIVERIES_REPLAY, audited="replay.updated"),
    },
    "/v1/replays/{id}/items": {"GET": Action(replays.items, DELIVERIES_READ, lists=True)},
    "/v1/replays/{id}/pause": {"POST": Action(replays.pause, DELIVERIES_REPLAY, audited="replay.paused")},
    "/v1/replays/{id}/resume": {"POST": Action(replays.resume, DELIVERIES_REPLAY, audited="replay.resumed")},
    "/v1/replays/{id}/cancel": {"POST": Action(replays.cancel, DELIVERIES_REPLAY, audited="replay.cancelled")},
    "/v1/event-types": {
        "POST": Action(event_types.create, EVENTS_WRITE, audited="event_type.created"),
        "GET": Action(event_types.index, EVENTS_READ, lists=True),
    },
    "/v1/event-types/{name}": {
        "GET": Action(event_types.show, EVENTS_READ),
        "PATCH": Action(event_types.update, EVENTS_WRITE, audited="event_type.updated"),
        "DELETE": Action(event_types.delete, EVENTS_WRITE, audited="event_type.deleted"),
    },
    "/v1/organizations": {
        "POST": Action(organizations.create, ORGANIZATIONS_ADMIN, tenant=False, audited="organization.created"),
        "GET": Action(organizations.index, ORGANIZATIONS_ADMIN, tenant=False, lists=True),
    },
    "/v1/organizations/{id}": {
        "GET": Action(organizations.show, ORGANIZATIONS_ADMIN, tenant=False),
        "PATCH": Action(organizations.update, ORGANIZATIONS_ADMIN, tenant=False, audited="organization.updated"),
        "DELETE": Action(organizations.delete, ORGANIZATIONS_ADMIN, tenant=False, audited="organization.deleted"),
    },
    "/v1/api-keys": {
        "POST": Action(organizations.create_key, ORGANIZATIONS_ADMIN, audited="api_key.created"),
        "GET": Action(organizations.index_keys, ORGANIZATIONS_ADMIN, lists=True),
    },
    # Across tenants without X-Organization-ID, so it judges that header itself.
    "/v1/audit-log": {"GET": Action(audit_log.index, ORGANIZATIONS_ADMIN, tenant=False, lists=True)},
    "/v1/audit-log/export": {"GET": Action(audit_log.export, ORGANIZATIONS_ADMIN, tenant=False, exports=True)},
    "/v1/api-keys/{id}": {
        "PATCH": Action(organizations.update_key, ORGANIZATIONS_ADMIN, audited="api_key.updated"),
        "DELETE": Action(organizations.revoke_key, ORGANIZATIONS_ADMIN, audited="api_key.revoked"),
    },
}


# The pages: each method names the least role, or says why anybody may.
PAGES: dict[str, dict[str, Page]] = {
    "/": {"GET": Page(overview.show, public="who has not signed in sees where to, and nothing of anybody's")},
    "/sign-in": {
        "GET": Page(sign_in.show, public="who signs in has not signed in yet"),
        "POST": Page(sign_in.submit, public="who signs in has not signed in yet"),
    },
    single_sign_on.PATH: {"GET": Page(single_sign_on.begin, public="who signs in has not signed in yet")},
    single_sign_on.CALLBACK_PATH: {"GET": Page(single_sign_on.end, public="the identity provider's answer lets in")},
    "/sign-out": {"POST": Page(sign_in.sign_out, role=Role.VIEWER)},
    "/set-up": {"POST": Page(set_up.submit, public="the link is what lets in, and it must hold")},
    "/set-up/{token}": {"GET": Page(set_up.show, public="the link is what lets in, and it must hold")},
    "/account": {"GET": Page(account.show, role=Role.VIEWER), "POST": Page(account.rename, role=Role.VIEWER)},
    "/account/password": {"POST": Page(account.change_password, role=Role.VIEWER)},
    "/account/sessions/{id}/revoke": {"POST": Page(account.end_session, role=Role.VIEWER)},
    "/account/sessions/revoke-others": {"POST": Page(account.end_other_sessions, role=Role.VIEWER)},
    "/dead-letters": {"GET": Page(dead_letters.index, role=Role.VIEWER)},
    "/dead-letters/{subscription_id}/{error}": {"GET": Page(dead_letters.show, role=Role.VIEWER)},
    "/replays": {
        "GET": Page(replays_page.index, role=Role.VIEWER),
        "POST": Page(replays_page.start, role=Role.OPERATOR),
    },
    "/replays/new": {"GET": Page(replays_page.new, role=Role.OPERATOR)},
    "/replays/time": {"GET": Page(replays_page.time, role=Role.OPERATOR)},
    "/replays/{id}": {"GET": Page(replays_page.show, role=Role.VIEWER)},
    "/replays/{id}/pause": {"POST": Page(replays_page.pause, role=Role.OPERATOR)},
    "/replays/{id}/resume": {"POST": Page(replays_page.resume, role=Role.OPERATOR)},
    "/replays/{id}/cancel": {"POST": Page(replays_page.cancel, role=Role.OPERATOR)},
    "/replays/{id}/rate": {"POST": Page(replays_page.set_rate, role=Role.OPERATOR)},
    "/subscriptions": {
        "GET": Page(subscriptions_page.index, role=Role.VIEWER),
        "POST": Page(subscription_edit.create, role=Role.ADMIN),
    },
    "/subscriptions/new": {"GET": Page(subscription_edit.new, role=Role.ADMIN)},
    "/subscriptions/check": {"POST": Page(subscription_edit.check, role=Role.ADMIN)},
    "/subscriptions/{id}": {"GET": Page(subscriptions_page.show, role=Role.VIEWER)},
    "/subscriptions/{id}/edit": {
        "GET": Page(subscription_edit.edit, role=Role.ADMIN),
        "POST": Page(subscription_edit.save, role=Role.ADMIN),
    },
    "/subscriptions/{id}/pause": {"POST": Page(subscriptions_page.pause, role=Role.OPERATOR)},
    "/subscriptions/{id}/resume": {"POST": Page(subscriptions_page.resume, role=Role.OPERATOR)},
    "/subscriptions/{id}/test": {"POST": Page(subscriptions_page.send_test, role=Role.OPERATOR)},
    "/subscriptions/{id}/reset-breaker": {"POST": Page(subscriptions_page.reset_breaker, role=Role.OPERATOR)},
    "/subscriptions/{id}/reveal": {"POST": Page(subscriptions_page.reveal, role=Role.ADMIN)},
    "/subscriptions/{id}/rotate": {"POST": Page(subscriptions_page.rotate, role=Role.ADMIN)},
    "/subscriptions/{id}/delete": {
        "GET": Page(subscriptions_page.confirm_delete, role=Role.ADMIN),
        "POST": Page(subscriptions_page.delete, role=Role.ADMIN),
    },
    "/deliveries": {"GET": Page(delivery_pages.index, role=Role.VIEWER)},
    "/deliveries/{id}": {"GET": Page(delivery_pages.show, role=Role.VIEWER)},
    "/deliveries/{id}/body": {"GET": Page(delivery_pages.body, role=Role.VIEWER)},
    "/deliveries/{id}/replay": {"POST": Page(delivery_pages.replay, role=Role.OPERATOR)},
    "/deliveries/{id}/discard": {"POST": Page(delivery_pages.discard, role=Role.OPERATOR)},
    "/events": {"GET": Page(event_pages.index, role=Role.VIEWER)},
    "/events/{id}": {"GET": Page(event_pages.show, role=Role.VIEWER)},
    "/events/{id}/body": {"GET": Page(event_pages.body, role=Role.VIEWER)},
    "/events/{id}/copy": {
        "GET": Page(event_pages.edit, role=Role.OPERATOR),
        "POST": Page(event_pages.copy, role=Role.OPERATOR, takes="event_max_bytes"),
    },
    "/events/{id}/redact": {"POST": Page(event_pages.redact, role=Role.ADMIN)},
    "/users": {"GET": Page(users.index, role=Role.ADMIN), "POST": Page(users.invite, role=Role.ADMIN)},
    "/users/{id}": {"GET": Page(users.show, role=Role.ADMIN), "POST": Page(users.update, role=Role.ADMIN)},
    "/users/{id}/disable": {"POST": Page(users.disable, role=Role.ADMIN)},
    "/users/{id}/enable": {"POST": Page(users.enable, role=Role.ADMIN)},
    "/users/{id}/reset": {"POST": Page(users.reset, role=Role.ADMIN)},
    "/users/{id}/sessions/revoke": {"POST": Page(users.end_all_sessions, role=Role.ADMIN)},
    "/users/{id}/sessions/{session}/revoke": {"POST": Page(users.end_session, role=Role.ADMIN)},
    "/organizations": {
        "GET": Page(organizations_page.index, role=Role.VIEWER),
        "POST": Page(organizations_page.create, role=Role.ADMIN),
    },
    "/organizations/new": {"GET": Page(organizations_page.new, role=Role.ADMIN)},
    "/organizations/{id}": {
        "GET": Page(organizations_page.show, role=Role.VIEWER),
        "POST": Page(organizations_page.rename, role=Role.ADMIN),
    },
    "/organizations/{id}/delete": {
        "GET": Page(organizations_page.ask, role=Role.ADMIN),
        "POST": Page(organizations_page.delete, role=Role.ADMIN),
    },
    "/api-keys": {
        "GET": Page(api_keys_page.index, role=Role.ADMIN),
        "POST": Page(api_keys_page.create, role=Role.ADMIN),
    },
    "/api-keys/new": {"GET": Page(api_keys_page.new, role=Role.ADMIN)},
    "/api-keys/{id}": {
        "GET": Page(api_keys_page.show, role=Role.ADMIN),
        "POST": Page(api_keys_page.update, role=Role.ADMIN),
    },
    "/api-keys/{id}/revoke": {"POST": Page(api_keys_page.revoke, role=Role.ADMIN)},
    "/event-types": {
        "GET": Page(event_types_page.index, role=Role.VIEWER),
        "POST": Page(event_types_page.create, role=Role.ADMIN),
    },
    "/event-types/new": {"GET": Page(event_types_page.new, role=Role.ADMIN)},
    "/event-types/{organization}/{name}": {
        "GET": Page(event_types_page.show, role=Role.VIEWER),
        "POST": Page(event_types_page.update, role=Role.ADMIN),
    },
    "/event-types/{organization}/{name}/delete": {"POST": Page(event_types_page.delete, role=Role.ADMIN)},
    "/audit-log": {"GET": Page(audit_log_page.index, role=Role.ADMIN)},
    "/audit-log/{id}": {"GET": Page(audit_log_page.show, role=Role.ADMIN)},
    "/settings": {"GET": Page(settings.index, role=Role.ADMIN)},
    "/go": {"GET": Page(go.show, role=Role.VIEWER)},
}

# For anybody: whether the process is well, what the API is, and what pages are drawn with. They show nothing of
# anybody's. Nor does the token endpoint: who asks there brings an API key in the request itself, as RFC 6749 wants it.
PUBLIC: list[BaseRoute] = [
    *health.routes(),
    *oauth.routes(),
    *openapi.routes(API),
    Mount("/static", Assets(), name="static"),
]


def routes() -> list[BaseRoute]:
    return [
        *(Route(path, Resource(actions)) for path, actions in API.items()),
        *(Route(path, PageResource(pages)) for path, pages in PAGES.items()),
        *PUBLIC,
    ]
