"""`hookwright event`: events, through the HTTP API."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli.options import Json, Organization, read_given
from cli.output import give, give_json, say

app = typer.Typer(help="Events.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def group() -> None:
    """With a callback, a group of one command stays a group."""


@app.command()
def send(
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="Such as order.paid.")],
    data: Annotated[str, typer.Option(metavar="JSON|@FILE|-", help="The event's data; - reads standard input.")],
    event_id: Annotated[str | None, typer.Option(help="Your own id: a second event with it is the same one.")] = None,
    branch: Annotated[str | None, typer.Option(help="The branch that it belongs to.")] = None,
    org: Organization = None,
    as_json: Json = False,
) -> None:
    """Send an event; prints its id once it is accepted."""
    body = _body({"event_type": event_type, "event_id": event_id, "branch_id": branch}, _read(data))
    from cli.api import Api

    with Api.from_environment(org) as api:
        answer = api.post("/v1/events", body)
    made = answer["data"]
    if as_json:
        give_json(made)
        return
    again = " before; this is the same event" if answer["meta"].get("idempotent") else ""
    say(f"Accepted{again}; {made['matched_subscriptions']} subscriptions match.")
    give(made["event_id"])


def _read(given: str) -> str:
    """The JSON text that `--data` means, checked but otherwise as it was written."""
    text = read_given(given, "--data")
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--data") from error
    return text


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _body(envelope: dict[str, str | None], data: str) -> bytes:
    """The request's bytes. The data goes in as it was written: the platform judges it, not this command."""
    given = {name: value for name, value in envelope.items() if value is not None}
    return f'{json.dumps(given)[:-1]}, "data": {data.strip()}}}'.encode()
