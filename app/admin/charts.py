"""Charts as SVG, drawn here and not in the browser: they need no script and no style beside the sheet's classes.

What a chart shows is always told in another way too: `sparkline` says its sums, and a page with `bars` puts a table
beside it. Text is never part of the picture, which is stretched to the width of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from markupsafe import Markup

from core.stats import Point

# What a bar is made of, from the ground up: the class, and what it is called.
PARTS = (("delivered", "delivered"), ("failed", "failed and tried again"), ("dead", "given up"))
LABELS = 4  # of the axis of time


def parts_of(point: Point) -> tuple[int, int, int]:
    """In the order of `PARTS`. The attempt that a delivery was given up after counts as that alone."""
    return point.delivered, max(0, point.failed - point.dead), point.dead


# --- sparkline: a word's height, for a line of a table ---

SPARK_STEP, SPARK_BAR, SPARK_HEIGHT = 4, 3, 24


def sparkline(points: Sequence[Point], what: str = "Last 24 hours") -> Markup:
    """A bar a point, each chart to its own scale; read out as sums."""
    delivered, again, dead = (sum(one) for one in zip(*map(parts_of, points), strict=True)) if points else (0, 0, 0)
    if not delivered + again + dead:
        return Markup('<span class="spark nothing">nothing sent</span>')
    label = f"{what}: {delivered:,} delivered, {again + dead:,} failed attempts"
    most = max(sum(parts_of(one)) for one in points)
    paths = {name: "" for name, _ in PARTS}
    for place, point in enumerate(points):
        ground = SPARK_HEIGHT
        for (name, _), count in zip(PARTS, parts_of(point), strict=True):
            if count:
                height = max(1, round(count * SPARK_HEIGHT / most))  # one failure among many is seen
                ground = max(0, ground - height)
                paths[name] += f"M{place * SPARK_STEP} {ground}h{SPARK_BAR}v{height}h-{SPARK_BAR}z"
    drawn = Markup("").join(
        Markup('<path class="{}" d="{}"/>').format(name, path) for name, path in paths.items() if path
    )
    width = len(points) * SPARK_STEP
    return Markup(
        '<svg class="spark" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">'
        "<title>{2}</title>{3}</svg>"
    ).format(width, SPARK_HEIGHT, label, drawn)


# --- bars: a chart for a page ---

BAR_STEP, BAR_WIDTH, BAR_HEIGHT = 10, 8, 100


def bars(points: Sequence[Point], label: str, form: str = "%H:%M") -> Markup:
    """A column a point, of `PARTS`, with what it is made of in its title; `form`: how times are written.

    Takes the width that it is given. Beside it stand the scale and some of the times, as text.
    """
    top = ceiling(max((sum(parts_of(one)) for one in points), default=0))
    columns = Markup("").join(_column(place, point, top, form) for place, point in enumerate(points))
    lines = Markup("").join(Markup('<path class="line" d="M0 {}H{}"/>').format(y, _width(points)) for y in (0, 50, 100))
    picture = Markup(
        '<svg class="bars" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
    ).format(_width(points), BAR_HEIGHT, label, lines, columns)
    scale = Markup("").join(Markup("<span>{:,}</span>").format(one) for one in (top, top // 2, 0))
    times = Markup("").join(
        Markup("<span>{}</span>").format(points[len(points) * n // LABELS].at.strftime(form))
        for n in range(LABELS)
        if len(points) >= LABELS
    )
    return Markup(
        '<div class="chart"><div class="scale" aria-hidden="true">{}</div>{}'
        '<div class="times" aria-hidden="true">{}</div></div>'
    ).format(scale, picture, times)


def legend() -> Markup:
    """What the colours of `bars` are, for below it."""
    key = Markup(
        '<svg class="key" width="12" height="12" aria-hidden="true"><rect class="{}" width="12" height="12"/></svg>'
    )
    entries = Markup("").join(Markup("<li>{} {}</li>").format(key.format(name), word) for name, word in PARTS)
    return Markup('<ul class="legend">{}</ul>').format(entries)


def ceiling(most: int) -> int:
    """An even, round number from `most` on, to be the top of a scale: 2, 4, 10, 20, 40, 100 … It halves well."""
    top = 2
    while top < most:
        top = top * 5 // 2 if str(top)[0] == "4" else top * 2
    return top


def _width(points: Sequence[Point]) -> int:
    return max(1, len(points)) * BAR_STEP


def _column(place: int, point: Point, top: int, form: str) -> Markup:
    """The title is of the whole column, however little of it is drawn."""
    left, ground = place * BAR_STEP + (BAR_STEP - BAR_WIDTH) // 2, float(BAR_HEIGHT)
    drawn = Markup("")
    for (name, _), count in zip(PARTS, parts_of(point), strict=True):
        if count:
            height = max(0.8, round(count * BAR_HEIGHT / top, 2))
            ground = max(0.0, round(ground - height, 2))
            drawn += Markup('<rect class="{}" x="{}" y="{:g}" width="{}" height="{:g}"/>').format(
                name, left, ground, BAR_WIDTH, height
            )
    return Markup('<g><title>{}</title><rect class="hit" x="{}" y="0" width="{}" height="{}"/>{}</g>').format(
        _told(point, point.at, form), place * BAR_STEP, BAR_STEP, BAR_HEIGHT, drawn
    )


def _told(point: Point, at: datetime, form: str) -> str:
    words = ", ".join(f"{count:,} {word}" for (_, word), count in zip(PARTS, parts_of(point), strict=True))
    return f"{at.strftime(form)} UTC: {words}"
