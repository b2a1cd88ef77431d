"""Charts as SVG, drawn here and not in the browser: they need no script and no style beside the sheet's classes.

What a chart shows is always told in another way too: `sparkline` says its sums, and a page with `bars` puts a table
beside it. Text is never part of the picture, which is stretched to the width of the page.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

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
    drawn = "".join(f'<path class="{name}" d="{path}"/>' for name, path in paths.items() if path)
    width = len(points) * SPARK_STEP
    return _markup(
        f'<svg class="spark" width="{width}" height="{SPARK_HEIGHT}" viewBox="0 0 {width} {SPARK_HEIGHT}" role="img"'
        f' aria-label="{escape(label)}"><title>{escape(label)}</title>{drawn}</svg>'
    )


# --- bars: a chart for a page ---

BAR_STEP, BAR_WIDTH, BAR_HEIGHT = 10, 8, 100


def bars(points: Sequence[Point], label: str, form: str = "%H:%M") -> Markup:
    """A column a point, of `PARTS`, with what it is made of in its title; `form`: how times are written.

    Takes the width that it is given. Beside it stand the scale and some of the times, as text.
    """
    top = ceiling(max((sum(parts_of(one)) for one in points), default=0))
    width = max(1, len(points)) * BAR_STEP
    columns = "".join(_column(place, point, top, form) for place, point in enumerate(points))
    lines = "".join(f'<path class="line" d="M0 {y}H{width}"/>' for y in (0, 50, 100))
    scale = "".join(f"<span>{one:,}</span>" for one in (top, top // 2, 0))
    labelled = [points[len(points) * n // LABELS] for n in range(LABELS)] if len(points) >= LABELS else []
    times = "".join(f"<span>{escape(one.at.strftime(form))}</span>" for one in labelled)
    return _markup(
        f'<div class="chart"><div class="scale" aria-hidden="true">{scale}</div>'
        f'<svg class="bars" viewBox="0 0 {width} {BAR_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(label)}">{lines}{columns}</svg>'
        f'<div class="times" aria-hidden="true">{times}</div></div>'
    )


def legend() -> Markup:
    """What the colours of `bars` are, for below it."""
    entries = "".join(
        f'<li><svg class="key" width="12" height="12" aria-hidden="true"><rect class="{name}" width="12" height="12"/>'
        f"</svg> {word}</li>"
        for name, word in PARTS
    )
    return _markup(f'<ul class="legend">{entries}</ul>')


def ceiling(most: int) -> int:
    """An even, round number from `most` on, to be the top of a scale: 2, 4, 10, 20, 40, 100 … It halves well."""
    top = 2
    while top < most:
        top = top * 5 // 2 if str(top)[0] == "4" else top * 2
    return top


def _column(place: int, point: Point, top: int, form: str) -> str:
    """The title is of the whole column, however little of it is drawn."""
    parts = parts_of(point)
    left, ground = place * BAR_STEP, float(BAR_HEIGHT)
    drawn = ""
    for (name, _), count in zip(PARTS, parts, strict=True):
        if count:
            height = max(0.8, round(count * BAR_HEIGHT / top, 2))
            ground = max(0.0, round(ground - height, 2))
            x = left + (BAR_STEP - BAR_WIDTH) // 2
            drawn += f'<rect class="{name}" x="{x}" y="{ground:g}" width="{BAR_WIDTH}" height="{height:g}"/>'
    told = ", ".join(f"{count:,} {word}" for (_, word), count in zip(PARTS, parts, strict=True))
    return (
        f"<g><title>{escape(point.at.strftime(form))} UTC: {told}</title>"
        f'<rect class="hit" x="{left}" y="0" width="{BAR_STEP}" height="{BAR_HEIGHT}"/>{drawn}</g>'
    )


def _markup(drawn: str) -> Markup:
    """What is drawn here is of numbers and of our own words; text that a caller gives is escaped where it is put in.
    `Markup.format` would do so for each number, which takes ten times as long as all the rest."""
    return Markup(drawn)  # nosec B704 # noqa: S704 - see above
