"""`Idempotency-Key`: the first answer to a POST is kept for 24 hours and given again to a repeat.

The key is claimed in the same transaction as the work it guards, so a crash between the two is impossible. Answers
are sealed, since some show a secret once. Only successes are kept: after an error the same key may be tried again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from core import jsontext
from core.errors import Conflict, HookwrightError, IdempotencyKeyReused, ValidationFailed

KEPT_H = 24
MAX_KEY_CHARS = 255


class Seal(Protocol):
    """What of `core.secrets.sealing.Sealer` is needed here."""

    def seal(self, plain: bytes, context: str) -> bytes: ...
    def open(self, blob: bytes, context: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class IdempotentCall:
    """A POST with an `Idempotency-Key`."""

    organization_id: UUID
    route: str  # "POST /v1/events"
    key: str
    body_hash: bytes

    @property
    def identity(self) -> tuple[UUID, str, str]:
        return self.organization_id, self.route, self.key

    @property
    def context(self) -> str:
        return context(*self.identity)


def context(organization_id: UUID, route: str, key: str) -> str:
    """What a sealed answer is bound to."""
    return f"idempotency_key:{organization_id}:{route}:{key}"


class FirstAnswer(NamedTuple):
    data: Any
    created_at: datetime


def call(organization_id: UUID, method: str, path: str, key: str, body: bytes) -> IdempotentCall:
    """Raises `ValidationFailed` when the key is empty, too long or not printable ASCII."""
    if not key or len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        raise ValidationFailed.of("Idempotency-Key", f"Must be 1 to {MAX_KEY_CHARS} printable ASCII characters")
    return IdempotentCall(organization_id, f"{method} {path}", key, hashlib.sha256(body).digest())


def in_flight() -> Conflict:
    return Conflict("A request with this Idempotency-Key is still in flight; wait for its answer and try again")


async def claim(driver: Any, calls: Sequence[IdempotentCall], seal: Seal) -> list[FirstAnswer | HookwrightError | None]:
    """Claims the keys within the caller's transaction. For each call: None when it is the first, the first answer
    when it is a repeat, or an error when the body differs or the first is still in flight in another process."""
    outcomes: list[FirstAnswer | HookwrightError | None] = []
    if not calls:
        return outcomes
    columns = [
        [one.organization_id for one in calls],
        [one.route for one in calls],
        [one.key for one in calls],
    ]
    locked = {row["at"] for row in await driver.fetch(_LOCK, *columns) if row["locked"]}
    # A separate statement: what was committed before the lock was ours is visible to it.
    found = {tuple(row[:3]): row for row in await driver.fetch(_FIND, *columns)}
    for at, one in enumerate(calls):
        row = found.get(one.identity)
        if at + 1 not in locked:
            outcomes.append(in_flight())
        elif row is None:
            outcomes.append(None)
        elif row["body_hash"] != one.body_hash:
            outcomes.append(IdempotencyKeyReused())
        else:
            data = jsontext.loads(seal.open(row["response"], one.context), max_depth=jsontext.MAX_DEPTH + 8)
            outcomes.append(FirstAnswer(data, row["created_at"]))
    return outcomes


async def store(driver: Any, answered: Sequence[tuple[IdempotentCall, Any]], seal: Seal) -> None:
    """Keeps the answers of claimed calls, within the same transaction."""
    if answered:
        calls = [one for one, _ in answered]
        await driver.execute(
            _STORE,
            [one.organization_id for one in calls],
            [one.route for one in calls],
            [one.key for one in calls],
            [one.body_hash for one in calls],
            [seal.seal(jsontext.dumps(data), one.context) for one, data in answered],
        )


async def drop_expired(driver: Any) -> None:
    """Forgets old keys, `DROP_BATCH` a statement."""
    while await driver.fetchval(_DROP, DROP_BATCH) == DROP_BATCH:
        pass


DROP_BATCH = 10_000
_DROP = f"""
WITH gone AS (
    DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM idempotency_keys WHERE created_at < now() - interval '{KEPT_H} hours' LIMIT $1
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""


_LOCK = """
SELECT at, pg_try_advisory_xact_lock(hashtextextended(organization_id::text || route || ' ' || key, 0)) AS locked
FROM unnest($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS given(organization_id, route, key, at)
"""

_FIND = f"""
SELECT organization_id, route, key, body_hash, response, created_at
FROM idempotency_keys JOIN unnest($1::uuid[], $2::text[], $3::text[]) AS given(organization_id, route, key)
    USING (organization_id, route, key)
WHERE created_at >= now() - interval '{KEPT_H} hours'
"""

_STORE = """
INSERT INTO idempotency_keys (organization_id, route, key, body_hash, response)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bytea[], $5::bytea[])
ON CONFLICT (organization_id, route, key) DO UPDATE  -- one that has expired and was not yet cleared away
SET body_hash = excluded.body_hash, response = excluded.response, created_at = now()
"""
