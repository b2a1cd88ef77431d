"""`/healthz` tells whether the process is up, `/readyz` whether the platform can do its work, and what it lacks."""

from __future__ import annotations

import httpx

from tests.api import run
from tests.platform import Platform, eventually
from tests.services import as_owner


async def ask(p: Platform, path: str) -> httpx.Response:
    del p.client.headers["X-API-Key"]  # nobody needs a key for these
    answer = await p.client.get(path)
    p.client.headers["X-API-Key"] = p.key
    return answer


def test_ready_once_a_worker_lives(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async def ready() -> bool:
            return (await ask(p, "/readyz")).status_code == 200

        await eventually(ready)
        assert (await ask(p, "/readyz")).json() == {
            "status": "ready",
            "checks": {"database": "ok", "redis": "ok", "workers": "ok"},
        }

    run(database_url, redis_url, check, with_worker=True)


def test_not_ready_without_a_worker_but_up(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        answer = await ask(p, "/readyz")
        assert answer.status_code == 503
        body = answer.json()
        assert body["status"] == "not ready"
        assert (body["checks"]["database"], body["checks"]["redis"]) == ("ok", "ok")
        assert "no worker" in body["checks"]["workers"]
        alive = await ask(p, "/healthz")
        assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
        assert alive.headers["cache-control"] == "no-store"

    run(database_url, redis_url, check)


def test_not_ready_without_redis_and_events_are_accepted_all_the_same(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        answer = await ask(p, "/readyz")
        assert answer.status_code == 503
        checks = answer.json()["checks"]
        assert checks["database"] == "ok"
        assert "does not answer" in checks["redis"]
        assert "does not answer" in checks["workers"]
        assert (await p.send())["event_id"].startswith("evt_")

    run(database_url, "redis://127.0.0.1:1/0", check)


def test_not_ready_without_its_tables(database_url: str, owner_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await as_owner(owner_url, "ALTER TABLE organizations RENAME TO gone")
        answer = await ask(p, "/readyz")
        await as_owner(owner_url, "ALTER TABLE gone RENAME TO organizations")
        assert answer.status_code == 503
        assert "does not answer" in answer.json()["checks"]["database"]

    run(database_url, redis_url, check)
