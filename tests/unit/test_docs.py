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


def test_each_test_that_the_security_table_names_is_there() -> None:
    """A defence whose test was renamed or removed would be a promise that nothing proves."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    named, gone = 0, []
    for row in (line for line in text.splitlines() if line.startswith("|")):
        source = ""
        for file, name in re.findall(r"`((?:[a-z]+/\w+\.py)?)(?:::(\w+))?`", row):
            source = (ROOT / "tests" / file).read_text("utf-8") if file else source
            named += bool(file or name)
            if name and f"def {name}(" not in source:
                gone.append(name)
    assert gone == []
    assert named > 60
