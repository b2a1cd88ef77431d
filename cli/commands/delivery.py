"""`hookwright delivery`: deliveries and dead letters, through the HTTP API."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from cli.options import Json, Organization
from cli.output import give, give_json, rows, say

app = typer.Typer(help="Deliveries, dead letters among them.", no_args_is_help=True, rich_markup_mode=None)

PATH = "/v1/deliveries"
DeliveryId = Annotated[str, typer.Argument(metavar="ID", help="The delivery's id, dlv_…")]


@app.command(name="list")
def list_all(
    status: Annotated[str | None, typer.Option(help="pending, sending, delivered, dead or discarded.")] = None,
    event_type: Annotated[str | None, typer.Option(help="Only of this event type.")] = None,
    event: Annotated[str | None, typer.Option(help="Only of this event, evt_…")] = None,
    subscription: Annotated[str | None, typer.Option(help="Only to this subscription, sub_…")] = None,
    error: Annotated[str | None, typer.Option(help="Only with this last error, such as timeout.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 25,
    org: Organization = None,
    as_json: Json = False,
) -> None:
    """List deliveries, the newest first."""
    chosen = {
        "status": status,
        "event_type": event_type,
        "event_id": event,
        "subscription_id": subscription,
        "error": error,
    }
    filters = {f"filters[{name}]": value for name, value in chosen.items() if value is not None}
    from cli.api import Api

    with Api.from_environment(org) as api:
        found = api.items(PATH, filters, limit)
    if as_json:
        give_json(found)
    elif found:
        give(rows(found, "delivery_id", "status", "reason", "attempt_count", "error", "status_code", "event_type"))
    else:
        say("There is no such delivery.")


@app.command()
def show(delivery_id: DeliveryId, org: Organization = None, as_json: Json = False) -> None:
    """Show a delivery and its attempts."""
    from cli.api import Api

    with Api.from_environment(org) as api:
        found = api.get(_path(delivery_id))["data"]
    if as_json:
        give_json(found)
        return
    attempts = found.pop("attempts")
    width = max(len(name) for name in found)
    for name, value in found.items():
        if name != "id":  # the same as delivery_id
            give(f"{name:{width}}  {'-' if value is None else value}".replace("\n", " "))
    if attempts:
        give("")
        give(rows(attempts, "number", "started_at", "status", "status_code", "error", "duration_ms", "error_message"))


@app.command()
def replay(delivery_id: DeliveryId, org: Organization = None, as_json: Json = False) -> None:
    """Send a delivery again, with the same webhook-id; prints its id."""
    from cli.api import Api

    with Api.from_environment(org) as api:
        answer = api.post(f"{_path(delivery_id)}/replay")
    if as_json:
        give_json(answer["data"])
        return
    say(f"{answer['message']}.")
    give(answer["data"]["delivery_id"])


def _path(delivery_id: str) -> str:
    return f"{PATH}/{quote(delivery_id, safe='')}"
