"""`hookwright check`: are the settings right, and does everything that they name answer? Starts and changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DataDir
from cli.output import give, say
from cli.supervisor.platform import DATABASE_URL, REDIS_URL, SECRET_KEYS
from core.errors import HookwrightError
from core.settings import Settings, load

PROXY_TIMEOUT_S = 5.0


def check(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Check the settings and the connections, and say what is wrong. Exit code 0: all is well."""
    env = target.complete(data_dir)
    missing = [name for name in (DATABASE_URL, REDIS_URL) if name not in env]
    for name in missing:
        env[name] = target.STAND_INS[name]
    own_keys = DATABASE_URL not in missing or SECRET_KEYS in env
    if not own_keys:
        env[SECRET_KEYS] = target.STAND_INS[SECRET_KEYS]
    settings = load(env)  # wrong settings end it here: the rest would only repeat them
    if own_keys:
        target.sealer(settings)
    give("ok     settings")
    looks: list[Callable[[Settings], Awaitable[str]]] = []
    if DATABASE_URL not in missing:
        looks += [look_at_postgresql, look_at_schema, look_at_roles]
    if REDIS_URL not in missing:
        looks.append(look_at_redis)
    looks += [look_at_ca_file, look_at_client_certificate, look_at_proxy]
    passed = [asyncio.run(_try(look, settings)) for look in looks]
    for name in missing:
        say(f"wrong  {name} is not set, and no embedded service runs on {data_dir}: start `hookwright up`, or set it")
    if missing or not all(passed):
        raise typer.Exit(1)


async def _try(look: Callable[[Settings], Awaitable[str]], settings: Settings) -> bool:
    try:
        found = await look(settings)
    except HookwrightError as error:
        say(f"wrong  {error.message}")
        return False
    if found:
        give(f"ok     {found}")
    return True


async def look_at_postgresql(settings: Settings) -> str:
    from core.storage import checks
    from core.storage.database import driver_of

    async with target.session(settings) as session:
        found = await checks.look_at_postgresql(await driver_of(session))
    return f"{found} at {target.without_password(settings.database_url)}"


async def look_at_schema(settings: Settings) -> str:
    from core.storage import checks
    from core.storage.database import Database

    database = Database(settings.database_url, pool_size=2, name="hookwright-check")
    try:
        await target.reach(database, settings.database_url)
        return await checks.look_at_schema(database)
    finally:
        await database.close()


async def look_at_roles(settings: Settings) -> str:
    from core.storage import checks
    from core.storage.database import driver_of

    async with target.session(settings) as session:
        driver = await driver_of(session)
        if await driver.fetchval("SELECT to_regclass('audit_log')") is None:
            return ""  # the schema is missing, which has been said
        return await checks.look_at_roles(driver)


async def look_at_redis(settings: Settings) -> str:
    from redis.exceptions import RedisError

    from core import hints
    from core.storage import checks
    from core.storage.checks import Fault

    redis = hints.connect(settings.redis_url, max_connections=2)
    try:
        return await checks.look_at_redis(redis)
    except (RedisError, OSError, TimeoutError) as error:
        raise Fault(f"Redis does not answer ({REDIS_URL}): {error}") from error
    finally:
        await redis.aclose(close_connection_pool=True)


async def look_at_ca_file(settings: Settings) -> str:
    path = settings.egress_ca_file
    return "" if path is None else _read("HOOKWRIGHT_EGRESS_CA_FILE", path, f"certificate authorities of {path}", path)


async def look_at_client_certificate(settings: Settings) -> str:
    path, key = settings.egress_client_cert_file, settings.egress_client_key_file
    if path is None:
        return ""
    shown = path if key is None else f"{path} with the key {key}"
    return _read("HOOKWRIGHT_EGRESS_CLIENT_CERT_FILE", shown, f"client certificate of {path}", None, path, key)


def _read(setting: str, shown: str, fine: str, *files: str | None) -> str:
    from core.storage.checks import Fault
    from worker.connector import tls_context

    try:
        tls_context(*files)
    except OSError as error:
        raise Fault(f"{setting} {shown} can't be used: {error}") from error
    return fine


async def look_at_proxy(settings: Settings) -> str:
    from core.storage.checks import Fault
    from worker.proxy import Proxy
    from worker.send_errors import ProxyFailed

    if settings.egress_proxy_url is None:
        return ""
    proxy = Proxy(settings.egress_proxy_url)
    try:
        async with asyncio.timeout(PROXY_TIMEOUT_S):
            await proxy.ping()
    except (ProxyFailed, TimeoutError) as error:
        raise Fault(f"HOOKWRIGHT_EGRESS_PROXY_URL: nothing answers at {proxy.address}") from error
    return f"egress proxy at {proxy.address}"
