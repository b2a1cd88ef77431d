"""One web process and one Chromium for the whole run: to start them takes longer than most of these tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from tests.browser.site import Site, site
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider, identity_provider
from tests.services import Services

Scenario = Callable[[Site], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture(scope="session")
def idp() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


@pytest.fixture(scope="session")
def running(
    services: Services, template: str, idp: IdentityProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[asyncio.Runner, Site]]:
    url = services.create_database(template)
    stack = AsyncExitStack()
    provider = {"OIDC_ISSUER": idp.issuer, "OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET": CLIENT_SECRET}
    opened = site(url, services.redis_url, tmp_path_factory.mktemp("web"), **provider)
    with asyncio.Runner() as runner:
        try:
            yield runner, runner.run(stack.enter_async_context(opened))
        finally:
            runner.run(stack.aclose())
    services.drop_database(url)


@pytest.fixture
def play(running: tuple[asyncio.Runner, Site]) -> Iterator[Play]:
    """Runs a scenario on the site, where nobody has been before. Fails if a page has complained on its console."""
    runner, opened = running
    runner.run(opened.forget())
    yield lambda scenario: runner.run(_play(opened, scenario))
    runner.run(opened.close_pages())


async def _play(opened: Site, scenario: Scenario) -> None:
    await scenario(opened)
    assert opened.said == [], "what pages have complained about"
