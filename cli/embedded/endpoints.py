"""Finds the services that another hookwright runs on a data folder."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.postgres import running_postgres_urls
from cli.embedded.secret_keys import secret_keys_file
from cli.embedded.valkey import running_valkey_url
from cli.service import StartError


@dataclass(frozen=True)
class Endpoints:
    """None where that service does not run embedded here."""

    database_url: str | None
    database_owner_url: str | None
    redis_url: str | None
    secret_keys_file: Path


def find_running(data_dir: Path) -> Endpoints | None:
    """Starts nothing and changes nothing; None when nothing runs there."""
    data_dir = data_dir.resolve()
    try:
        database = running_postgres_urls(data_dir)
        if database is not None and not _listens(database[0]):
            database = None
        valkey = running_valkey_url(data_dir)
        redis_url = valkey[1] if valkey is not None and _listens(valkey[0]) else None
    except PermissionError as fault:
        raise StartError(f"{fault.filename} can't be read: run this as hookwright's own user") from fault
    if database is None and redis_url is None:
        return None
    _, database_url, owner_url = database or (None, None, None)
    return Endpoints(database_url, owner_url, redis_url, secret_keys_file(data_dir))


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
            return False
    return True
