"""Hints over Redis: new deliveries, a batch at a time, so that workers need not wait for their next sweep.

They are values of a list that workers wait at, and no arq jobs: a batch takes one round trip to write and one or less
to read, where a job takes some ten, and nothing has to be kept for a hint that fails. A hint may be lost, doubled or
late; PostgreSQL knows what is due. So nothing here ever raises or waits for long.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote
from uuid import UUID

import orjson
import structlog
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import BlockingConnectionPool, Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import RedisError

from core import ids

PROMPT = "hookwright:hints"
BULK = "hookwright:hints:bulk"  # read while nothing is in the other
LISTS = (PROMPT, BULK)  # every worker reads both, after its own (`list_of`)
JOBS = "hookwright:jobs"  # arq's own queue: the housekeeping
MAX_IDS = 100  # deliveries a batch; a larger fan-out is shared among workers
MAX_BATCHES = 2_000  # in each list; of more the oldest are dropped, which the sweep finds first
EXPIRES_S = 600  # after the last batch; by then nobody reads, and the sweep has found what they name
# After a batch, what comes in gathers for so long: each costs web and worker a round trip, and the worker a claim.
PACE_S = 0.01
REST_S = 1.0  # after a failure, how long Redis is left alone
TIMEOUT_S = 1.0
MAX_PROMPT = 500  # deliveries of one organization, in a second; what is more stands behind the hints of all others
MAX_WAITING = 50_000  # deliveries; beyond that hints are dropped rather than piled up

log = structlog.get_logger(__name__)


class Hint(NamedTuple):
    """A delivery that may be sent now, and whose it is, by which workers see whether they have room for it."""

    organization_id: UUID
    subscription_id: UUID
    delivery_id: UUID


def list_of(worker_id: UUID) -> str:
    """What other workers leave for this one: hints of subscriptions that it alone has a share of."""
    return f"{PROMPT}:{worker_id.hex}"


def put(pipe: Any, name: str, hints: Sequence[Hint]) -> None:
    """Adds a batch to the list `name`, once the pipeline is executed."""
    pipe.rpush(name, pack(hints)).ltrim(name, -MAX_BATCHES, -1).expire(name, EXPIRES_S)


def serialize(job: dict[str, Any]) -> bytes:
    """arq's default is pickle, which would let whoever writes to Redis run code in a worker."""
    return orjson.dumps(job, default=repr)


def deserialize(text: bytes) -> dict[str, Any]:
    job: dict[str, Any] = orjson.loads(text)
    return job


def connect(url: str, *, max_connections: int = 16) -> ArqRedis:
    """A client that fails quickly: every operation ends within `TIMEOUT_S` or so."""
    settings = RedisSettings.from_dsn(url)
    options: dict[str, Any] = {
        "db": settings.database,
        "username": unquote(settings.username) if settings.username else None,  # arq leaves them as in the URL
        "password": unquote(settings.password) if settings.password else None,
        "socket_connect_timeout": TIMEOUT_S,
        "socket_timeout": TIMEOUT_S,
        "max_connections": max_connections,
        "timeout": TIMEOUT_S,
    }
    kind: type[Connection] | type[UnixDomainSocketConnection]
    if settings.unix_socket_path:
        kind = UnixDomainSocketConnection
        options["path"] = settings.unix_socket_path
    else:
        kind = SSLConnection if settings.ssl else Connection
        options |= {"host": settings.host, "port": settings.port}
        if settings.ssl:
            options["ssl_check_hostname"] = True  # redis before 6 does not: anybody's valid certificate would do
    pool: ConnectionPool = BlockingConnectionPool(connection_class=kind, **options)
    return ArqRedis(pool_or_conn=pool, job_serializer=serialize, job_deserializer=deserialize, default_queue_name=JOBS)


class Hints:
    """Sends hints in the background: the first at once, then what gathered meanwhile, `PACE_S` later or once it fills a
    batch.

    Those of an organization that creates very many deliveries stand behind those of others."""

    def __init__(self, redis: ArqRedis) -> None:
        self._redis = redis
        self._prompt: deque[Hint] = deque()
        self._bulk: deque[Hint] = deque()
        self._counts: Counter[UUID] = Counter()  # by organization, in this second
        self._second = 0
        self._sender: asyncio.Task[None] | None = None

    def send(self, news: Sequence[Hint]) -> None:
        """Tells the workers of new deliveries, soon. Returns at once."""
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._second = second
            self._counts.clear()
        for hint in news:
            self._counts[hint.organization_id] += 1
            queue = self._prompt if self._counts[hint.organization_id] <= MAX_PROMPT else self._bulk
            if len(queue) < MAX_WAITING:
                queue.append(hint)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        while self._prompt or self._bulk:
            try:
                await self._push()
                if max(len(self._prompt), len(self._bulk)) < MAX_IDS:
                    await asyncio.sleep(PACE_S)
            except (RedisError, OSError, TimeoutError) as error:
                # Dropped, not kept: the sweep works from the same rows, and Redis may be away for long.
                log.warning("hints were lost; the sweep will find their deliveries", error=repr(error))
                self._drop()
                await asyncio.sleep(REST_S)
                self._drop()

    async def _push(self) -> None:
        """A batch to each list. It is for workers to put one before the other: here, what always comes in for the first
        would keep all of the second waiting."""
        pipe: Any = self._redis.pipeline(transaction=False)
        for queue, name in ((self._prompt, PROMPT), (self._bulk, BULK)):
            if queue:
                batch = [queue.popleft() for _ in range(min(MAX_IDS, len(queue)))]
                put(pipe, name, batch)
        for answer in await pipe.execute(raise_on_error=False):  # it would write the whole batch before the reason
            if isinstance(answer, RedisError):
                raise answer

    def _drop(self) -> None:
        self._prompt.clear()
        self._bulk.clear()

    async def close(self) -> None:
        """Sends what waits, but not for longer than `TIMEOUT_S`."""
        if self._sender is not None:
            await asyncio.wait([self._sender], timeout=TIMEOUT_S)
            self._sender.cancel()
        await self._redis.aclose(close_connection_pool=True)


def pack(hints: Sequence[Hint]) -> bytes:
    """A batch as JSON: a list of lists of organization, subscription and its deliveries, all in hex."""
    groups: dict[tuple[UUID, UUID], list[str]] = {}
    for organization_id, subscription_id, delivery_id in hints:
        groups.setdefault((organization_id, subscription_id), [organization_id.hex, subscription_id.hex]).append(
            delivery_id.hex
        )
    return orjson.dumps(list(groups.values()))


def unpack(packed: bytes) -> list[Hint]:
    """What `pack` packed. Raises ValueError or TypeError on anything else."""
    hints = []
    for organization, subscription, *deliveries in orjson.loads(packed):
        organization_id, subscription_id = ids.from_hex(organization), ids.from_hex(subscription)
        hints += [Hint(organization_id, subscription_id, ids.from_hex(one)) for one in deliveries]
    return hints
