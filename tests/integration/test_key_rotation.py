"""Rotating secret keys: what is sealed moves under the newest one while events are accepted, delivered and signed."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import LargeBinary
from sqlmodel import SQLModel
from standardwebhooks import Webhook

from cli.embedded import EmbeddedPostgres
from cli.embedded.paths import read_secret
from cli.embedded.postgres import ROLE
from cli.embedded.secret_keys import add_secret_key, ensure_secret_keys, is_newer_than_what_runs, secret_keys_file
from core import subscriptions
from core.access import api_keys
from core.audit import COMMAND_LINE
from core.egress import EgressPolicy
from core.secrets import reseal
from core.secrets.reseal import SEALED, StillSealing, UnknownKeys, Unopened
from core.secrets.sealing import Sealer, UnknownKey, generate_key
from core.storage import schema
from core.storage.database import Database
from tests.api import SUBSCRIPTIONS, error_of
from tests.commands import data_folder, hookwright
from tests.integration.test_deliveries import blocked
from tests.platform import Platform, environment, eventually, platform
from tests.receiver import Receiver, Recorded
from tests.seeds import Seeds, seeded

OLD, NEW = generate_key(), generate_key()
# Bytes that are no sealed blobs: hashes, which can't be opened by anybody, and what events and receivers said.
UNSEALED = {
    "api_keys.hash",
    "api_keys.hash_key_id",
    "attempts.response_body",
    "events.payload",
    "idempotency_keys.body_hash",
    "oidc_sign_ins.state_hash",
    "sign_in_failures.subject",
    "sign_in_links.token_hash",
    "user_sessions.token_hash",
}


def test_every_column_of_bytes_is_known_as_sealed_or_not() -> None:
    columns = {
        f"{table.name}.{column.name}"
        for table in SQLModel.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }
    assert columns == UNSEALED | {one.name for one in SEALED}
    assert len(columns) == len(UNSEALED) + len(SEALED)


def id_of(key: str) -> str:
    return Sealer([key]).key_ids[0].hex()


async def command(*arguments: str, env: Mapping[str, str], code: int = 0) -> str:
    return await asyncio.to_thread(hookwright, *arguments, env=env, code=code)


async def status_of(env: Mapping[str, str]) -> dict[str, Any]:
    found = json.loads(await command("keys", "status", "--json", env=env))
    return {one["key_id"]: one for one in found["keys"]} | {"idle": found["idle_api_keys"]}


def test_secrets_are_resealed_while_events_are_accepted_and_delivered(database_url: str, redis_url: str) -> None:
    plain: dict[str, Any] = {}

    def verified(requests: list[Recorded]) -> int:
        for one in requests:
            Webhook(plain["secret"]).verify(one.body, {name.lower(): value for name, value in one.headers})
            assert one.header("x-token") in plain["tokens"]
        return len({one.header("webhook-id") for one in requests})

    async def send(p: Platform, count: int, **headers: str) -> None:
        for _ in range(count):
            await p.call("POST", "/v1/events", {"event_type": "a.b", "data": {}}, **headers)

    async def before(p: Platform) -> None:
        made = await p.subscribe(receiver.url("/ok"), headers={"X-Token": "first"})
        for number in range(110):  # more than a batch
            await p.call("POST", "/v1/event-types", {"name": f"a.n{number}"}, Idempotency_Key=f"k{number}")
        plain.update(secret=made["secret_key"], id=made["id"], tokens={"first", "second"}, key=p.key, sent=10)
        async with p.services.database.session() as session:
            _, plain["idle"] = await api_keys.create(
                session, p.services.sealer, organization_id=p.organization_id, name="idle"
            )
        await send(p, 10)
        await p.settled(10, "delivered")

    async def during(p: Platform) -> None:
        auth = {"X_API_Key": plain["key"]}
        rotates = asyncio.create_task(command("keys", "rotate", "--json", env=both))
        while not rotates.done():
            await send(p, 5, **auth)
            plain["sent"] += 5
        await p.call("PATCH", f"{SUBSCRIPTIONS}/{plain['id']}", {"headers": {"X-Token": "second"}}, **auth)
        done = json.loads(await rotates)["resealed"]
        assert done == {
            "subscription_secrets.sealed": 1,
            "subscriptions.headers": 1,
            "idempotency_keys.response": 110,
            "oidc_sign_ins.sealed": 0,
        }
        again = await reseal.rotate(p.database, Sealer([NEW, OLD]), COMMAND_LINE)
        assert set(again.values()) == {0}
        await send(p, 5, **auth)
        plain["sent"] += 5
        found = await status_of(both)
        assert (found[id_of(NEW)]["place"], found[id_of(OLD)]["place"]) == (1, 2)
        assert found[id_of(OLD)]["sealed"] == {}
        assert found[id_of(NEW)]["sealed"]["idempotency_keys.response"] == 110
        # The key that was used has moved; those that nobody used still need the old key.
        assert {one["name"] for one in found["idle"]} == {"idle", "platform"}
        row = await p.sql("SELECT actor, action, resource FROM audit_log WHERE action = 'secret_keys.rotated'")
        assert [tuple(one) for one in row] == [("command line", "secret_keys.rotated", id_of(NEW))] * 2

    async def after(p: Platform) -> None:
        auth = {"X_API_Key": plain["key"]}
        await send(p, 5, **auth)
        plain["sent"] += 5
        repeat = await p.call("POST", "/v1/event-types", {"name": "a.n7"}, Idempotency_Key="k7", **auth)
        assert repeat["meta"]["idempotent"]
        shown = await p.call("POST", f"{SUBSCRIPTIONS}/{plain['id']}/secret/reveal", **auth)
        assert shown["data"]["secret_key"] == plain["secret"]
        answer = await p.client.get("/v1/events", headers={"X-API-Key": plain["idle"]})
        error_of(answer, 401, "AUTHENTICATION_FAILED")  # as status had said

    async def main() -> None:
        for keys, part in ((OLD, before), (f"{NEW},{OLD}", during), (NEW, after)):
            async with platform(database_url, redis_url, SECRET_KEYS=keys) as p:
                await part(p)

                async def all_sent() -> bool:
                    return verified(list(receiver.requests)) == plain["sent"]

                await eventually(all_sent)

    both = environment(database_url, redis_url, SECRET_KEYS=f"{NEW},{OLD}")
    with Receiver() as receiver:
        asyncio.run(main())


def planted(keys: list[str]) -> subscriptions.Rules:
    return subscriptions.Rules(EgressPolicy(), Sealer(keys), 1_000)


async def plant(seeds: Seeds, key: str) -> Any:
    given = {"url": "https://example.com/hook", "events": ["*"], "headers": {"X-Token": "one"}}
    async with seeds.database.session() as session:
        made, _ = await subscriptions.create(session, planted([key]), seeds.organization_id, given)
        return made.id


def test_a_change_during_the_rotation_is_not_overwritten(database_url: str) -> None:
    async def check(seeds: Seeds) -> None:
        subscription_id = await plant(seeds, OLD)
        newest = Sealer([NEW, OLD])
        async with seeds.database.session() as session:
            found = await subscriptions.get(session, seeds.organization_id, subscription_id, lock=True)
            await subscriptions.update_fields(session, planted([OLD]), found, {"headers": {"X-Token": "two"}})
            rotates = asyncio.create_task(reseal.rotate(seeds.database, newest, COMMAND_LINE))
            await blocked(seeds)  # it has read the old value, and waits to replace it
        assert (await rotates)["subscriptions.headers"] == 1  # the other's, which was sealed with the old key too
        row = await seeds.driver.fetchval("SELECT headers FROM subscriptions WHERE id = $1", subscription_id)
        assert subscriptions.open_headers(Sealer([NEW]), subscription_id, row) == {"X-Token": "two"}

    seeded(database_url, check)


def test_a_missing_key_is_named_and_nothing_is_changed(database_url: str, redis_url: str) -> None:
    lost = generate_key()

    async def check(seeds: Seeds) -> None:
        for key in (OLD, lost, lost):
            await plant(seeds, key)
        dump = "SELECT sealed FROM subscription_secrets ORDER BY id"
        before = await seeds.driver.fetch(dump)
        with pytest.raises(UnknownKeys) as caught:
            await reseal.rotate(seeds.database, Sealer([NEW, OLD]), COMMAND_LINE)
        names = {"subscription_secrets.sealed": 2, "subscriptions.headers": 2}
        assert caught.value.rows == {id_of(lost): names}
        env = environment(database_url, redis_url, SECRET_KEYS=f"{NEW},{OLD}")
        said = await command("keys", "rotate", env=env, code=1)
        assert f"{id_of(lost)}: 2 of subscription_secrets.sealed, 2 of subscriptions.headers" in said
        assert "missing" in await command("keys", "status", env=env)
        assert await seeds.driver.fetch(dump) == before
        with pytest.raises(UnknownKey):
            Sealer([NEW, OLD]).open(before[1]["sealed"], "")

    seeded(database_url, check)


def test_what_cannot_be_opened_is_named_and_keeps_nothing_else_from_being_sealed_anew(database_url: str) -> None:
    async def check(seeds: Seeds) -> None:
        for _ in range(3):
            await plant(seeds, OLD)
        broken = await seeds.driver.fetchval("SELECT id FROM subscription_secrets ORDER BY id LIMIT 1")
        await seeds.driver.execute(
            "UPDATE subscription_secrets SET sealed = set_byte(sealed, 29, get_byte(sealed, 29) # 255) WHERE id = $1",
            broken,
        )
        newest = Sealer([NEW, OLD])
        with pytest.raises(Unopened, match=f"subscription_secrets.sealed of id={broken}, under {id_of(OLD)}"):
            await reseal.rotate(seeds.database, newest, COMMAND_LINE)
        found = await reseal.survey(seeds.database, newest)
        assert found.sealed == {
            newest.key_ids[0]: {"subscription_secrets.sealed": 2, "subscriptions.headers": 3},
            newest.key_ids[1]: {"subscription_secrets.sealed": 1},
        }
        counted = "SELECT (after->'to_reseal'->>'subscription_secrets.sealed')::integer FROM audit_log"
        assert await seeds.driver.fetchval(counted) == 3  # said as it began

    seeded(database_url, check)


def test_a_process_that_goes_on_sealing_with_the_old_key_is_told_of(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = reseal._swap

    async def check(seeds: Seeds) -> None:
        await plant(seeds, OLD)

        async def swap(*given: Any) -> None:
            await real(*given)
            if given[3]:  # it has found some, and another process makes more
                await plant(seeds, OLD)

        monkeypatch.setattr(reseal, "_swap", swap)
        with pytest.raises(StillSealing, match=f"still seals with the key {id_of(OLD)}: restart"):
            await reseal.rotate(seeds.database, Sealer([NEW, OLD]), COMMAND_LINE)

    seeded(database_url, check)


def test_the_keys_of_an_embedded_installation_are_rotated_in_its_file() -> None:
    with data_folder() as folder:
        folder.mkdir()
        first = ensure_secret_keys(folder)
        file = secret_keys_file(folder)
        hookwright("keys", "rotate", "--new-key", "--data-dir", folder)
        newest, second = read_secret(file).split(",")
        assert (second, len(Sealer([newest, second]).key_ids)) == (first, 2)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert not is_newer_than_what_runs(folder)  # nothing runs
        assert [one.name for one in folder.iterdir()] == ["secret_keys"]
        asyncio.run(rotate_embedded(folder))
        assert len(read_secret(file).split(",")) == 3


async def rotate_embedded(folder: Path) -> None:
    postgres = EmbeddedPostgres(folder)
    await postgres.start()
    try:
        database = Database(postgres.owner_url)
        await schema.migrate(database, ROLE)
        await database.close()
        assert "API KEYS" in await command("keys", "rotate", "--data-dir", str(folder), env={})
        add_secret_key(folder)  # while it runs
        refused = await command("keys", "rotate", "--data-dir", str(folder), env={}, code=1)
        assert "restart `hookwright up`" in refused
        # Its hash would be under a key that the platform does not know, and the API key would not be taken.
        refused = await command("key", "create", "--platform", "--data-dir", str(folder), env={}, code=1)
        assert "restart `hookwright up`" in refused
    finally:
        await postgres.stop()


def test_configured_keys_are_not_made_for_their_owner(tmp_path: Path) -> None:
    made = hookwright("keys", "rotate", "--new-key", env={"HOOKWRIGHT_SECRET_KEYS": OLD})
    assert len(Sealer([made.strip(), OLD]).key_ids) == 2
