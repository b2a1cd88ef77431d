"""Resources as the API shows them. Field names are promised (docs/api.md): add, never rename."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from core import ids, jsontext, timestamps
from core.access.models import AuditEntry
from core.health import Health
from core.limiting.breaker import Breaker, BreakerSettings, BreakerState
from core.limiting.limits import Limits
from core.matching.subscription_checks import Checked
from core.models import (
    ApiKey,
    Attempt,
    BreakerChange,
    Delivery,
    Event,
    EventType,
    Organization,
    Replay,
    Subscription,
    SubscriptionSecret,
)
from core.replay_items import Item
from core.replay_preview import Group, Prepared
from core.retry import RetryPolicy
from core.states import State
from core.stats import Figures

HIDDEN = "••••"


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else timestamps.show(moment)


def organization(row: Organization) -> dict[str, Any]:
    shown = ids.show(ids.ORGANIZATION, row.id)
    return {
        "id": shown,
        "organization_id": shown,
        "name": row.name,
        "version": row.version,
        "created_at": _time(row.created_at),
        "updated_at": _time(row.updated_at),
    }


def api_key(row: ApiKey) -> dict[str, Any]:
    shown = ids.show(ids.API_KEY, row.id)
    return {
        "id": shown,
        "key_id": shown,
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id) if row.organization_id else None,
        "name": row.name,
        "prefix": row.prefix,
        "scopes": row.scopes,
        "tier": row.tier,
        "created_at": _time(row.created_at),
        "last_used_at": _time(row.last_used_at),
        "revoked_at": _time(row.revoked_at),
    }


def event_type(row: EventType) -> dict[str, Any]:
    return {
        "id": row.name,
        "name": row.name,
        "description": row.description,
        "schema": row.schema_,
        "example": row.example,
        "created_at": _time(row.created_at),
    }


def subscription(row: Subscription, header_names: Sequence[str] = ()) -> dict[str, Any]:
    shown = ids.show(ids.SUBSCRIPTION, row.id)
    return {
        "id": shown,
        "subscription_id": shown,
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id),
        "status": row.status,
        "status_reason": row.status_reason,
        "webhook_url": row.url,
        "events": row.events,
        "filters": row.filters,
        "authentication": {"type": row.authentication_type},
        "payload_format": row.payload_format,
        "retry_policy": RetryPolicy.parse(row.retry_policy).to_json(),
        "headers": dict.fromkeys(header_names, HIDDEN),  # their values may be credentials
        "timeout_ms": row.timeout_ms,
        "limits": Limits.of(row.limits).to_json(),
        "circuit_breaker": BreakerSettings.of(row.circuit_breaker).to_json(),
        "description": row.description,
        "metadata": row.metadata_,
        "branch_id": row.branch_id,
        "version": row.version,
        "created_at": _time(row.created_at),
        "updated_at": _time(row.updated_at),
    }


def subscription_check(checked: Checked) -> dict[str, Any]:
    return {
        "matched": checked.matched,
        "looked_at": len(checked.seen),
        "complete": not checked.is_cut,
        "sample": [
            {
                "event_id": ids.show(ids.EVENT, one.event_id),
                "event_type": one.event_type,
                "created_at": _time(ids.time_of(one.event_id)),
                "outcome": one.outcome,
                "condition": None if one.mismatch is None else one.mismatch.condition,
                "found": [] if one.mismatch is None else list(one.mismatch.found),
            }
            for one in checked.seen
        ],
    }


def circuit_breaker(row: Subscription, breaker: Breaker, now_ms: int) -> dict[str, Any]:
    settings = BreakerSettings.of(row.circuit_breaker)
    state = breaker.state_at(settings, now_ms)
    open_until_ms = breaker.opens_until_ms(settings)
    half_open_at_ms = breaker.half_open_at_ms if open_until_ms is None else open_until_ms
    return {
        "subscription_id": ids.show(ids.SUBSCRIPTION, row.id),
        "state": state,
        "failure_count": breaker.failures,
        "success_count": breaker.successes,
        "opened_at": _time_of(breaker.opened_at_ms),
        "half_open_at": _time_of(half_open_at_ms) if state is BreakerState.HALF_OPEN else None,
        "next_attempt_at": _time_of(open_until_ms) if state is BreakerState.OPEN else None,
        "last_failure_at": _time_of(breaker.failed_at_ms),
        "settings": settings.to_json(),
    }


def circuit_breaker_change(row: BreakerChange) -> dict[str, Any]:
    return {
        "id": ids.show(ids.BREAKER_CHANGE, row.id),
        "state": row.state,
        "failure_count": row.failures,
        "at": _time(ids.time_of(row.id)),
    }


def _time_of(ms: int | None) -> str | None:
    """Unix milliseconds; 0 is none."""
    return _time(datetime.fromtimestamp(ms / 1000, UTC)) if ms else None


def health(
    row: Subscription,
    status: Health,
    breaker: Breaker | None,
    now_ms: int,
    hour: Figures,
    day: Figures,
    waiting: tuple[int | None, int | None],
) -> dict[str, Any]:
    pending, dead = waiting
    state = breaker and breaker.state_at(BreakerSettings.of(row.circuit_breaker), now_ms)
    return {
        "subscription_id": ids.show(ids.SUBSCRIPTION, row.id),
        "status": status,
        "circuit_breaker": state,
        "consecutive_failures": None if breaker is None else breaker.failures,
        "last_hour": _attempts(hour),
        "last_24h": _attempts(day),
        "last_success_at": _time(day.delivered_at),
        "last_failure_at": _time(day.failed_at),
        "pending_deliveries": pending,
        "dead_deliveries": dead,
    }


def _attempts(figures: Figures) -> dict[str, Any]:
    return {
        "attempts": figures.attempts,
        "success_rate": figures.attempt_success_rate,
        "average_time_ms": figures.average_ms,
    }


def performance(day: Figures) -> dict[str, Any]:
    return {
        "webhook_performance": {
            "delivery_success_rate": day.delivery_success_rate,
            "average_delivery_time_ms": day.average_ms,
            "p50_delivery_time_ms": day.taken_ms(0.5),
            "p95_delivery_time_ms": day.taken_ms(0.95),
            "failed_deliveries_24h": day.dead,
            "retry_success_rate": day.retry_success_rate,
        }
    }


def deleted_organization(row: Organization) -> dict[str, Any]:
    shown = ids.show(ids.ORGANIZATION, row.id)
    return {"id": shown, "organization_id": shown, "status": "deleted", "deleted_at": _time(row.deleted_at)}


def secret(row: SubscriptionSecret) -> dict[str, Any]:
    return {
        "id": ids.show(ids.SECRET, row.id),
        "created_at": _time(row.created_at),
        "expires_at": _time(row.expires_at),
    }


def event(row: Event) -> dict[str, Any]:
    shown = ids.show(ids.EVENT, row.id)
    return {
        "id": shown,
        "event_id": shown,
        "event_type": row.event_type,
        "external_id": row.external_id,
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id),
        "occurred_at": _time(row.occurred_at),
        "branch_id": row.branch_id,
        "metadata": jsontext.loads(row.metadata_.encode()) if row.metadata_ else {},
        "matched_subscriptions": row.matched_subscriptions,
        "copied_from": ids.show(ids.EVENT, row.copied_from) if row.copied_from else None,
        "created_at": _time(ids.time_of(row.id)),
        "redacted_at": _time(row.redacted_at),
    }


def event_with_data(row: Event) -> dict[str, Any]:
    return event(row) | {"data": jsontext.loads(row.payload[row.data_at : -1])}


def delivery(row: Delivery) -> dict[str, Any]:
    shown = ids.show(ids.DELIVERY, row.id)
    return {
        "id": shown,
        "delivery_id": shown,
        "event_id": ids.show(ids.EVENT, row.event_id),
        "event_type": row.event_type,
        "subscription_id": ids.show(ids.SUBSCRIPTION, row.subscription_id),
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id),
        "status": row.state,
        "reason": row.reason,
        "attempt_count": row.attempt_count,
        "series": row.series,
        "replay_id": ids.show(ids.REPLAY, row.replay_id) if row.replay_id else None,
        "next_attempt_at": _time(row.due_at) if row.state == State.PENDING else None,
        "status_code": row.status_code,
        "error": row.error_kind,
        "error_message": row.error_message,
        "created_at": _time(row.created_at),
        "updated_at": _time(row.updated_at),
    }


def attempt(row: Attempt) -> dict[str, Any]:
    shown = ids.show(ids.ATTEMPT, row.id)
    return {
        "id": shown,
        "attempt_id": shown,
        "delivery_id": ids.show(ids.DELIVERY, row.delivery_id),
        "series": row.series,
        "number": row.number,
        "replay_id": ids.show(ids.REPLAY, row.replay_id) if row.replay_id else None,
        "status": "failed" if row.error_kind else "succeeded",
        "status_code": row.status_code,
        "error": row.error_kind,
        "error_message": row.error_message,
        "started_at": _time(row.started_at),
        "duration_ms": row.duration_ms,
        "url": row.url,
        "request_headers": _headers(row.request_headers),
        "response_headers": _headers(row.response_headers),
        "response_body": None if row.response_body is None else row.response_body.decode("utf-8", "replace"),
    }


def audit_entry(row: AuditEntry) -> dict[str, Any]:
    return {
        "id": ids.show(ids.AUDIT_ENTRY, row.id),
        "at": _time(ids.time_of(row.id)),
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id) if row.organization_id else None,
        "actor": row.actor,
        "actor_name": row.actor_name,
        "action": row.action,
        "resource": row.resource,
        "before": row.before,
        "after": row.after,
        "address": row.address,
        "request_id": row.request_id,
    }


def _headers(text: str | None) -> dict[str, str] | None:
    """Stored pairs as an object; a header that came several times is joined by commas (RFC 9110, section 5.2)."""
    if text is None:
        return None
    joined: dict[str, str] = {}
    for name, value in orjson.loads(text):
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def replay(row: Replay, groups: Sequence[Group] | None = None) -> dict[str, Any]:
    shown = ids.show(ids.REPLAY, row.id)
    item = {
        "id": shown,
        "replay_id": shown,
        "organization_id": ids.show(ids.ORGANIZATION, row.organization_id),
        "action": row.action,
        "status": row.status,
        "filters": row.filters,
        "rate_per_second": row.rate_per_second,
        "total": row.total,
        "sent": row.sent,
        "succeeded": row.succeeded,
        "failed": row.failed,
        "skipped": row.skipped,
        "created_by": row.created_by,
        "created_at": _time(row.created_at),
        "started_at": _time(row.started_at),
        "finished_at": _time(row.finished_at),
    }
    return item if groups is None else item | counts(groups)


def prepared_replay(prepared: Prepared) -> dict[str, Any]:
    """A dry run. What only a look at each delivery tells is null where they are too many for that."""
    preview, details = prepared.preview, prepared.preview.details
    return {
        "dry_run": True,
        "action": preview.action,
        "filters": prepared.filters,
        "rate_per_second": prepared.rate_per_second,
        "total": preview.total,
        "estimated_duration_s": prepared.duration_s,
        **counts(preview.groups),
        "groups": [
            {
                "subscription_id": ids.show(ids.SUBSCRIPTION, one.subscription_id),
                "error": one.error_kind,
                "count": one.count,
            }
            for one in preview.groups
        ],
        "by_status": details and [{"status": state, "count": count} for state, count in details.by_state.items()],
        "skipped": details and details.skipped,
        "skips": details
        and [
            {
                "subscription_id": ids.show(ids.SUBSCRIPTION, one.subscription_id),
                "error": one.error_kind,
                "reason": one.reason,
                "count": one.count,
            }
            for one in details.skips
        ],
        "held": details
        and [
            {
                "subscription_id": ids.show(ids.SUBSCRIPTION, target.subscription_id),
                "reason": reason,
                "count": target.count,
            }
            for target, reason in prepared.held
        ],
        "overlaps": None
        if details is None or details.overlaps is None
        else [
            {
                "replay_id": ids.show(ids.REPLAY, one.replay_id),
                "action": one.action,
                "status": one.status,
                "count": one.count,
            }
            for one in details.overlaps
        ],
    }


def replay_item(item: Item) -> dict[str, Any]:
    """What came of one delivery, and where that stands now; of one that retention dropped, its id and outcome."""
    shown, row = ids.show(ids.DELIVERY, item.id), item.delivery
    return {
        "id": shown,
        "delivery_id": shown,
        "replay_id": ids.show(ids.REPLAY, item.replay_id),
        "outcome": item.outcome,
        "event_id": row and ids.show(ids.EVENT, row.event_id),
        "event_type": row and row.event_type,
        "subscription_id": row and ids.show(ids.SUBSCRIPTION, row.subscription_id),
        "status": row and row.state,
        "status_code": row and row.status_code,
        "error": row and row.error_kind,
        "error_message": row and row.error_message,
    }


def counts(groups: Sequence[Group]) -> dict[str, Any]:
    """A selection counted by subscription and by error."""
    by_subscription: dict[str, int] = {}
    by_error: dict[str | None, int] = {}
    for group in groups:
        shown = ids.show(ids.SUBSCRIPTION, group.subscription_id)
        by_subscription[shown] = by_subscription.get(shown, 0) + group.count
        by_error[group.error_kind] = by_error.get(group.error_kind, 0) + group.count
    return {
        "by_subscription": [{"subscription_id": one, "count": count} for one, count in by_subscription.items()],
        "by_error": [{"error": one, "count": count} for one, count in by_error.items()],
    }
