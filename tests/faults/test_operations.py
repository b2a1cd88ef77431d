"""What operators do while the platform works: migrating under load, running beside a newer schema, losing partitions,
dropping old days; and midnight, which nobody does."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import aiohttp
import asyncpg
import pytest
from alembic.script import ScriptDirectory

from core import ids
from core.storage import partitions, schema
from core.storage.database import Database
from tests.faults.conftest import Scenario
from tests.faults.fleet import Fleet
from tests.faults.ledger import settle
from tests.faults.producer import Producer
from tests.faults.scene import SLACK_S, until
from tests.platform import HANGS_S, platform
from tests.receiver import Receiver
from tests.services import as_owner, plain_url
from worker import loops

Play = Callable[[Scenario], None]

ROOT = Path(__file__).parents[2]
PACKAGES = ("app", "core", "worker", "cli", "migrations", "templates")
READS = ("/v1/webhooks/subscriptions", "/v1/deliveries", "/v1/events", "/v1/replays")

NEWER = '''"""What a later release may add: nothing that this one would miss."""

from alembic import op

revision = "9999"
down_revision = {head!r}

ADDED = ("organizations", "subscriptions", "subscription_secrets", "api_keys", "events", "deliveries", "attempts")


def upgrade() -> None:
    for table in ADDED:
        op.execute(f"ALTER TABLE {{table}} ADD COLUMN added_later integer NOT NULL DEFAULT 7")
        op.execute(f"ALTER TABLE {{table}} ADD COLUMN also_added text")
    op.execute("CREATE TABLE added_table (id uuid PRIMARY KEY)")
'''


class Reader:
    """Reads lists and single rows again and again, through the ORM's cached statements."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.statuses: Counter[int] = Counter()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Reader]:
        tasks = [asyncio.create_task(self._read()) for _ in range(2)]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            assert task.cancelled(), task.exception()

    async def _read(self) -> None:
        async with aiohttp.ClientSession(headers={"X-API-Key": self._fleet.key}) as client:
            while True:
                for path in READS:
                    async with client.get(self._fleet.url + path) as answer:
                        self.statuses[answer.status] += 1
                        text = await answer.text()
                        assert answer.status in (200, 503), f"{path}: {answer.status} {text[:500]}"
                await asyncio.sleep(0.05)


async def run_cli(fleet: Fleet, *argv: str, root: Path = ROOT) -> tuple[int | None, str]:
    """The exit code and the output of a command of the release in `root`."""
    env = fleet._env | {"PYTHONPATH": str(root)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "cli", *argv),
        env=env,
        cwd=root,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), HANGS_S)
    return process.returncode, output.decode()


def newer_release(folder: Path) -> Path:
    """A copy of this release with one migration more."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    head = ScriptDirectory.from_config(schema.config()).get_current_head()
    (folder / "migrations/versions/r9999_newer.py").write_text(NEWER.format(head=head))
    return folder


def no_faults(producer: Producer) -> None:
    """Every try was answered, with success, and soon."""
    assert {one.status for one in producer.tries()} <= {200, 202}
    assert max(one.ended - one.began for one in producer.tries()) < 2 + SLACK_S


def test_migrating_under_load_is_not_noticed_and_both_releases_work(play: Play, seed: int, tmp_path: Path) -> None:
    """This release's own migrations again; then those of a newer one, whose schema this one's processes, old and
    freshly started, work with."""

    async def scenario(fleet: Fleet) -> None:
        newer = newer_release(tmp_path / "newer")
        _, worker = await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing(), Reader(fleet).reading() as reader:
            await producer.accepts(20)
            assert await run_cli(fleet, "migrate") == (0, "")
            code, said = await run_cli(fleet, "migrate", root=newer)
            assert code == 0, said
            assert "9999" in said
            await producer.accepts(60)
            await fleet.kill(worker)
            await fleet.start_worker()
            await producer.accepts(60)
        assert (await fleet.query("SELECT version_num FROM alembic_version"))[0][0] == "9999"
        ledger = await settle(fleet, producer)
        assert ledger.dead == 0
        no_faults(producer)
        print(ledger, reader.statuses)

    play(scenario)


def test_an_older_release_says_that_the_schema_is_newer(play: Play, tmp_path: Path) -> None:
    """Someone goes back a release: it may run, but must neither crash without a word nor touch the schema."""

    async def scenario(fleet: Fleet) -> None:
        newer = newer_release(tmp_path / "newer")
        code, said = await run_cli(fleet, "migrate", root=newer)
        assert code == 0, said
        code, said = await run_cli(fleet, "migrate")
        assert "Traceback" not in said
        assert code == 0
        assert "newer release" in said
        code, said = await run_cli(fleet, "check")
        assert "newer release" in said
        assert "Traceback" not in said
        assert (await fleet.query("SELECT version_num FROM alembic_version"))[0][0] == "9999"

    play(scenario)


def test_columns_that_change_under_load_break_no_cached_statement(play: Play, seed: int) -> None:
    """Prepared statements of every connection turn stale at once, and more than once."""
    changes = [
        "ALTER TABLE subscriptions ADD COLUMN one text",
        "ALTER TABLE deliveries ADD COLUMN one text",
        "ALTER TABLE subscriptions ALTER COLUMN version TYPE bigint",
        "ALTER TABLE organizations ALTER COLUMN version TYPE bigint",
        "ALTER TABLE subscriptions ALTER COLUMN timeout_ms TYPE bigint",
        "ALTER TABLE events ADD COLUMN one text",
        "ALTER TABLE attempts ADD COLUMN one text",
        "ALTER TABLE subscriptions DROP COLUMN one",
    ]

    async def scenario(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.subscribe("/slow/0.02")
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing(), Reader(fleet).reading() as reader:
            await producer.accepts(20)
            for change in changes:
                await fleet.query(change)
                await fleet.pause(0.1, 0.3)
        ledger = await settle(fleet, producer)
        assert (ledger.dead, ledger.repeats) == (0, 0)
        assert {one.status for one in producer.tries()} <= {200, 202, 503}
        print(ledger, reader.statuses, Counter(one.status for one in producer.tries()))

    play(scenario)


# --- partitions ---


def today() -> datetime:
    return datetime.now(UTC)


async def set_aside(fleet: Fleet, number: int) -> str:
    """Takes today's partition of attempts away, as if nobody had made it. Returns the name it has now."""
    name, aside = partitions.name_of("attempts", today().date()), f"attempts_aside_{number}"
    connection = await asyncpg.connect(plain_url(fleet.database_url))
    try:
        async with connection.transaction():
            await connection.execute(f"ALTER TABLE attempts DETACH PARTITION {name}")
            await connection.execute(f"ALTER TABLE {name} RENAME TO {aside}")
    finally:
        await connection.close()
    return aside


PARTITIONS = "SELECT tablename FROM pg_tables WHERE tablename ~ '_p[0-9]{8}$'"


async def drop_partitions(fleet: Fleet) -> int:
    """How many there were."""
    rows = await fleet.query(PARTITIONS)
    for row in rows:
        await fleet.query(f"DROP TABLE {row['tablename']}")
    return len(rows)


def test_partitions_that_are_missing_are_made_under_load(play: Play, seed: int) -> None:
    async def scenario(fleet: Fleet) -> None:
        dropped = await drop_partitions(fleet)
        await fleet.start()

        async def housekeeping_has_been() -> bool:
            return len(await fleet.query(PARTITIONS)) >= dropped

        await until(housekeeping_has_been, HANGS_S, "the worker's own housekeeping makes them")
        await fleet.subscribe("/slow/0.02")
        await drop_partitions(fleet)
        aside = []
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        async with producer.producing():
            await producer.accepts(20)
            for number in range(3):

                async def there() -> bool:
                    return bool(await fleet.query("SELECT 1 FROM attempts LIMIT 1"))

                await until(there, HANGS_S, "attempts are recorded")
                aside.append(await set_aside(fleet, number))
                await fleet.pause(0.1, 0.4)
        for name in aside:
            await fleet.query(f"INSERT INTO attempts SELECT * FROM {name}")
        ledger = await settle(fleet, producer)
        assert (ledger.dead, ledger.repeats) == (0, 0)
        [attempts] = await fleet.query("SELECT count(*) FROM attempts")
        assert attempts["count"] == ledger.requests
        no_faults(producer)
        print(ledger)

    play(scenario)


def test_at_midnight_without_partitions_for_the_new_day_nothing_is_lost(
    database_url: str, owner_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of ids stands before a midnight until thirty events are there; nobody has made partitions ahead."""
    day_ms = 86_400_000
    # Tomorrow's: ids never go back, and what is made before the load is made by the clock on the wall.
    midnight_ms = (time.time_ns() // 1_000_000 // day_ms + 2) * day_ms
    eve = ids.day_of(UUID(int=(midnight_ms - 1) << 80))
    monkeypatch.setattr(ids.new_id, "_last", ids.new_id._last)  # later tests go on from where they were
    monkeypatch.setattr(loops, "keep_house", no_housekeeping)

    async def run(receiver: Receiver) -> None:
        async with platform(database_url, redis_url) as it:
            await it.subscribe(receiver.url("/slow/0.01"))
            for row in await it.sql(PARTITIONS):
                if partitions.day_in(row["tablename"]) != eve:
                    await as_owner(owner_url, f"DROP TABLE {row['tablename']}")
            sent: list[str] = []
            monkeypatch.setattr(ids.new_id, "_now_ms", lambda: midnight_ms - (10_000 if len(sent) < 30 else 0))

            async def produce() -> None:
                for _ in range(60):
                    sent.append((await it.send())["event_id"])

            await asyncio.gather(*(produce() for _ in range(3)))

            async def all_delivered() -> bool:
                rows = await it.sql("SELECT 1 FROM deliveries WHERE state = 'delivered'")
                return len(rows) == len(sent)

            await until(all_delivered, HANGS_S, "all is delivered")
            assert Counter(one.header("webhook-id") for one in receiver.requests) == Counter(sent)
            attempts = await it.sql("SELECT id, delivery_id FROM attempts")
            assert len(attempts) == len(sent)
            crossing = [row for row in attempts if ids.day_of(row["id"]) != ids.day_of(row["delivery_id"])]
            days = Counter(str(ids.day_of(ids.parse(ids.EVENT, one))) for one in sent)
            assert len(days) == 2
            print(days, f"{len(crossing)} attempts of a delivery of the day before")

    with Receiver() as receiver:
        asyncio.run(run(receiver))


async def no_housekeeping(*_: object) -> None:
    return


OLD_DAYS = 6


def test_retention_under_load_drops_old_days_and_nothing_else(play: Play, seed: int) -> None:
    """Old days are made, filled and dropped again and again, by two processes at once, beside the traffic of today."""

    async def scenario(fleet: Fleet) -> None:
        await fleet.make_tenant()
        # What expires here has not for the worker, whose own housekeeping begins meanwhile.
        await asyncio.gather(fleet.start_web(), fleet.start_worker(RETENTION_DAYS="365"))
        await fleet.subscribe("/slow/0.02")
        day = today().date()
        old = [day - timedelta(days=40 + n) for n in range(OLD_DAYS)]
        ahead = [day + timedelta(days=20 + n) for n in range(30)]
        databases = [Database(fleet.database_url, pool_size=2) for _ in range(2)]
        producer = Producer(fleet.url, fleet.key, fleet.rng)
        try:
            async with producer.producing():
                await producer.accepts(20)
                for _ in range(2):
                    async with databases[0].driver() as driver:
                        await partitions.ensure(driver, [*old, *ahead])
                        await fill(fleet, old)
                    gone = await dropped(databases, day, old)
                    print(f"dropped {OLD_DAYS} days in {gone:.1f} s")
                await producer.accepts(20)
        finally:
            for database in databases:
                await database.close()
        ledger = await settle(fleet, producer)
        assert (ledger.dead, ledger.repeats) == (0, 0)
        [attempts] = await fleet.query("SELECT count(*) FROM attempts")
        assert attempts["count"] == ledger.requests
        no_faults(producer)
        print(ledger, f"slowest answer {max(one.ended - one.began for one in producer.tries()):.2f} s")

    play(scenario)


async def fill(fleet: Fleet, days: Sequence[date]) -> None:
    """A copy of some delivered event, its delivery and its attempt, in each of `days`."""
    connection = await asyncpg.connect(plain_url(fleet.database_url))
    try:
        for table, chosen in COPIED.items():
            names = await connection.fetchval(_COLUMNS, table)
            copies = [ids.lowest_at(datetime(day.year, day.month, day.day, 12, tzinfo=UTC)) for day in days]
            await connection.execute(
                f"INSERT INTO {table} (id, {names}) SELECT new.id, {names} FROM unnest($1::uuid[]) AS new(id),"
                f" LATERAL (SELECT {names} FROM {table} {chosen} LIMIT 1) AS it",
                copies,
            )
    finally:
        await connection.close()


_COLUMNS = """
SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND attname <> 'id' AND NOT attisdropped
"""
COPIED = {"events": "", "deliveries": "WHERE state = 'delivered'", "attempts": ""}


async def dropped(databases: Sequence[Database], day: date, old: Sequence[date]) -> float:
    """Lets both drop what has expired until the days are gone; returns how long it took."""
    began = time.monotonic()
    left = set(old)
    while left:
        for gone in await asyncio.gather(*(partitions.drop_expired(one, day, 30) for one in databases)):
            left -= set(gone)
        assert time.monotonic() - began < HANGS_S, f"{left} could not be dropped"
    return time.monotonic() - began
