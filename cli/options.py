"""Options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_DATA_DIR = Path("var")
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000

DataDir = Annotated[
    Path,
    typer.Option(envvar="HOOKWRIGHT_DATA_DIR", help="Folder of the embedded services, where no URL is set."),
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any that is free.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Organization = Annotated[
    str | None,
    typer.Option("--org", metavar="ORG", help="The organization to act for, with a platform key."),
]


def read_given(given: str, option: str) -> str:
    """What an option of the form `TEXT|@FILE|-` means: standard input for `-`."""
    try:
        if given == "-":
            return sys.stdin.read()
        if given.startswith("@"):
            return Path(given[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{given!r} can't be read: {error}", param_hint=option) from error
    return given


def read_secret(given: str | None) -> str | None:
    """The secret that `--secret` means, without the line's end that an editor or `echo` adds."""
    if given is None:
        return None
    secret = read_given(given, "--secret").strip("\r\n")
    if not secret:
        raise typer.BadParameter(f"there is nothing in {given!r}", param_hint="--secret")
    return secret


def words(text: str) -> list[str]:
    """`a, b` as a list of its words."""
    return [word.strip() for word in text.split(",") if word.strip()]
