"""Every page on a long history, as a browser asks for it: its time over HTTP and its size."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx

from app.admin import cookies
from app.routes import PAGES
from bench import history
from bench.costs import connected, percentile
from bench.history import History
from bench.platform import Platform
from bench.scale_cases import sample_of
from cli import target
from core import ids
from core.access import sessions, users
from core.access.models import Role
from core.audit import COMMAND_LINE
from core.storage.database import Database

TARGET_MS = 1000.0
EMAIL = "bench@example.com"
# Pages without anything of the history's, or that only lead elsewhere.
NOT_ASKED = ("/sign-in", "/set-up")
ONLY_WITH_QUERY = ("/go", "/replays/new", "/replays/time", "/subscriptions/new", "/api-keys/new", "/event-types/new")
PARAMETER = re.compile(r"{(\w+)[^}]*}")


async def measure(platform: Platform, made: History, repeats: int) -> bool:
    """Prints the time of each, and what it takes of a processor. Whether all were answered, and within `TARGET_MS` at
    p95."""
    cookie, user = await _sign_in(platform)
    async with connected(platform) as driver:
        sample = await _sample(driver, made, user)
    wrong = []
    heads = " ".join(f"{one:>8}" for one in ("p50 ms", "p95 ms", "web ms", "SQL ms"))
    print(f"\n{'page':64} {heads} {'KiB':>6} status  {made.deliveries:,} deliveries")
    async with httpx.AsyncClient(
        base_url=platform.url, trust_env=False, timeout=60, cookies={cookies.SESSION: cookie}
    ) as client:
        for path in _paths(sample):
            taken, before = [], platform.cpu_s()
            for _ in range(repeats):
                started = time.perf_counter()
                answer = await client.get(path)
                taken.append((time.perf_counter() - started) * 1000)
            used = platform.cpu_s()
            # What it takes of a processor, of which web and PostgreSQL may have to share one here.
            web_ms, sql_ms = ((used[part] - before[part]) / repeats * 1000 for part in ("web", "postgres"))
            p95 = percentile(taken, 95)
            fine = p95 <= TARGET_MS and answer.status_code < 400
            if not fine:
                wrong.append(path)
            print(
                f"{_short(path):64} {statistics.median(taken):8.1f} {p95:8.1f} {web_ms:8.1f} {sql_ms:8.1f}"
                f" {len(answer.content) / 1024:6.0f} {answer.status_code}{'' if fine else ' !'}",
                flush=True,
            )
    print(f"refused, or over {TARGET_MS:.0f} ms at p95: {', '.join(wrong) or 'none'}")
    return not wrong


async def _sign_in(platform: Platform) -> tuple[str, str]:
    """The cookie of an admin's session, and the admin's id."""
    settings = target.settings(platform.data_dir, keys=True)
    database = Database(settings.database_url, pool_size=2)
    try:
        async with database.session() as session:
            user = await users.create(session, COMMAND_LINE, email=EMAIL, role=Role.ADMIN)
            _, token = await sessions.start(session, user.id)
        return str(token), users.shown_id(user)
    finally:
        await database.close()


async def _sample(driver: Any, made: History, user: str) -> dict[str, str]:
    """What stands in paths and filters, by name."""
    found = await sample_of(driver, made)
    dead = await driver.fetchrow(
        "SELECT id, subscription_id, error_kind FROM deliveries"
        " WHERE organization_id = $1 AND state = 'dead' AND error_kind IS NOT NULL ORDER BY id DESC LIMIT 1",
        made.large,
    )
    key = await driver.fetchval("SELECT id FROM api_keys WHERE organization_id = $1 LIMIT 1", made.large)
    entry = await driver.fetchval("SELECT id FROM audit_log LIMIT 1")
    return {
        "audit-log": ids.show(ids.AUDIT_ENTRY, entry),
        "deliveries": ids.show(ids.DELIVERY, dead["id"]),
        "subscriptions": ids.show(ids.SUBSCRIPTION, dead["subscription_id"]),
        "events": found.event,
        "replays": found.replay,
        "organizations": ids.show(ids.ORGANIZATION, made.large),
        "small": ids.show(ids.ORGANIZATION, made.small),
        "users": user,
        "api-keys": ids.show(ids.API_KEY, key),
        "organization": ids.show(ids.ORGANIZATION, made.large),
        "name": "kind.1",
        "error": dead["error_kind"],
        "now": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    }


def _paths(sample: Mapping[str, str]) -> list[str]:
    """Each page that is asked for with GET, and those that list with the filters that people use."""
    asked = []
    for path, pages in PAGES.items():
        if "GET" in pages and not path.startswith(NOT_ASKED):
            noun = path.split("/")[1]
            if path not in ONLY_WITH_QUERY:
                asked.append(PARAMETER.sub(partial(_value, sample, noun), path))
            asked += [f"{path}?{query}" for query in _queries(sample).get(path, [])]
    return asked


def _value(sample: Mapping[str, str], noun: str, found: re.Match[str]) -> str:
    parameter = found[1]
    if parameter in sample:
        return sample[parameter]
    return sample["subscriptions" if parameter.startswith("subscription") else noun]


def _queries(sample: Mapping[str, str]) -> dict[str, list[str]]:
    large, small = f"organization={sample['organizations']}", f"organization={sample['small']}"
    one = f"subscription={sample['subscriptions']}"
    rare = f"event_type={history.RARE_TYPE}"
    return {
        "/": ["range=1h", "range=7d", f"range=7d&{large}", small],
        "/deliveries": [
            *("status=dead", "status=pending", "status=delivered", "error=tls", "status_code=503", "created_after=24h"),
            *(large, small, one, f"{one}&status=dead", f"{large}&{rare}", f"{large}&status=dead&error=timeout"),
            *(f"{rare}", "event_type=never.seen", f"text={sample['deliveries']}", "text=no-such-text"),
        ],
        "/dead-letters": [large, small, one],
        "/events": [large, small, f"{large}&{rare}", rare],
        "/subscriptions": [large, "status=paused"],
        "/replays": [large],
        "/replays/time": ["total=1000&rate_per_second=50"],
        "/subscriptions/new": [large],
        "/api-keys/new": [large],
        "/event-types/new": [large],
        "/go": [f"q={sample['subscriptions']}"],
        "/replays/new": [f"{large}&status=dead", f"{one}&status=dead", f"{large}&status=dead&error=tls"],
        "/event-types": [large],
        "/api-keys": [large],
        "/audit-log": [large],
    }


def _short(path: str) -> str:
    """With the ids cut, which only tell things apart."""
    return re.sub(r"(\w{3}_)\w{26}", r"\1…", path)
