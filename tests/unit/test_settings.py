"""Settings: documented, and refused by name when they are unknown or wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from core import hints, settings
from core.settings import CLIENT_NAMES, PREFIX, Settings, WrongSettings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
NAMES = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}
ENOUGH = {
    "HOOKWRIGHT_DATABASE_URL": "postgresql://user:password@db.example.com/hookwright",
    "HOOKWRIGHT_REDIS_URL": "redis://cache.example.com",
    "HOOKWRIGHT_SECRET_KEYS": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
}


def faults(**wrong: str) -> list[str]:
    with pytest.raises(WrongSettings) as caught:
        settings.load(ENOUGH | {f"{PREFIX}{name}": value for name, value in wrong.items()})
    return caught.value.message.split("\n")


@pytest.mark.parametrize("name", sorted(NAMES | CLIENT_NAMES))
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{name}`" in DOCUMENT


def test_no_setting_is_documented_that_there_is_not() -> None:
    documented = set(re.findall(rf"`({PREFIX}[A-Z_]+)`", DOCUMENT))
    assert documented <= NAMES | CLIENT_NAMES


def test_the_documented_defaults_are_those_of_the_code() -> None:
    rows = dict(re.findall(rf"^\| `{PREFIX}([A-Z_]+)` \| `?([^|`]*)`? \|", DOCUMENT, re.MULTILINE))
    for name, field in Settings.model_fields.items():
        if field.is_required():
            continue
        written = rows[name.upper()]
        if field.default in (None, ()):
            assert written == "none", name
        elif isinstance(field.default, bool):
            assert written == str(field.default).lower(), name
        elif isinstance(field.default, int | float):
            assert float(written) == field.default, name
        else:
            assert written == field.default, name


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_what_is_missing_is_named() -> None:
    with pytest.raises(WrongSettings) as caught:
        settings.load({})
    message = caught.value.message
    assert {line.split(":")[0] for line in message.split("\n")} == set(ENOUGH)
    assert message.count("is required") == len(ENOUGH)


def test_an_unknown_name_suggests_the_nearest() -> None:
    [fault] = faults(RETENTION_DAY="30")
    assert fault == "HOOKWRIGHT_RETENTION_DAY: there is no such setting; did you mean HOOKWRIGHT_RETENTION_DAYS?"


def test_a_name_like_no_other_is_refused_without_a_guess() -> None:
    [fault] = faults(QQ="1")
    assert fault == "HOOKWRIGHT_QQ: there is no such setting"


def test_all_faults_are_named_at_once() -> None:
    found = faults(RETENTION_DAYS="0", EGRESS_ALLOW="10.0.0.0/99", LOG_LEVEL="loud", QQ="1")
    assert {fault.split(":")[0].removeprefix(PREFIX) for fault in found} == {
        "RETENTION_DAYS",
        "EGRESS_ALLOW",
        "LOG_LEVEL",
        "QQ",
    }


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DATABASE_URL", "mysql://db/hookwright", "must be a PostgreSQL URL"),
        ("DATABASE_URL", "hookwright", "must be a PostgreSQL URL"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:x/h", "the port must be a number from 1 to 65535"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:0/h", "the port must be a number from 1 to 65535"),
        ("DATABASE_URL", "postgresql://u:hunter2@db:70000/h", "the port must be a number from 1 to 65535"),
        ("DATABASE_URL", "postgresql://u:hunt@er2@db/h", "in a password are written as %40"),
        ("DATABASE_URL", "postgresql://u:hunter2@[::1/h", "the port must be a number"),
        ("DATABASE_URL", "postgresql://u:hunter2@one,two/h", "several hosts are written ?host="),
        ("DATABASE_URL", "postgresql:///h?host=one:1&host=two", "several hosts are written ?host="),
        ("DATABASE_URL", "postgresql://db/h?port=x", "the port must be a number"),
        ("DATABASE_URL", "postgresql://db/h?sslmode=on", "sslmode must be one of: disable, allow, prefer, require"),
        ("DATABASE_URL", "postgresql://db/h?ssl=require&sslmode=require", "'sslmode' is given twice"),
        ("DATABASE_URL", "postgresql://db/h?sslmode=allow&sslmode=require", "'sslmode' is given twice"),
        ("DATABASE_URL", "postgresql://db/h?sslrootcert=ca.pem", "set the variable PGSSLROOTCERT instead"),
        ("DATABASE_URL", "postgresql://db/h?ssl_min_protocol_version=x", "set the variable PGSSLMINPROTOCOLVERSION"),
        ("DATABASE_URL", "postgresql://db/h?password=hunter2", "write it before the host"),
        ("DATABASE_URL", "postgresql://db/h?connect_timeout=5", "leave it out, Hookwright sets its own"),
        ("DATABASE_URL", "postgresql://db/h?channel_binding=require", "'channel_binding' can't be used: leave it out"),
        ("DATABASE_URL", "postgresql://db/h?nonsense=1", "it may have host, krbsrvname, port, sslmode"),
        ("DATABASE_URL", "postgresql://db/h?target_session_attrs=standby", "must be one of: any, primary, read-write"),
        ("REDIS_URL", "http://cache", "must start with redis://"),
        ("REDIS_URL", "redis://:hunter2@cache:x", "the port must be a number from 1 to 65535"),
        ("REDIS_URL", "redis://:hunter2@cache:0", "the port must be a number from 1 to 65535"),
        ("REDIS_URL", "redis://:hun?er2@cache", "in a password are written as %40"),
        ("REDIS_URL", "redis://:hun#ter2@cache", "in a password are written as %40"),
        ("REDIS_URL", "redis://[::1", "the port must be a number"),
        ("REDIS_URL", "redis://cache/first", "the database must be a number"),
        ("REDIS_URL", "redis://cache?db=first", "the database must be a number"),
        ("REDIS_URL", "rediss://cache?ssl_cert_reqs=none", "'ssl_cert_reqs' can't be used"),
        ("REDIS_URL", "unix://", "must name a socket"),
        ("EGRESS_PROXY_URL", "https://proxy:3128", "must be the URL of an HTTP proxy"),
        ("EGRESS_PROXY_URL", "proxy:3128", "must be the URL of an HTTP proxy"),
        ("EGRESS_PROXY_URL", "http://proxy", "with its port"),
        ("EGRESS_PROXY_URL", "http://u:hunter2@:3128", "must be the URL of an HTTP proxy"),
        ("EGRESS_PROXY_URL", "http://u:hunter2@proxy:x", "the port must be a number from 1 to 65535"),
        ("EGRESS_PROXY_URL", "http://u:hunter2@proxy:0", "the port must be a number from 1 to 65535"),
        ("EGRESS_PROXY_URL", "http://u:hun@er2@proxy:3128", "in a password are written as %40"),
        ("EGRESS_PROXY_URL", "http://u:hun/ter2@proxy:3128", "in a password are written as %40"),
        ("EGRESS_PROXY_URL", "http://proxy:3128/path", "no path"),
        ("EGRESS_PROXY_URL", "http://pröxy:3128", "must be the URL of an HTTP proxy"),
        ("EGRESS_PROXY_URL", "http://proxy\r\n:3128", "must be the URL of an HTTP proxy"),
        ("EGRESS_CLIENT_KEY_FILE", "key.pem", "needs HOOKWRIGHT_EGRESS_CLIENT_CERT_FILE"),
        ("SECRET_KEYS", " , ", "at least one key is needed"),
        ("PUBLIC_URL", "hooks.example.com", "must start with https:// or http://"),
        ("EGRESS_ALLOW", "localhost", "'localhost' is no CIDR"),
        ("EGRESS_ALLOW", "::ffff:127.0.0.0/104", "write '::ffff:127.0.0.0/104' as IPv4"),
        ("EGRESS_DENY", "::ffff:10.0.0.0/104", "write '::ffff:10.0.0.0/104' as IPv4"),
        ("EGRESS_DENY", "10.0.0.1/8", "'10.0.0.1/8' is no CIDR"),
        ("EGRESS_ALLOW_HTTP", "perhaps", "boolean"),
        ("RATE_LIMIT_DEFAULT", "1000", "must be requests a minute and requests at once, as 1000/100"),
        ("RATE_LIMIT_PREMIUM", "0/100", "each from 1 to 10000000; or off"),
        ("RATE_LIMIT_BULK", "100/-1", "each from 1 to 10000000; or off"),
        ("RATE_LIMIT_INGEST", "none", "each from 1 to 10000000; or off"),
        ("RETENTION_DAYS", "thirty", "integer"),
        ("RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("LEASE_MARGIN_S", "1", "greater than or equal to 2"),
        ("SWEEP_INTERVAL_S", "0", "greater than or equal to 0.05"),
        ("WORKER_MAX_IN_FLIGHT", "0", "greater than or equal to 1"),
        ("DATABASE_POOL_SIZE", "1", "greater than or equal to 2"),
        ("LOG_FORMAT", "xml", "'text' or 'json'"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(name: str, value: str, says: str) -> None:
    [fault] = faults(**{name: value})
    assert fault.startswith(f"{PREFIX}{name}: ")
    assert says in fault
    assert (Settings.model_fields[name.lower()].description or "?") in fault
    assert "hun" not in fault, "a password is not repeated"


def test_lists_are_split_at_commas() -> None:
    loaded = settings.load(ENOUGH | {"HOOKWRIGHT_EGRESS_ALLOW": " 127.0.0.0/8, ::1/128,", "HOOKWRIGHT_EGRESS_DENY": ""})
    assert loaded.egress_allow == ("127.0.0.0/8", "::1/128")
    assert loaded.egress_deny == ()


def test_an_empty_rate_limit_counts_as_not_given() -> None:
    assert settings.load(ENOUGH | {"HOOKWRIGHT_EGRESS_PROXY_URL": ""}).egress_proxy_url is None
    loaded = settings.load(ENOUGH | {"HOOKWRIGHT_RATE_LIMIT_DEFAULT": "", "HOOKWRIGHT_RATE_LIMIT_INGEST": " "})
    assert (loaded.rate_limit_default, loaded.rate_limit_ingest) == ("1000/100", "off")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_every_usual_spelling_of_a_database_url_will_do(scheme: str) -> None:
    loaded = settings.load(ENOUGH | {"HOOKWRIGHT_DATABASE_URL": f"{scheme}://db.example.com/hookwright"})
    assert loaded.database_url == "postgresql+asyncpg://db.example.com/hookwright"


def test_the_commands_own_names_are_not_the_platforms_business() -> None:
    assert settings.load(ENOUGH | dict.fromkeys(CLIENT_NAMES, "x"))


def test_other_peoples_variables_are_ignored() -> None:
    assert settings.load(ENOUGH | {"PATH": "/bin", "RETENTION_DAYS": "0"}).retention_days == 30


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("postgresql://db/h?sslmode=verify-full", "db/h?ssl=verify-full"),
        ("postgres://u:p%40@db:5433/h?ssl=require", "u:p%40@db:5433/h?ssl=require"),
        ("postgresql://u:p@/h?host=/run/postgresql", "u:p@/h?host=%2Frun%2Fpostgresql"),
        (
            "postgresql:///h?host=one:1&host=two:2&target_session_attrs=primary",
            "/h?host=one%3A1&host=two%3A2&target_session_attrs=primary",
        ),
    ],
)
def test_what_libpq_understands_in_a_database_url_is_put_as_the_driver_wants_it(given: str, meant: str) -> None:
    loaded = settings.load(ENOUGH | {"HOOKWRIGHT_DATABASE_URL": given})
    assert loaded.database_url == f"postgresql+asyncpg://{meant}"
    create_async_engine(loaded.database_url)


@pytest.mark.parametrize(
    "url", ["redis://:p%40@cache:6380/1", "rediss://cache", "unix:///run/valkey.sock?db=2", "redis://[::1]:6379"]
)
def test_every_usual_spelling_of_a_redis_url_will_do(url: str) -> None:
    loaded = settings.load(ENOUGH | {"HOOKWRIGHT_REDIS_URL": url})
    assert loaded.redis_url == url
    hints.connect(url)


def test_no_secret_is_in_what_python_shows_of_the_settings() -> None:
    secrets = {
        "HOOKWRIGHT_DATABASE_URL": "postgresql://user:hunter2@db.example.com/hookwright",
        "HOOKWRIGHT_REDIS_URL": "redis://:hunter2@cache.example.com",
        "HOOKWRIGHT_SECRET_KEYS": "hunter2",
        "HOOKWRIGHT_EGRESS_PROXY_URL": "http://user:hunter2@proxy.example.com:3128",
    }
    loaded = settings.load(ENOUGH | secrets)
    assert loaded.redis_url == secrets["HOOKWRIGHT_REDIS_URL"]
    for shown in (repr(loaded), str(loaded), f"{loaded}"):
        assert "retention_days=30" in shown
        assert "hunter2" not in shown
