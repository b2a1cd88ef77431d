"""`hookwright org`: organizations, in the database directly."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DataDir, Json
from cli.output import clean, give, give_json, rows, say

app = typer.Typer(help="Organizations: the tenants.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Make an organization; prints its id."""
    settings = target.settings(data_dir)
    from app import views  # the same JSON as the API's
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


@app.command()
def delete(
    organization: Annotated[str, typer.Argument(metavar="ORG", help="Its id, org_….")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """End an organization at once, and have workers erase all that it had. There is no way back."""
    settings = target.settings(data_dir)
    from app import views
    from core import audit, erasure, ids, organizations

    wanted = ids.parse(ids.ORGANIZATION, organization)

    async def name() -> str:
        async with target.session(settings) as session:
            return (await organizations.get(session, wanted)).name

    async def run() -> dict[str, Any]:
        async with target.session(settings) as session:
            return views.deleted_organization(await erasure.mark(session, wanted, audit.COMMAND_LINE))

    called = asyncio.run(name())
    if not yes and not typer.confirm(
        clean(f"Erase {called!r} with its subscriptions, events and deliveries?"), err=True
    ):
        raise typer.Exit(1)
    ended = asyncio.run(run())
    if as_json:
        give_json(ended)
    else:
        say(f"{called!r} is deleted; workers erase what it had.")


@app.command(name="list")
def list_all(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: Json = False) -> None:
    """List the organizations, the oldest first."""
    settings = target.settings(data_dir)
    from app import views
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
