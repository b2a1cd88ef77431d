"""From ids to pages."""

from __future__ import annotations

import pytest

from app.admin import links
from app.admin.links import link_of
from core import ids
from core.access.models import Role

PREFIXES = [value for value in vars(ids).values() if isinstance(value, str) and len(value) == 3]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_kind_of_id_leads_somewhere(prefix: str) -> None:
    shown = ids.show(prefix, ids.new_id())
    path = link_of(shown)
    assert path is not None
    assert path.endswith(shown)
    assert link_of(shown.replace(prefix, prefix.upper())) is None
    assert link_of(f"{prefix}_{shown[4:].lower()}") == path, "Crockford's base32 knows no case"


def test_the_kinds_of_ids_are_those_of_core() -> None:
    assert sorted(links.PREFIXES) == sorted(PREFIXES)
    assert len(PREFIXES) == 12


def test_a_page_that_would_be_refused_is_not_linked() -> None:
    user, event = ids.show(ids.USER, ids.new_id()), ids.show(ids.EVENT, ids.new_id())
    assert link_of(user, Role.OPERATOR) is None
    assert link_of(user, Role.ADMIN) == f"/users/{user}"
    assert link_of(event, Role.VIEWER) == f"/events/{event}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "worker",
        "command line",
        "_",
        "sub_",
        "sub_x",
        "sub_../../users",
        "javascript:alert(1)",
        "//evil",
        "evt_" + "U" * 26,
    ],
)
def test_what_is_no_id_leads_nowhere(text: str) -> None:
    assert link_of(text) is None
