from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.fleet import Fleet
from tests.faults.parts import Parts
from tests.receiver import Receiver

SEEDS = [int(word) for word in os.environ.get("FAULT_SEEDS", "1").split(",")]

Scenario = Callable[[Fleet], Awaitable[None]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", SEEDS)


@pytest.fixture(scope="session")
def parts() -> Iterator[Parts]:
    parts = Parts()
    asyncio.run(parts.start())
    yield parts
    asyncio.run(parts.stop())


@pytest.fixture
def play(parts: Parts, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Runs a scenario on a fleet of its own; when it fails, shows what the processes said."""
    seed = request.getfixturevalue("seed") if "seed" in request.fixturenames else 1

    async def run(scenario: Scenario) -> None:
        database_url = await parts.fresh()
        with Receiver() as receiver:
            fleet = Fleet(parts, database_url, receiver, tmp_path, seed)
            try:
                await scenario(fleet)
            except BaseException:
                print(fleet.logs())
                raise
            finally:
                await fleet.end()
                await parts.drop(database_url)

    return lambda scenario: asyncio.run(run(scenario))
