"""What the head of every page leads to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from core.access.models import Role

LABELS = {
    "/": "Overview",
    "/deliveries": "Deliveries",
    "/dead-letters": "Dead letters",
    "/replays": "Replays",
    "/events": "Events",
    "/subscriptions": "Subscriptions",
    "/organizations": "Organizations",
    "/users": "Users",
    "/audit-log": "Audit log",
    "/settings": "Settings",
}


class Page(Protocol):
    @property
    def role(self) -> Role | None: ...


class Entry(NamedTuple):
    label: str
    path: str
    role: Role

    def leads_to(self, path: str) -> bool:
        """Whether `path` is its page, or one below."""
        return path == self.path or (self.path != "/" and path.startswith(f"{self.path}/"))


def over(pages: Mapping[str, Mapping[str, Page]]) -> list[Entry]:
    """The entries whose page there is, with the least role that may see it."""
    return [
        Entry(label, path, pages[path]["GET"].role or Role.VIEWER) for path, label in LABELS.items() if path in pages
    ]
