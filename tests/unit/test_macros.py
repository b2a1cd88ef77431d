"""What macros of templates/shared/ui.html decide by themselves."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from app.admin.visit import TEMPLATES, Visit

LIVE = '{% import "shared/ui.html" as ui with context %}<div {{ ui.live("part", 2) }}>'


@pytest.mark.parametrize(("method", "keeps_fresh"), [("GET", True), ("POST", False)])
def test_only_what_has_an_address_keeps_itself_fresh(method: str, keeps_fresh: bool) -> None:
    scope = {"type": "http", "method": method, "path": "/replays/1", "query_string": b"a=b&c=%22", "headers": []}
    text = TEMPLATES.from_string(LIVE).render(visit=Visit(Request(scope)))
    assert text.startswith('<div id="part"')
    assert ('hx-get="/replays/1?a=b&amp;c=%22" hx-trigger="every 2s, refresh"' in text) == keeps_fresh
    assert ("data-live" in text) == keeps_fresh
