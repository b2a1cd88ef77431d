"""PostgreSQL, reached in two ways over one pool.

`session()` gives SQLModel's session for everything that reads or changes a few rows. `driver()` gives asyncpg's own
connection for the hot statements, which carry arrays of hundreds of rows: there SQLAlchemy's work per value would
cost more than PostgreSQL's.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import PoolProxiedConnection, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, InterfaceError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn
from sqlmodel.ext.asyncio.session import AsyncSession

from core import jsontext

# A statement that takes longer than this has met a lock or a stopped server; callers answer 503 or try again.
COMMAND_TIMEOUT_S = 15.0
CONNECT_TIMEOUT_S = 5.0
# One transaction of an API call, from its wait for a connection to its commit; then the caller gets 503. A server that
# stands still closes no connection, so without this each call would wait for the timeout of its statement. Closing ours
# takes up to 2 s more (SQLAlchemy asks nicely), so in all it is as long as acceptance may take.
SESSION_TIMEOUT_S = 8.0

# Others hold what is wanted, or came in between: trying again soon, or alone, succeeds.
CONTENTION: tuple[type[BaseException], ...] = (
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)

# What a lost, refused, stopped or overloaded server looks like from here, whatever layer notices it.
UNREACHABLE: tuple[type[BaseException], ...] = (
    OSError,
    asyncio.TimeoutError,
    PoolTimeout,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server's last words came between two statements
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,  # a full disk, too
    asyncpg.PostgresSystemError,  # a failing one
    asyncpg.QueryCanceledError,
    *CONTENTION,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,  # a former primary after a failover
    # A migration changed a column's type under statements that were prepared before it; new connections know better.
    asyncpg.InvalidCachedStatementError,
    asyncpg.OutdatedSchemaCacheError,
)


def is_unreachable(error: BaseException) -> bool:
    """Whether trying again later may succeed, because the fault is the server's or the network's, not the data's."""
    if isinstance(error, InterfaceError):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    return isinstance(_cause(error), UNREACHABLE)


def is_contention(error: BaseException) -> bool:
    """Whether it failed by another transaction: it may succeed alone, or in a moment."""
    return isinstance(_cause(error), CONTENTION)


def spares_others(error: BaseException) -> bool:
    """Whether other work may go on: this alone failed, met a lock or took too long."""
    if isinstance(_cause(error), (*CONTENTION, TimeoutError, asyncpg.QueryCanceledError)):
        return True
    return not is_unreachable(error)


def _cause(error: BaseException) -> BaseException | None:
    """The driver's error, under SQLAlchemy's wrapping."""
    if isinstance(error, DBAPIError):
        return error.orig.__cause__ if error.orig is not None else None
    return error


def _spoils(error: BaseException) -> bool:
    """Whether a connection is not to be used again after this error."""
    return not isinstance(error, Exception) or (is_unreachable(error) and not is_contention(error))


class Database:
    """One process's pool of connections."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 8,
        name: str = "hookwright",
        command_timeout_s: float | None = COMMAND_TIMEOUT_S,
    ) -> None:
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            hide_parameters=True,  # no secret or payload in the text of an error, which ends up in a log
            pool_timeout=CONNECT_TIMEOUT_S,
            json_serializer=lambda value: jsontext.dumps(value).decode(),
            json_deserializer=json.loads,  # PostgreSQL's numbers may exceed 64 bits
            connect_args={
                "timeout": CONNECT_TIMEOUT_S,
                "command_timeout": command_timeout_s,
                "server_settings": {
                    "application_name": name,
                    "jit": "off",  # compiling costs more than any of these statements
                    # Planned once a connection and not at each call, which for a hot statement over the days'
                    # partitions costs several times its execution. What needs its values: `selection.plan_by_value`.
                    "plan_cache_mode": "force_generic_plan",
                    "timezone": "UTC",
                    "lock_timeout": "5s",
                    "idle_in_transaction_session_timeout": "60s",
                },
            },
        )

        event.listen(self.engine.sync_engine, "checkout", _refuse_closed)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """A session within one transaction: committed at the end, rolled back on any error.

        TimeoutError when all of it takes longer than `SESSION_TIMEOUT_S`.
        """
        async with (
            asyncio.timeout(SESSION_TIMEOUT_S),
            AsyncSession(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            try:
                yield session
            except BaseException as error:
                if _spoils(error):
                    await session.invalidate()
                raise

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Any]:
        """An asyncpg connection (typed Any: asyncpg ships no types). It commits each statement by itself."""
        pooled = await self._from_pool()
        try:
            yield pooled.driver_connection
        except BaseException as error:
            # SQLAlchemy does not see errors of the driver's own connection. After a cancellation or a timeout
            # its protocol state is unknown, so it is not given back.
            if _spoils(error):
                await greenlet_spawn(pooled.invalidate)
            raise
        finally:
            if pooled.is_valid:
                await greenlet_spawn(pooled.close)

    async def _from_pool(self) -> PoolProxiedConnection:
        """Without SQLAlchemy's own connection around the driver's, which doubles the CPU time of a checkout."""
        try:
            return await self.engine.raw_connection()
        except self.engine.dialect.loaded_dbapi.Error as error:
            raise error.__cause__ or error from None  # SQLAlchemy's wrapping of the driver's error; see `_cause`

    async def close(self) -> None:
        """Closes the pool; connections that are out are closed when they come back."""
        await self.engine.dispose()


def _refuse_closed(connection: Any, _record: Any, _proxy: Any) -> None:
    """Lets the pool replace a connection that the server has closed meanwhile, so that its restart goes unnoticed.

    asyncpg sees the end of the socket by itself. SQLAlchemy's own `pool_pre_ping` would ask the server, which takes
    three round trips a checkout, more than most of our statements.
    """
    if connection.driver_connection.is_closed():
        raise DisconnectionError


class TooSlow(Exception):
    """A statement took longer than it was given (`within`)."""


@asynccontextmanager
async def within(session: AsyncSession, timeout_ms: int) -> AsyncIterator[None]:
    """Gives each statement in the block so long. Raises `TooSlow` where one takes longer; what was done before the
    block stands, and the transaction goes on."""
    try:
        async with session.begin_nested():
            # Asked for in here: with it comes the savepoint, and what was set before that would stay set.
            connection = await session.connection()
            await connection.exec_driver_sql(f"SET LOCAL statement_timeout = {timeout_ms}")
            yield
            await connection.exec_driver_sql("SET LOCAL statement_timeout TO DEFAULT")
    except DBAPIError as error:
        if isinstance(_cause(error), asyncpg.QueryCanceledError):
            raise TooSlow from error
        raise


async def driver_of(session: AsyncSession) -> Any:
    """The asyncpg connection under `session`, inside the session's transaction."""
    connection = await session.connection()
    # SQLAlchemy opens the transaction with its first statement; without one, the driver's would commit by themselves.
    await connection.exec_driver_sql("SELECT 1")
    return (await connection.get_raw_connection()).driver_connection
