"""What commands print: results on standard output, everything else on standard error.

Names, messages and bodies come from other people. In tables and messages their control characters are replaced, so
that none of them can steer a terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer


def give(text: str) -> None:
    """A line of the result, written out at once."""
    typer.echo(clean(text))


def give_json(value: Any) -> None:
    """The result for machines. ASCII only, so it needs no cleaning."""
    typer.echo(json.dumps(value, indent=2, default=str))


def say(text: str) -> None:
    """A line for the person in front of the terminal."""
    typer.echo(clean(text), err=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest value, two spaces between them; None is shown as `-`."""
    lines = [list(headings), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def rows(items: Sequence[Mapping[str, Any]], *fields: str) -> str:
    """A table of some fields of the API's items."""
    return table([field.upper() for field in fields], [[item.get(field) for field in fields] for item in items])


def clean(text: str) -> str:
    """`text` with every control character but the line feed replaced."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _cell(value: object) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(str(one) for one in value) or "-"
    return str(value).replace("\n", " ")
