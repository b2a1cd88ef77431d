"""`hookwright key`: API keys, in the database directly."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any
from uuid import UUID

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DataDir, Json, words
from cli.output import give, give_json, rows, say
from core.settings import Settings

app = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    org: Annotated[str | None, typer.Option(metavar="ORG", help="The organization that it is for.")] = None,
    platform: Annotated[bool, typer.Option("--platform", help="A key for every organization, instead.")] = False,
    scopes: Annotated[str | None, typer.Option(help="Comma-separated; every scope that such a key can have.")] = None,
    tier: Annotated[str, typer.Option(help="How many requests it may make: default, premium or bulk.")] = "default",
    name: Annotated[str, typer.Option(help="What lists show.")] = "made on the command line",
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Make an API key; prints it. It can't be shown again."""
    if (org is None) != platform:
        raise typer.BadParameter("give either --org ORG or --platform")
    settings = target.settings(data_dir, keys=True)
    target.refuse_newer_keys(data_dir)
    sealer = target.sealer(settings)
    from app import views  # the same JSON as the API's
    from core import audit, organizations
    from core.access import api_keys

    async def run() -> dict[str, Any]:
        async with target.session(settings) as session:
            owner = None if org is None else (await organizations.get(session, _organization_id(org))).id
            chosen = None if scopes is None else api_keys.check_scopes(words(scopes), platform=platform)
            record, key = await api_keys.create(
                session,
                sealer,
                organization_id=owner,
                name=organizations.check_name(name),
                scopes=chosen,
                tier=tier,
            )
            shown = views.api_key(record)
            audit.record(
                session, audit.COMMAND_LINE, "api_key.created", shown["id"], organization_id=owner, after=shown
            )
            return shown | {"key": key}

    made = asyncio.run(run())
    if as_json:
        give_json(made)
    else:
        say(f"Made the key {made['key_id']} for: {', '.join(made['scopes'])}. Keep it; it is shown only now.")
        give(made["key"])


@app.command(name="list")
def list_all(
    org: Annotated[str | None, typer.Option(metavar="ORG", help="Only this organization's.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """List the API keys, the oldest first; never the keys themselves."""
    settings = target.settings(data_dir)
    owner = None if org is None else _organization_id(org)
    found = asyncio.run(_find(settings, owner))
    if as_json:
        give_json(found)
    elif found:
        give(rows(found, "key_id", "organization_id", "name", "prefix", "last_used_at", "revoked_at", "tier", "scopes"))
    else:
        say("There is no such key.")


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="The key's id, key_…, not the key.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """End an API key at once."""
    settings = target.settings(data_dir)
    from app import views
    from core import audit, ids
    from core.access import api_keys

    wanted = ids.parse(ids.API_KEY, key_id)

    async def run() -> dict[str, Any]:
        async with target.session(settings) as session:
            key = await api_keys.get(session, wanted)
            before = views.api_key(key)
            after = views.api_key(await api_keys.revoke(session, wanted))
            if after != before:
                audit.record(
                    session,
                    audit.COMMAND_LINE,
                    "api_key.revoked",
                    after["id"],
                    organization_id=key.organization_id,
                    before=before,
                    after=after,
                )
            return after

    ended = asyncio.run(run())
    if as_json:
        give_json(ended)
    else:
        say(f"{ended['key_id']} ({ended['name']}) is revoked since {ended['revoked_at']}.")


async def _find(settings: Settings, owner: UUID | None) -> list[dict[str, Any]]:
    from sqlmodel import col, select

    from app import views
    from core.models import ApiKey

    query = select(ApiKey).order_by(col(ApiKey.id))
    if owner is not None:
        query = query.where(ApiKey.organization_id == owner)
    async with target.session(settings) as session:
        return [views.api_key(key) for key in (await session.exec(query)).all()]


def _organization_id(text: str) -> UUID:
    from core import ids

    return ids.parse(ids.ORGANIZATION, text)
