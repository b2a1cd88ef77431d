"""Subscriptions: who wants which events where, and the only writer of their state.

Every change raises the subscription's `version` (workers reload it) and its organization's `subscriptions_version`
(acceptance matches by it), in the same transaction.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import orjson
from sqlalchemy import Boolean, ColumnElement, literal_column, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import ids, jsontext, payloads
from core.egress import EgressPolicy, validate_headers
from core.errors import Conflict, NotFound, ValidationFailed
from core.limiting import quotas
from core.limiting.breaker import BreakerSettings
from core.limiting.limits import Limits
from core.matching.filters import compile_filter
from core.matching.patterns import validate_pattern
from core.models import Organization, Subscription, SubscriptionSecret, SubscriptionStatus
from core.retry import RetryPolicy
from core.secrets import signing
from core.secrets.sealing import Sealer

MAX_PATTERNS = 100
MAX_GRACE_S = 30 * 86_400
MIN_TIMEOUT_MS, MAX_TIMEOUT_MS = 1_000, 30_000
MAX_DESCRIPTION_CHARS = 1_000
MAX_METADATA_BYTES = 4_096
# What an update may name, and on creation further `secret`.
FIELDS = frozenset(
    {
        "url",
        "events",
        "filters",
        "authentication_type",
        "payload_format",
        "retry_policy",
        "headers",
        "timeout_ms",
        "limits",
        "circuit_breaker",
        "description",
        "metadata",
        "branch_id",
    }
)


# Those that were not deleted. As a literal, so that PostgreSQL sees that the partial index serves.
KEPT: ColumnElement[bool] = literal_column("(subscriptions.status <> 'deleted')", Boolean)


@dataclass(frozen=True)
class Rules:
    """What judging and storing a subscription needs from the settings."""

    egress: EgressPolicy
    sealer: Sealer
    max_subscriptions: int  # of one organization, without the deleted


async def create(
    session: AsyncSession, rules: Rules, organization_id: UUID, given: Mapping[str, Any]
) -> tuple[Subscription, str]:
    """Stores a new subscription with its first secret: `given["secret"]`, or a generated one. Returns both.

    Raises `ValidationFailed` with every fault found, and `Conflict` when the organization has as many as it may.
    """
    subscription = _blank(organization_id)
    with _gathering() as faults:
        secret = _fill(subscription, rules, given, faults)
    await quotas.check_room(
        session,
        organization_id,
        Subscription,
        KEPT,
        most=rules.max_subscriptions,
        advice="delete some, or have the operator raise HOOKWRIGHT_MAX_SUBSCRIPTIONS",
    )
    session.add(subscription)
    await session.flush()  # the secret refers to it
    session.add(_sealed_secret(rules, subscription.id, secret))
    await _raise_version(session, organization_id)
    return subscription, secret


async def get(
    session: AsyncSession, organization_id: UUID, subscription_id: UUID, *, lock: bool = False
) -> Subscription:
    """Raises `NotFound` when there is none in this organization, or when it was deleted."""
    query = select(Subscription).where(
        Subscription.id == subscription_id,
        Subscription.organization_id == organization_id,
        Subscription.status != SubscriptionStatus.DELETED,
    )
    if lock:
        query = query.with_for_update()
    found = (await session.exec(query)).one_or_none()
    if found is None:
        raise _unknown(subscription_id)
    return found


async def find(session: AsyncSession, subscription_id: UUID) -> Subscription:
    """The same, whosesoever it is."""
    found = (await session.exec(select(Subscription).where(Subscription.id == subscription_id))).one_or_none()
    if found is None:
        raise _unknown(subscription_id)
    if found.status == SubscriptionStatus.DELETED:
        raise NotFound("This subscription was deleted. Its deliveries are still in their list.")
    return found


def _unknown(subscription_id: UUID) -> NotFound:
    return NotFound(f"There is no subscription {ids.show(ids.SUBSCRIPTION, subscription_id)}")


async def update_fields(
    session: AsyncSession, rules: Rules, subscription: Subscription, given: Mapping[str, Any]
) -> Subscription:
    """Changes the fields named in `given`. None resets `retry_policy`, `headers`, `filters`, `limits`,
    `circuit_breaker` and `branch_id`.

    Raises `Conflict` when the standard scheme is asked for and its libraries could not read the current secret.
    """
    scheme = subscription.authentication_type
    with _gathering() as faults:
        _apply(subscription, rules, given, faults)
    if subscription.authentication_type == "standard" != scheme:
        current = (await live_secrets(session, subscription.id, datetime.now(UTC)))[0]
        if not open_secret(rules.sealer, current.id, current.sealed).startswith(signing.SECRET_PREFIX):
            raise Conflict(
                f"The secret is not one of the standard scheme, which begins with {signing.SECRET_PREFIX}; rotate the"
                " secret first"
            )
    return await _changed(session, subscription)


async def pause(session: AsyncSession, subscription: Subscription) -> Subscription:
    """Holds deliveries from now on; those under way finish. Raises `Conflict` unless it is active or paused."""
    if subscription.status == SubscriptionStatus.DISABLED:
        raise Conflict("A disabled subscription can't be paused; resume it first")
    if subscription.status == SubscriptionStatus.PAUSED:
        return subscription
    return await _to_status(session, subscription, SubscriptionStatus.PAUSED)


async def resume(session: AsyncSession, subscription: Subscription) -> Subscription:
    """Sends again, after a pause or after the receiver had it disabled."""
    if subscription.status == SubscriptionStatus.ACTIVE:
        return subscription
    return await _to_status(session, subscription, SubscriptionStatus.ACTIVE)


async def delete(session: AsyncSession, subscription: Subscription) -> None:
    """Ends it. Its history stays; the caller discards what waits (`deliveries.discard_pending`) after the commit."""
    await _to_status(session, subscription, SubscriptionStatus.DELETED)


async def rotate_secret(
    session: AsyncSession,
    rules: Rules,
    subscription: Subscription,
    *,
    grace_s: int,
    secret: str | None = None,
) -> str:
    """Makes a new current secret and lets the old ones sign along for `grace_s` more seconds. Returns the new one.

    Raises `Conflict` when ten keys would be live at once.
    """
    if not 0 <= grace_s <= MAX_GRACE_S:
        raise ValidationFailed.of("grace_period_s", f"Must be from 0 to {MAX_GRACE_S}")
    new = _secret(secret, subscription.authentication_type, "secret")
    moment = datetime.now(UTC)
    live = await live_secrets(session, subscription.id, moment)
    if len(live) >= signing.MOST_SECRETS:
        raise Conflict(f"{signing.MOST_SECRETS} secrets are live already; wait until a grace period ends")
    await session.exec(
        update(SubscriptionSecret)
        .where(
            col(SubscriptionSecret.subscription_id) == subscription.id,
            col(SubscriptionSecret.expires_at).is_(None),
        )
        .values(expires_at=moment + timedelta(seconds=grace_s))
    )
    session.add(_sealed_secret(rules, subscription.id, new))
    await _changed(session, subscription)
    return new


async def live_secrets(session: AsyncSession, subscription_id: UUID, moment: datetime) -> Sequence[SubscriptionSecret]:
    """The secrets that sign at `moment`: the current first, then the latest of the old ones."""
    query = (
        select(SubscriptionSecret)
        .where(SubscriptionSecret.subscription_id == subscription_id)
        .where(col(SubscriptionSecret.expires_at).is_(None) | (col(SubscriptionSecret.expires_at) > moment))
        .order_by(col(SubscriptionSecret.id).desc())
    )
    return (await session.exec(query)).all()


def _secret(given: object, scheme: str, path: str) -> str:
    return signing.generate_secret(os.urandom) if given is None else signing.normalize_secret(given, scheme, path)


def secret_context(secret_id: UUID) -> str:
    """What a sealed secret is bound to."""
    return f"subscription_secret:{secret_id}"


def headers_context(subscription_id: UUID) -> str:
    """What sealed headers are bound to."""
    return f"subscription_headers:{subscription_id}"


def open_secret(sealer: Sealer, secret_id: UUID, sealed: bytes) -> str:
    return sealer.open(sealed, secret_context(secret_id)).decode()


def open_headers(sealer: Sealer, subscription_id: UUID, sealed: bytes | None) -> dict[str, str]:
    """The custom headers, name to value. Their values may be credentials: never show them."""
    if sealed is None:
        return {}
    headers: dict[str, str] = orjson.loads(sealer.open(sealed, headers_context(subscription_id)))
    return headers


# --- judging what was given ----------------------------------------------------------------------------------------

Faults = dict[str, list[str]]


def faults_in_new(rules: Rules, given: Mapping[str, Any]) -> Faults:
    """What `create` would find wrong. Stores nothing."""
    faults: Faults = {}
    _fill(_blank(UUID(int=0)), rules, given, faults)
    return faults


def faults_in_change(rules: Rules, given: Mapping[str, Any]) -> Faults:
    """What `update_fields` would find wrong. Stores nothing."""
    faults: Faults = {}
    _apply(_blank(UUID(int=0)), rules, given, faults)
    return faults


def _blank(organization_id: UUID) -> Subscription:
    return Subscription(id=ids.new_id(), organization_id=organization_id, url="", events=[])


def _fill(subscription: Subscription, rules: Rules, given: Mapping[str, Any], faults: Faults) -> str:
    """Sets all fields of a new subscription. Returns its secret."""
    for field in ("url", "events"):
        if given.get(field) is None:
            faults.setdefault(field, []).append("Is required")
    _apply(subscription, rules, {k: v for k, v in given.items() if k in FIELDS and v is not None}, faults)
    try:
        return _secret(given.get("secret"), subscription.authentication_type, "authentication.secret")
    except ValidationFailed as error:
        _note(faults, error)
        return ""


@contextmanager
def _gathering() -> Iterator[Faults]:
    """Raises one `ValidationFailed` at the end with all faults that were noted."""
    faults: Faults = {}
    yield faults
    if faults:
        raise ValidationFailed(details=faults)


@contextmanager
def _noting(faults: Faults) -> Iterator[None]:
    try:
        yield
    except ValidationFailed as error:
        _note(faults, error)


def _note(faults: Faults, error: ValidationFailed) -> None:
    for path, said in error.details.items():
        faults.setdefault(path, []).extend(said)


def _apply(subscription: Subscription, rules: Rules, given: Mapping[str, Any], faults: Faults) -> None:
    for field, value in given.items():
        with _noting(faults):
            _SETTERS[field](subscription, rules, value)


def _set_url(subscription: Subscription, rules: Rules, value: str) -> None:
    rules.egress.check_url(value)
    subscription.url = value


def _set_events(subscription: Subscription, _rules: Rules, value: Sequence[str]) -> None:
    if not 1 <= len(value) <= MAX_PATTERNS:
        raise ValidationFailed.of("events", f"Must list 1 to {MAX_PATTERNS} event types or patterns")
    with _gathering() as faults:
        for index, one in enumerate(value):
            with _noting(faults):
                validate_pattern(one, f"events.{index}")
    subscription.events = list(value)


def _set_filters(subscription: Subscription, _rules: Rules, value: Mapping[str, Any] | None) -> None:
    compile_filter(value or {})
    subscription.filters = dict(value or {})


def _set_authentication_type(subscription: Subscription, _rules: Rules, value: str) -> None:
    if value not in signing.SCHEMES:
        raise ValidationFailed.of("authentication.type", f"Must be one of: {', '.join(sorted(signing.SCHEMES))}")
    subscription.authentication_type = value


def _set_payload_format(subscription: Subscription, _rules: Rules, value: str) -> None:
    if value not in payloads.FORMATS:
        raise ValidationFailed.of("payload_format", f"Must be one of: {', '.join(payloads.FORMATS)}")
    subscription.payload_format = value


def _set_retry_policy(subscription: Subscription, _rules: Rules, value: Mapping[str, Any] | None) -> None:
    # Spelled out in full, so that a later change of a default does not reach those who chose before it.
    subscription.retry_policy = None if value is None else RetryPolicy.parse(value).to_json()


def _set_headers(subscription: Subscription, rules: Rules, value: Mapping[str, str] | None) -> None:
    headers = validate_headers(value or {})
    sealed = rules.sealer.seal(orjson.dumps(headers), headers_context(subscription.id))
    subscription.headers = sealed if headers else None


def _set_timeout_ms(subscription: Subscription, _rules: Rules, value: int) -> None:
    if not MIN_TIMEOUT_MS <= value <= MAX_TIMEOUT_MS:
        raise ValidationFailed.of("timeout_ms", f"Must be from {MIN_TIMEOUT_MS} to {MAX_TIMEOUT_MS}")
    subscription.timeout_ms = value


# Both spelled out in full, like the retry policy.
def _set_limits(subscription: Subscription, _rules: Rules, value: Mapping[str, Any] | None) -> None:
    subscription.limits = None if value is None else Limits.parse(value).to_json()


def _set_circuit_breaker(subscription: Subscription, _rules: Rules, value: Mapping[str, Any] | None) -> None:
    subscription.circuit_breaker = None if value is None else BreakerSettings.parse(value).to_json()


def _set_description(subscription: Subscription, _rules: Rules, value: str) -> None:
    if len(value) > MAX_DESCRIPTION_CHARS or "\0" in value:
        raise ValidationFailed.of("description", f"Must be at most {MAX_DESCRIPTION_CHARS} characters, without NUL")
    subscription.description = value


def _set_metadata(subscription: Subscription, _rules: Rules, value: Mapping[str, Any]) -> None:
    subscription.metadata_ = dict(check_metadata(value))


def _set_branch_id(subscription: Subscription, _rules: Rules, value: str | None) -> None:
    subscription.branch_id = None if value is None else check_label(value, "branch_id")


_SETTERS: Mapping[str, Callable[[Subscription, Rules, Any], None]] = {
    "url": _set_url,
    "events": _set_events,
    "filters": _set_filters,
    "authentication_type": _set_authentication_type,
    "payload_format": _set_payload_format,
    "retry_policy": _set_retry_policy,
    "headers": _set_headers,
    "timeout_ms": _set_timeout_ms,
    "limits": _set_limits,
    "circuit_breaker": _set_circuit_breaker,
    "description": _set_description,
    "metadata": _set_metadata,
    "branch_id": _set_branch_id,
}


_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # not a backslash that is itself escaped, and then u0000


def check_metadata(value: Mapping[str, Any], path: str = "metadata") -> Mapping[str, Any]:
    """Raises `ValidationFailed` when it is too large or holds what PostgreSQL's text can't store."""
    encoded = jsontext.dumps(value)
    if len(encoded) > MAX_METADATA_BYTES:
        raise ValidationFailed.of(path, f"Must be at most {MAX_METADATA_BYTES} bytes of JSON")
    if _NUL.search(encoded):
        raise ValidationFailed.of(path, "Must not hold NUL characters")
    return value


MAX_LABEL_CHARS = 128


def check_label(value: str, path: str) -> str:
    """A short identifier of somebody else's, such as a branch. Raises `ValidationFailed`."""
    if not value or len(value) > MAX_LABEL_CHARS or not value.isprintable():
        raise ValidationFailed.of(path, f"Must be 1 to {MAX_LABEL_CHARS} printable characters")
    return value


# --- storing -------------------------------------------------------------------------------------------------------


def _sealed_secret(rules: Rules, subscription_id: UUID, secret: str) -> SubscriptionSecret:
    secret_id = ids.new_id()
    sealed = rules.sealer.seal(secret.encode(), secret_context(secret_id))
    return SubscriptionSecret(id=secret_id, subscription_id=subscription_id, sealed=sealed)


async def _to_status(session: AsyncSession, subscription: Subscription, status: SubscriptionStatus) -> Subscription:
    subscription.status = status
    subscription.status_reason = None
    # What was held is now to be released, or discarded: core.settling sees to it, even if this process ends here.
    subscription.settled = status is SubscriptionStatus.PAUSED
    return await _changed(session, subscription)


async def _changed(session: AsyncSession, subscription: Subscription) -> Subscription:
    subscription.version += 1
    subscription.updated_at = datetime.now(UTC)
    session.add(subscription)
    await session.flush()
    await _raise_version(session, subscription.organization_id)
    return subscription


async def _raise_version(session: AsyncSession, organization_id: UUID) -> None:
    raised = await session.exec(
        update(Organization)
        .where(col(Organization.id) == organization_id, col(Organization.deleted_at).is_(None))
        .values(subscriptions_version=Organization.subscriptions_version + 1)
    )
    if not raised.rowcount:  # deleted while this call was under way
        raise NotFound("There is no such organization")
