"""The audit log when it is large: exported a page at a time, visibly broken when it breaks, read by its indexes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from cli.serving import Bounds
from core import ids
from tests.api import run
from tests.integration.test_plans import nodes
from tests.integration.test_serving import serving
from tests.platform import Platform, eventually
from tests.services import as_owner

PLANT = """
INSERT INTO audit_log (id, organization_id, actor, action, resource, after)
SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - {count} + n), 12, '0') || '70008'
        || substr(md5(n::text), 1, 15))::uuid,
    CASE WHEN n % 50 < 40 THEN o.id END, 'key_' || n % 1000, 'thing.done' || n % 7, 'thing_' || n % 5000,
    jsonb_build_object('text', repeat('x', {size}))
FROM generate_series(1, {count}) n LEFT JOIN LATERAL (SELECT id FROM organizations OFFSET n % 20 LIMIT 1) o ON true
"""


def test_an_export_waits_for_a_slow_reader_and_tells_when_it_breaks_off(
    database_url: str, owner_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """600 entries of 100 kB are far more than the sockets between take in."""
    monkeypatch.setattr("app.api.audit_log.EXPORT_PAGE", 10)

    async def check(p: Platform) -> None:
        await as_owner(owner_url, PLANT.format(count=600, size=100_000))
        statements: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "FROM audit_log" in statement:
                statements.append(statement)

        async def stands() -> bool:
            """Whether no page was asked for in the time that several would take."""
            seen = len(statements)
            await asyncio.sleep(0.3)
            return len(statements) == seen

        headers = {"X-API-Key": p.platform_key}
        async with serving(p.app, Bounds()) as served, httpx.AsyncClient(headers=headers, timeout=90) as client:
            event.listen(p.database.engine.sync_engine, "before_cursor_execute", note)  # the server's, which started it
            path = f"http://127.0.0.1:{served.port}/v1/audit-log/export?sort=created_at"
            async with client.stream("GET", path) as answer:
                assert answer.headers["x-content-type-options"] == "nosniff"
                whole = [json.loads(line)["id"] async for line in answer.aiter_lines()]
            assert len(whole) == len(set(whole)) == 600
            assert whole == sorted(whole)
            statements.clear()
            async with client.stream("GET", path) as answer:
                lines = answer.aiter_lines()
                got = [json.loads(await anext(lines))["id"]]
                await eventually(stands, what="a pause of the export")
                assert 0 < len(statements) < 30, "it reads on only as its reader does"
                await as_owner(owner_url, "REVOKE SELECT ON audit_log FROM hookwright_app")
                with pytest.raises(httpx.RemoteProtocolError):
                    got += [json.loads(line)["id"] async for line in lines]
            assert got == whole[: len(got)] != whole

    run(database_url, redis_url, check)


def test_every_way_to_read_the_log_is_served_by_an_index(database_url: str, owner_url: str, redis_url: str) -> None:
    count = 50_000

    async def check(p: Platform) -> None:
        await as_owner(
            owner_url,
            "INSERT INTO organizations (id, name) SELECT gen_random_uuid(), 'planted' FROM generate_series(1, 20)",
            PLANT.format(count=count, size=10),
            "ANALYZE audit_log",
        )
        asked: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
            if "FROM audit_log" in statement:
                asked.append((statement, values))

        event.listen(p.database.engine.sync_engine, "before_cursor_execute", note)
        [row] = await p.sql("SELECT id FROM organizations WHERE name = 'planted' LIMIT 1")
        of_one = {"X-Organization-ID": ids.show(ids.ORGANIZATION, row["id"])}
        queries = (
            "",
            "filters[resource]=thing_5",
            "filters[actor]=key_5",
            "filters[actor]=nobody",
            "filters[action]=nothing",
            "filters[created_after]=2020-01-01T00:00:00Z&filters[created_before]=2090-01-01T00:00:00Z",
        )
        for headers in ({}, of_one):
            for query in queries:
                for path in (f"/v1/audit-log?{query}", f"/v1/audit-log?{query}&sort=created_at"):
                    asked.clear()
                    answer = await p.client.get(path, headers={"X-API-Key": p.platform_key, **headers})
                    cursor = answer.json()["meta"]["pagination"]["nextCursor"]
                    if cursor:
                        more = f"{path}&after_key={cursor}"
                        await p.client.get(more, headers={"X-API-Key": p.platform_key, **headers})
                    assert asked
                    async with p.database.driver() as driver:
                        for statement, values in asked:
                            plan = await driver.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *values)
                            kinds = {node["Node Type"] for node in nodes(plan[0]["Plan"])}
                            assert "Seq Scan" not in kinds, f"{path}: {plan}"
                            read = sum(
                                node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                                for node in nodes(plan[0]["Plan"])
                                if "Index Name" in node
                            )
                            assert read <= 10_001, f"{path} {headers}: {statement} read {read} of {count}"

    run(database_url, redis_url, check)
