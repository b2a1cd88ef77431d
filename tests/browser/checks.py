"""What must hold on every page, whatever it shows."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import axe_playwright_python
from playwright.async_api import Page

PHONE = 390  # pixels
# WCAG 2.2, levels A and AA, and what axe's authors hold to be good practice besides.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Of these, what colours and a narrow page may break. The others look at the same elements again.
BY_LOOKS = ["color-contrast", "link-in-text-block", "scrollable-region-focusable", "target-size"]
_said: WeakKeyDictionary[Page, list[str]] = WeakKeyDictionary()


def listen(page: Page, said: list[str]) -> None:
    """Notes in `said` what the page complains about: faults of scripts, and what breaks the content policy."""

    def note(kind: str, text: str) -> None:
        # The browser says so of each page that we mean to answer with 400 or more.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource: the server responded with"):
            said.append(text)

    _said[page] = said
    page.on("pageerror", lambda error: note("error", str(error)))
    page.on("console", lambda message: note(message.type, message.text))


async def check(page: Page) -> None:
    """Fails where anybody would be shut out: axe finds a violation, in the light or in the dark, at a desk or on a
    phone; the page is wider than a phone; or it has complained."""
    before = page.viewport_size
    found = await _violations(page, RULES)
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size({"width": PHONE, "height": 800})
    found += await _violations(page, {"type": "rule", "values": BY_LOOKS})
    width = await page.evaluate("document.documentElement.scrollWidth")
    await page.emulate_media(color_scheme="null")
    if before is not None:
        await page.set_viewport_size(before)
    assert not found, f"{page.url}:\n" + "\n".join(found)
    assert width <= PHONE, f"{page.url} is {width} pixels wide on a phone"
    assert _said[page] == [], f"{page.url} has complained"


async def _violations(page: Page, rules: Any) -> list[str]:
    # The debugger's protocol puts it there, beside our content policy, which lets in no script by the page itself.
    if not await page.evaluate("'axe' in window"):
        await page.evaluate(_axe())
    found = await page.evaluate("options => axe.run(options)", {"runOnly": rules, "resultTypes": ["violations"]})
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


@cache
def _axe() -> str:
    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")
