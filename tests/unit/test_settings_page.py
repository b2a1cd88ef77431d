"""What the settings page shows of each setting: everything but secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.admin import settings as page
from core import settings, urls
from core.settings import PREFIX, Settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text("utf-8")
CANARY = "c4n4ry"
HOLDING_SECRETS = {
    "DATABASE_URL": f"postgresql://app:{CANARY}%2F%40%3F%23@db.example.com:5433/hooks?sslmode=verify-full",
    "DATABASE_OWNER_URL": f"postgresql://owner:{CANARY}@db.example.com/hooks",
    "REDIS_URL": f"rediss://:{CANARY}@cache.example.com:6380/2",
    "SECRET_KEYS": "YzRuNHJ5NDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2Q=, YzRuNHJ5NDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2U=",
    "OIDC_ISSUER": "https://id.example.com",
    "OIDC_CLIENT_ID": "hookwright",
    "OIDC_CLIENT_SECRET": f"{CANARY}-secret",
    "EGRESS_PROXY_URL": f"http://{CANARY}:{CANARY}@proxy.example.com:3128",
    "EGRESS_ALLOW": "10.0.0.0/8,127.0.0.0/8",
}


def loaded(**values: str) -> Settings:
    return settings.load({f"{PREFIX}{name}": value for name, value in {**HOLDING_SECRETS, **values}.items()})


def test_each_setting_stands_in_one_group_in_the_order_of_the_document() -> None:
    named = [name for names in page.GROUPS.values() for name in names]
    assert sorted(named) == sorted(Settings.model_fields)
    rows = [name.lower() for name in re.findall(rf"^\| `{PREFIX}([A-Z_]+)` \|", DOCUMENT, re.MULTILINE)]
    assert named == rows
    assert list(page.GROUPS) == re.findall(r"^\| \*\*(.+?)\*\* \|", DOCUMENT, re.MULTILINE)


def test_a_secret_is_what_repr_leaves_out() -> None:
    assert set(page.SECRETS) == {name for name, info in Settings.model_fields.items() if not info.repr}


def test_no_secret_is_shown_and_all_else_is() -> None:
    chosen = loaded()
    shown = {name: page.shown(chosen, name) for name in Settings.model_fields}
    said = "\n".join(str(one) for one in shown.values())
    assert CANARY not in said
    for key in chosen.secret_keys:
        assert key not in said
    values = {name: one.value for name, one in shown.items()}
    assert values["database_url"] == "postgresql://app:••••@db.example.com:5433/hooks?ssl=verify-full"
    assert values["database_owner_url"] == "postgresql://owner:••••@db.example.com/hooks"
    assert values["redis_url"] == "rediss://••••@cache.example.com:6380/2"
    assert values["egress_proxy_url"] == "http://••••@proxy.example.com:3128"
    assert values["secret_keys"] == "2 keys, hidden"
    assert values["oidc_client_secret"] == "set, hidden"
    assert values["egress_allow"] == "10.0.0.0/8, 127.0.0.0/8"
    assert values["egress_deny"] == "none"
    assert values["egress_allow_http"] == "false"
    assert (shown["retention_days"].is_set, shown["retention_days"].default) == (False, "30")
    assert (shown["egress_allow"].is_set, shown["egress_allow"].default) == (True, "none")
    assert shown["secret_keys"].default == "must be set"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        (f"redis://{CANARY}@cache", "redis://••••@cache"),
        (f"redis://user:{CANARY}@cache", "redis://••••@cache"),
        ("unix:///run/valkey.sock?db=1", "unix:///run/valkey.sock?db=1"),
        (f"unix:///run/valkey.sock?db=1&password={CANARY}", "unix:///run/valkey.sock?db=1"),
        (f"postgresql://u:{CANARY}/x@db/name", "postgresql://••••"),
        (f"http://u:{CANARY}#y@proxy:3128", "http://••••"),
        (f"postgresql://u:a@{CANARY}@db/name", "postgresql://u:••••@db/name"),
        (f"postgresql+asyncpg://u:{CANARY}@/name?host=%2Frun", "postgresql://u:••••@/name?host=%2Frun"),
        ("postgresql://app@db/name", "postgresql://app@db/name"),
        ("", "://"),
    ],
)
def test_urls_without_their_secrets(text: str, shown: str) -> None:
    assert urls.without_secrets(text) == shown
