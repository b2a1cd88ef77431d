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
from core.access import set_up_link
from core.errors import HookwrightError

logger = logging.getLogger("hookwright.supervisor")


async def welcome(data_dir: Path, public_url: str) -> None:
    """While there is no user or no organization yet, says how to make one. Never fails: the platform runs without."""
    try:
        token, has_organization = await _look(data_dir)
        if token is not None:
            link = f"{public_url}{set_up_link.path(token)}"
            say(f"Nobody can sign in yet. Become the first admin, within 24 hours, at\n  {link}")
        if not has_organization:
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


async def _look(data_dir: Path) -> tuple[str | None, bool]:
    """The token of a new link to set up with, where there is no user; and whether there is an organization."""
    import asyncpg  # and not SQLAlchemy: this process stays small

    url = target.complete(data_dir).get(DATABASE_URL)
    if url is None:
        raise HookwrightError("no database")
    connection = await asyncpg.connect(f"postgresql://{url.partition('://')[2]}", timeout=5)
    try:
        token = await set_up_link.make(connection)
        return token, bool(await connection.fetchval("SELECT EXISTS (SELECT 1 FROM organizations)"))
    finally:
        await connection.close(timeout=2)
