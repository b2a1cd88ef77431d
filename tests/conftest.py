"""Real PostgreSQL and Valkey for the whole run; a fresh database, from a migrated template, for every test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis

from cli.embedded.postgres import ROLE
from core.storage import schema
from core.storage.database import Database
from tests.services import Services


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    services = Services()
    services.start()
    yield services
    services.stop()


@pytest.fixture(scope="session")
def template(services: Services) -> str:
    """The URL of a migrated database that nobody is connected to."""
    url = services.create_database()

    async def migrate() -> None:
        database = Database(url)
        await schema.migrate(database, ROLE)
        await database.close()

    asyncio.run(migrate())
    return url


@pytest.fixture
def owner_url(services: Services, template: str) -> Iterator[str]:
    """The database of `database_url`, for tests that change its schema."""
    url = services.create_database(template)
    yield url
    services.drop_database(url)


@pytest.fixture
def database_url(services: Services, owner_url: str) -> str:
    """By the application's role, so that every test shows that it may do what it needs."""
    return services.application_url(owner_url)


@pytest.fixture
def redis_url(services: Services) -> str:
    """An empty Valkey."""
    with redis.Redis.from_url(services.redis_url) as client:
        client.flushall()
    return services.redis_url
