"""One Chromium for the whole run, since to start it takes longer than most of these tests; a platform for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Protocol

import pytest
from playwright.async_api import Browser

from tests.browser.site import Site, chromium_running, site
from tests.identity_provider import IdentityProvider, identity_provider
from tests.receiver import Receiver

Scenario = Callable[[Site], Awaitable[None]]


class Play(Protocol):
    """Runs a scenario on a platform of its own, `settings` by their names without the prefix. Fails if a page has
    complained on its console."""

    def __call__(self, scenario: Scenario, *, with_worker: bool = False, **settings: str) -> None: ...


@pytest.fixture(scope="session")
def running() -> Iterator[tuple[asyncio.Runner, Browser]]:
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        try:
            yield runner, runner.run(stack.enter_async_context(chromium_running()))
        finally:
            runner.run(stack.aclose())


@pytest.fixture
def play(running: tuple[asyncio.Runner, Browser], database_url: str, redis_url: str) -> Play:
    runner, browser = running

    async def main(scenario: Scenario, with_worker: bool, settings: dict[str, str]) -> None:
        async with site(browser, database_url, redis_url, with_worker=with_worker, **settings) as opened:
            await scenario(opened)
            assert opened.said == [], "what pages have complained about"

    def run(scenario: Scenario, *, with_worker: bool = False, **settings: str) -> None:
        runner.run(main(scenario, with_worker, settings))

    return run


@pytest.fixture
def idp() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """It behaves as each path says: `receiver.url("/ok")`, `receiver.url("/status/503")`; `tests.receiver` has all."""
    with Receiver() as receiver:
        yield receiver
