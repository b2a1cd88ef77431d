"""The start page: says what to do first, under the strict content policy, with nothing inline."""

from __future__ import annotations

import asyncio
import re

from tests.platform import platform


def test_the_start_page_shows_the_first_steps(database_url: str, redis_url: str) -> None:
    async def run() -> None:
        async with platform(database_url, redis_url, with_worker=False, PUBLIC_URL="https://hooks.test") as p:
            page = await p.client.get("/", headers={"X-API-Key": ""})
            assert page.status_code == 200
            assert "HOOKWRIGHT_URL=https://hooks.test" in page.text
            assert "default-src 'none'" in page.headers["content-security-policy"]
            assert not re.search(r"<script|<style|\bstyle=|\bon\w+=", page.text)
            [sheet] = re.findall(r'href="([^"]+\.css)"', page.text)
            assert (await p.client.get(sheet)).headers["content-type"].startswith("text/css")

    asyncio.run(run())
