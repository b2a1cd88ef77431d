"""The whole platform in this process, served on loopback; a real Chromium in front of it, and a page of somebody else's
beside it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from app.admin import cookies
from cli.serving import serve
from core.access import sessions
from core.access.models import Role
from core.storage.database import Database
from tests.browser import checks
from tests.pages import make_user
from tests.platform import Platform, platform

# Figures are stored each 3 s and pages ask anew each 5 s: the 5 s that `expect` waits by default are too few.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The system's own browser. Without one these tests can't say anything, so they fail."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("The browser tests need Chromium; on Debian and Ubuntu: apt-get install chromium", pytrace=False)
    return found


@asynccontextmanager
async def chromium_running() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        # --no-sandbox: as root, as in most containers, Chromium does not start with it.
        browser = await playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        await browser.close()


@dataclass
class Site:
    url: str
    platform: Platform
    browser: Browser
    said: list[str] = field(default_factory=list)  # what pages have complained about on their console

    @property
    def database(self) -> Database:
        return self.platform.database

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        return await self.platform.sql(statement, *values)

    async def open(self, path: str = "/") -> Page:
        """A page in a browser profile of its own, without any cookie."""
        return await self._open(path)

    async def enter(self, path: str = "/", role: Role = Role.ADMIN, email: str = "") -> Page:
        """The same, where a new user with this role has signed in already."""
        user_id = await make_user(self, email or f"{role}@example.com", role, password=None)
        async with self.database.session() as session:
            _, token = await sessions.start(session, user_id)
        return await self._open(path, {"name": cookies.SESSION, "value": token, "url": self.url})

    async def _open(self, path: str, *cookies: Any) -> Page:
        context = await self.browser.new_context(base_url=self.url)
        await context.add_cookies([*cookies])
        page = await context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        checks.listen(page, self.said)
        await page.goto(path)
        return page


@asynccontextmanager
async def site(
    browser: Browser, database_url: str, redis_url: str, *, with_worker: bool = False, **settings: str
) -> AsyncIterator[Site]:
    """A platform of its own; `settings` by their names without the prefix."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with platform(database_url, redis_url, with_worker=with_worker, PUBLIC_URL=url, **settings) as p:
            server = serve(p.app, log_config=None)
            server.config.lifespan = "off"  # the platform has begun it
            # As `serve`, which would take the signals of the tests.
            run = asyncio.create_task(server._serve([listener]))
            try:
                yield Site(url, p, browser)
            finally:
                for context in browser.contexts:
                    await context.close()
                server.should_exit = True
                await run


@contextmanager
def somebody_elses_page(html: str) -> Iterator[int]:
    """Serves one page on another port of loopback; which."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(html.encode() if self.path == "/" else b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
