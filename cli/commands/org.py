"""`hookwright org`: organizations, in the database directly."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DataDir, Json
from cli.output import give, give_json, rows, say

app = typer.Typer(help="Organizations: the tenants.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Make an organization; prints its id."""
    settings = target.settings(data_dir)
    from app.api import views  # the same JSON as the API's
    from core import audit, organizations

    async def run() -> dict[str, Any]:
        async with target.session(settings) as session:
            made = await organizations.create(session, name)
            shown = views.organization(made)
            audit.record(
                session, audit.COMMAND_LINE, "organization.created", shown["id"], organization_id=made.id, after=shown
            )
            return shown

    made = asyncio.run(run())
    if as_json:
        give_json(made)
    else:
        say(f"Made the organization {made['name']!r}.")
        give(made["organization_id"])


@app.command(name="list")
def list_all(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: Json = False) -> None:
    """List the organizations, the oldest first."""
    settings = target.settings(data_dir)
    from app.api import views
    from core import organizations

    async def run() -> list[dict[str, Any]]:
        async with target.session(settings) as session:
            return [views.organization(one) for one in await organizations.every(session)]

    found = asyncio.run(run())
    if as_json:
        give_json(found)
    elif found:
        give(rows(found, "organization_id", "created_at", "name"))
    else:
        say("There is no organization yet.")
