"""Every list, count and preview of the API on a long history: its time over HTTP, and the plans of its statements."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import event

from app import main as web
from app.api import lists
from bench import history
from bench.costs import connected, percentile
from bench.history import History
from bench.platform import BenchError, Platform
from cli import target
from core import ids

TARGET_MS = 50.0


@dataclass(frozen=True)
class Case:
    """One thing to ask of the API. `tenant`: `large` or `small`; `body`: of a POST."""

    name: str
    path: str
    tenant: str = "large"
    body: dict[str, Any] | None = None


async def measure(platform: Platform, made: History, repeats: int, plans: Path | None) -> bool:
    """Prints the time of each; whether all stayed below `TARGET_MS` at p95."""
    key = await platform._command("key", "create", "--platform")
    async with connected(platform) as driver:
        cases = await cases_of(driver, made)
    slow = []
    print(f"\n{'list':58} {'p50 ms':>8} {'p95 ms':>8} {'CPU ms':>8} {'rows':>5}  {made.deliveries:,} deliveries")
    async with httpx.AsyncClient(base_url=platform.url, trust_env=False, timeout=60) as client:
        for case in cases:
            headers = headers_of(case, made, key)
            taken, answer, before = [], None, platform.cpu_s()
            for _ in range(repeats):
                started = time.perf_counter()
                answer = await ask(client, case, headers)
                taken.append((time.perf_counter() - started) * 1000)
            assert answer is not None
            # Of web and PostgreSQL: what it takes where nobody else uses the processor.
            used = platform.cpu_s()
            cpu_ms = sum(used[part] - before[part] for part in ("web", "postgres")) / repeats * 1000
            p95 = percentile(taken, 95)
            mark = " " if p95 <= TARGET_MS else "!"
            if p95 > TARGET_MS:
                slow.append(case.name)
            print(
                f"{case.name:58} {statistics.median(taken):8.1f} {p95:8.1f} {cpu_ms:8.1f} {told(answer):>5} {mark}",
                flush=True,
            )
    print(f"over {TARGET_MS:.0f} ms at p95: {', '.join(slow) or 'none'}")
    if plans:
        await write_plans(platform, cases, made, key, plans)
    return not slow


def headers_of(case: Case, made: History, key: str) -> dict[str, str]:
    return {"X-API-Key": key, "X-Organization-ID": ids.show(ids.ORGANIZATION, getattr(made, case.tenant))}


async def ask(client: httpx.AsyncClient, case: Case, headers: dict[str, str]) -> Any:
    if case.body is None:
        answer = await client.get(case.path, headers=headers)
    else:
        answer = await client.post(case.path, headers=headers, json=case.body)
    if not answer.is_success:
        raise BenchError(f"{case.name}: {case.path}: {answer.status_code} {answer.text[:500]}")
    return answer.json()


def told(answer: Any) -> str:
    """How many rows came, `+` where there are more; of a preview its total."""
    if isinstance(answer["data"], dict):
        return str(answer["data"]["total"])
    return f"{len(answer['data'])}{'+' if answer['meta']['pagination']['hasMore'] else ''}"


async def cases_of(driver: Any, made: History) -> list[Case]:
    """Every list with the filters that people use, rare and common values of each."""
    low, high = await driver.fetchrow(
        "SELECT (SELECT id FROM deliveries ORDER BY id LIMIT 1), (SELECT id FROM deliveries ORDER BY id DESC LIMIT 1)"
    )
    middle = ids.lowest_at(ids.time_of(low) + (ids.time_of(high) - ids.time_of(low)) / 2)
    deep = f"after_key={lists._encode(middle)}"
    day = "&".join(
        f"filters[created_{edge}]={(ids.time_of(middle) + timedelta(hours=n)):%Y-%m-%dT%H:%M:%SZ}"
        for edge, n in (("after", 0), ("before", 24))
    )
    one = await driver.fetchrow(
        "SELECT * FROM deliveries WHERE organization_id = $1 AND id < $2 ORDER BY id DESC LIMIT 1", made.large, middle
    )
    subscription = ids.show(ids.SUBSCRIPTION, one["subscription_id"])
    happened = ids.show(ids.EVENT, one["event_id"])
    replay = ids.show(ids.REPLAY, made.replay)
    of_subscription = f"/v1/webhooks/subscriptions/{subscription}/deliveries"
    rare, old, common = (
        f"filters[event_type]={name}" for name in (history.RARE_TYPE, history.OLD_TYPE, history.COMMON_TYPE)
    )
    filters = {
        "": "",
        "oldest first": "sort=created_at",
        "deep": deep,
        "200 deep": f"limit=200&{deep}",
        "with attempts": "include=attempts",
        "200 with attempts": "include=attempts&limit=200",
        "200 with attempts, deep": f"include=attempts&limit=200&{deep}",
        "of a day": day,
        **{
            f"status={one}": f"filters[status]={one}"
            for one in ("dead", "pending", "sending", "delivered", "discarded")
        },
        "status=dead deep": f"filters[status]=dead&{deep}",
        "status=pending,sending": "filters[status]=pending,sending",
        "status=dead,discarded": "filters[status]=dead,discarded",
        **{f"error={one}": f"filters[error]={one}" for one in ("status", "timeout", "tls", "protocol", "dns,tls")},
        **{
            f"reason={one}": f"filters[reason]={one}"
            for one in ("exhausted", "gone", "rejected", "aborted", "retry", "new", "paused", "requested")
        },
        **{f"status_code={one}": f"filters[status_code]={one}" for one in (200, 202, 204, 302, 410, 503)},
        "event_type common": common,
        "event_type rare": rare,
        "event_type of one old event": old,
        "event_type of none": "filters[event_type]=never.seen",
        "event_type rare, of a day": f"{rare}&{day}",
        "event_type rare, deep": f"{rare}&{deep}",
        "dead, event_type common": f"filters[status]=dead&{common}",
        "dead, event_type rare": f"filters[status]=dead&{rare}",
        "dead, error=tls": "filters[status]=dead&filters[error]=tls",
        "dead, error=timeout, of a day": f"filters[status]=dead&filters[error]=timeout&{day}",
        "dead, status_code=410": "filters[status]=dead&filters[status_code]=410",
        "dead, reason=rejected": "filters[status]=dead&filters[reason]=rejected",
        "dead, subscription": f"filters[status]=dead&filters[subscription_id]={subscription}",
        "dead, subscription, error=tls": (
            f"filters[status]=dead&filters[subscription_id]={subscription}&filters[error]=tls"
        ),
        "delivered, event_type rare": f"filters[status]=delivered&{rare}",
        "delivered, event_type of none": "filters[status]=delivered&filters[event_type]=never.seen",
        "delivered, status_code=202": "filters[status]=delivered&filters[status_code]=202",
        "pending, event_type rare": f"filters[status]=pending&{rare}",
        "event_type common, status_code=202": f"{common}&filters[status_code]=202",
        "event": f"filters[event_id]={happened}",
        "replay": f"filters[replay_id]={replay}",
        "replay, dead": f"filters[replay_id]={replay}&filters[status]=dead",
        "ids": f"filters[ids]={ids.show(ids.DELIVERY, one['id'])}",
        "page=1": "page=1",
        "page=50 of 200": "page=50&pageSize=200",
        "page=1 status=dead": "page=1&filters[status]=dead",
        "page=1 status=delivered": "page=1&filters[status]=delivered",
        "page=1 error=tls": "page=1&filters[error]=tls",
        "page=1 event_type rare": f"page=1&{rare}",
        "page=1 event_type common": f"page=1&{common}",
        "page=1 status_code=202": "page=1&filters[status_code]=202",
        "page=1 of a day": f"page=1&{day}",
    }
    cases = [Case(f"deliveries {name}", f"/v1/deliveries?{asked}") for name, asked in filters.items()]
    cases += [
        Case(f"deliveries of a small tenant {name}", f"/v1/deliveries?{filters[name]}", "small")
        for name in ("", "deep", "status=dead", "error=tls", "status_code=202", "event_type rare", "page=1")
    ]
    of_one = (
        *("", "deep", "status=dead", "status=pending", "error=tls", "status_code=410", "status_code=202"),
        *("event_type rare", "event_type common", "event_type of none", "page=1", "page=1 status=dead", "of a day"),
    )
    cases += [Case(f"subscription's deliveries {name}", f"{of_subscription}?{filters[name]}") for name in of_one]
    cases += [Case("event's deliveries", f"/v1/events/{happened}/deliveries")]
    of_events = {name: filters[name] for name in ("", "oldest first", "deep", "200 deep", "of a day", "page=1")}
    of_events |= {
        name: asked for name, asked in filters.items() if name.startswith(("event_type", "page=1 event_type"))
    }
    del of_events["event_type common, status_code=202"]
    of_events |= {
        "branch": "filters[branch_id]=branch-10",
        "branch of none": "filters[branch_id]=nowhere",
        "event_type rare, branch of none": f"{rare}&filters[branch_id]=nowhere",
        "page=1 branch of none": "page=1&filters[branch_id]=nowhere",
        "external_id of none": "filters[external_id]=order-4711",
        "page=50 of 200": "page=50&pageSize=200",
    }
    cases += [Case(f"events {name}", f"/v1/events?{asked}") for name, asked in of_events.items()]
    for noun in ("replays", "event-types", "organizations", "api-keys", "webhooks/subscriptions"):
        for asked in ("", "sort=created_at&limit=200", "page=1", "page=20&pageSize=100"):
            cases.append(Case(f"{noun} {asked}", f"/v1/{noun}?{asked}"))
    cases += [
        Case(f"replays status={one}", f"/v1/replays?filters[status]={one}")
        for one in ("completed", "cancelled", "running")
    ]
    after, before = (ids.time_of(middle) + timedelta(hours=n) for n in (0, 1))
    previews: dict[str, dict[str, Any]] = {
        "": {},
        "error=tls": {"error": "tls"},
        "subscription": {"subscription_id": subscription},
        "event_type rare": {"event_type": history.RARE_TYPE},
        "status_code=503": {"status_code": 503},
        "of an event": {"event_id": happened, "status": "delivered"},
        "delivered within an hour": {
            "status": "delivered",
            "created_after": f"{after:%Y-%m-%dT%H:%M:%SZ}",
            "created_before": f"{before:%Y-%m-%dT%H:%M:%SZ}",
        },
    }
    cases += [
        Case(f"preview {name}", "/v1/replays", body={"dry_run": True, "filters": chosen})
        for name, chosen in previews.items()
    ]
    return cases


async def write_plans(platform: Platform, cases: Sequence[Case], made: History, key: str, path: Path) -> None:
    """Asks the same of the same application within this process, which tells what it asks of the database."""
    app = web.create(target.settings(platform.data_dir, keys=True))
    async with app.router.lifespan_context(app), connected(platform) as driver:
        engine = app.state.services.database.engine.sync_engine
        transport = httpx.ASGITransport(app)
        with path.open("w", encoding="utf-8") as file:
            async with httpx.AsyncClient(transport=transport, base_url="http://bench.test") as client:
                for case in cases:
                    statements: list[tuple[str, Any]] = []

                    def note(
                        _c: Any, _cursor: Any, statement: str, values: Any, *_: Any, into: Any = statements
                    ) -> None:
                        into.append((statement, values))

                    event.listen(engine, "before_cursor_execute", note)
                    try:
                        await ask(client, case, headers_of(case, made, key))
                    finally:
                        event.remove(engine, "before_cursor_execute", note)
                    file.write(f"\n\n=== {case.name}\n{case.path} {json.dumps(case.body) if case.body else ''}\n")
                    for statement, values in statements:
                        if statement.lstrip().startswith(("SELECT", "WITH")) and "api_keys.prefix" not in statement:
                            plan = await driver.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", *values)
                            file.write(f"--- {statement}\n" + "\n".join(row[0] for row in plan) + "\n")
    print(f"plans: {path}")
