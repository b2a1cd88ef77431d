"""Settings: environment variables with the prefix `HOOKWRIGHT_`. The same table, with words, is docs/configuration.md.

`load()` refuses a wrong value and an unknown name, and says what would be right.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from core import urls
from core.egress import EgressPolicy
from core.errors import HookwrightError
from core.limiting import rates

PREFIX = "HOOKWRIGHT_"
# Read by the command line's API client, not by the platform.
CLIENT_NAMES = frozenset({"HOOKWRIGHT_URL", "HOOKWRIGHT_API_KEY"})


class WrongSettings(HookwrightError):
    """A setting is missing, unknown or wrong. The message names each, one a line."""


Words = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """What an operator may set. Times carry their unit in the name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    # These four, the proxy's URL and the client secret hold secrets, so `repr` leaves them out.
    database_url: str = Field(repr=False, description="PostgreSQL, as postgresql://user:password@host:port/name")
    database_owner_url: str | None = Field(
        None, repr=False, description="The same database by the role that owns the schema; for hookwright migrate"
    )
    redis_url: str = Field(
        repr=False, description="Redis 7.0 or newer or Valkey, as redis://…, rediss://… or unix:///path"
    )
    secret_keys: Words = Field(
        repr=False, description="Encryption keys, base64 of 32 bytes each, comma-separated, newest first"
    )
    data_dir: str = Field("var", description="Folder of the embedded services")
    public_url: str = Field("http://127.0.0.1:8000", description="Where browsers and clients reach the platform")
    trusted_proxies: Words = Field(
        (), description="Addresses or CIDRs of reverse proxies whose X-Forwarded-For and -Proto are believed"
    )
    oidc_issuer: str | None = Field(None, description="OpenID Connect provider that users may sign in with")
    oidc_client_id: str | None = Field(None, validate_default=True, description="Our client id at that provider")
    oidc_client_secret: str | None = Field(
        None, validate_default=True, repr=False, description="Our client secret at that provider"
    )
    oidc_scopes: str = Field("openid email profile", description="Scopes that are asked of that provider")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for machines")

    egress_allow: Words = Field((), description="CIDRs that may be called although policy denies them")
    egress_deny: Words = Field((), description="CIDRs that are never called; beats allow")
    egress_allow_http: bool = Field(False, description="Let subscriptions use http:// (development only)")
    egress_ca_file: str | None = Field(None, description="PEM file of further certificate authorities to trust")
    egress_client_cert_file: str | None = Field(
        None, description="PEM file of the certificate, and its chain, that receivers are shown who ask for one"
    )
    egress_client_key_file: str | None = Field(
        None, description="PEM file of that certificate's key, unencrypted; by default it is in the same file"
    )
    egress_proxy_url: str | None = Field(
        None, repr=False, description="HTTP proxy that all deliveries go through, as http://user:password@host:port"
    )

    retention_days: int = Field(30, ge=1, le=3650, description="Days that events, deliveries and attempts are kept")
    event_max_bytes: int = Field(262_144, ge=1024, le=16_777_216, description="Largest body of one event")
    batch_max_bytes: int = Field(8_388_608, ge=1024, le=134_217_728, description="Largest body of a batch of events")

    max_subscriptions: int = Field(20_000, ge=1, le=1_000_000, description="Subscriptions an organization may have")
    rate_limit_default: str = Field(
        "1000/100", description="Requests a minute / at once of an API key of the tier default"
    )
    rate_limit_premium: str = Field(
        "5000/500", description="Requests a minute / at once of an API key of the tier premium"
    )
    rate_limit_bulk: str = Field("100/10", description="Requests a minute / at once of an API key of the tier bulk")
    rate_limit_ingest: str = Field("off", description="Requests a minute / at once of an API key that accept events")

    database_pool_size: int = Field(8, ge=2, le=200, description="Connections to PostgreSQL a process")
    worker_max_in_flight: int = Field(512, ge=1, le=20_000, description="Slots of a worker for quick endpoints")
    lease_margin_s: float = Field(
        10.0, ge=2, le=300, description="Seconds a lease lasts beyond the subscription's timeout"
    )
    sweep_interval_s: float = Field(1.0, ge=0.05, le=60, description="Seconds between two looks for due deliveries")

    @field_validator("secret_keys", "egress_allow", "egress_deny", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("secret_keys")
    @classmethod
    def _has_a_key(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("at least one key is needed; make one with: openssl rand -base64 32")
        return value

    @field_validator("egress_allow", "egress_deny")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            EgressPolicy(allow=value)  # it judges both lists alike
        except ValueError as error:
            raise ValueError(str(error).removeprefix("egress allow: ")) from error
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            try:
                ipaddress.ip_network(one)
            except ValueError as error:
                raise ValueError(f"{one!r} is neither an address nor a CIDR: {error}") from error
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _is_provider(cls, value: str | None) -> str | None:
        return urls.identity_provider(value) if value else None

    @field_validator("oidc_client_id", "oidc_client_secret")
    @classmethod
    def _goes_with_issuer(cls, value: str | None, info: ValidationInfo) -> str | None:
        if "oidc_issuer" in info.data and (info.data["oidc_issuer"] is None) != (not value):
            raise ValueError("goes with HOOKWRIGHT_OIDC_ISSUER: set both, or neither")
        return value

    @field_validator("oidc_scopes")
    @classmethod
    def _asks_for_an_id_token(cls, value: str) -> str:
        if "openid" not in value.split():
            raise ValueError("must have openid among them, as: openid email profile")
        return value

    @field_validator("rate_limit_default", "rate_limit_premium", "rate_limit_bulk", "rate_limit_ingest")
    @classmethod
    def _is_rate(cls, value: str, info: ValidationInfo) -> str:
        if not value.strip():  # as an empty line in a file of settings: not said, rather than no limit
            return str(cls.model_fields[info.field_name or ""].default)
        rates.parse(value.strip())
        return value.strip()

    @field_validator("database_url")
    @classmethod
    def _is_postgresql(cls, value: str) -> str:
        return urls.postgresql(value)

    @field_validator("database_owner_url")
    @classmethod
    def _is_postgresql_or_none(cls, value: str | None) -> str | None:
        return urls.postgresql(value) if value else None

    @field_validator("redis_url")
    @classmethod
    def _is_redis(cls, value: str) -> str:
        return urls.redis(value)

    @field_validator("egress_client_key_file")
    @classmethod
    def _has_a_certificate(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("egress_client_cert_file") is None:
            raise ValueError(f"needs {PREFIX}EGRESS_CLIENT_CERT_FILE, whose key it is")
        return value

    @field_validator("egress_proxy_url")
    @classmethod
    def _is_proxy(cls, value: str | None) -> str | None:
        return urls.proxy(value) if value else None

    @field_validator("public_url")
    @classmethod
    def _is_origin(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with https:// or http://")
        return value.rstrip("/")


def load(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings in `environment` (the process's own by default).

    Raises `WrongSettings` that names every setting which is missing, unknown or wrong.
    """
    env = os.environ if environment is None else environment
    known = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields}
    given = {name: value for name, value in env.items() if name.startswith(PREFIX)}
    faults = [_unknown(name, list(known)) for name in given if name not in known and name not in CLIENT_NAMES]
    values = {known[name]: value for name, value in given.items() if name in known}
    try:
        # Given as arguments, and the environment itself ignored, so that a caller may load any mapping.
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for fault in error.errors():
            name = f"{PREFIX}{str(fault['loc'][0]).upper()}"
            said = "is required" if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
            description = Settings.model_fields[str(fault["loc"][0])].description
            faults.append(f"{name}: {said} ({description})")
    if faults:
        raise WrongSettings("\n".join(faults))
    return settings


def _unknown(name: str, known: list[str]) -> str:
    # Without the prefix: it would make any two names look alike.
    near = difflib.get_close_matches(name.removeprefix(PREFIX), [one.removeprefix(PREFIX) for one in known], n=1)
    return f"{name}: there is no such setting" + (f"; did you mean {PREFIX}{near[0]}?" if near else "")
