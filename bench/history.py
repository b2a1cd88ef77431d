"""A long history, made by SQL in minutes instead of delivered in hours: what `bench.scale` measures on.

50 organizations whose shares of the traffic fall like 1 / rank^1.5 (the largest has two fifths, the least a thousandth
of it), 200 subscriptions each, 14 days of partitions, 2.5 deliveries an event, one attempt a delivery and five a dead
letter. 1 % is dead of eight kinds of failure, 0.1 % discarded, and 0.02 % still waits for a retry, hours ahead. The
statistics of the last week are those that workers would have kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from core import ids
from core.stats import WHOLE
from core.stats.durations import BOUNDS_MS
from core.storage import partitions

ORGANIZATIONS, SUBSCRIPTIONS, DAYS = 50, 200, 14  # subscriptions: of each organization
STATISTICS_DAYS = 8  # of statistics: what the last seven times 24 hours lie in
DELIVERIES_PER_EVENT = 2.5
RARE_TYPE, OLD_TYPE, COMMON_TYPE = "stock.recount.requested", "legacy.import.done", "order.line.00"
REPLAYED_SHARE = 0.0005  # of the largest organization's deliveries


@dataclass(frozen=True)
class History:
    """What is asked about: the largest organization and the least."""

    large: UUID
    small: UUID
    replay: UUID
    deliveries: int


async def build(driver: Any, rows: int, say: Callable[[str], None]) -> History:
    """Makes `rows` deliveries, and the events and attempts that belong to them. `driver` is an asyncpg connection."""
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=n) for n in range(DAYS)][::-1]
    await partitions.ensure(driver, days)
    await driver.execute("SET synchronous_commit = off")
    await driver.execute("SET work_mem = '256MB'")
    await driver.execute(_TENANTS, timeout=600)
    replay = ids.new_id()
    largest = "(SELECT id FROM scale_organizations WHERE k = 0)"
    await driver.execute(
        "INSERT INTO replays (id, organization_id, rate_per_second, status, finished_at)"
        f" VALUES ('{replay}', {largest}, 50, 'completed', now())"
    )
    per_day = round(rows / DAYS / DELIVERIES_PER_EVENT)
    for number, day in enumerate(days):
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        span = min(timedelta(days=1), datetime.now(UTC) - start)
        for statement in _day(number, day, span, per_day, replay):
            await driver.execute(statement, timeout=3600)
        say(f"  {day}: {number + 1} of {DAYS} days")
    await driver.execute(_AFTERWARDS.format(replay=replay, OLD=OLD_TYPE, old=ids.day_bounds(days[1])[0]), timeout=3600)
    await driver.execute("VACUUM ANALYZE", timeout=3600)
    count = await driver.fetchval(
        "SELECT sum(c.reltuples)::bigint FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid"
        " WHERE i.inhparent = 'deliveries'::regclass AND c.reltuples > 0"
    )
    [large, small] = await driver.fetch("SELECT id FROM scale_organizations WHERE k IN (0, 49) ORDER BY k")
    return History(large["id"], small["id"], replay, count)


async def make_due(driver: Any, count: int) -> None:
    """Adds `count` deliveries of today that are due, over all subscriptions, and analyzes as autovacuum would."""
    today = datetime.now(UTC).date()
    start = datetime(today.year, today.month, today.day, tzinfo=UTC)
    elapsed = datetime.now(UTC) - start
    await driver.execute(
        f"""
        INSERT INTO deliveries (id, organization_id, subscription_id, event_id, event_type, state, reason, due_at)
        SELECT {_id("n", "d", start, elapsed, count)}, s.organization_id, s.id,
            {_id("n", "e", start, elapsed, count)}, 'order.line.01', 'pending', 'new',
            now() - (n % 3600) * interval '1 second'
        FROM generate_series(1, {count}) n JOIN scale_subscriptions s ON s.k = n % {ORGANIZATIONS * SUBSCRIPTIONS}
        """,
        timeout=3600,
    )
    await driver.execute("VACUUM ANALYZE deliveries", timeout=3600)


def _draw(key: str, seed: int) -> str:
    """A number from 0 to 1, the same for the same key and seed."""
    return f"((hashint8extended({key}, {seed}) & 1048575) / 1048576.0)"


def _id(number: str, salt: str, start: datetime, span: timedelta, count: int) -> str:
    """SQL of the UUIDv7 of number 1 to `count`, spread evenly over `span` from `start`. Ids of one number share their
    first 64 bits, as those of an event and its deliveries do."""
    start_ms, span_ms = round(start.timestamp() * 1000), max(1, span // timedelta(milliseconds=1))
    stamp = f"lpad(to_hex({start_ms} + (({number})::bigint - 1) * {span_ms} / {count}), 12, '0')"
    counter = f"lpad(to_hex(({number}) % 4096), 3, '0')"
    return f"({stamp} || '7' || {counter} || '8' || substr(md5(random()::text || '{salt}'), 4, 15))::uuid"


def _day(number: int, day: date, span: timedelta, events: int, replay: UUID) -> list[str]:
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    key = f"(n + {number}::bigint * 100000000)"
    return [
        "DROP TABLE IF EXISTS scale_events, scale_deliveries",
        _made_events(_id("n", "e", start, span, events), key, events),
        _MADE_DELIVERIES,
        _EVENTS,
        _deliveries(start, replay),
        _ATTEMPTS,
        *([_STATISTICS, _ACCEPTED] if number >= DAYS - STATISTICS_DAYS else []),
        "DROP TABLE scale_events, scale_deliveries",
    ]


def _made_events(id_: str, key: str, events: int) -> str:
    return f"""
CREATE UNLOGGED TABLE scale_events AS
SELECT {id_} AS id, n, {key} AS key, o.organization_k, o.organization_id,
    1 + n % 4 AS matched,
    CASE WHEN n % 50000 = 49 THEN '{RARE_TYPE}'
        ELSE 'order.line.' || lpad(floor(30 * pow({_draw(key, 2)}, 3))::text, 2, '0') END AS event_type,
    CASE WHEN n % 10 = 0 THEN 'branch-' || n % 70 END AS branch_id
FROM generate_series(1, {events}) n
JOIN scale_slots o ON o.slot = floor(10000 * {_draw(key, 1)})::int
"""


_MADE_DELIVERIES = f"""
CREATE UNLOGGED TABLE scale_deliveries AS
SELECT (substr(e.id::text, 1, 19) || '8' || substr(md5(random()::text), 1, 3) || '-'
        || substr(md5(random()::text), 1, 12))::uuid AS id,
    e.organization_id, s.id AS subscription_id, e.id AS event_id, e.event_type, fate.*, e.key * 4 + nth AS key
FROM scale_events e
CROSS JOIN LATERAL generate_series(0, e.matched - 1) nth
JOIN scale_subscriptions s ON s.organization_id = e.organization_id
    AND s.j = (floor({SUBSCRIPTIONS} * pow({_draw("e.key", 3)}, 2))::int + nth * 7) % {SUBSCRIPTIONS}
CROSS JOIN LATERAL (SELECT {_draw("e.key * 4 + nth", 4)} AS luck, {_draw("e.key * 4 + nth", 5)} AS kind) draw
JOIN scale_fates fate ON draw.luck >= fate.low AND draw.luck < fate.high
    AND draw.kind >= fate.kind_low AND draw.kind < fate.kind_high
ORDER BY e.id, nth
"""
_EVENTS = """
INSERT INTO events (
    id, organization_id, event_type, occurred_at, external_id, branch_id, payload, data_at,
    matched_subscriptions
)
SELECT id, organization_id, event_type, now(), NULL, branch_id,
    convert_to('{"event_id":"evt_","event_type":"' || event_type || '","data":{"n":' || key || ',"text":"'
        || repeat(md5(key::text), 10) || '"}}', 'UTF8'), 40, matched
FROM scale_events ORDER BY id
"""


def _deliveries(start: datetime, replay: UUID) -> str:
    return f"""
INSERT INTO deliveries (
    id, organization_id, subscription_id, event_id, event_type, state, reason, due_at, attempt_count,
    status_code, error_kind, error_message, created_at, updated_at, replay_id, series
)
SELECT id, organization_id, subscription_id, event_id, event_type, state, reason,
    CASE WHEN state = 'pending' THEN now() + (1 + key % 20) * interval '1 hour' END, attempts,
    status_code, error_kind, 'The receiver answered ' || status_code, at, at + attempts * interval '5 minutes',
    CASE WHEN replayed THEN '{replay}'::uuid END, CASE WHEN replayed THEN 1 ELSE 0 END
FROM (
    SELECT *, '{start.isoformat()}'::timestamptz AS at, {_draw("key", 6)} < {REPLAYED_SHARE}
        AND organization_id = (SELECT id FROM scale_organizations WHERE k = 0) AS replayed
    FROM scale_deliveries
) made ORDER BY id
"""


_ATTEMPTS = """
INSERT INTO attempts (
    id, delivery_id, organization_id, series, number, started_at, duration_ms, status_code, error_kind, url,
    request_headers, response_headers, response_body
)
SELECT (substr(id::text, 1, 19) || '9' || substr(md5(random()::text), 1, 3) || '-'
        || substr(md5(random()::text), 1, 12))::uuid,
    id, organization_id, 0, number, now(), 20 + key % 400, status_code, error_kind,
    'https://receiver.example.com/webhooks/' || key % 2000,
    '[["content-type","application/json"],["user-agent","Hookwright/0.1 (webhook delivery)"],["webhook-id",'
        || '"' || event_id || '"],["webhook-timestamp","1795203555"],["webhook-signature","v1,'
        || md5(key::text) || '"]]',
    '[["Content-Length","2"],["Date","Sat, 21 Nov 2026 09:00:00 GMT"]]', 'ok'::bytea
FROM scale_deliveries CROSS JOIN LATERAL generate_series(1, attempts) number
ORDER BY id
"""

# By subscription, by organization and of all, as `core.stats` adds them up.
_TOOK_MS = "(20 + key % 400)"
_BUCKETS = ", ".join(
    f"count(*) FILTER (WHERE error_kind IS NULL AND {low} < {_TOOK_MS} AND {_TOOK_MS} <= {high})"
    for low, high in zip((-1, *BOUNDS_MS), BOUNDS_MS, strict=False)
)
_MINUTE = (
    "date_trunc('minute', to_timestamp(('x' || translate(substr({id}::text, 1, 13), '-', ''))::bit(48)::bigint / 1000))"
)
_STATISTICS = f"""
INSERT INTO delivery_stats (
    organization_id, subscription_id, minute, error_kind, attempts, retries, dead, dead_retried, duration_ms, durations
)
SELECT coalesce(organization_id, '{WHOLE}'), coalesce(subscription_id, '{WHOLE}'), minute, coalesce(error_kind, ''),
    sum(attempts), sum(attempts - 1), count(*) FILTER (WHERE state = 'dead'),
    count(*) FILTER (WHERE state = 'dead' AND attempts > 1), sum(attempts * {_TOOK_MS}),
    CASE WHEN error_kind IS NULL THEN ARRAY[{_BUCKETS}]::integer[] END
FROM (SELECT *, {_MINUTE.format(id="id")} AS minute FROM scale_deliveries) AS sent
GROUP BY GROUPING SETS (
    (minute, error_kind), (minute, error_kind, organization_id), (minute, error_kind, organization_id, subscription_id)
)
"""
_ACCEPTED = f"""
INSERT INTO delivery_stats AS kept (organization_id, subscription_id, minute, error_kind, accepted)
SELECT coalesce(organization_id, '{WHOLE}'), '{WHOLE}', minute, '', count(*)
FROM (SELECT organization_id, {_MINUTE.format(id="id")} AS minute FROM scale_events) AS event
GROUP BY GROUPING SETS ((minute), (minute, organization_id))
ON CONFLICT (organization_id, subscription_id, minute, error_kind) DO UPDATE SET accepted = excluded.accepted
"""

_TENANTS = f"""
CREATE UNLOGGED TABLE scale_organizations AS
SELECT ('01907000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id, n AS k, 1 / pow(n + 1, 1.5) AS share
FROM generate_series(0, {ORGANIZATIONS - 1}) n;
CREATE UNLOGGED TABLE scale_slots AS
SELECT slot, o.id AS organization_id, o.k AS organization_k
FROM generate_series(0, 9999) slot
JOIN (
    SELECT id, k, sum(share) OVER (ORDER BY k) / sum(share) OVER () AS upper,
        (sum(share) OVER (ORDER BY k) - share) / sum(share) OVER () AS lower
    FROM scale_organizations
) o ON slot / 10000.0 >= o.lower AND slot / 10000.0 < o.upper;
CREATE UNLOGGED TABLE scale_subscriptions AS
SELECT ('01907000-0001-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid AS id, o.id AS organization_id,
    n AS k, n / {ORGANIZATIONS} AS j
FROM generate_series(0, {ORGANIZATIONS * SUBSCRIPTIONS - 1}) n JOIN scale_organizations o ON o.k = n % {ORGANIZATIONS};
-- What becomes of a delivery: shares of all, and within them by kind of failure.
CREATE UNLOGGED TABLE scale_fates AS
SELECT low::float8, high::float8, kind_low::float8, kind_high::float8, state, reason, attempts,
    status_code::smallint, error_kind
FROM (VALUES
    (0, 0.0094, 0.0, 0.4, 'dead', 'exhausted', 5, 503, 'status'),
    (0, 0.0094, 0.4, 0.5, 'dead', 'exhausted', 5, 500, 'status'),
    (0, 0.0094, 0.5, 0.7, 'dead', 'exhausted', 5, NULL, 'timeout'),
    (0, 0.0094, 0.7, 0.85, 'dead', 'exhausted', 5, NULL, 'refused'),
    (0, 0.0094, 0.85, 0.95, 'dead', 'exhausted', 5, NULL, 'reset'),
    (0, 0.0094, 0.95, 0.99, 'dead', 'exhausted', 5, NULL, 'dns'),
    (0, 0.0094, 0.99, 0.999, 'dead', 'rejected', 1, NULL, 'blocked_address'),
    (0, 0.0094, 0.999, 1, 'dead', 'exhausted', 5, NULL, 'tls'),
    (0.0094, 0.01, 0, 1, 'dead', 'gone', 1, 410, 'status'),
    (0.01, 0.011, 0, 1, 'discarded', 'requested', 2, 500, 'status'),
    (0.011, 0.0112, 0, 1, 'pending', 'retry', 3, 503, 'status'),
    (0.0112, 0.95, 0, 1, 'delivered', NULL, 1, 200, NULL),
    (0.95, 0.9999, 0, 1, 'delivered', NULL, 1, 204, NULL),
    (0.9999, 1, 0, 1, 'delivered', NULL, 2, 202, NULL)
) AS fate(low, high, kind_low, kind_high, state, reason, attempts, status_code, error_kind);
INSERT INTO organizations (id, name) SELECT id, 'Scale ' || k FROM scale_organizations;
INSERT INTO organizations (id, name)
SELECT ('01907000-0002-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'Idle ' || n FROM generate_series(1, 20000) n;
INSERT INTO subscriptions (id, organization_id, url, events)
SELECT id, organization_id, 'https://receiver.example.com/webhooks/' || k, '{{*}}' FROM scale_subscriptions;
INSERT INTO api_keys (id, organization_id, name, prefix, hash, hash_key_id)
SELECT ('01907000-0003-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, o.id, 'key ' || n, 'scale_' || n, '', ''
FROM generate_series(1, 2000) n, scale_organizations o WHERE o.k = 0;
INSERT INTO event_types (id, organization_id, name)
SELECT ('01907000-0004-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, o.id, 'kind.' || n
FROM generate_series(1, 5000) n, scale_organizations o WHERE o.k = 0;
INSERT INTO replays (id, organization_id, rate_per_second, status, finished_at)
SELECT ('01907000-0005-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, o.id, 50,
    CASE WHEN n = 3 THEN 'cancelled' ELSE 'completed' END, now()
FROM generate_series(1, 20000) n, scale_organizations o WHERE o.k = 0;
ANALYZE
"""

_AFTERWARDS = """
INSERT INTO replay_items (replay_id, delivery_id, outcome)
SELECT '{replay}', id, 'succeeded' FROM deliveries WHERE replay_id = '{replay}';
UPDATE replays SET (total, sent, succeeded) = (SELECT count(*), count(*), count(*) FROM replay_items
    WHERE replay_id = '{replay}') WHERE id = '{replay}';
CREATE UNLOGGED TABLE scale_old AS
SELECT id, event_id FROM deliveries
WHERE organization_id = (SELECT id FROM scale_organizations WHERE k = 0) AND id >= '{old}' ORDER BY id LIMIT 1;
UPDATE events SET event_type = '{OLD}' WHERE id = (SELECT event_id FROM scale_old);
UPDATE deliveries SET event_type = '{OLD}' WHERE id = (SELECT id FROM scale_old)
"""
