"""What all pages are made of, in Chromium, on a page that has all of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import pytest
from playwright.async_api import Page, expect
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from app.admin import badges, wording
from app.admin.lists import ListPage
from app.admin.visit import TEMPLATES, Visit
from tests.browser.checks import check
from tests.browser.conftest import Play
from tests.browser.site import Site
from tests.platform import eventually

TRIAL = """
{% extends "shared/base.html" %}
{% import "shared/ui.html" as ui with context %}
{% import "shared/forms.html" as forms with context %}
{% block title %}Trial{% endblock %}
{% block width %}broad{% endblock %}
{% block content %}
<div class="top"><h1 id="trial-heading">Trial</h1>
  <div class="buttons"><a class="button" href="#away" data-key="e">Edit</a></div></div>
{{ ui.tabs('Views', [('Here', '/trial'), ('There', '/trial?there=1')], 'Here') }}
<div {{ ui.live('fresh', trial.every_s) }}>
  <dl class="stats">{{ ui.stat('Accepted', trial.count | number, 'in the last hour', 'good', '/trial') }}</dl>
  {% for noun, states in badges.items() %}
  <p>{% for state in states %}{{ ui.badge(noun, state) }} {% endfor %}</p>
  {% endfor %}
  <details id="more"><summary>More</summary><p>Hidden at first</p></details>
  <p>{{ ui.when(trial.moment) }}, {{ ui.countdown(trial.soon) }}</p>
  <table class="stack" role="table" aria-labelledby="trial-heading">
    {{ ui.heads(['Name', ('Count', 'figure')], ui.select_all('bulk')) }}
    <tbody>
    {% for row in trial.rows %}
    <tr role="row" data-row="{{ row }}">
      <td role="cell" class="pick">{{ ui.select('bulk', row, row) }}</td>
      <td role="cell" data-label="Name"><a href="#{{ row }}">{{ row }}</a></td>
      <td role="cell" data-label="Count" class="figure">{{ trial.count }}</td>
    </tr>
    {% endfor %}
    </tbody>
  </table>
</div>
<form id="bulk" class="bulk" method="post" action="/trial" data-confirm="Send them again?">
  {{ forms.token() }}
  {{ ui.selection('bulk', 12345) }}
  <button class="main" data-key="r" data-needs-selection>Replay</button>
</form>
{{ ui.paging(page) }}
{{ ui.code('dlv_1', 'Copy the id') }}
{{ ui.block('payload', '{"total": 1}', 'Copy the payload', 'Payload') }}
<pre><code>a
<del>b</del><ins>c</ins></code></pre>
{{ ui.progress(3, 10, 'Progress') }}
<ol class="timeline"><li class="good">Sent</li><li class="bad">Failed</li></ol>
{{ ui.nothing('Nothing yet', 'Send an event.', '/trial', 'Send one') }}
{{ ui.no_match('/trial') }}
{{ ui.problem('That went wrong') }}
{{ ui.done({'it': 'It is done'}) }}
<form class="panel" method="post" action="/trial">
  {{ forms.token() }}
  {{ forms.field('name', 'Name', {'name': ['Is needed']}) }}
  {{ forms.area('text', 'Text', {}, code=true, required=false) }}
  {{ forms.select('choice', 'Choice', {'a': 'A'}, {}, hint='One of them') }}
  {{ forms.check('agree', 'Agreed', {}) }}
  {{ ui.confirm_count(101, {}) }}
  <button>Send</button>
</form>
{% endblock %}
"""


@dataclass
class Trial:
    every_s: int = 1
    count: int = 1
    rows: list[str] = field(default_factory=lambda: ["one", "two", "three", "four"])
    moment: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(minutes=5))
    soon: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(hours=1, minutes=30))
    fails: bool = False
    has_ended: bool = False
    shown: int = 0
    sent: list[list[tuple[str, str]]] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        if request.method == "POST":
            self.sent.append(parse_qsl((await request.body()).decode()))
            return RedirectResponse("/trial?done=it", 303)
        self.shown += 1
        if self.fails:
            return Response(status_code=503)
        if self.has_ended:
            return RedirectResponse("/sign-in", 303)
        visit = Visit(request)
        await visit.find_session()
        page = ListPage(self.rows, "/trial?n", "/trial?b", "/trial?a", self.moment)
        template = TEMPLATES.from_string(TRIAL)
        return HTMLResponse(template.render(visit=visit, trial=self, page=page, badges=badges.BADGES))

    async def shows(self, more: int = 1) -> None:
        """Waits until the page has been asked for again."""
        before = self.shown

        async def asked() -> bool:
            return self.shown >= before + more

        await eventually(asked, what="another request")


def put_up(s: Site) -> Trial:
    trial = Trial()
    s.platform.app.router.routes.insert(0, Route("/trial", trial.answer, methods=["GET", "POST"]))
    return trial


async def focus_of(page: Page) -> Any:
    return await page.evaluate("document.activeElement.dataset.row ?? document.activeElement.id")


def test_all_that_pages_are_made_of_shuts_nobody_out(play: Play) -> None:
    async def scenario(s: Site) -> None:
        put_up(s)
        page = await s.enter("/trial?done=it")
        await expect(page.get_by_text("It is done")).to_be_visible()
        await expect(page.locator("dl.stats a")).to_have_text("1")
        await check(page)
        await page.get_by_role("heading", name="Trial").click()  # out of the field that is wrong
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
        await check(page)
        for path in ("/", "/account", "/users", "/audit-log", "/audit-log?actor=nobody", "/nothing"):
            await page.goto(path)
            await check(page)
        await page.evaluate("document.querySelector('h1').insertAdjacentHTML('afterend', '<button></button>')")
        with pytest.raises(AssertionError, match="button-name"):
            await check(page)

        await page.set_viewport_size({"width": 390, "height": 800})
        await page.goto("/users")
        pages = page.get_by_role("navigation", name="Pages", exact=True)
        await expect(pages).not_to_be_visible()
        await page.get_by_role("button", name="Menu").click()
        await pages.get_by_role("link", name="Audit log").click()
        await page.wait_for_url(f"{s.url}/audit-log")

    play(scenario)


def test_what_is_fresh_stays_as_it_was_left(play: Play) -> None:
    async def scenario(s: Site) -> None:
        trial = put_up(s)
        page = await s.enter("/trial")
        fresh = page.locator("dl.stats a")
        ago, runs_down = page.locator("#fresh relative-time"), page.locator("[data-countdown]")
        await expect(ago).to_have_attribute("title", wording.exact_time(trial.moment))
        assert await ago.evaluate("it => it.shadowRoot.textContent") == "5 minutes ago"
        await expect(runs_down).to_have_text(re.compile(r"in 1 h (29|30) min"))
        await page.get_by_text("More").click()
        await page.get_by_role("link", name="two").focus()
        trial.count = 2
        await expect(fresh).to_have_text("2")
        await expect(page.get_by_text("Hidden at first")).to_be_visible()
        await expect(page.get_by_role("link", name="two")).to_be_focused()
        await expect(runs_down).to_have_text(re.compile("in 1 h"))

        await page.get_by_text("More").focus()
        trial.count = 20
        await expect(fresh).to_have_text("20")
        await expect(page.get_by_text("More")).to_be_focused()

        kept = await page.locator("#fresh").element_handle()
        assert kept is not None
        await trial.shows(2)
        assert await kept.evaluate("it => it.isConnected"), "nothing is drawn anew that is the same"

        trial.fails, trial.count = True, 3
        await expect(page.locator("#trouble")).to_have_text("This could not be refreshed; trying again.")
        trial.fails = False
        await expect(fresh).to_have_text("3")
        await expect(page.locator("#trouble")).to_be_empty()

        # From here on only what says so asks again. While somebody chooses, nothing moves under their hands.
        trial.every_s = 3600
        await page.reload()
        ask = "document.querySelector('#fresh').dispatchEvent(new Event('refresh'))"
        shown = trial.shown
        await page.get_by_label("Select three").check()
        await page.evaluate(ask)
        await page.get_by_label("Select three").uncheck()
        await page.get_by_role("heading", name="Trial", exact=True).click()
        await page.keyboard.press("?")
        await page.evaluate(ask)
        await page.keyboard.press("Escape")
        # Nor is asked for what nobody sees.
        await page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        await page.evaluate(ask)
        assert trial.shown == shown
        trial.count = 4
        await page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        await expect(fresh).to_have_text("4")
        assert trial.shown == shown + 1

        trial.has_ended = True
        # What was drawn a moment ago may not listen yet: asked until it answers.
        ended = "document.querySelector('#trouble').textContent.includes('Your session has ended')"
        await page.wait_for_function(f"() => {{ {ask}; return {ended} }}", polling=200)
        await expect(fresh).to_have_text("4")
        assert await page.evaluate("localStorage.length") == 0
        assert await page.evaluate("Object.entries(sessionStorage)") == [["htmx-current-path-for-history", "/trial"]]
        [said] = s.said
        assert "503" in said
        s.said.clear()

    play(scenario)


def test_keys_selection_and_asking_first(play: Play) -> None:
    async def scenario(s: Site) -> None:
        trial = put_up(s)
        page = await s.enter("/trial")
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy the payload").click()
        await expect(page.get_by_role("button", name="Copied")).to_be_visible()
        assert await page.evaluate("navigator.clipboard.readText()") == '{"total": 1}'
        await page.evaluate("delete Navigator.prototype.clipboard")  # as over plain HTTP
        await page.get_by_role("button", name="Copy the id").click()
        await expect(page.get_by_role("button", name="Copied")).to_have_count(2)
        await page.get_by_label("Text").focus()
        await page.keyboard.press("Control+V")
        await expect(page.get_by_label("Text")).to_have_value("dlv_1")
        await page.keyboard.press("j")
        await expect(page.get_by_label("Text")).to_have_value("dlv_1j"), "letters are letters in a field"

        await page.get_by_role("heading", name="Trial", exact=True).click()
        await expect(page.get_by_role("button", name="Replay")).to_be_disabled()
        for key, row in (("j", "one"), ("j", "two"), ("j", "three"), ("k", "two")):
            await page.keyboard.press(key)
            assert await focus_of(page) == row
        await page.keyboard.press("Enter")
        assert page.url.endswith("#two")
        await page.keyboard.press("x")
        said, replay = page.locator("[data-selected]"), page.get_by_role("button", name="Replay")
        await expect(said).to_have_text("1 on this page selected.")
        await page.get_by_label("Select four").click(modifiers=["Shift"])
        await expect(said).to_have_text("3 on this page selected.")
        whole, every = page.get_by_label("Select all on this page"), page.get_by_label("Select all 12,345 that match")
        await expect(every).not_to_be_visible()
        await whole.check()
        await expect(said).to_have_text("4 on this page selected.")
        await every.check()
        await expect(said).to_have_text("All that match are selected.")
        await page.get_by_label("Select one").uncheck()
        await expect(every).not_to_be_checked()
        await whole.check()
        await every.check()

        dialog = page.get_by_role("dialog")
        await page.keyboard.press("r")
        await expect(dialog).to_contain_text("Send them again?")
        await dialog.get_by_role("button", name="Go back").click()
        await expect(dialog).not_to_be_visible()
        assert trial.sent == []
        await replay.click()
        await dialog.get_by_role("button", name="Replay").click()
        await page.wait_for_url(f"{s.url}/trial?done=it")
        [sent] = trial.sent
        assert [pair for pair in sent if pair[0] != "form_token"] == [
            *(("ids", row) for row in ("one", "two", "three", "four")),
            ("all_matching", "1"),
        ]

        await page.get_by_role("button", name="Keyboard").click()
        await page.get_by_label("These keys are on").uncheck()
        await page.reload()
        await page.get_by_role("heading", name="Trial", exact=True).click()
        await page.keyboard.press("?")
        await page.keyboard.press("j")
        await expect(dialog).not_to_be_visible()
        assert await focus_of(page) not in trial.rows

    play(scenario)
