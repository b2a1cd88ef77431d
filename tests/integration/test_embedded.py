"""The embedded services: real servers, really killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from arq.connections import RedisSettings
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from cli.embedded import EmbeddedPostgres, EmbeddedValkey, accounts, binaries, ensure_secret_keys, find_running
from cli.embedded.leftovers import Stage, end_leftovers, find_leftovers
from cli.embedded.paths import make_socket_dir, socket_dir_path
from cli.service import StartError
from tests.services import Services, eventually, make_data_dir, plain_url

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the database as another user")


@pytest.fixture
def new_data_dir() -> Iterator[Callable[[], Path]]:
    made: list[Path] = []

    def make() -> Path:
        made.append(make_data_dir())
        return made[-1]

    yield make
    for data_dir in made:
        for uid in {os.geteuid(), *(account.uid for account in _possible_accounts())}:
            shutil.rmtree(socket_dir_path(data_dir, uid), ignore_errors=True)
        shutil.rmtree(data_dir.parent)


@pytest.fixture
def data_dir(new_data_dir: Callable[[], Path]) -> Path:
    return new_data_dir()


def _possible_accounts() -> list[Any]:
    return [accounts._system_account()] if os.geteuid() == 0 else []


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def sql(postgres: EmbeddedPostgres, statement: str) -> Any:
    connection = await asyncpg.connect(plain_url(postgres.owner_url))
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def answers(postgres: EmbeddedPostgres) -> None:
    """Waits until it takes connections."""
    async with asyncio.timeout(15):
        while True:
            try:
                await sql(postgres, "SELECT 1")
            except (OSError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.02)
            else:
                return


def test_the_first_start_makes_a_database_that_sqlalchemy_reaches(data_dir: Path) -> None:
    async def work() -> None:
        postgres = EmbeddedPostgres(data_dir)
        await postgres.start()
        try:
            engine = create_async_engine(postgres.url)
            async with engine.connect() as connection:
                row = (
                    await connection.execute(
                        text(
                            "SELECT current_database(), current_setting('fsync'), current_setting('timezone'),"
                            " current_setting('listen_addresses'), pg_encoding_to_char(encoding), datlocale"
                            " FROM pg_database WHERE datname = current_database()"
                        )
                    )
                ).one()
            await engine.dispose()
            assert tuple(row) == ("hookwright", "on", "UTC", "", "UTF8", "C.UTF-8")
        finally:
            await postgres.stop()

    run(work())


def test_the_database_wants_its_password(data_dir: Path) -> None:
    async def work() -> None:
        postgres = EmbeddedPostgres(data_dir)
        await postgres.start()
        try:
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(host=str(postgres.socket_dir), port=5432, user="hookwright", password="guess")
            assert stat.S_IMODE((data_dir / "postgres.password").stat().st_mode) == 0o600
        finally:
            await postgres.stop()

    run(work())


def test_a_restart_keeps_the_data(data_dir: Path) -> None:
    async def work() -> None:
        for expected in (None, "kept"):
            postgres, valkey = EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)
            await asyncio.gather(postgres.start(), valkey.start())
            try:
                redis = Redis.from_url(valkey.url, decode_responses=True)
                assert await redis.get("note") == expected
                await redis.set("note", "kept")
                await redis.aclose()
                if expected is None:
                    await sql(postgres, "CREATE TABLE note AS SELECT 'kept' AS word")
                assert await sql(postgres, "SELECT word FROM note") == "kept"
            finally:
                await asyncio.gather(postgres.stop(), valkey.stop())

    run(work())


def test_a_killed_postmaster_starts_again_with_what_was_committed(data_dir: Path) -> None:
    async def work() -> None:
        postgres = EmbeddedPostgres(data_dir)
        await postgres.start()
        await sql(postgres, "CREATE TABLE note AS SELECT 'kept' AS word")
        assert postgres.pid
        os.kill(postgres.pid, signal.SIGKILL)
        await postgres.stop()
        assert (data_dir / "postgres" / "postmaster.pid").exists()

        again = EmbeddedPostgres(data_dir)
        await again.start()
        try:
            assert await sql(again, "SELECT word FROM note") == "kept"
        finally:
            await again.stop()

    run(work())


def test_a_stale_process_id_that_belongs_to_another_process_by_now_does_not_block(data_dir: Path) -> None:
    async def work() -> None:
        postgres = EmbeddedPostgres(data_dir)
        await postgres.start()
        assert postgres.pid
        account = postgres.place.account
        os.kill(postgres.pid, signal.SIGKILL)
        await postgres.stop()
        uid = account.uid if account else None
        with subprocess.Popen(["sleep", "60"], user=uid) as bystander:  # noqa: ASYNC220 - nothing waits
            try:
                pid_file = data_dir / "postgres" / "postmaster.pid"
                _, rest = pid_file.read_text().split("\n", 1)
                pid_file.write_text(f"{bystander.pid}\n{rest}")
                again = EmbeddedPostgres(data_dir)
                await again.start()
                await again.stop()
                assert bystander.poll() is None
            finally:
                bystander.kill()

    run(work())


def test_a_postmaster_that_an_earlier_run_left_behind_is_stopped_first(data_dir: Path) -> None:
    async def work() -> None:
        first = EmbeddedPostgres(data_dir)
        await first.start()
        command, account = first.command(), first.place.account
        await first.stop()
        make_socket_dir(data_dir, account)
        with subprocess.Popen(  # noqa: ASYNC220 - nothing waits
            command.argv,
            env=command.env,
            user=account.uid if account else None,
            group=account.gid if account else None,
            stderr=subprocess.DEVNULL,
        ) as orphan:
            try:
                await eventually(lambda: find_running(data_dir) is not None)
                await answers(first)  # stopped while it starts it would end with 1
                again = EmbeddedPostgres(data_dir)
                await again.start()
                try:
                    assert orphan.poll() == 0, "a fast shutdown ends with 0"
                    assert await sql(again, "SELECT 1") == 1
                finally:
                    await again.stop()
            finally:
                if orphan.poll() is None:
                    orphan.send_signal(signal.SIGQUIT)

    run(work())


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_a_second_start_on_the_same_folder_is_refused(
    data_dir: Path, kind: type[EmbeddedPostgres | EmbeddedValkey]
) -> None:
    async def work() -> None:
        first = kind(data_dir)
        await first.start()
        try:
            with pytest.raises(StartError, match=rf"in use by another hookwright \(process {os.getpid()}\)"):
                await kind(data_dir).start()
            assert find_running(data_dir) is not None
            assert await first.why_not_ready() is None
            if isinstance(first, EmbeddedPostgres):
                await a_role_that_cant_be_made(first)
        finally:
            await first.stop()

    run(work())


async def a_role_that_cant_be_made(postgres: EmbeddedPostgres) -> None:
    """It is made once a start, and its password stays out of the log of what failed."""
    password = make_url(postgres.url).password
    assert password
    await sql(postgres, "ALTER DATABASE hookwright SET default_transaction_read_only = on")
    assert await postgres.why_not_ready() is None
    postgres._has_role = False  # as at the next start
    assert "read-only" in str(await postgres.why_not_ready())
    log = postgres.log.read_text()
    assert "cannot execute ALTER ROLE" in log
    assert password not in log


def test_two_folders_run_side_by_side(new_data_dir: Callable[[], Path]) -> None:
    async def work() -> None:
        pairs = [(EmbeddedPostgres(path), EmbeddedValkey(path)) for path in (new_data_dir(), new_data_dir())]
        services = [service for pair in pairs for service in pair]
        await asyncio.gather(*(service.start() for service in services))
        try:
            for number, (postgres, valkey) in enumerate(pairs):
                await sql(postgres, f"CREATE TABLE only_{number} ()")
                redis = Redis.from_url(valkey.url)
                assert await redis.dbsize() == 0
                await redis.set("key", number)
                await redis.aclose()
            assert await sql(pairs[0][0], "SELECT to_regclass('only_1')") is None
        finally:
            await asyncio.gather(*(service.stop() for service in services))

    run(work())


def test_find_running_tells_the_urls_and_starts_nothing(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")  # another program's setting, which must not lead us astray

    assert find_running(data_dir) is None
    assert not data_dir.exists()

    async def work() -> None:
        postgres, valkey = EmbeddedPostgres(data_dir), EmbeddedValkey(data_dir)
        await valkey.start()
        found = find_running(data_dir)
        assert found is not None
        assert (found.database_url, found.redis_url) == (None, valkey.url)
        await postgres.start()
        found = find_running(data_dir)
        assert found is not None
        assert found.database_url is not None
        connection = await asyncpg.connect(plain_url(found.database_url))
        await connection.close()
        assert found.secret_keys_file.parent == data_dir
        await asyncio.gather(postgres.stop(), valkey.stop())
        assert find_running(data_dir) is None

    run(work())


def test_arq_understands_the_url(data_dir: Path) -> None:
    valkey = EmbeddedValkey(data_dir)
    settings = RedisSettings.from_dsn(valkey.url)
    assert settings.unix_socket_path == str(valkey.socket)
    assert settings.database == 0


def test_valkey_starts_empty_when_its_file_is_damaged(data_dir: Path) -> None:
    async def work() -> None:
        valkey = EmbeddedValkey(data_dir)
        await valkey.start()
        redis = Redis.from_url(valkey.url)
        await redis.set("hint", "lost")
        await redis.aclose()
        await valkey.stop()
        (log,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
        with log.open("ab") as file:
            file.write(b"\0" * 4096 + b"*1\r\n")  # what a power cut can leave
        again = EmbeddedValkey(data_dir)
        await again.start()
        try:
            redis = Redis.from_url(again.url)
            assert await redis.dbsize() == 0
            await redis.aclose()
            assert (data_dir / "valkey" / "appendonlydir.damaged" / log.name).exists()
        finally:
            await again.stop()

    run(work())


def test_the_secret_keys_are_made_once_and_only_for_us(data_dir: Path) -> None:
    keys = ensure_secret_keys(data_dir)
    assert stat.S_IMODE((data_dir / "secret_keys").stat().st_mode) == 0o600
    assert len(keys) == 44, "32 bytes in padded base64"
    assert ensure_secret_keys(data_dir) == keys


def test_empty_secret_keys_are_not_replaced(data_dir: Path) -> None:
    ensure_secret_keys(data_dir)
    (data_dir / "secret_keys").write_text("")
    with pytest.raises(StartError, match="empty"):
        ensure_secret_keys(data_dir)


def test_the_socket_folder_is_ours_alone(data_dir: Path) -> None:
    folder = make_socket_dir(data_dir)
    assert stat.S_IMODE(folder.lstat().st_mode) == 0o700
    assert make_socket_dir(data_dir) == folder
    assert len(os.fsencode(folder / ".s.PGSQL.5432.lock")) <= 107


@pytest.mark.parametrize("squat", ["open", "link", "file"])
def test_a_squatted_socket_folder_is_refused(data_dir: Path, squat: str) -> None:
    folder = socket_dir_path(data_dir, os.geteuid())
    elsewhere = data_dir.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    try:
        if squat == "open":
            folder.mkdir()
            folder.chmod(0o777)
        elif squat == "link":
            folder.symlink_to(elsewhere)
        else:
            folder.write_text("")
        with pytest.raises(StartError, match="socket folder"):
            run(EmbeddedValkey(data_dir).start())
        assert list(elsewhere.iterdir()) == []
    finally:
        if squat != "open":
            folder.unlink()


@as_root
def test_a_socket_folder_of_another_user_is_refused(data_dir: Path) -> None:
    folder = socket_dir_path(data_dir, os.geteuid())
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    with pytest.raises(StartError, match="belongs to uid 65534"):
        run(EmbeddedValkey(data_dir).start())


@as_root
def test_as_root_a_closed_folder_keeps_its_permissions_and_the_database_goes_elsewhere(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = data_dir.parent / "closed"
    closed.mkdir(mode=0o700)
    state = data_dir.parent / "state"
    monkeypatch.setattr(accounts, "STATE_DIR", state)

    async def work() -> None:
        data = closed / "data"
        for _ in range(2):
            postgres = EmbeddedPostgres(data)
            await postgres.start()
            assert postgres.place.home.parent == state
            assert (data / "postgres.location").read_text().strip() == str(postgres.place.home)
            assert find_running(data) is not None
            await postgres.stop()
        assert not postgres.socket_dir.exists()
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        assert len(list(state.iterdir())) == 1
        shutil.rmtree(state)
        with pytest.raises(StartError, match="is gone"):
            await EmbeddedPostgres(data).start()

    run(work())


@as_root
def test_as_root_programs_that_the_database_user_cant_reach_are_copied(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = binaries._package_folder(binaries.POSTGRES_WHEEL).parent
    closed = data_dir.parent / "closed site"
    closed.mkdir(mode=0o700)
    (closed / binaries.POSTGRES_WHEEL).symlink_to(site / binaries.POSTGRES_WHEEL)
    (closed / binaries.LIBRARIES).symlink_to(site / binaries.LIBRARIES)
    state = data_dir.parent / "state"
    monkeypatch.setattr(binaries, "STATE_DIR", state)
    monkeypatch.setattr(binaries, "_package_folder", lambda name: closed / name)

    async def work() -> None:
        postgres = EmbeddedPostgres(data_dir)
        await postgres.start()
        try:
            assert Path(postgres.command().argv[0]).is_relative_to(state)
            assert await sql(postgres, "SELECT 'straße' ~ '^\\w+$'")
        finally:
            await postgres.stop()

    run(work())


def test_stopping_leaves_no_process(data_dir: Path) -> None:
    async def work() -> None:
        postgres = EmbeddedPostgres(data_dir)
        await postgres.start()
        pid = postgres.pid
        uid = os.geteuid() if postgres.place.account is None else postgres.place.account.uid
        mark = f"-D {postgres.place.cluster} -c "
        assert find_leftovers(uid, "postgres", (mark,)) == [pid]
        await postgres.stop()
        assert find_leftovers(uid, "postgres", (mark,)) == []

    run(work())


def test_services_make_databases_from_a_template() -> None:
    services = Services()
    services.start()
    try:
        template = services.create_database()

        async def fill() -> None:
            connection = await asyncpg.connect(plain_url(template))
            await connection.execute("CREATE TABLE note AS SELECT 'copied' AS word")
            await connection.close()

        run(fill())
        copy = services.create_database(template)

        async def look() -> None:
            connection = await asyncpg.connect(plain_url(copy))
            assert await connection.fetchval("SELECT word FROM note") == "copied"
            await connection.close()

        run(look())
        services.drop_database(copy)
        services.drop_database(template)
    finally:
        services.stop()


ASKED = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("with_chief", [True, False])
def test_only_the_chief_is_asked_to_end_the_others(with_chief: bool) -> None:
    """As a postmaster is, whose checkpointer takes a fast shutdown's signal for the end of everybody else."""
    marks = (f"chief-{os.getpid()}", f"other-{os.getpid()}")
    program = Path(sys.executable).name
    started = [
        subprocess.Popen([sys.executable, "-c", ASKED, mark], stdout=subprocess.PIPE, text=True)
        for mark in marks[not with_chief :]
    ]
    try:
        for one in started:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        ids = [one.pid for one in started]
        reaper = threading.Thread(target=lambda: [one.wait() for one in started])
        reaper.start()
        stages = (Stage(signal.SIGINT, 1.0, chief=True), Stage(signal.SIGKILL, 10))
        ended = asyncio.run(end_leftovers(os.geteuid(), program, marks, stages))
        reaper.join()
        assert sorted(ended) == sorted(ids)
        assert [one.returncode for one in started] == ([7, -signal.SIGKILL] if with_chief else [-signal.SIGKILL])
    finally:
        for one in started:
            one.kill()
            one.wait()
            assert one.stdout is not None
            one.stdout.close()
