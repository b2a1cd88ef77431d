"""The `hookwright` command: which commands there are. What each does is in `cli.commands`."""

from __future__ import annotations

import sys

import typer

from cli import failures
from cli.commands import audit, check, delivery, demo, event, key, keys, org, parts, receive, subscription, up, user

app = typer.Typer(
    name="hookwright",
    help="Outbound webhook delivery: every accepted event is delivered, or waits where a person can replay it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: readable everywhere, and nothing more to import
    pretty_exceptions_enable=False,  # they would show local variables, some of which are secrets
)

app.command()(up.up)
app.command()(demo.demo)
app.command()(receive.receive)
app.command()(parts.web)
app.command()(parts.worker)
app.command()(parts.migrate)
app.command()(check.check)
app.add_typer(org.app, name="org")
app.add_typer(key.app, name="key")
app.add_typer(keys.app, name="keys")
app.add_typer(user.app, name="user")
app.add_typer(audit.app, name="audit")
app.add_typer(event.app, name="event")
app.add_typer(subscription.app, name="subscription")
app.add_typer(delivery.app, name="delivery")


def main() -> None:
    """The entry point. Exit codes: 0 done, 1 it can't be done, 2 wrong arguments or settings."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback
    with failures.told():
        app(prog_name="hookwright")
