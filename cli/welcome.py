"""What `hookwright up` says to somebody who starts it for the first time."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from cli import target
from cli.invocation import our_command
from cli.options import DEFAULT_DATA_DIR
from cli.output import say
from cli.supervisor.platform import DATABASE_URL
from core.errors import HookwrightError

logger = logging.getLogger("hookwright.supervisor")


async def welcome(data_dir: Path) -> None:
    """While there is no organization yet, says how to make one. Never fails: the platform runs without it."""
    try:
        if not await _has_organization(data_dir):
            say(next_steps(data_dir))
    except Exception as error:  # advice is not worth a traceback, whatever is wrong with it
        logger.debug("no advice: %r", error)


def next_steps(data_dir: Path) -> str:
    command = our_command()
    folder = "" if data_dir == DEFAULT_DATA_DIR else f" --data-dir {shlex.quote(str(data_dir))}"
    return (
        "There is no organization yet. In another terminal:\n"
        f"  {command} org create 'My company'{folder}      prints its id, org_…\n"
        f"  {command} key create --org org_…{folder}       prints an API key for it\n"
        "Ctrl-C stops everything."
    )


async def _has_organization(data_dir: Path) -> bool:
    import asyncpg  # and not SQLAlchemy: this process stays small

    url = target.complete(data_dir).get(DATABASE_URL)
    if url is None:
        raise HookwrightError("no database")
    connection = await asyncpg.connect(f"postgresql://{url.partition('://')[2]}", timeout=5)
    try:
        return bool(await connection.fetchval("SELECT EXISTS (SELECT 1 FROM organizations)"))
    finally:
        await connection.close(timeout=2)
