"""`hookwright keys`: the secret keys, with which everything sealed in the database is sealed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import target
from cli.embedded.secret_keys import add_secret_key, secret_keys_file
from cli.options import DEFAULT_DATA_DIR, DataDir, Json
from cli.output import give, give_json, say, table
from cli.supervisor.platform import SECRET_KEYS
from core.settings import Settings

if TYPE_CHECKING:
    from core.secrets.reseal import Survey

app = typer.Typer(help="Secret keys: which are in use, and rotating them.", no_args_is_help=True, rich_markup_mode=None)

MOST_IDLE = 20  # API keys that are listed one by one


@app.command()
def status(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: Json = False) -> None:
    """Count what is sealed under each secret key, and the API keys whose hashes lean on it."""
    settings = target.settings(data_dir, keys=True)
    _, found = asyncio.run(_work(settings, rotating=False))
    if as_json:
        give_json(_json(found))
    else:
        _show(found)


@app.command()
def rotate(
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a new key and put it in front, instead; the first step.")
    ] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    as_json: Json = False,
) -> None:
    """Seal everything anew under the newest secret key, while the platform runs."""
    if new_key:
        _make_key(data_dir)
        return
    settings = target.settings(data_dir, keys=True)
    target.refuse_newer_keys(data_dir)
    done, found = asyncio.run(_work(settings, rotating=True))
    if as_json:
        give_json({"resealed": done, **_json(found)})
        return
    for name, count in done.items():
        say(f"Sealed anew: {count} of {name}")
    _show(found)


def _make_key(data_dir: Path) -> None:
    if target.keys_are_in_file(data_dir):
        add_secret_key(data_dir)
        say(f"A new key is the first in {secret_keys_file(data_dir)} now. Keep a copy of that file.")
        say("Restart `hookwright up`, then run: hookwright keys rotate")
        return
    from core.secrets.sealing import generate_key

    say(f"Put this key at the end of {SECRET_KEYS} of every process and restart them, one after the other; then put it")
    say("in front, and restart them again; then run: hookwright keys rotate")
    give(generate_key())


async def _work(settings: Settings, *, rotating: bool) -> tuple[dict[str, int], Survey]:
    from core import audit
    from core.secrets import reseal
    from core.storage.database import Database

    sealer = target.sealer(settings)
    database = Database(settings.database_url, pool_size=2, name="hookwright-cli", command_timeout_s=None)
    try:
        with target.database_faults(settings.database_url):
            done = await reseal.rotate(database, sealer, audit.COMMAND_LINE) if rotating else {}
            return done, await reseal.survey(database, sealer)
    finally:
        await database.close()


def _json(found: Survey) -> dict[str, Any]:
    from core import ids, timestamps

    return {
        "keys": [
            {
                "key_id": key_id.hex(),
                "place": found.key_ids.index(key_id) + 1 if key_id in found.key_ids else None,
                "sealed": found.sealed.get(key_id, {}),
                "api_keys": found.hashes.get(key_id, 0),
            }
            for key_id in _all(found)
        ],
        "idle_api_keys": [
            {
                "key_id": ids.show(ids.API_KEY, one.id),
                "name": one.name,
                "secret_key_id": one.hash_key_id.hex(),
                "last_used_at": None if one.last_used_at is None else timestamps.show(one.last_used_at),
            }
            for one in found.idle
        ],
    }


def _all(found: Survey) -> list[bytes]:
    """Every key there is: those that are configured, newest first, then those that are missing."""
    missing = (set(found.sealed) | set(found.hashes)) - set(found.key_ids)
    return [*found.key_ids, *sorted(missing)]


def _show(found: Survey) -> None:
    shown = _json(found)
    names = sorted({name for one in shown["keys"] for name in one["sealed"]})
    rows = [
        [one["key_id"], one["place"] or "missing", *(one["sealed"].get(name, 0) for name in names), one["api_keys"]]
        for one in shown["keys"]
    ]
    give(table(["KEY", "PLACE", *(name.upper() for name in names), "API KEYS"], rows))
    for key_id in _all(found):
        if key_id not in found.key_ids:
            say(f"{key_id.hex()} is not configured: what is under it can't be opened, and those API keys don't hold.")
        elif key_id != found.key_ids[0] and not found.needs(key_id):
            say(f"Nothing needs {key_id.hex()} any more: take it out of the list, and restart.")
    idle = shown["idle_api_keys"]
    if idle:
        say(f"{len(idle)} API keys move on when they are used next. Until then, or until they are revoked")
        say("(hookwright key revoke KEY_ID), the older key must stay:")
        rows = [[one["key_id"], one["secret_key_id"], one["last_used_at"], one["name"]] for one in idle[:MOST_IDLE]]
        say(table(["API KEY", "UNDER", "LAST USED", "NAME"], rows))
        if len(idle) > MOST_IDLE:
            say(f"and {len(idle) - MOST_IDLE} more; --json lists all.")
