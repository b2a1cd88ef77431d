"""Documents that list something list all of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from typer.main import get_command

from cli.main import app

ROOT = Path(__file__).parents[2]


def _names(command: Any, path: str) -> list[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        return [path]
    return [name for one, deeper in inner.items() for name in _names(deeper, f"{path} {one}")]


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    documented = set(re.findall(r"^\| `(hookwright [a-z -]+[a-z])", text, re.M))
    assert documented == set(_names(get_command(app), "hookwright"))


def test_links_between_documents_lead_somewhere() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken
