"""Every list, count and preview of the API on a long history: its time over HTTP, and the plans of its statements."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import event

from app import main as web
from bench.costs import connected, percentile
from bench.history import History
from bench.platform import BenchError, Platform
from bench.scale_cases import Case, cases_of, sample_of
from cli import target
from core import ids

TARGET_MS = 50.0


async def measure(platform: Platform, made: History, repeats: int, plans: Path | None) -> bool:
    """Prints the time of each; whether all stayed below `TARGET_MS` at p95."""
    key = await platform.command("key", "create", "--platform")
    async with connected(platform) as driver:
        cases = cases_of(await sample_of(driver, made))
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
            assert answer is not None  # nosec B101 # the benchmark is wrong otherwise, and must not go on
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
