"""Charts: what is drawn adds up, is told in words too, and needs no style of its own."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from app.admin import charts
from core.stats import Point

NOON = datetime(2026, 1, 28, 12, tzinfo=UTC)


def points(*counts: tuple[int, int, int]) -> list[Point]:
    return [Point(NOON + n * timedelta(hours=1), *one) for n, one in enumerate(counts)]


def test_a_sparkline_says_its_sums_and_draws_a_bar_a_point() -> None:
    drawn = charts.sparkline(points((90, 0, 0), (0, 0, 0), (30, 30, 10)), "Yesterday")
    svg = ElementTree.fromstring(drawn)  # noqa: S314 - drawn here
    assert (svg.attrib["role"], svg.attrib["aria-label"]) == ("img", "Yesterday: 120 delivered, 30 failed attempts")
    shapes = {one.attrib["class"]: one.attrib["d"] for one in svg if "class" in one.attrib}
    assert shapes == {
        "delivered": "M0 0h3v24h-3zM8 16h3v8h-3z",  # the highest bar takes the whole height
        "failed": "M8 11h3v5h-3z",
        "dead": "M8 8h3v3h-3z",
    }


def test_one_failure_among_a_million_is_seen() -> None:
    assert 'class="dead" d="M0 0h3v1h-3z"' in charts.sparkline(points((1_000_000, 1, 1)))


@pytest.mark.parametrize("nothing", [[], points((0, 0, 0), (0, 0, 0))])
def test_nothing_sent_is_said(nothing: list[Point]) -> None:
    assert charts.sparkline(nothing) == '<span class="spark nothing">nothing sent</span>'


def test_bars_are_columns_with_titles_on_a_scale_beside() -> None:
    drawn = charts.bars(points((30, 10, 5), (0, 0, 0), (0, 0, 7), (1, 2, 0)), 'By <the> "hour"')
    root = ElementTree.fromstring(drawn)  # noqa: S314 - drawn here
    svg = root.find("svg")
    assert svg is not None
    assert svg.attrib["aria-label"] == 'By <the> "hour"'
    columns = svg.findall("g")
    assert [one.findtext("title") for one in columns] == [
        "12:00 UTC: 30 delivered, 5 failed and tried again, 5 given up",
        "13:00 UTC: 0 delivered, 0 failed and tried again, 0 given up",
        "14:00 UTC: 0 delivered, 0 failed and tried again, 7 given up",  # untried: its subscription was disabled
        "15:00 UTC: 1 delivered, 2 failed and tried again, 0 given up",
    ]
    first = [(one.attrib["class"], one.attrib["y"], one.attrib["height"]) for one in columns[0].findall("rect")]
    assert first == [("hit", "0", "100"), ("delivered", "25", "75"), ("failed", "12.5", "12.5"), ("dead", "0", "12.5")]
    scale, times = root.findall("div")
    assert ["".join(one.itertext()) for one in scale] == ["40", "20", "0"]
    assert ["".join(one.itertext()) for one in times] == ["12:00", "13:00", "14:00", "15:00"]
    assert not re.search(r"style=|<script|\son\w+=", drawn)


def test_bars_of_nothing_are_an_empty_chart() -> None:
    for nothing in ([], points((0, 0, 0))):
        assert "NaN" not in charts.bars(nothing, "Nothing")


def test_the_top_of_a_scale_is_round_and_just_above() -> None:
    for most in (0, 1, 2, 3, 9, 39, 40, 41, 999, 1_000_000, 123_456_789):
        top = charts.ceiling(most)
        assert top >= most
        assert top <= max(2, most * 2.5)
        assert top % 2 == 0
        assert re.fullmatch(r"[124]0*", str(top)), top


def test_the_legend_names_every_part() -> None:
    for name, word in charts.PARTS:
        assert f'class="{name}"' in charts.legend()
        assert word in charts.legend()
