"""Which platform a command is meant for: the URLs in the environment, else what runs on the data folder.

The environment wins over `--data-dir`, as it does in `hookwright up`: the same options reach the same database.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cli.embedded import find_running
from cli.embedded.paths import read_secret
from cli.embedded.secret_keys import is_newer_than_what_runs, secret_keys_file
from cli.supervisor.platform import DATABASE_URL, OWNER_URL, REDIS_URL, SECRET_KEYS
from core.errors import Conflict, HookwrightError, Unavailable
from core.settings import PREFIX, Settings, WrongSettings, load

if TYPE_CHECKING:
    from sqlmodel.ext.asyncio.session import AsyncSession

    from core.secrets.sealing import Sealer
    from core.storage.database import Database

# Stand in for what a command does not use, or what `up` is about to make, so that the rest can be judged.
STAND_INS = {DATABASE_URL: "postgresql://none", REDIS_URL: "unix:///none", SECRET_KEYS: "none"}


class NoDatabase(HookwrightError):
    """There is no database to work on"""


def environment() -> dict[str, str]:
    """Our settings as given; an empty URL or key list counts as not given, as in `hookwright up`.

    Raises `WrongSettings` for an owner of the database without the application's own URL."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PREFIX) and (value or name not in {*STAND_INS, OWNER_URL})
    }
    if OWNER_URL in env and DATABASE_URL not in env:
        raise WrongSettings(f"{OWNER_URL} is set without {DATABASE_URL}, the application's own; set both or neither")
    return env


def complete(data_dir: Path, *, owner: bool = False) -> dict[str, str]:
    """The environment, and where it lacks a URL, that of the embedded service which runs on the folder. The
    schema's owner is among them with `owner` alone, so that no other command acts as it."""
    env = environment()
    if not owner:
        env.pop(OWNER_URL, None)
    if DATABASE_URL in env and REDIS_URL in env:
        return env
    running = find_running(data_dir)
    if running is None:
        return env
    if DATABASE_URL not in env and running.database_url is not None:
        env[DATABASE_URL] = running.database_url
        if owner and running.database_owner_url is not None:
            env[OWNER_URL] = running.database_owner_url
        if running.secret_keys_file.exists():
            env.setdefault(SECRET_KEYS, read_secret(running.secret_keys_file))
    if running.redis_url is not None:
        env.setdefault(REDIS_URL, running.redis_url)
    return env


def settings(data_dir: Path, *, keys: bool = False, owner: bool = False) -> Settings:
    """The settings of a command that needs the database alone, with `keys` the secret keys, with `owner` its owner.

    Raises `NoDatabase` when none is configured and none runs, `WrongSettings` when a setting is wrong.
    """
    env = complete(data_dir, owner=owner)
    if DATABASE_URL not in env:
        raise NoDatabase(
            f"No database: nothing runs on the data folder {data_dir}. Start the platform with `hookwright up`, name "
            f"another folder with --data-dir, or set {DATABASE_URL}."
        )
    env.setdefault(REDIS_URL, STAND_INS[REDIS_URL])
    if not keys:
        env.setdefault(SECRET_KEYS, STAND_INS[SECRET_KEYS])
    return load(env)


def sealer(given: Settings) -> Sealer:
    """Raises `WrongSettings` when a secret key is none."""
    from core.secrets.sealing import InvalidKey, Sealer

    try:
        return Sealer(given.secret_keys)
    except InvalidKey as error:
        raise WrongSettings(f"{SECRET_KEYS}: {error.message}") from error


def keys_are_in_file(data_dir: Path) -> bool:
    """Whether the secret keys are those that `hookwright up` keeps, and not configured."""
    env = environment()
    return SECRET_KEYS not in env and DATABASE_URL not in env and secret_keys_file(data_dir).exists()


def refuse_newer_keys(data_dir: Path) -> None:
    """For whatever seals or hashes. Raises `Conflict` where the platform that runs could not make use of it."""
    if keys_are_in_file(data_dir) and is_newer_than_what_runs(data_dir):
        raise Conflict(
            f"The platform on {data_dir} was started before the newest key was made, and does not know that key;"
            " restart `hookwright up`, then do this again"
        )


@asynccontextmanager
async def session(given: Settings) -> AsyncIterator[AsyncSession]:
    """A session within one transaction, on a connection of its own."""
    from core.storage.database import Database

    database = Database(given.database_url, pool_size=2, name="hookwright-cli")
    try:
        with database_faults(given.database_url):
            async with database.session() as opened:
                yield opened
    finally:
        await database.close()


async def role(given: Settings) -> str:
    """The application's role, which must be able to sign in to be granted anything."""
    async with session(given) as opened:
        connection = await opened.connection()
        return str((await connection.exec_driver_sql("SELECT current_user")).scalar_one())


async def reach(database: Database, url: str) -> None:
    """Connects once, so that a database that can't be reached is told from what fails later."""
    with database_faults(url):
        async with database.engine.connect():
            pass


@contextmanager
def database_faults(url: str) -> Iterator[None]:
    """Says in one line what keeps us from the database. Raises `Unavailable` or `NoDatabase`."""
    import asyncpg
    from sqlalchemy.exc import DBAPIError

    from core.storage.database import is_unreachable

    refusals = (
        asyncpg.InvalidAuthorizationSpecificationError,
        asyncpg.InvalidCatalogNameError,
        asyncpg.InsufficientPrivilegeError,
    )
    try:
        yield
    except (DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        cause = error.orig.__cause__ or error.orig if isinstance(error, DBAPIError) and error.orig else error
        said = f"{cause}".strip().split("\n")[0] or type(cause).__name__
        if isinstance(cause, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
            raise NoDatabase(
                f"The database {without_password(url)} has not the schema that this version needs ({said}). "
                "Run: hookwright migrate"
            ) from error
        if isinstance(cause, refusals):
            raise NoDatabase(f"PostgreSQL refuses {without_password(url)}: {said}") from error
        if is_unreachable(error) or isinstance(cause, asyncpg.InterfaceError):
            raise Unavailable(f"PostgreSQL does not answer at {without_password(url)}: {said}") from error
        raise


def without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=True)
