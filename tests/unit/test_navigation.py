"""What the head of every page leads to."""

from __future__ import annotations

from app.admin import navigation
from app.admin.frame import Page
from app.routes import PAGES
from core.access.models import Role


def test_it_leads_to_the_pages_there_are_with_the_role_they_need() -> None:
    async def handler(_: object) -> None: ...

    shown = Page(handler, role=Role.OPERATOR)  # type: ignore[arg-type] # nobody calls it
    public = Page(handler, public="for anybody")  # type: ignore[arg-type]
    entries = navigation.over({"/replays": {"GET": shown}, "/nowhere": {"GET": shown}, "/": {"GET": public}})
    assert entries == [("Overview", "/", Role.VIEWER), ("Replays", "/replays", Role.OPERATOR)]


def test_of_our_own_pages_each_entry_is_one() -> None:
    assert {entry.path for entry in navigation.over(PAGES)} == set(navigation.LABELS) & set(PAGES)
    assert len(set(navigation.LABELS.values())) == len(navigation.LABELS)


def test_where_somebody_is() -> None:
    [start, replays] = [navigation.Entry("x", path, Role.VIEWER) for path in ("/", "/replays")]
    assert [start.leads_to(path) for path in ("/", "/replays")] == [True, False]
    assert [replays.leads_to(path) for path in ("/replays", "/replays/new", "/replays-old", "/")] == [
        True,
        True,
        False,
        False,
    ]
