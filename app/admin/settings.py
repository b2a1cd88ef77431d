"""The settings as this process has them, and how the parts are that they name. Nothing is changed here."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from starlette.responses import Response

from app.admin.api_keys import allowance
from app.admin.visit import Visit
from core import ids, installation, urls
from core.limiting import rate_limits
from core.models import RateTier
from core.secrets.reseal import Survey
from core.settings import PREFIX, Settings

# As docs/configuration.md has them, in its order.
GROUPS = {
    "Database, Redis and keys": ("database_url", "database_owner_url", "redis_url", "secret_keys", "data_dir"),
    "Addresses": ("public_url", "trusted_proxies"),
    "Single sign-on": ("oidc_issuer", "oidc_client_id", "oidc_client_secret", "oidc_scopes"),
    "Log": ("log_level", "log_format"),
    "Calling receivers": (
        "egress_allow",
        "egress_deny",
        "egress_allow_http",
        "egress_ca_file",
        "egress_client_cert_file",
        "egress_client_key_file",
        "egress_proxy_url",
    ),
    "Keeping and bounds": ("retention_days", "event_max_bytes", "batch_max_bytes", "max_subscriptions"),
    "Rate limits": ("rate_limit_default", "rate_limit_premium", "rate_limit_bulk", "rate_limit_ingest"),
    "Tuning": ("database_pool_size", "worker_max_in_flight", "lease_margin_s", "sweep_interval_s"),
}
SECRET_URLS = ("database_url", "database_owner_url", "redis_url", "egress_proxy_url")
SECRETS = (*SECRET_URLS, "secret_keys", "oidc_client_secret")  # those that `repr` leaves out


class Shown(NamedTuple):
    variable: str
    means: str
    value: str
    default: str
    is_set: bool  # in the environment of this process; else it has its default


class KeyUse(NamedTuple):
    """A secret key by its id, and what leans on it. `place`: in the list, from 1; none: it is missing."""

    id: str
    place: int | None
    sealed: int
    api_keys: int


async def index(visit: Visit) -> Response:
    services = visit.services
    parts = await installation.look(services.database, services.redis, services.sealer)
    return visit.render(
        "settings/index.html",
        groups={title: [shown(services.settings, name) for name in names] for title, names in GROUPS.items()},
        parts=parts,
        keys=None if parts.keys is None else _keys(parts.keys),
        idle=[] if parts.keys is None else [(ids.show(ids.API_KEY, one.id), one) for one in parts.keys.idle],
        tiers={tier: _allowance(services.settings, tier) for tier in (*RateTier, rate_limits.INGEST)},
        retention_days=services.settings.retention_days,
    )


def shown(settings: Settings, name: str) -> Shown:
    """A setting as people may read it: never with a secret."""
    info = Settings.model_fields[name]
    return Shown(
        f"{PREFIX}{name.upper()}",
        info.description or "",
        _value(name, getattr(settings, name)),
        _default(info),
        name in settings.model_fields_set,
    )


def _value(name: str, value: Any) -> str:
    if value in (None, (), ""):
        return "none"
    if name in SECRET_URLS:
        return urls.without_secrets(value)
    if name == "secret_keys":
        return f"{len(value)} key{'' if len(value) == 1 else 's'}, hidden"
    if name in SECRETS:
        return "set, hidden"
    return _text(value)


def _default(info: FieldInfo) -> str:
    return "must be set" if info.is_required() else _text(info.default)


def _text(value: Any) -> str:
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _allowance(settings: Settings, tier: str) -> str:
    return allowance(getattr(settings, f"rate_limit_{tier}"))


def _keys(found: Survey) -> list[KeyUse]:
    """Those that are configured, the newest first, then those that are missing."""
    missing = sorted((set(found.sealed) | set(found.hashes)) - set(found.key_ids))
    return [
        KeyUse(
            key_id.hex(),
            found.key_ids.index(key_id) + 1 if key_id in found.key_ids else None,
            sum(found.sealed.get(key_id, {}).values()),
            found.hashes.get(key_id, 0),
        )
        for key_id in (*found.key_ids, *missing)
    ]
