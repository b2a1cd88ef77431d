"""As root: whom PostgreSQL runs as, and where its cluster may live.

PostgreSQL refuses to run as root. We use an account that exists, and never change a permission that we did
not set: where the account can't enter the data folder, the cluster goes to a folder of ours under /var/lib.
"""

from __future__ import annotations

import logging
import os
import pwd
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.paths import folder_id, write_secret_once
from cli.process import Account
from cli.service import StartError

STATE_DIR = Path("/var/lib/hookwright")
CLUSTER = "postgres"
LOCATION_FILE = "postgres.location"

logger = logging.getLogger("hookwright.embedded")


@dataclass(frozen=True)
class Place:
    """Where the cluster, its password and its lock are, and who runs it (None: we do)."""

    home: Path
    account: Account | None

    @property
    def cluster(self) -> Path:
        return self.home / CLUSTER


def find_home(data_dir: Path) -> Path | None:
    """The folder that already holds this data folder's cluster; changes nothing."""
    if (data_dir / CLUSTER).exists():
        return data_dir
    pointer = data_dir / LOCATION_FILE
    if not pointer.exists():
        return None
    home = Path(pointer.read_text("utf-8").strip())
    if home.parent != STATE_DIR:
        raise StartError(f"{pointer} names {home}, which is not a folder in {STATE_DIR}")
    if not (home / CLUSTER).exists():
        raise StartError(
            f"the database of {data_dir} was in {home} and is gone. Put it back from a backup, "
            f"or remove {pointer} to start with an empty database."
        )
    return home


def choose_place(data_dir: Path) -> Place:
    """Finds the cluster's place again, or decides on one. A new one holds no cluster yet."""
    home = find_home(data_dir)
    if os.geteuid() != 0:
        if home is not None and (owner := (home / CLUSTER).stat().st_uid) != os.geteuid():
            raise StartError(f"the database in {home} belongs to uid {owner}; run as that user or as root")
        return Place(home or data_dir, None)
    if home is not None:
        return Place(home, _owner(home / CLUSTER))
    for account in _candidates(data_dir):
        if can_enter(account, data_dir):
            return Place(data_dir, account)
    return Place(_new_home(data_dir), _system_account())


def can_enter(account: Account, folder: Path) -> bool:
    """Really tries, so it sees access lists and namespaces as well as mode bits."""
    return _as_account(account, "/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder))


def can_run(account: Account, program: Path) -> bool:
    return _as_account(account, str(program), "--version")


def write_pointer(data_dir: Path, home: Path) -> None:
    """Says in the data folder where its database is."""
    if home != data_dir:
        write_secret_once(data_dir / LOCATION_FILE, str(home))


def _as_account(account: Account, *argv: str) -> bool:
    try:
        done = subprocess.run(  # nosec B603 # noqa: S603 - fixed argv, no shell reads the path
            argv,
            user=account.uid,
            group=account.gid,
            extra_groups=[],
            cwd="/",
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0


def _candidates(data_dir: Path) -> Iterator[Account]:
    """A mounted volume often belongs to a plain user, who can enter it; otherwise a system account."""
    owner = data_dir.stat()
    if owner.st_uid != 0 and _is_known(owner.st_uid):
        yield Account(owner.st_uid, owner.st_gid)
    yield _system_account()


def _system_account() -> Account:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise StartError(
        "PostgreSQL refuses to run as root and there is neither a user 'postgres' nor 'nobody' to run it as. "
        "Run hookwright as a plain user, or set HOOKWRIGHT_DATABASE_URL."
    )


def _owner(cluster: Path) -> Account:
    found = cluster.stat()
    if found.st_uid == 0:
        raise StartError(f"{cluster} belongs to root, as whom PostgreSQL refuses to run")
    return Account(found.st_uid, found.st_gid)


def _is_known(uid: int) -> bool:
    """initdb insists on a name for its user id."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _new_home(data_dir: Path) -> Path:
    """Never one that was used: if somebody removed the data folder to start afresh, the database of before
    must not come back under it, where its sealed secrets could no longer be opened."""
    for folder in (STATE_DIR, home := STATE_DIR / f"{folder_id(data_dir)}-{secrets.token_hex(3)}"):
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o711)  # passable for the account, listable for root alone
    logger.warning("the database's user can't enter %s, so the database is in %s", data_dir, home)
    return home
