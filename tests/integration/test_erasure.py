"""Erasing an organization: gone for everybody at once, from every table soon, and nobody else's is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from core import audit, erasure, ids, subscriptions
from core.audit import COMMAND_LINE
from core.egress import EgressPolicy
from core.errors import NotFound
from core.limiting.breakers import Breakers
from core.secrets.sealing import Sealer
from core.states import State
from core.storage.database import Database
from tests.api import FAST, SUBSCRIPTIONS, error_of, make_key, make_organization, run, success_of
from tests.commands import clean_env, hookwright
from tests.dumps import dump, leaks
from tests.forks import Forked
from tests.integration.test_deliveries import blocked
from tests.platform import SECRET_KEY, Platform, environment, eventually, shown
from tests.receiver import Receiver
from tests.seeds import Seeds, seeded

CANARY = "canary-77ab0c41de"
OWNED = """
SELECT c.relname AS table FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND a.attname = 'organization_id' ORDER BY 1
"""
# Those that belong to an organization through something else.
THROUGH = {
    "subscription_secrets": "subscription_id IN (SELECT id FROM subscriptions WHERE organization_id = $1)",
    "replay_items": "replay_id IN (SELECT id FROM replays WHERE organization_id = $1)",
    "organizations": "id = $1",
}


async def owned(p: Platform, organization_id: UUID) -> dict[str, list[str]]:
    """Every row of an organization, by table: of all tables that say whose their rows are, by the catalogue."""
    conditions = {row["table"]: "organization_id = $1" for row in await p.sql(OWNED)} | THROUGH
    return {
        table: [
            row["row"] for row in await p.sql(f"SELECT t::text AS row FROM {table} t WHERE {where}", organization_id)
        ]
        for table, where in conditions.items()
    }


class Tenant:
    """An organization with one of everything."""

    def __init__(self, p: Platform, organization_id: UUID, key: str, mark: str) -> None:
        self.p, self.id, self.key, self.mark = p, organization_id, key, mark

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return (await self.p.call(method, path, body, X_API_Key=self.key, **headers))["data"]

    async def fill(self, receiver: Receiver) -> None:
        ways = (("/ok", FAST), ("/status/500", FAST), ("/status/503", {"backoff_strategy": "fixed", "max_attempts": 9}))
        for path, policy in ways:
            made = await self.call(
                "POST",
                SUBSCRIPTIONS,
                {
                    "url": receiver.url(path),
                    "events": ["*"],
                    "retry_policy": policy,
                    "headers": {"X-Token": self.mark},
                    "description": self.mark,
                    "circuit_breaker": {"failure_threshold": 2 if path == "/status/503" else 100},
                },
            )
        await self.call("POST", f"{SUBSCRIPTIONS}/{made['id']}/secret/rotate", {})
        await self.call("POST", f"{SUBSCRIPTIONS}/{made['id']}/secret/reveal")
        await self.call("POST", "/v1/event-types", {"name": "a.b", "description": self.mark})
        for number in range(3):
            body = {"event_type": "a.b", "data": {"mark": self.mark}, "event_id": f"{self.mark}-{number}"}
            await self.call("POST", "/v1/events", body, Idempotency_Key=f"{self.mark}-{number}")

        async def ended() -> bool:
            found = await self.call("GET", "/v1/deliveries?limit=200")
            return sorted(one["status"] for one in found) == ["dead"] * 3 + ["delivered"] * 3 + ["pending"] * 3

        await eventually(ended)
        await self.call("POST", "/v1/replays", {"filters": {"status": "delivered"}, "rate_per_second": 1})


def test_an_organization_is_gone_at_once_and_then_from_every_table(
    database_url: str, owner_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        async with p.services.database.session() as session:
            audit.record(session, COMMAND_LINE, "test", "", organization_id=p.organization_id, after={"mark": CANARY})
        tenant = Tenant(p, p.organization_id, p.key, CANARY)
        stays = await make_organization(p, "Stays")
        other = Tenant(p, stays, await make_key(p, stays), "of-another")
        for one in (tenant, other):
            await one.fill(receiver)
        platform_key = {"X-API-Key": p.platform_key}
        assert p.engine is not None
        await p.engine.flush_statistics()
        await p.engine.sync_breakers(p.services.breakers)
        await p.sql(
            "INSERT INTO breaker_changes SELECT gen_random_uuid(), organization_id, id, 'OPEN', 2 FROM subscriptions"
        )
        empty = {table for table, rows in (await owned(p, tenant.id)).items() if not rows}
        assert not empty, "every table has something of it, or this would prove nothing"
        mine = {row["id"] for row in await p.sql("SELECT id FROM subscriptions WHERE organization_id = $1", tenant.id)}
        assert mine & set(await p.services.breakers.all())

        path = f"/v1/organizations/{shown(p)}"
        stale = await p.client.delete(path, headers=platform_key | {"If-Match": '"version-7"'})
        error_of(stale, 409, "CONFLICT")
        deleted = success_of(await p.client.delete(path, headers=platform_key), 202)["data"]
        assert (deleted["organization_id"], deleted["status"]) == (shown(p), "deleted")
        await it_is_invisible(p, path)

        async def all_but_its_row() -> bool:
            found = await owned(p, tenant.id)
            return {table for table, rows in found.items() if rows} == {"organizations"}

        await eventually(all_but_its_row)
        sent = len([one for one in receiver.requests if CANARY.encode() in one.body])
        await a_late_comer_goes_too(p, tenant.id)
        assert not any((await owned(p, tenant.id)).values())
        text = await asyncio.to_thread(dump, owner_url)
        names = [CANARY, str(tenant.id), *map(str, mine)]
        assert not leaks(text, names)
        assert "Test" not in [row["name"] for row in await p.sql("SELECT name FROM organizations")]
        assert not mine & set(await p.services.breakers.all())
        [marked, *wiped, erased] = await p.sql("SELECT * FROM audit_log WHERE resource = $1 ORDER BY id", shown(p))
        assert {(one["action"], one["organization_id"], one["actor"]) for one in wiped} == {
            ("audit_log.erased", None, "database")
        }
        assert (marked["action"], marked["organization_id"]) == ("organization.deleted", None)
        assert marked["actor"].startswith("key_")
        assert (erased["action"], erased["organization_id"]) == ("organization.erased", None)
        assert sum(one["after"]["entries"] for one in wiped) == erased["after"]["rows"]["audit_log"]
        assert {"events": 4, "deliveries": 10, "subscriptions": 3, "api_keys": 1}.items() <= erased["after"][
            "rows"
        ].items()
        assert len([one for one in receiver.requests if CANARY.encode() in one.body]) == sent

        # The other has all that it had, and works.
        assert {len(rows) > 0 for rows in (await owned(p, stays)).values()} == {True}
        assert len(await other.call("GET", "/v1/deliveries?limit=200")) == 9
        assert len(await other.call("GET", SUBSCRIPTIONS)) == 3
        await other.call("POST", "/v1/events", {"event_type": "a.b", "data": {}})

    async def it_is_invisible(p: Platform, path: str) -> None:
        platform_key = {"X-API-Key": p.platform_key}
        acting = platform_key | {"X-Organization-ID": shown(p)}
        event = {"event_type": "a.b", "data": {}}
        error_of(await p.client.get(path, headers=platform_key), 404, "NOT_FOUND")
        error_of(await p.client.delete(path, headers=platform_key), 404, "NOT_FOUND")
        error_of(await p.client.patch(path, json={"name": "x"}, headers=platform_key), 404, "NOT_FOUND")
        listed = success_of(await p.client.get("/v1/organizations", headers=platform_key), 200)["data"]
        assert [one["name"] for one in listed] == ["Stays"]
        for one in ("/v1/events", "/v1/deliveries", SUBSCRIPTIONS, "/v1/replays", "/v1/api-keys", "/v1/event-types"):
            error_of(await p.client.get(one, headers=acting), 404, "NOT_FOUND")
        error_of(await p.client.post("/v1/events", json=event, headers=acting), 404, "NOT_FOUND")
        error_of(await p.client.post("/v1/events", json=event), 401, "AUTHENTICATION_FAILED")
        error_of(await p.client.get("/v1/events"), 401, "AUTHENTICATION_FAILED")

    async def a_late_comer_goes_too(p: Platform, organization_id: UUID) -> None:
        """What a call stores that was under way at the mark; then the organization's own row."""
        async with p.database.driver() as driver:
            seeds = Seeds(p.database, driver)
            seeds.organization_id = organization_id
            await seeds.delivery(State.PENDING, event_id=await seeds.event(), due_at=None, reason="paused")

        async def gone() -> bool:
            await erasure.advance(p.database, p.services.breakers, late_s=0.0)
            return not await p.sql("SELECT FROM organizations WHERE id = $1", organization_id)

        await eventually(gone)

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


@contextmanager
def a_worker(database_url: str, redis_url: str, log: Path) -> Iterator[Forked]:
    env = clean_env(environment(database_url, redis_url))
    with log.open("ab") as out:
        process = Forked("worker", env=env, stdout=out.fileno(), stderr=out.fileno())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


PLANT = (
    "INSERT INTO events (id, organization_id, event_type, occurred_at, payload, data_at, matched_subscriptions)"
    " SELECT id, $2, 'a.b', now(), '{\"data\":{}}', 8, 1 FROM unnest($1::uuid[]) AS new(id)",
    "INSERT INTO deliveries (id, organization_id, subscription_id, event_id, event_type, state)"
    " SELECT id, $2, $3, id, 'a.b', 'delivered' FROM unnest($1::uuid[]) AS new(id)",
    "INSERT INTO attempts (id, delivery_id, organization_id, series, number, started_at, duration_ms, url,"
    " request_headers) SELECT id, id, $2, 0, 1, now(), 1, '', '[]' FROM unnest($1::uuid[]) AS new(id)",
)


def test_workers_that_are_killed_while_erasing_leave_it_to_others(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    rows = 4_000
    log = tmp_path / "worker.log"

    async def check(seeds: Seeds) -> None:
        stays = seeds.organization_id, seeds.subscription_id
        await plant(*stays, 50)
        seeds.organization_id = ids.new_id()
        await seeds.prepare()
        gone = seeds.organization_id, seeds.subscription_id
        await plant(*gone, rows)
        orphan = [ids.new_id()]  # an attempt whose delivery retention has dropped
        dropped = ids.lowest_at(datetime(2020, 1, 1, tzinfo=UTC))
        await seeds.driver.execute(PLANT[2].replace("id, id,", "id, $3::uuid,"), orphan, gone[0], dropped)
        await asyncio.to_thread(hookwright, "org", "delete", ids.show(ids.ORGANIZATION, gone[0]), "--yes", env=env)

        async def left() -> int:
            count: int = await seeds.driver.fetchval(
                "SELECT count(*) FROM deliveries WHERE organization_id = $1", gone[0]
            )
            return count

        with a_worker(database_url, redis_url, log) as first:

            async def begun() -> bool:
                return await left() < rows

            await eventually(begun)
            first.kill()
            first.wait()
        assert 0 < await left() < rows
        with a_worker(database_url, redis_url, log), a_worker(database_url, redis_url, log):

            async def nothing_left() -> bool:
                return (await seeds.driver.fetchval("SELECT count(*) FROM subscriptions")) == 1

            await eventually(nothing_left)
        counts = await seeds.driver.fetchval("SELECT erased FROM organizations WHERE id = $1", gone[0])
        assert counts == {"events": rows, "deliveries": rows, "attempts": rows + 1, "subscriptions": 1}
        for table, count in (("events", 50), ("deliveries", 50), ("attempts", 50), ("organizations", 2)):
            assert await seeds.driver.fetchval(f"SELECT count(*) FROM {table}") == count
        assert "could not be erased" not in log.read_text()

    env = environment(database_url, redis_url)

    async def plant(organization_id: UUID, subscription_id: UUID, count: int) -> None:
        database = Database(database_url)
        async with database.driver() as driver:
            events = [ids.new_id() for _ in range(count)]
            await driver.execute(PLANT[0], events, organization_id)
            await driver.execute(PLANT[1], events, organization_id, subscription_id)
            await driver.execute(PLANT[2], events, organization_id)
        await database.close()

    seeded(database_url, check)


class NoBreakers(Breakers):
    def __init__(self) -> None:
        pass

    async def forget(self, *subscription_ids: UUID) -> None:
        pass


def test_a_subscription_that_is_made_while_its_organization_is_deleted(database_url: str) -> None:
    """Whoever comes second waits: either there is no such organization any more, or the subscription goes with it."""
    rules = subscriptions.Rules(EgressPolicy(), Sealer([SECRET_KEY]), 1_000)

    async def check(seeds: Seeds) -> None:
        given = {"url": "https://example.com/hook", "events": ["*"]}

        async def create() -> None:
            async with seeds.database.session() as session:
                await subscriptions.create(session, rules, seeds.organization_id, given)

        async def delete() -> None:
            async with seeds.database.session() as session:
                await erasure.mark(session, seeds.organization_id, COMMAND_LINE)

        async with seeds.database.session() as session:
            await subscriptions.create(session, rules, seeds.organization_id, given)
            deletes = asyncio.create_task(delete())
            await blocked(seeds)
        await deletes
        live = "SELECT count(*) FROM subscriptions WHERE status <> 'deleted'"
        assert await seeds.driver.fetchval(live) == 1
        await erasure.advance(seeds.database, NoBreakers(), work_s=30.0, late_s=0.0)
        assert await seeds.driver.fetchval("SELECT count(*) FROM organizations") == 0

        await seeds.prepare()
        async with seeds.database.session() as session:
            await erasure.mark(session, seeds.organization_id, COMMAND_LINE)
            creates = asyncio.create_task(create())
            await blocked(seeds)
        with pytest.raises(NotFound):
            await creates
        assert await seeds.driver.fetchval(live) == 0

    seeded(database_url, check)


def test_one_organization_that_is_erased_slowly_does_not_hold_up_the_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tried = erasure._step, []

    async def check(seeds: Seeds) -> None:
        stuck = seeds.organization_id
        seeds.organization_id = ids.new_id()
        await seeds.prepare()
        for one in (stuck, seeds.organization_id):
            async with seeds.database.session() as session:
                await erasure.mark(session, one, COMMAND_LINE)

        async def step(session: Any, breakers: Any, organization_id: UUID, late_s: float) -> bool:
            tried.append(organization_id)
            if organization_id == stuck:
                await asyncio.sleep(0.02)  # all the time there is
                raise TimeoutError
            return await real(session, breakers, organization_id, late_s)

        monkeypatch.setattr(erasure, "_step", step)
        last = None
        for _ in range(3):
            last = await erasure.advance(seeds.database, NoBreakers(), work_s=0.01, late_s=0.0, behind=last)
        assert tried[:2] == [stuck, seeds.organization_id]
        assert stuck in tried[2:]

    seeded(database_url, check)
