"""How to call a subscription: its row, read once per version, in the form that sending needs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

import structlog

from core import subscriptions
from core.egress import EgressPolicy, Target
from core.errors import ForbiddenUrl, HookwrightError
from core.limiting.breaker import BreakerSettings
from core.limiting.limits import Limits
from core.payloads import FORMATS
from core.retry import RetryPolicy
from core.secrets.sealing import Sealer
from core.secrets.signing import MOST_SECRETS, Signer
from core.storage.database import Database
from worker.transport import header_lines

log = structlog.get_logger(__name__)

USER_AGENT = "Hookwright/0.1 (webhook delivery)"
MASK = "••••"

_EVER = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


@dataclass
class Plan:
    """One subscription at one version. `target` is None where egress policy forbids its URL."""

    organization_id: UUID
    version: int
    url: str
    target: Target | None
    refusal: str | None
    scheme: str
    payload_format: str
    policy: RetryPolicy
    headers: Mapping[str, str] = field(repr=False)
    timeout_s: float
    secrets: Sequence[tuple[str, datetime | None]] = field(repr=False)  # current first, each with its grace's end
    limits: Limits = field(default_factory=Limits)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    _signer: tuple[datetime, Signer, datetime] | None = field(default=None, repr=False)  # from when, until when

    def signer(self, now: datetime) -> Signer:
        """Signs with the secrets that are live at `now`."""
        held = self._signer
        if held is None or not held[0] <= now < held[2]:
            ends = [expires_at for _, expires_at in self.secrets if expires_at is not None]
            live = [secret for secret, expires_at in self.secrets if expires_at is None or expires_at > now]
            held = self._signer = (
                max((end for end in ends if end <= now), default=_EVER[0]),
                Signer(self.scheme, live[:MOST_SECRETS]),
                min((end for end in ends if end > now), default=_EVER[1]),
            )
        return held[1]

    @cached_property
    def lines(self) -> bytes:
        """The headers that are the same in every request. Raises `SendError` where one can't be sent."""
        return header_lines(dict([*self._standard, *self.headers.items()]).items())

    @cached_property
    def shown_headers(self) -> list[tuple[str, str]]:
        """The same headers as people see them in an attempt."""
        return [*self._standard, *((name, MASK) for name in self.headers)]

    @property
    def _standard(self) -> list[tuple[str, str]]:
        return [("content-type", FORMATS[self.payload_format][0]), ("user-agent", USER_AGENT)]


class Plans:
    """The plans of recently used subscriptions. A claim names the version that was current when it was made, so a
    plan is never staler than the claim."""

    def __init__(
        self, database: Database, sealer: Sealer, policy: EgressPolicy, max_subscriptions: int = 20_000
    ) -> None:
        self._database = database
        self._sealer = sealer
        self._policy = policy
        self._max = max_subscriptions
        self._cached: OrderedDict[UUID, Plan] = OrderedDict()

    async def at(self, wanted: Iterable[tuple[UUID, int]]) -> dict[UUID, Plan]:
        """The plans of subscriptions at least as new as the versions given.

        One that can't be read is left out: its secrets may be sealed under a key that this process was not given.
        """
        versions = dict(wanted)
        found = {
            one: plan
            for one, version in versions.items()
            if (plan := self._cached.get(one)) is not None and plan.version >= version
        }
        missing = [one for one in versions if one not in found]
        if missing:
            async with self._database.driver() as driver:
                rows = await driver.fetch(_LOAD, missing)
            for row in rows:
                try:
                    plan = self._plan(row)
                except HookwrightError as error:
                    log.error("a subscription can't be sent to", subscription=str(row["id"]), error=repr(error))  # noqa: TRY400 - the message says it all
                    continue
                found[row["id"]] = self._cached[row["id"]] = plan
        for one in found:
            if one in self._cached:  # else it was dropped while the others were read
                self._cached.move_to_end(one)
        while len(self._cached) > self._max:
            self._cached.popitem(last=False)
        return found

    def cached(self, subscription_id: UUID) -> Plan | None:
        """The newest plan that was read, if it is still remembered."""
        return self._cached.get(subscription_id)

    def _plan(self, row: Mapping[str, Any]) -> Plan:
        target, refusal = None, None
        try:
            target = self._policy.check_url(row["url"])
        except ForbiddenUrl as error:  # accepted under another policy, or written past us
            refusal = error.fault
        secrets = [
            (subscriptions.open_secret(self._sealer, secret_id, sealed), expires_at)
            for secret_id, sealed, expires_at in zip(row["secret_ids"], row["sealed"], row["expires_at"], strict=True)
        ]
        return Plan(
            organization_id=row["organization_id"],
            version=row["version"],
            url=row["url"],
            target=target,
            refusal=refusal,
            scheme=row["authentication_type"],
            payload_format=row["payload_format"],
            policy=RetryPolicy.parse(row["retry_policy"]),
            headers=subscriptions.open_headers(self._sealer, row["id"], row["headers"]),
            timeout_s=row["timeout_ms"] / 1000,
            secrets=secrets,
            limits=Limits.of(row["limits"]),
            breaker=BreakerSettings.of(row["circuit_breaker"]),
        )


_LOAD = """
SELECT s.id, s.organization_id, s.version, s.url, s.authentication_type, s.payload_format, s.retry_policy,
    s.headers, s.timeout_ms, s.limits, s.circuit_breaker,
    array_agg(k.id ORDER BY k.id DESC) AS secret_ids,
    array_agg(k.sealed ORDER BY k.id DESC) AS sealed,
    array_agg(k.expires_at ORDER BY k.id DESC) AS expires_at
FROM subscriptions s JOIN subscription_secrets k ON k.subscription_id = s.id
WHERE s.id = ANY($1::uuid[]) AND (k.expires_at IS NULL OR k.expires_at > now())
GROUP BY s.id
"""
