"""PostgreSQL 18 of our own: made on the first start, reached through a Unix socket with a password."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
from pathlib import Path
from urllib.parse import urlencode

from cli.embedded.accounts import Place, choose_place, find_home, write_pointer
from cli.embedded.binaries import POSTGRES_MAJOR, postgres_bin
from cli.embedded.leftovers import Stage, end_leftovers
from cli.embedded.paths import (
    FolderLock,
    folder_id,
    fsync_dir,
    make_data_dir,
    make_socket_dir,
    read_secret,
    remove_socket_dir,
    socket_dir_path,
    verify_socket_dir,
    write_secret_once,
)
from cli.process import Command, describe_exit, log_tail, run_to_end
from cli.service import Service, StartError

DATABASE = "hookwright"
OWNER = "hookwright"  # made by initdb, so a superuser
ROLE = "hookwright_app"  # the application's, which owns nothing (core.storage.roles)
PORT = 5432  # no TCP port: it only names the socket file
SOCKET_NAME = f".s.PGSQL.{PORT}"
OWNER_PASSWORD_FILE = "postgres.password"  # nosec B105 # noqa: S105 - a file's name
PASSWORD_FILE = "postgres.app.password"  # nosec B105 # noqa: S105 - a file's name
LOCK_FILE = "postgres.lock"
DRAFT_PREFIX = ".postgres-new-"

READY_WITHIN_S = 90.0
RECOVERY_WITHIN_S = 300.0  # replaying max_wal_size, 2 GB: 8 s at the measured 250 MB/s, more on a slow disk

# Given on the command line, so that they hold for clusters made by an earlier version, and over
# postgresql.auto.conf. For 2 cores and 1 GB or more.
SETTINGS: dict[str, str] = {
    # Durability: an accepted event survives a power cut. Said here so that no other file can say otherwise.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Reached through the socket alone.
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    # A web process and some workers hold 10 to 20 connections each.
    "max_connections": "100",
    # The hot partitions and their indexes; the rest of the memory serves the page cache and Python.
    "shared_buffers": "256MB",
    # What the planner may assume to be cached; the default of 4 GB is more than a small machine has.
    "effective_cache_size": "1GB",
    # The first change of a page after a checkpoint logs all of it. Measured: 2 % less log when rows are only
    # added (ids sort by time, so few pages are touched); more when a replay updates old rows all over.
    "wal_compression": "on",
    # Fewer checkpoints, so fewer page images: at 10 MB/s of log one each 3 minutes instead of each 1.5.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # Deliveries are updated several times each and the due-query reads a partial index: dead entries in it
    # cost every sweep, and at 4,000 deliveries/s the default of 1 minute lets 240,000 and more gather.
    "autovacuum_naptime": "15s",
    # Flash storage: a random page costs about what a sequential one does (default 4 is for disks that turn).
    "random_page_cost": "1.1",
    # Short queries: compiling one costs more than running it, and a second core is for the workers.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # Where time went, when somebody asks: two clock readings for each block read.
    "track_io_timing": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",  # our log file; no collector process
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    "log_error_verbosity": "terse",  # the row that met an error is somebody's data
    "log_checkpoints": "off",
}

logger = logging.getLogger("hookwright.embedded")


class EmbeddedPostgres(Service):
    name = "postgres"

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self.data_dir = data_dir.resolve()
        self._place: Place | None = None
        self._lock: FolderLock | None = None
        self._bin: Path | None = None
        self._stale_pid: int | None = None
        self._has_role = False  # since the last start

    @property
    def url(self) -> str:
        """The application's, for SQLAlchemy with asyncpg; known once `prepare` ran."""
        return _url(self.socket_dir, ROLE, self._password(PASSWORD_FILE))

    @property
    def owner_url(self) -> str:
        """The schema's owner's, for migrations."""
        return _url(self.socket_dir, OWNER, self._password(OWNER_PASSWORD_FILE))

    def _password(self, file: str) -> str:
        return read_secret(self.place.home / file)

    @property
    def socket_dir(self) -> Path:
        account = self.place.account
        return socket_dir_path(self.data_dir, os.geteuid() if account is None else account.uid)

    @property
    def place(self) -> Place:
        if self._place is None:
            raise RuntimeError("call prepare() first")
        return self._place

    @property
    def log(self) -> Path:
        return self.data_dir / "logs" / "postgres.log"

    async def prepare(self) -> None:
        self.data_dir = make_data_dir(self.data_dir)
        self._place = place = choose_place(self.data_dir)
        self._lock = FolderLock(place.home / LOCK_FILE)
        self._lock.take("the database")
        try:
            self._bin = postgres_bin(place.account)
            make_socket_dir(self.data_dir, place.account)
            if not place.cluster.exists():
                await self._make_cluster()
            self._check_version()
            _make_password(place.home / PASSWORD_FILE)  # here: a cluster that an earlier release made has none
        except BaseException:
            self.close()
            raise

    async def before_launch(self) -> None:
        await end_leftovers(
            self._uid,
            "postgres",
            # Its own command line, and the names its backends give themselves (see cluster_name).
            (f"-D {self.place.cluster} -c ", f"postgres: {self._cluster_name}: "),
            # Backends of a killed postmaster leave by themselves when they notice. Then a fast shutdown, an
            # immediate one, and force: the log is replayed at the next start, so none of these loses data. A fast one
            # is the postmaster's business alone: SIGINT tells the checkpointer that the others have ended, and what
            # they write after its last checkpoint is a panic.
            (
                Stage(None, 0.5),
                Stage(signal.SIGINT, 10, chief=True),
                Stage(signal.SIGQUIT, 3),
                Stage(signal.SIGKILL, 2),
            ),
        )
        self._has_role = False
        self._stale_pid = self._read_stale_pid()
        self.ready_within_s = READY_WITHIN_S if self._stale_pid is None else RECOVERY_WITHIN_S
        make_socket_dir(self.data_dir, self.place.account)  # a cleaner of /tmp may have taken it

    def command(self) -> Command:
        if self._bin is None:
            raise RuntimeError("call prepare() first")
        settings = {
            **SETTINGS,
            "unix_socket_directories": str(self.socket_dir),
            "cluster_name": self._cluster_name,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        env = _server_env()
        if self._stale_pid is not None:
            # After a power cut the id in postmaster.pid may belong to anything by now, and PostgreSQL would
            # take that for a postmaster of this cluster. `before_launch` knows that none is left. PostgreSQL
            # overlooks the id given here (meant for pg_ctl's shell) and still checks that no backend holds
            # the shared memory.
            env["PG_GRANDPARENT_PID"] = str(self._stale_pid)
        return Command(
            name=self.name,
            argv=(str(self._bin / "postgres"), "-D", str(self.place.cluster), *options),
            env=env,
            account=self.place.account,
            log=self.log,
            stop_signals=(signal.SIGINT, signal.SIGQUIT),  # fast shutdown, then immediate
            parent_death_signal=signal.SIGINT,
        )

    async def why_not_ready(self) -> str | None:
        import asyncpg  # 0.1 s, which only this process pays

        try:
            if self._has_role:
                await self._connect_once(DATABASE, "SELECT 1")
            else:
                await self._connect_once(
                    DATABASE, _SAY_NOTHING, _MAKE_ROLE.format(password=self._password(PASSWORD_FILE))
                )
                self._has_role = True
        except asyncpg.InvalidCatalogNameError:
            return await self._create_database()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
            return str(fault) or type(fault).__name__
        return None

    def close(self) -> None:
        if self._lock is not None:
            if self._lock.held:
                remove_socket_dir(self.data_dir, self._uid)
            self._lock.release()
            self._lock = None

    @property
    def _uid(self) -> int:
        account = self.place.account
        return os.geteuid() if account is None else account.uid

    @property
    def _cluster_name(self) -> str:
        return f"hookwright-{folder_id(self.place.home)}"

    async def _connect_once(self, database: str, *statements: str) -> None:
        import asyncpg

        connection = await asyncpg.connect(
            host=str(self.socket_dir),
            port=PORT,
            user=OWNER,
            password=self._password(OWNER_PASSWORD_FILE),
            database=database,
            timeout=5,
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def _create_database(self) -> str | None:
        import asyncpg

        try:
            await self._connect_once("postgres", f'CREATE DATABASE "{DATABASE}"')
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as fault:
            return f"the database {DATABASE} can't be created: {fault}"
        return "the database has just been created"  # asked again, it gets its role

    async def _make_cluster(self) -> None:
        """In a folder of its own, renamed when whole: an initdb that was killed leaves nothing half-made."""
        place = self.place
        for abandoned in place.home.glob(f"{DRAFT_PREFIX}*"):
            shutil.rmtree(abandoned)
        password_file = place.home / OWNER_PASSWORD_FILE
        _make_password(password_file)
        draft = place.home / f"{DRAFT_PREFIX}{secrets.token_hex(4)}"
        draft.mkdir(mode=0o700)
        readable = draft / "password"  # the account can't read ours
        write_secret_once(readable, read_secret(password_file))
        if place.account is not None:
            os.chown(readable, place.account.uid, place.account.gid)
            os.chown(draft, place.account.uid, place.account.gid)
        code = await run_to_end(self._initdb(draft / "data", readable))
        if code != 0:
            shutil.rmtree(draft, ignore_errors=True)
            raise StartError(f"initdb failed ({describe_exit(code)})\nThe end of {self.log}:\n{log_tail(self.log)}")
        (draft / "data").rename(place.cluster)
        fsync_dir(place.home)
        shutil.rmtree(draft)
        write_pointer(self.data_dir, place.home)
        logger.info("made a database in %s", place.cluster)

    def _initdb(self, folder: Path, password_file: Path) -> Command:
        assert self._bin is not None  # nosec B101 # noqa: S101 - for mypy; prepare set it
        return Command(
            name="initdb",
            argv=(
                str(self._bin / "initdb"),
                f"--pgdata={folder}",
                f"--username={OWNER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                # Code point order with Unicode's upper and lower case, the same on every system, so an index
                # stays valid when the system's C library is upgraded.
                "--locale=C",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--no-instructions",
            ),
            env=_server_env(),
            account=self.place.account,
            log=self.log,
        )

    def _check_version(self) -> None:
        found = (self.place.cluster / "PG_VERSION").read_text("ascii").strip()
        if found != POSTGRES_MAJOR:
            raise StartError(
                f"{self.place.cluster} was made by PostgreSQL {found}, and this is {POSTGRES_MAJOR}. "
                "Dump it with the version that made it and restore it here."
            )

    def _read_stale_pid(self) -> int | None:
        """The process id that the run before left behind; a run that ended properly removes it."""
        try:
            return abs(int((self.place.cluster / "postmaster.pid").read_text("ascii").split("\n", 1)[0]))
        except (FileNotFoundError, ValueError):
            return None


# Each start: the file is right, and whatever else the role was given is taken away. PostgreSQL logs the text of a
# statement that fails, and this one has the password in it; so it is told not to, before it sees it.
_SAY_NOTHING = "SET log_min_error_statement = panic; SET log_statement = none; SET log_min_duration_statement = -1"
_MAKE_ROLE = f"""
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        CREATE ROLE {ROLE};
    END IF;
END $$;
ALTER ROLE {ROLE} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '{{password}}'
"""


def _make_password(path: Path) -> None:
    if not path.exists():
        write_secret_once(path, secrets.token_urlsafe(32))


def running_postgres_urls(data_dir: Path) -> tuple[Path, str, str] | None:
    """The socket and the URLs of the application and of the owner, whether or not anything listens; None without a
    cluster. Changes nothing."""
    home = find_home(data_dir)
    if home is None:
        return None
    uid = (home / "postgres").stat().st_uid
    folder = socket_dir_path(data_dir, uid)
    if not folder.exists():
        return None
    verify_socket_dir(folder, uid)
    owner_url = _url(folder, OWNER, read_secret(home / OWNER_PASSWORD_FILE))
    if not (home / PASSWORD_FILE).exists():  # an earlier release runs there, which knows the owner alone
        return folder / SOCKET_NAME, owner_url, owner_url
    return folder / SOCKET_NAME, _url(folder, ROLE, read_secret(home / PASSWORD_FILE)), owner_url


def _url(socket_dir: Path, role: str, password: str) -> str:
    # The port is said because asyncpg would otherwise take $PGPORT. The password needs no escaping: it is
    # base64 for URLs.
    query = urlencode({"host": str(socket_dir), "port": PORT}, safe="/")
    return f"postgresql+asyncpg://{role}:{password}@/{DATABASE}?{query}"


def _server_env() -> dict[str, str]:
    """Nothing of ours: PGPORT or LD_LIBRARY_PATH would change what runs; our secrets are not its business."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
