"""Rate limits: a bucket for each key, shared by all web processes, by tier; and none while Redis is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from core.limiting import rate_limits
from tests.api import SUBSCRIPTIONS, URL, another_app, error_of, make_key, run, success_of
from tests.platform import Platform, eventually, platform, shown

# One a minute, so that nothing refills while a test runs.
SLOW = {
    "RATE_LIMIT_DEFAULT": "1/3",
    "RATE_LIMIT_PREMIUM": "1/5",
    "RATE_LIMIT_BULK": "1/2",
    "RATE_LIMIT_INGEST": "1/4",
}
EVENT = {"event_type": "a.b", "data": {}}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine Redis may take longer than requests would wait for it."""
    monkeypatch.setattr(rate_limits, "WAIT_S", 10.0)


def limits_of(answer: httpx.Response) -> tuple[int, int] | None:
    """Limit and remaining; None where the answer says nothing of them."""
    given = {name for name in answer.headers if name.startswith("x-ratelimit-")}
    assert given in (set(), {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"})
    if not given:
        return None
    return int(answer.headers["x-ratelimit-limit"]), int(answer.headers["x-ratelimit-remaining"])


def test_all_web_processes_share_the_bucket_of_a_key(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        key = {"X-API-Key": await make_key(p, p.organization_id, ["events.read"])}
        narrow = await p.sql("SELECT id FROM api_keys WHERE scopes = '{events.read}'")
        async with another_app(p, database_url, redis_url, **SLOW) as other:
            # Errors after authentication count and say so as well: no scope, no such thing.
            error = await p.client.post("/v1/event-types", json={"name": "a"}, headers=key)
            error_of(error, 403, "PERMISSION_DENIED")
            assert limits_of(error) == (1, 2)
            error = await other.get(f"/v1/events/evt_{'0' * 26}", headers=key)
            error_of(error, 404, "NOT_FOUND")
            assert limits_of(error) == (1, 1)
            # Without a key there is no bucket.
            assert limits_of(await p.client.get("/v1/events", headers={"X-API-Key": "sk_live_x"})) is None
            answers = await asyncio.gather(
                *(client.get("/v1/events", headers=key) for client in (p.client, other) for _ in range(10))
            )
            assert sorted(answer.status_code for answer in answers) == [200] + [429] * 19
            for answer in answers:
                assert limits_of(answer) == (1, 0)
                # Three requests of a minute each were used.
                assert 170 < int(answer.headers["x-ratelimit-reset"]) - time.time() < 181
                if answer.status_code == 429:
                    retry_after_s = int(answer.headers["retry-after"])
                    assert 50 <= retry_after_s <= 60
                    details = error_of(answer, 429, "RATE_LIMIT_EXCEEDED")["details"]
                    assert details == {"limit": 1, "window": 60, "retry_after": retry_after_s}
            # Another key is another bucket, also of the same organization.
            assert limits_of(await p.client.get("/v1/events")) == (1, 2)
        with redis.Redis.from_url(redis_url) as client:
            stored = {name.decode(): client.pttl(name) for name in client.scan_iter("hookwright:rate:*")}
        assert {name.removeprefix("hookwright:rate:") for name in stored} == {narrow[0]["id"].hex, p.key_id.hex}
        assert all(0 < left_ms <= 180_000 for left_ms in stored.values()), "buckets vanish once they are full"

    run(database_url, redis_url, check, **SLOW)


def test_the_tier_chooses_the_limit_and_taking_events_has_its_own(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        premium = {"X-API-Key": await make_key(p, None), "X-Organization-ID": shown(p)}
        await p.sql("UPDATE api_keys SET tier = 'premium' WHERE organization_id IS NULL")  # both platform keys
        made = (await p.client.post("/v1/api-keys", json={"name": "n", "tier": "bulk"}, headers=admin)).json()["data"]
        assert made["tier"] == "bulk"
        key = {"X-API-Key": made["key"]}
        assert limits_of(await p.client.get("/v1/events", headers=key)) == (1, 1)
        answer = await p.client.patch(f"/v1/api-keys/{made['id']}", json={"tier": "default"}, headers=admin)
        assert success_of(answer, 200)["data"]["tier"] == "default"
        assert limits_of(await p.client.get("/v1/events", headers=key)) == (1, 1), "of three, two were used"
        wrong = await p.client.patch(f"/v1/api-keys/{made['id']}", json={"tier": "gold"}, headers=admin)
        assert "default, premium, bulk" in error_of(wrong, 400, "VALIDATION_FAILED")["details"]["tier"][0]
        wrong = await p.client.post("/v1/api-keys", json={"name": "n", "tier": "gold"}, headers=admin)
        assert "default, premium, bulk" in error_of(wrong, 400, "VALIDATION_FAILED")["details"]["tier"][0]
        assert limits_of(await p.client.get("/v1/organizations", headers=premium)) == (1, 4)
        [entry] = await p.sql("SELECT before, after FROM audit_log WHERE action = 'api_key.updated'")
        assert (entry["before"], entry["after"]) == ({"tier": "bulk"}, {"tier": "default"})
        # Events: batches and single ones draw from one bucket, which the others don't touch. Test events are others:
        # each leaves an entry in the audit log, and what takes events has no limit by default.
        subscription = await p.subscribe(URL)
        for left, path, body in [
            (3, "/v1/events", EVENT),
            (2, "/v1/events/batch", {"events": [EVENT]}),
            (1, f"{SUBSCRIPTIONS}/{subscription['id']}/test", {}),
            (1, "/v1/events", EVENT),
            (0, "/v1/events", EVENT),
        ]:
            assert limits_of(await p.client.post(path, json=body)) == (1, left)
        error_of(await p.client.post("/v1/events", json=EVENT), 429, "RATE_LIMIT_EXCEEDED")
        assert len(await p.sql("SELECT id FROM events")) == 5
        assert limits_of(await p.client.get("/v1/events")) == (1, 0)

    run(database_url, redis_url, check, **SLOW)


def test_taking_events_asks_redis_nothing_while_its_tier_is_off(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        with redis.Redis.from_url(redis_url) as client:
            assert limits_of(await p.client.get("/v1/events")) == (1, 2)  # it loads the script
            before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
            for _ in range(20):
                answer = await p.client.post("/v1/events", json=EVENT)
                assert (answer.status_code, limits_of(answer)) == (202, None)
            assert client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"] == before
            await p.client.get("/v1/events")
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] == before + 1

    run(database_url, redis_url, check, **SLOW | {"RATE_LIMIT_INGEST": "off"})


def test_a_bucket_refills_and_outlives_neither_an_emptied_redis_nor_a_clock_that_was_set_back(
    database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        with redis.Redis.from_url(redis_url) as client:

            async def get(status: int) -> httpx.Response:
                answer = await p.client.get("/v1/events")
                assert answer.status_code == status
                return answer

            await get(200)
            assert 1 <= int((await get(429)).headers["retry-after"]) <= 3
            await eventually(lambda: passes(p), 10, "a request that was refilled")
            client.flushall()
            client.script_flush()
            assert limits_of(await get(200)) == (20, 0)
            # As if Redis' clock had been an hour ahead when it stored this.
            [name] = client.scan_iter("hookwright:rate:*")
            client.set(name, str(int((time.time() + 3600) * 1_000_000)))
            assert int((await get(429)).headers["retry-after"]) == 3

    async def passes(p: Platform) -> bool:
        return (await p.client.get("/v1/events")).is_success

    run(database_url, redis_url, check, RATE_LIMIT_DEFAULT="20/1")


class Relay:
    """A way to the real Redis that can stand still: connections stay open, and nothing comes through."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self.asked = 0  # pieces that came from clients

    @asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[str]:
        server = await asyncio.start_unix_server(self._relay, path)
        async with server:
            yield f"unix://{path}?db=0"
            self._open.set()

    def stand_still(self) -> None:
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(self._target)
        pairs = ((reader, back, True), (there, writer, False))
        ways = [asyncio.create_task(self._pipe(*pair)) for pair in pairs]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        back.close()
        writer.close()

    async def _pipe(self, source: Any, sink: Any, counts: bool) -> None:
        while piece := await source.read(65_536):
            self.asked += counts
            await self._open.wait()
            sink.write(piece)
            await sink.drain()


def test_a_busy_process_is_not_taken_for_a_redis_that_stands_still(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        assert limits_of(await p.client.get("/v1/events")) == (1, 2)  # it is connected
        monkeypatch.setattr(rate_limits, "WAIT_S", 0.05)

        async def keep_busy() -> None:
            while True:
                time.sleep(0.06)  # noqa: ASYNC251 - each turn of the loop takes longer than Redis is waited for
                await asyncio.sleep(0)

        busy = asyncio.create_task(keep_busy())
        verdicts = [await p.services.rate_limits.take(p.key_id, "default") for _ in range(3)]
        busy.cancel()
        assert [verdict and verdict.allowed for verdict in verdicts] == [True, True, False]

    run(database_url, redis_url, check, **SLOW)


def test_while_redis_stands_still_requests_pass_after_a_short_wait_and_redis_is_left_alone(
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "REST_S", 3600.0)  # it ends when this test says so

    async def main() -> None:
        relay = Relay(redis_url.removeprefix("unix://").partition("?")[0])
        async with relay.listening(tmp_path / "redis") as url:
            await check(relay, url)

    async def check(relay: Relay, url: str) -> None:
        async with platform(database_url, url, with_worker=False, **SLOW) as p:
            assert limits_of(await p.client.get("/v1/events")) == (1, 2)
            relay.stand_still()
            monkeypatch.setattr(rate_limits, "WAIT_S", 0.05)
            began = time.monotonic()
            answers = await asyncio.gather(*(p.client.get("/v1/events") for _ in range(20)))
            assert {answer.status_code for answer in answers} == {200}, "more than the burst: nothing is limited"
            assert time.monotonic() - began < 5, "all of them together waited for some times 50 ms"
            assert [limits_of(answer) for answer in answers] == [None] * 20
            await p.client.get("/v1/events")  # the second failure in a row, had all the others shared one
            asked = relay.asked
            for _ in range(20):
                assert limits_of(await p.client.get("/v1/events")) is None
            assert relay.asked == asked, "it is left alone"
            relay.go_on()
            monkeypatch.setattr(rate_limits, "WAIT_S", 10.0)
            p.services.rate_limits._rests_until = 0.0
            assert limits_of(await p.client.get("/v1/events")) is not None

    asyncio.run(main())
