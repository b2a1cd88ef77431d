"""Signing secrets in the database: shown on request and on record, and removed once they serve no more."""

from __future__ import annotations

from datetime import UTC, datetime

from core import ids
from tests.api import SUBSCRIPTIONS, URL, error_of, make_key, run, success_of
from tests.platform import Platform
from worker import loops


def test_a_reveal_shows_what_signs_and_each_is_audited(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        made = await p.subscribe(URL)
        path = f"{SUBSCRIPTIONS}/{made['id']}"
        assert "secret_key" not in (await p.call("GET", path))["data"]
        rotated = (await p.call("POST", f"{path}/secret/rotate", {"grace_period_s": 600}))["data"]["secret_key"]
        answers = [
            success_of(await p.client.post(f"{path}/secret/reveal", headers={"Idempotency-Key": "once"}), 200)
            for _ in range(2)
        ]
        for answer in answers:
            shown = answer["data"]
            assert (shown["subscription_id"], shown["secret_key"]) == (made["id"], rotated)
            assert [one["secret_key"] for one in shown["secrets"]] == [rotated, made["secret_key"]]
            assert [one["expires_at"] is None for one in shown["secrets"]] == [True, False]
        rows = await p.sql("SELECT * FROM audit_log WHERE action = 'subscription.secret_revealed' ORDER BY id")
        assert [(row["actor"], row["resource"], row["request_id"]) for row in rows] == [
            (ids.show(ids.API_KEY, p.key_id), made["id"], answer["meta"]["request_id"]) for answer in answers
        ]
        assert not await p.sql("SELECT FROM idempotency_keys")
        reads = await make_key(p, p.organization_id, ["subscriptions.read"])
        refused = await p.client.post(f"{path}/secret/reveal", headers={"X-API-Key": reads})
        error_of(refused, 403, "PERMISSION_DENIED")
        await p.call("DELETE", path)
        error_of(await p.client.post(f"{path}/secret/reveal"), 404, "NOT_FOUND")
        assert len(await p.sql("SELECT FROM audit_log WHERE action = 'subscription.secret_revealed'")) == 2

    run(database_url, redis_url, check)


def test_housekeeping_removes_secrets_that_serve_no_more(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        kept, ended = [await p.subscribe(URL, headers={"X-Token": "t"}) for _ in range(2)]
        for grace_s in (600, 0):  # the second ends the grace period of none but the one before it
            await p.call("POST", f"{SUBSCRIPTIONS}/{kept['id']}/secret/rotate", {"grace_period_s": grace_s})
        await p.call("DELETE", f"{SUBSCRIPTIONS}/{ended['id']}")
        await p.sql("UPDATE subscriptions SET settled = false WHERE status = 'deleted'")
        query = "SELECT expires_at FROM subscription_secrets WHERE subscription_id = $1 ORDER BY id"
        one, other = (ids.parse(ids.SUBSCRIPTION, made["id"]) for made in (kept, ended))
        assert len(await p.sql(query, one)) == 3
        await loops.keep_house(p.database, 30)
        now = datetime.now(UTC)
        assert [row["expires_at"] is None or row["expires_at"] > now for row in await p.sql(query, one)] == [True] * 2
        assert len(await p.sql(query, other)) == 1  # something may still wait for it
        await p.sql("UPDATE subscriptions SET settled = true")
        await loops.keep_house(p.database, 30)
        assert await p.sql(query, other) == []
        left = await p.sql("SELECT status FROM subscriptions WHERE headers IS NOT NULL")
        assert [row["status"] for row in left] == ["active"]
        assert (await p.call("GET", f"{SUBSCRIPTIONS}/{kept['id']}"))["data"]["headers"] == {"X-Token": "••••"}

    run(database_url, redis_url, check)
