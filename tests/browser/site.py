"""A real web process, a real Chromium in front of it, and a page of somebody else's beside it."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright

from cli.process import Command, Process, log_tail
from cli.supervisor.ports import free_port, why_not_200
from core.database import Database
from tests.commands import HOOKWRIGHT, clean_env
from tests.platform import environment, eventually

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The system's own browser. Without one these tests can't say anything, so they fail."""
    found = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if found is None:
        pytest.fail("The browser tests need Chromium; on Debian and Ubuntu: apt-get install chromium", pytrace=False)
    return found


@dataclass
class Site:
    url: str
    database: Database
    browser: Browser
    said: list[str] = field(default_factory=list)  # what pages have complained about on their console

    async def sql(self, statement: str, *values: Any) -> list[Any]:
        async with self.database.driver() as driver:
            rows: list[Any] = await driver.fetch(statement, *values)
            return rows

    async def forget(self) -> None:
        """Makes it as new."""
        self.said.clear()
        for table in ("user_sessions", "sign_in_links", "sign_in_failures", "oidc_sign_ins", "users"):
            await self.sql(f"DELETE FROM {table}")

    async def close_pages(self) -> None:
        for context in self.browser.contexts:
            await context.close()

    async def open(self, path: str = "/") -> Page:
        """A page in a browser profile of its own, without any cookie."""
        context = await self.browser.new_context(base_url=self.url)
        page = await context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("console", lambda message: self._note(message.type, message.text))
        await page.goto(path)
        return page

    def _note(self, kind: str, text: str) -> None:
        # The browser says so of each page that we mean to answer with 400 or more.
        if kind in ("error", "warning") and not text.startswith("Failed to load resource: the server responded with"):
            self.said.append(text)


@asynccontextmanager
async def site(database_url: str, redis_url: str, folder: Path, **settings: str) -> AsyncIterator[Site]:
    """`hookwright web` as a process of its own; `settings` by their names without the prefix."""
    port = free_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    env = clean_env(environment(database_url, redis_url, PUBLIC_URL=url, **settings))
    argv = (*HOOKWRIGHT, "web", "--port", str(port))
    process = Process.spawn(Command("web", argv, env=env, log=folder / "web.log"))
    database = Database(database_url, pool_size=2)
    try:

        async def answers() -> bool:
            assert process.exit_code is None, log_tail(folder / "web.log")
            return await why_not_200("127.0.0.1", port, "/healthz") is None

        await eventually(answers, 30, "the web process")
        async with async_playwright() as playwright:
            # --no-sandbox: as root, as in most containers, Chromium does not start with it.
            browser = await playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            yield Site(url, database, browser)
            await browser.close()
    finally:
        await database.close()
        process.kill()
        await asyncio.shield(process.wait())


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
