"""The list of what entries of the audit log may say was done is the list of what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from app.routes import API
from core.audit import ACTIONS

ROOT = Path(__file__).parents[2]
WRITERS = {"record", "entry", "audit", "_changed"}
ACTION = re.compile(r"[a-z_]+\.[a-z_]+")


def strings(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def written() -> Iterator[str]:
    """What stands as an argument of whatever writes an entry, anything of that form in the actions, which hand it on to
    each other, and what a migration's trigger writes."""
    for package in ("app", "core", "worker", "cli"):
        for file in (ROOT / package).rglob("*.py"):
            tree = ast.parse(file.read_text("utf-8"))
            if file.parent.name == "actions":
                yield from strings(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in WRITERS:
                    for given in (*node.args, *(keyword.value for keyword in node.keywords)):
                        yield from strings(given)
    for file in (ROOT / "migrations").rglob("*.py"):
        yield from re.findall(r"'(audit_log\.[a-z]+)'", file.read_text("utf-8"))


def test_every_action_is_listed_and_every_one_listed_is_taken() -> None:
    declared = {action.audited for actions in API.values() for action in actions.values() if action.audited}
    found = {text for text in written() if ACTION.fullmatch(text)}
    assert found | declared == set(ACTIONS)
    assert list(ACTIONS) == sorted(set(ACTIONS)), "in the order of the alphabet, as the page offers them"
