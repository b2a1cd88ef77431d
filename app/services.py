"""What a web process holds for as long as it lives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from arq.connections import ArqRedis

from app.shared import Shared
from core.acceptance import Acceptance
from core.access.access_tokens import AccessTokens
from core.access.oidc import Provider
from core.hints import Hints
from core.limiting.breakers import Breakers
from core.limiting.rate_limits import RateLimits
from core.matching.subscription_checks import SubscriptionChecks
from core.secrets.sealing import Sealer
from core.settings import Settings
from core.stats import Histories
from core.storage.database import Database
from core.subscriptions import Rules


@dataclass(frozen=True)
class Services:
    settings: Settings
    database: Database
    redis: ArqRedis
    hints: Hints
    acceptance: Acceptance
    rules: Rules
    access_tokens: AccessTokens
    rate_limits: RateLimits
    breakers: Breakers
    checks: SubscriptionChecks
    oidc: Provider | None = None  # where users sign in besides
    histories: Histories = field(default_factory=Histories)
    overviews: Shared[Any, Any] = field(default_factory=Shared)  # by range and organization

    @property
    def sealer(self) -> Sealer:
        return self.rules.sealer
