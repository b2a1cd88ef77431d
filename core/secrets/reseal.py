"""Key rotation: what is sealed where, and sealing it anew under the newest key while everything runs.

Batches are small and each is compared and set: what somebody else changed in between stands, sealed by whoever changed
it. Done twice, or taken up again after a kill, it finds only what is left. API keys can't be moved here, since only
their hashes are stored: each moves on when it is used (`core.access.api_keys`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from core import audit, idempotency, subscriptions
from core.audit import Actor
from core.secrets.sealing import Sealer, SealError, UnknownKey
from core.storage.database import Database

BATCH = 100  # rows; an idempotent answer may be 200 KB
PASSES = 3  # over a table, the last of which should find nothing
MOST_NAMED = 20  # rows in an error

Row = tuple[Any, ...]  # the key's columns, and the blob


@dataclass(frozen=True, slots=True)
class Sealed:
    """A column of sealed blobs, and by what of its row each is bound to it."""

    table: str
    column: str
    key: tuple[tuple[str, str], ...]  # the primary key's columns, each with its type
    context: Callable[..., str]  # of those columns

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"


# Every one there is; a test fails where a column of bytes is missing here.
SEALED = (
    Sealed("subscription_secrets", "sealed", (("id", "uuid"),), subscriptions.secret_context),
    Sealed("subscriptions", "headers", (("id", "uuid"),), subscriptions.headers_context),
    Sealed(
        "idempotency_keys",
        "response",
        (("organization_id", "uuid"), ("route", "text"), ("key", "text")),
        idempotency.context,
    ),
    Sealed("oidc_sign_ins", "sealed", (("state_hash", "bytea"),), lambda state: f"oidc_sign_in:{state.hex()}"),
)


class UnknownKeys(UnknownKey):
    """Something is sealed with keys that are not configured"""

    def __init__(self, rows: dict[str, dict[str, int]]) -> None:
        self.rows = rows  # by key id in hex, by column
        said = "; ".join(
            f"{key_id}: {', '.join(f'{count} of {name}' for name, count in counts.items())}"
            for key_id, counts in rows.items()
        )
        super().__init__(
            f"Rows are sealed with master keys that are not configured, so they can't be opened ({said})."
            " Put those keys back at the end of HOOKWRIGHT_SECRET_KEYS; nothing was changed"
        )


@dataclass(frozen=True, slots=True)
class IdleKey:
    """An API key whose hash leans on an older master key until somebody uses it."""

    id: UUID
    name: str
    hash_key_id: bytes
    last_used_at: Any


@dataclass(frozen=True, slots=True)
class Survey:
    """How much leans on which master key."""

    key_ids: tuple[bytes, ...]  # those that are configured, newest first
    sealed: dict[bytes, dict[str, int]]  # rows by key id and column
    hashes: dict[bytes, int]  # API keys that hold, by key id
    idle: list[IdleKey]  # those of them that are not under the newest

    @property
    def unknown(self) -> dict[str, dict[str, int]]:
        return {key_id.hex(): counts for key_id, counts in self.sealed.items() if key_id not in self.key_ids}

    def needs(self, key_id: bytes) -> bool:
        return bool(self.sealed.get(key_id) or self.hashes.get(key_id))


async def survey(database: Database, sealer: Sealer) -> Survey:
    """Counts what is sealed and hashed under each key, configured or not."""
    sealed: dict[bytes, dict[str, int]] = {}
    async with database.driver() as driver:
        for one in SEALED:
            for row in await driver.fetch(_COUNT.format(table=one.table, column=one.column)):
                sealed.setdefault(bytes(row["key_id"]), {})[one.name] = row["count"]
        rows = await driver.fetch(_API_KEYS)
    hashes: dict[bytes, int] = {}
    for row in rows:
        hashes[row["hash_key_id"]] = hashes.get(row["hash_key_id"], 0) + 1
    newest = sealer.key_ids[0]
    return Survey(sealer.key_ids, sealed, hashes, [IdleKey(**row) for row in rows if row["hash_key_id"] != newest])


_COUNT = """
SELECT substring({column} FROM 2 FOR 4) AS key_id, count(*) FROM {table} WHERE {column} IS NOT NULL GROUP BY 1
"""
_API_KEYS = "SELECT id, name, hash_key_id, last_used_at FROM api_keys WHERE revoked_at IS NULL ORDER BY id"


class Unopened(SealError):
    """Some of what is sealed could not be sealed anew"""

    def __init__(self, rows: list[str]) -> None:
        self.rows = rows
        more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
        super().__init__(
            f"Everything else is sealed anew, but these are not what was sealed and could not be opened:"
            f" {'; '.join(rows[:MOST_NAMED])}{more}. Restore them from a backup, or have them set again"
        )


class StillSealing(SealError):
    """Another process goes on sealing with an older key"""

    def __init__(self, key_ids: set[bytes]) -> None:
        named = " and ".join(sorted(key_id.hex() for key_id in key_ids))
        super().__init__(
            f"A process still seals with the key {named}: restart whatever was started"
            " before the newest key was put first, then rotate again"
        )


async def rotate(database: Database, sealer: Sealer, actor: Actor) -> dict[str, int]:
    """Seals everything anew that is not under the newest key. Returns how many rows of each column.

    Raises `UnknownKeys`, before it changes anything, where a key is missing; and once everything else is done
    `Unopened`, which names the blobs that are not what was sealed, or `StillSealing`.
    """
    found = await survey(database, sealer)
    if found.unknown:
        raise UnknownKeys(found.unknown)
    async with database.session() as session:  # first, so that what a kill leaves half done is told too
        audit.record(
            session,
            actor,
            "secret_keys.rotated",
            sealer.key_ids[0].hex(),
            organization_id=None,
            after={"to_reseal": {one.name: _stale_count(found, one) for one in SEALED}},
        )
    done: dict[str, int] = {}
    unopened: list[str] = []
    used: set[bytes] = set()
    for one in SEALED:
        work = _Work(one)
        await _reseal(database, sealer, work)
        done[one.name] = work.count
        unopened += work.unopened
        used |= work.still_used
    if unopened:
        raise Unopened(unopened)
    if used:
        raise StillSealing(used)
    return done


def _stale_count(found: Survey, one: Sealed) -> int:
    return sum(counts.get(one.name, 0) for key_id, counts in found.sealed.items() if key_id != found.key_ids[0])


@dataclass(slots=True)
class _Work:
    """How far one column is."""

    of: Sealed
    count: int = 0
    unopened: list[str] = field(default_factory=list)  # by the last pass, as is the next
    still_used: set[bytes] = field(default_factory=set)  # keys that something was still sealed with


async def _reseal(database: Database, sealer: Sealer, work: _Work) -> None:
    """Passes over the table until one finds nothing more: what was changed while we looked at it, or by a process that
    has not been given the newest key yet, may still be under an older one. What is new at the last is such a process's.
    """
    for _ in range(PASSES):
        work.unopened, work.still_used, after = [], set(), None
        while True:
            async with database.driver() as driver, driver.transaction():
                await driver.execute(_LOCK)
                rows = await _stale(driver, sealer, work.of, after)
                await _swap(driver, sealer, work, rows)
            if len(rows) < BATCH:
                break
            after = rows[-1][:-1]
        if not work.still_used:
            return


async def _stale(driver: Any, sealer: Sealer, one: Sealed, after: Row | None) -> list[Row]:
    names = ", ".join(name for name, _ in one.key)
    places = ", ".join(f"${place}::{kind}" for place, (_, kind) in enumerate(one.key, start=3))
    behind = f"AND ({names}) > ({places})" if after else ""
    statement = (
        f"SELECT {names}, {one.column} FROM {one.table} WHERE substring({one.column} FROM 1 FOR 5) <> $1 {behind}"
        f" ORDER BY {names} LIMIT $2"
    )
    return [tuple(row) for row in await driver.fetch(statement, sealer.newest_header, BATCH, *(after or ()))]


async def _swap(driver: Any, sealer: Sealer, work: _Work, rows: list[Row]) -> None:
    one = work.of
    opened: list[tuple[Row, bytes]] = []
    for row in rows:
        context = one.context(*row[:-1])
        try:
            opened.append((row, sealer.seal(sealer.open(row[-1], context), context)))
        except SealError as error:
            work.unopened.append(f"{one.name} of {_named(one, row)}, under {_key_id(row[-1]).hex()} ({error.message})")
        else:
            work.still_used.add(_key_id(row[-1]))
    if not opened:
        return
    names = [name for name, _ in one.key]
    arrays = ", ".join(f"${place}::{kind}[]" for place, (_, kind) in enumerate(one.key, start=3))
    same = " AND ".join(f"kept.{name} = given.{name}" for name in names)
    statement = (
        f"UPDATE {one.table} kept SET {one.column} = given.fresh"
        f" FROM unnest({arrays}, $1::bytea[], $2::bytea[]) AS given({', '.join(names)}, stale, fresh)"
        f" WHERE {same} AND kept.{one.column} = given.stale RETURNING 1"
    )
    keys = list(zip(*(row[:-1] for row, _ in opened), strict=True))
    stale, fresh = [row[-1] for row, _ in opened], [blob for _, blob in opened]
    work.count += len(await driver.fetch(statement, stale, fresh, *map(list, keys)))


def _key_id(blob: bytes) -> bytes:
    return bytes(blob[1:5])  # as in `_COUNT`


def _named(one: Sealed, row: Row) -> str:
    shown = [value.hex() if isinstance(value, bytes) else str(value) for value in row[:-1]]
    return " ".join(f"{name}={value}" for (name, _), value in zip(one.key, shown, strict=True))


_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('hookwright reseal', 0))"  # two at once would lock crosswise
