"""`hookwright user`: the people who sign in to the pages, in the database directly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DataDir, Json
from cli.output import give, give_json, rows, say
from core.errors import Conflict, NotFound
from core.settings import Settings

app = typer.Typer(help="Users: who signs in to the pages.", no_args_is_help=True, rich_markup_mode=None)

Email = Annotated[str, typer.Argument(metavar="EMAIL", help="Whom they sign in as.")]


@app.command(name="list")
def list_all(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: Json = False) -> None:
    """List the users, by email."""
    settings = target.settings(data_dir)
    from core.access import users

    async def run() -> list[dict[str, Any]]:
        async with target.session(settings) as session:
            return [users.view(one) for one in await users.every(session)]

    found = asyncio.run(run())
    if as_json:
        give_json(found)
    elif found:
        give(rows(found, "user_id", "email", "name", "role", "last_signed_in_at", "disabled_at"))
    else:
        say("There is no user. `hookwright user setup-link` prints a link by which to make the first.")


@app.command()
def invite(
    email: Email,
    role: Annotated[str, typer.Option(help="viewer, operator or admin.")] = "viewer",
    name: Annotated[str, typer.Option(help="What people call them.")] = "",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Add a user; prints the link by which they choose a password."""
    from core.access import users
    from core.audit import COMMAND_LINE

    async def run(session: Any) -> tuple[Any, str]:
        return await users.invite(session, COMMAND_LINE, email=email, role=role, name=name)

    _link(target.settings(data_dir), run, as_json)


@app.command()
def reset(email: Email, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: Json = False) -> None:
    """Print a link by which a user chooses a new password."""
    from core.access import users
    from core.audit import COMMAND_LINE

    async def run(session: Any) -> tuple[Any, str]:
        return await users.reset(session, COMMAND_LINE, (await _find(session, email)).id)

    _link(target.settings(data_dir), run, as_json)


@app.command()
def disable(email: Email, data_dir: DataDir = DEFAULT_DATA_DIR, as_json: Json = False) -> None:
    """Sign a user out everywhere, and let them sign in no more."""
    settings = target.settings(data_dir)
    from core.access import users
    from core.audit import COMMAND_LINE

    async def run() -> dict[str, Any]:
        async with target.session(settings) as session:
            return users.view(await users.disable(session, COMMAND_LINE, (await _find(session, email)).id))

    ended = asyncio.run(run())
    if as_json:
        give_json(ended)
    else:
        say(f"{ended['email']} is disabled since {ended['disabled_at']}.")


@app.command(name="setup-link")
def setup_link(data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Print a link by which to make the first admin; those of before end."""
    settings = target.settings(data_dir)
    from core.access import set_up_link
    from core.storage.database import driver_of

    async def run() -> str:
        async with target.session(settings) as session:
            token = await set_up_link.make(await driver_of(session))
        if token is None:
            raise Conflict(
                "There are users already: `hookwright user invite` adds one, `hookwright user reset` lets one in"
            )
        return f"{settings.public_url}{set_up_link.path(token)}"

    link = asyncio.run(run())
    say("Whoever opens this link becomes the first admin. It works once, within 24 hours.")
    give(link)


def _link(settings: Settings, make: Callable[[Any], Awaitable[tuple[Any, str]]], as_json: bool) -> None:
    from core.access import set_up_link, users

    async def run() -> tuple[dict[str, Any], str]:
        async with target.session(settings) as session:
            user, token = await make(session)
            return users.view(user), f"{settings.public_url}{set_up_link.path(token)}"

    user, link = asyncio.run(run())
    if as_json:
        give_json(user | {"link": link})
    else:
        say(f"Give this link to {user['email']}, who chooses a password by it. It works once, within 24 hours.")
        give(link)


async def _find(session: Any, email: str) -> Any:
    from core.access import users

    found = await users.find(session, email)
    if found is None:
        raise NotFound(f"There is no user {email}")
    return found
