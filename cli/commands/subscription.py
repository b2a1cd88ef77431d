"""`hookwright subscription`: subscriptions, through the HTTP API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.options import Json, Organization, read_secret, words
from cli.output import give, give_json, rows, say

app = typer.Typer(help="Subscriptions: who gets which events.", no_args_is_help=True, rich_markup_mode=None)

PATH = "/v1/webhooks/subscriptions"


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where its events are sent.")],
    events: Annotated[str, typer.Option(help="Comma-separated types or patterns, such as order.*")],
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET|@FILE|-",
            help="A signing secret of your own; one is made otherwise. - reads standard input: other users of this "
            "machine can see a secret that stands in the command itself.",
        ),
    ] = None,
    auth_type: Annotated[str | None, typer.Option(help="A further signature scheme, such as hmac_sha256.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Attempts before a delivery is a dead letter.")] = None,
    description: Annotated[str | None, typer.Option(help="What people call it.")] = None,
    org: Organization = None,
    as_json: Json = False,
) -> None:
    """Make a subscription; prints its id, and its signing secret on standard error."""
    body: dict[str, Any] = {"url": url, "events": words(events)}
    authentication = {"type": auth_type, "secret": read_secret(secret)}
    if chosen := {name: value for name, value in authentication.items() if value is not None}:
        body["authentication"] = chosen
    if max_attempts is not None:
        body["retry_policy"] = {"max_attempts": max_attempts}
    if description is not None:
        body["description"] = description
    from cli.api import Api

    with Api.from_environment(org) as api:
        made = api.post(PATH, body)["data"]
    if as_json:
        give_json(made)
        return
    say(f"Its signing secret, which the receiver needs: {made['secret_key']}")
    give(made["subscription_id"])


@app.command(name="list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest first.")] = 100,
    org: Organization = None,
    as_json: Json = False,
) -> None:
    """List the subscriptions, the newest first."""
    from cli.api import Api

    with Api.from_environment(org) as api:
        found = api.items(PATH, {}, limit)
    if as_json:
        give_json(found)
    elif found:
        give(rows(found, "subscription_id", "status", "webhook_url", "events", "description"))
    else:
        say("There is no subscription.")
