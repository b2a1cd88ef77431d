"""The keys that seal secrets at rest, when nobody configured any."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from cli.embedded.accounts import find_home
from cli.embedded.paths import make_data_dir, read_secret, replace_secret, write_secret_once
from cli.embedded.postgres import LOCK_FILE
from core.secrets.sealing import generate_key


def secret_keys_file(data_dir: Path) -> Path:
    return data_dir.resolve() / "secret_keys"


def ensure_secret_keys(data_dir: Path) -> str:
    """The value for HOOKWRIGHT_SECRET_KEYS, made at the first call and the same ever after."""
    path = secret_keys_file(make_data_dir(data_dir))
    if not path.exists():
        write_secret_once(path, generate_key())
    return read_secret(path)


def add_secret_key(data_dir: Path) -> None:
    """Puts a new key in front of those in the file, which must be there: it seals from the next start on, the others
    go on opening what they sealed."""
    path = secret_keys_file(data_dir)
    with _alone_in(path.parent):
        replace_secret(path, f"{generate_key()},{read_secret(path)}")


def is_newer_than_what_runs(data_dir: Path) -> bool:
    """Whether a key was put into the file since the platform that uses this folder was started: what the new key seals
    that platform can't open. A lock is written once, at the start of whoever holds it."""
    path, home = secret_keys_file(data_dir), find_home(data_dir)
    if home is None or not (home / LOCK_FILE).exists() or "," not in read_secret(path):
        return False
    return path.stat().st_mtime_ns > (home / LOCK_FILE).stat().st_mtime_ns


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two commands at once change the file one after the other."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
