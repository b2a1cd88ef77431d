"""Every hostile URL is refused where a subscription is made or changed; and, should one stand in the database all the
same, by the worker, which opens no connection."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from core import ids, subscriptions
from core.failures import ErrorKind
from tests import hostile
from tests.api import FAST, SUBSCRIPTIONS, faults_of
from tests.dials import watched
from tests.platform import Platform, eventually, platform
from tests.receiver import Receiver

ALLOWED = "127.0.0.77"  # shows that a connection would be seen, were there one
STRICT = {"EGRESS_ALLOW": f"{ALLOWED}/32", "EGRESS_ALLOW_HTTP": "false"}


@pytest.fixture
def receiver() -> Any:
    with Receiver(host="0.0.0.0") as it:
        yield it


def test_a_subscription_is_neither_made_with_one_nor_changed_to_it(
    database_url: str, redis_url: str, receiver: Receiver
) -> None:
    async def main() -> None:
        async with platform(database_url, redis_url, with_worker=False, **STRICT) as p:
            path = f"{SUBSCRIPTIONS}/{(await p.subscribe('https://example.com/'))['id']}"
            with watched() as dials:
                for kind, url, fault in hostile.urls(receiver.port):
                    for answer in await asyncio.gather(
                        p.client.post(SUBSCRIPTIONS, json={"url": url, "events": ["*"]}),
                        p.client.patch(path, json={"url": url}),
                    ):
                        details = faults_of(answer)
                        assert list(details) == ["url"], (kind, url)
                        assert fault in details["url"][0], (kind, url)
                assert [it for it in dials if it.endswith(f":{receiver.port}")] == []
            [row] = await p.sql("SELECT url, version FROM subscriptions")
            assert (row["url"], row["version"]) == ("https://example.com/", 1)

    asyncio.run(main())
    assert receiver.connections == 0


def test_one_that_stands_in_the_database_is_never_called(database_url: str, redis_url: str, receiver: Receiver) -> None:
    wanted = {url: fault for _, url, fault in hostile.urls(receiver.port) if "\0" not in url}

    async def main() -> None:
        with watched() as dials:
            async with platform(database_url, redis_url, **STRICT) as p:
                control = await p.subscribe(f"https://{ALLOWED}:{receiver.port}/", retry_policy=FAST)
                made = await _write_past_the_api(p, list(wanted))
                services = set(dials)
                await p.send()
                await _all_rejected(p, control["id"], wanted, len(wanted))
                # The button that shows what came back, for one of each kind of fault.
                each = {fault: id_ for id_, fault in zip(made, wanted.values(), strict=True)}.values()
                paths = [f"{SUBSCRIPTIONS}/{ids.show(ids.SUBSCRIPTION, it)}/test" for it in each]
                await asyncio.gather(*(p.call("POST", path, {}) for path in paths))
                await _all_rejected(p, control["id"], wanted, len(wanted) + len(paths))
        assert services, "nothing was seen, not even the database"
        assert set(dials) - services == {f"{ALLOWED}:{receiver.port}"}

    asyncio.run(main())
    assert receiver.connections == 1
    assert receiver.count == 0


async def _write_past_the_api(p: Platform, urls: list[str]) -> list[UUID]:
    """The ids of subscriptions with these URLs."""
    fine = {"url": "https://example.com/", "events": ["*"], "retry_policy": FAST}
    made: list[UUID] = []
    while len(made) < len(urls):
        async with p.database.session() as session:  # which has a time limit
            for _ in urls[len(made) : len(made) + 20]:
                made.append((await subscriptions.create(session, p.services.rules, p.organization_id, fine))[0].id)
    change = "UPDATE subscriptions SET url = $2, version = version + 1 WHERE id = $1"
    async with p.database.driver() as driver:
        await driver.executemany(change, list(zip(made, urls, strict=True)))
        await driver.execute("UPDATE organizations SET subscriptions_version = subscriptions_version + 1")
    for _, nul, _ in hostile.urls():
        if "\0" in nul:
            with pytest.raises(asyncpg.CharacterNotInRepertoireError):
                await p.sql(change, made[0], nul)
    return made


async def _all_rejected(p: Platform, control: str, wanted: dict[str, str], count: int) -> None:
    async def ended() -> bool:
        return bool(await p.sql("SELECT 1 FROM deliveries WHERE state = 'dead' HAVING count(*) > $1", count))

    await eventually(ended, what="every delivery has ended")
    rows = await p.sql(
        "SELECT s.id, s.url, d.state, d.reason, a.error_kind, a.error_message, a.status_code, a.response_body"
        " FROM deliveries d JOIN subscriptions s ON s.id = d.subscription_id JOIN attempts a ON a.delivery_id = d.id"
    )
    assert len(rows) == count + 1  # one attempt each
    for row in rows:
        if ids.show(ids.SUBSCRIPTION, row["id"]) == control:
            assert row["error_kind"] == ErrorKind.TLS  # it got as far as a connection
        else:
            ended_as = (row["state"], row["reason"], row["error_kind"])
            assert ended_as == ("dead", "rejected", ErrorKind.BLOCKED_ADDRESS), row["url"]
            assert wanted[row["url"]] in row["error_message"]
            assert (row["status_code"], row["response_body"]) == (None, None)
