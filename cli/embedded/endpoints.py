"""Finds the services that another hookwright runs on a data folder."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from cli.embedded.postgres import running_postgres_url
from cli.embedded.secret_keys import secret_keys_file
from cli.embedded.valkey import running_valkey_url
from cli.service import StartError


@dataclass(frozen=True)
class Endpoints:
    """None where that service does not run embedded here."""

    database_url: str | None
    redis_url: str | None
    secret_keys_file: Path


def find_running(data_dir: Path) -> Endpoints | None:
    """Starts nothing and changes nothing; None when nothing runs there."""
    data_dir = data_dir.resolve()
    try:
        database_url = _if_listening(running_postgres_url(data_dir))
        redis_url = _if_listening(running_valkey_url(data_dir))
    except PermissionError as fault:
        raise StartError(f"{fault.filename} can't be read: run this as hookwright's own user") from fault
    if database_url is None and redis_url is None:
        return None
    return Endpoints(database_url, redis_url, secret_keys_file(data_dir))


def _if_listening(found: tuple[Path, str] | None) -> str | None:
    if found is None:
        return None
    path, url = found
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
            return None
    return url
