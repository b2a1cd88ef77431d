"""`hookwright audit`: the audit log, from the database directly."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from cli import target
from cli.options import DEFAULT_DATA_DIR, DataDir

app = typer.Typer(help="The audit log: who did what.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def audit() -> None:
    """The audit log: who did what."""


@app.command()
def export(
    org: Annotated[str | None, typer.Option(metavar="ORG", help="Only this organization's entries.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From then on, such as 2026-01-28T00:00:00Z.")
    ] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print the entries as JSON, one a line, the oldest first."""
    settings = target.settings(data_dir)
    from app.api import audit_log
    from app.api.lists import ListQuery
    from core import ids
    from core.storage.database import Database

    filters = {} if since is None else {"created_after": since}
    chosen = audit_log.walk(None if org is None else ids.parse(ids.ORGANIZATION, org), filters)
    query = ListQuery(audit_log.EXPORT_PAGE, descending=False, filters=filters, fields=(), include=frozenset())

    async def run() -> None:
        database = Database(settings.database_url, pool_size=2, name="hookwright-cli")
        try:
            pages = audit_log.lines(database, chosen, query)
            while True:
                with target.database_faults(settings.database_url):
                    lines = await anext(pages, None)
                if lines is None:
                    break
                sys.stdout.buffer.write(lines)
            sys.stdout.flush()
        finally:
            await database.close()

    asyncio.run(run())
