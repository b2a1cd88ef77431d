"""Pictures of every page, of a made-up installation: `python -m tests.browser.screens` puts them into docs/screens.

An admin opens each, at a desk and on a phone, in the light and in the dark. It must be answered with 200, may complain
of nothing on its console, and axe may find nothing that shuts somebody out.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from playwright.async_api import Page

from app.admin import cookies, single_sign_on
from app.routes import PAGES
from cli.embedded.postgres import ROLE
from core import ids
from core.access import sessions
from core.storage import schema
from core.storage.database import Database
from tests.browser import checks
from tests.browser.installation import HOSTS, Builder, Installation, surroundings
from tests.browser.site import Site, chromium_running, site
from tests.certificates import Certificates
from tests.platform import eventually
from tests.services import Services

FOLDER = Path(__file__).parents[2] / "docs/screens"
QUALITY = 40  # of a WebP, in percent
SIZES = {"desktop": (1280, 900, 1200), "phone": (checks.PHONE, 844, 1600)}  # width, height, and the tallest picture
TALLER = {"overview": 1600}  # where its chart is
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
Where = Callable[[Installation], str]

# By their path in `PAGES`: the pictures' names, and what is opened.
SCREENS: dict[str, dict[str, Where]] = {
    "/replays/{id}": {
        "replay": lambda it: f"/replays/{it.replays['running']}",
        "replay-done": lambda it: f"/replays/{it.replays['done']}",
    },
    "/": {
        "overview": lambda it: "/",
        "overview-organization": lambda it: f"/?organization={it.organizations['Northwind']}",
    },
    "/dead-letters": {"dead-letters": lambda it: "/dead-letters"},
    "/dead-letters/{subscription_id}/{error}": {
        "dead-letter-group": lambda it: f"/dead-letters/{it.subscriptions['failing']}/status"
    },
    "/replays": {"replays": lambda it: "/replays"},
    "/replays/new": {"replay-new": lambda it: f"/replays/new?status=dead&subscription={it.subscriptions['failing']}"},
    "/deliveries": {
        "deliveries": lambda it: "/deliveries",
        "deliveries-filtered": lambda it: "/deliveries?status=dead&error=status",
        "deliveries-no-match": lambda it: "/deliveries?status=dead&event_type=order.refunded",
    },
    "/deliveries/{id}": {
        "delivery": lambda it: f"/deliveries/{it.links['dead']}",
        "delivery-delivered": lambda it: f"/deliveries/{it.links['delivered']}",
        "delivery-waiting": lambda it: f"/deliveries/{it.links['waiting']}",
    },
    "/events": {"events": lambda it: "/events"},
    "/events/{id}": {
        "event": lambda it: f"/events/{it.events['first']}",
        "event-copied": lambda it: f"/events/{it.events['copied']}",
        "event-redacted": lambda it: f"/events/{it.events['redacted']}",
    },
    "/events/{id}/copy": {"event-copy": lambda it: f"/events/{it.events['first']}/copy"},
    "/subscriptions": {"subscriptions": lambda it: "/subscriptions"},
    "/subscriptions/{id}": {
        "subscription": lambda it: f"/subscriptions/{it.subscriptions['healthy']}",
        "subscription-failing": lambda it: f"/subscriptions/{it.subscriptions['failing']}",
        "subscription-disabled": lambda it: f"/subscriptions/{it.subscriptions['disabled']}",
    },
    "/subscriptions/new": {
        "subscription-new": lambda it: f"/subscriptions/new?organization={it.organizations['Globex']}"
    },
    "/subscriptions/{id}/edit": {"subscription-edit": lambda it: f"/subscriptions/{it.subscriptions['failing']}/edit"},
    "/subscriptions/{id}/delete": {
        "subscription-delete": lambda it: f"/subscriptions/{it.subscriptions['nowhere']}/delete"
    },
    "/organizations": {"organizations": lambda it: "/organizations"},
    "/organizations/new": {"organization-new": lambda it: "/organizations/new"},
    "/organizations/{id}": {"organization": lambda it: f"/organizations/{it.organizations['Acme Shop']}"},
    "/organizations/{id}/delete": {
        "organization-delete": lambda it: f"/organizations/{it.organizations['Globex']}/delete"
    },
    "/event-types": {"event-types": lambda it: f"/event-types?organization={it.organizations['Acme Shop']}"},
    "/event-types/new": {"event-type-new": lambda it: f"/event-types/new?organization={it.organizations['Acme Shop']}"},
    "/event-types/{organization}/{name}": {
        "event-type": lambda it: f"/event-types/{it.organizations['Acme Shop']}/order.paid"
    },
    "/api-keys": {"api-keys": lambda it: f"/api-keys?organization={it.organizations['Acme Shop']}"},
    "/api-keys/new": {"api-key-new": lambda it: f"/api-keys/new?organization={it.organizations['Acme Shop']}"},
    "/api-keys/{id}": {"api-key": lambda it: f"/api-keys/{it.api_key}"},
    "/users": {"users": lambda it: "/users"},
    "/users/{id}": {"user": lambda it: f"/users/{it.links['omar@example.com']}"},
    "/audit-log": {"audit-log": lambda it: "/audit-log"},
    "/audit-log/{id}": {"audit-entry": lambda it: f"/audit-log/{it.links['entry']}"},
    "/settings": {"settings": lambda it: "/settings"},
    "/go": {"go": lambda it: "/go?q=northwind"},
    "/account": {"account": lambda it: "/account"},
    "/sign-in": {"sign-in": lambda it: "/sign-in"},
    "/set-up/{token}": {"set-up": lambda it: it.set_up_link},
}
SIGNED_OUT = {"sign-in", "set-up"}
NO_PAGE = {
    single_sign_on.PATH: "leads to the identity provider",
    single_sign_on.CALLBACK_PATH: "comes from there",
    "/replays/time": "a part of the preview",
    "/deliveries/{id}/body": "a file",
    "/events/{id}/body": "a file",
}


def forgotten() -> set[str]:
    """Pages that have no picture."""
    return {path for path, pages in PAGES.items() if "GET" in pages} - set(SCREENS) - set(NO_PAGE)


async def take(s: Site, made: Installation, folder: Path) -> None:
    for signed_in in (True, False):
        page = await _browser(s, signed_in=signed_in)
        for name, where in [item for one in SCREENS.values() for item in one.items()]:
            if signed_in != (name in SIGNED_OUT):
                await _pictures(page, where(made), name, folder)
    assert s.said == [], "what pages have complained about"


async def _browser(s: Site, *, signed_in: bool) -> Page:
    context = await s.browser.new_context(base_url=s.url, reduced_motion="reduce")
    if signed_in:
        [ada] = await s.sql("SELECT id FROM users WHERE email = 'ada@example.com'")
        async with s.database.session() as session:
            _, token = await sessions.start(session, ada["id"], user_agent="Firefox on Linux")
        await context.add_cookies([{"name": cookies.SESSION, "value": token, "url": s.url}])
    page = await context.new_page()
    page.set_default_timeout(60_000)
    checks.listen(page, s.said)
    return page


async def _pictures(page: Page, path: str, name: str, folder: Path) -> None:
    answer = await page.goto(path)
    assert answer is not None
    assert answer.status == 200, f"{path}: {answer.status}"
    debugger = await page.context.new_cdp_session(page)
    for device, (width, height, tallest) in SIZES.items():
        await page.set_viewport_size({"width": width, "height": height})
        tall = int(await page.evaluate("document.documentElement.scrollHeight"))
        # What sticks to the window's end is at the picture's end.
        await page.set_viewport_size({"width": width, "height": min(tall, TALLER.get(name, tallest))})
        for theme in THEMES:
            await page.emulate_media(color_scheme=theme)
            # Playwright knows no WebP, which is half as large as a JPEG.
            taken = await debugger.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
            (folder / f"{name}-{device}-{theme}.webp").write_bytes(b64decode(taken["data"]))
    await checks.check(page)


async def _find(s: Site, made: Installation) -> None:
    """One of each that pages are shown of."""
    crm = ids.parse(ids.SUBSCRIPTION, made.subscriptions["failing"])
    for name, condition in (
        ("dead", "state = 'dead' AND attempt_count > 1 AND redacted_at IS NULL"),
        ("waiting", "state = 'pending' AND reason = 'breaker_open'"),
    ):
        made.links[name] = _delivery(await s.sql(_LATEST.format(condition), crm))
    shop = ids.parse(ids.SUBSCRIPTION, made.subscriptions["healthy"])
    made.links["delivered"] = _delivery(await s.sql(_LATEST.format("state = 'delivered'"), shop))
    [entry] = await s.sql("SELECT id FROM audit_log WHERE action = 'subscription.paused' ORDER BY id DESC LIMIT 1")
    made.links["entry"] = ids.show(ids.AUDIT_ENTRY, entry["id"])


_LATEST = "SELECT id FROM deliveries WHERE subscription_id = $1 AND {} ORDER BY id DESC LIMIT 1"


def _delivery(rows: list[Any]) -> str:
    [row] = rows
    found: UUID = row["id"]
    return ids.show(ids.DELIVERY, found)


async def _moves(s: Site, made: Installation) -> None:
    """Until the replay is well on its way."""
    replay = ids.parse(ids.REPLAY, made.replays["running"])

    async def some() -> bool:
        [row] = await s.sql("SELECT count(*) FROM deliveries WHERE replay_id = $1 AND state = 'delivered'", replay)
        return bool(row["count"] >= 60)

    await eventually(some, what="the replay's progress")


async def _run(owner_url: str, services: Services, folder: Path) -> None:
    database = Database(owner_url)
    await schema.migrate(database, ROLE)
    await database.close()
    with tempfile.TemporaryDirectory() as own:
        certificates = Certificates(Path(own))
        context = certificates.server_context(names=HOSTS)
        async with chromium_running() as chromium:
            with surroundings(context) as (receiver, clock):
                url = services.application_url(owner_url)
                async with site(
                    chromium, url, services.redis_url, with_worker=True, EGRESS_CA_FILE=certificates.ca_file
                ) as s:
                    made = await Builder(s, receiver, clock).build()
                    await _find(s, made)
                    await _moves(s, made)
                    await take(s, made, folder)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    assert not forgotten(), f"no picture of {forgotten()}"
    folder.mkdir(parents=True, exist_ok=True)
    services = Services()
    services.start()
    try:
        asyncio.run(_run(services.create_database(), services, folder))
    finally:
        services.stop()
    files = sorted(folder.glob("*.webp"))
    print(f"{len(files)} pictures, {sum(it.stat().st_size for it in files) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
