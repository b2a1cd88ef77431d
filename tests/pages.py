"""What the tests of the pages share: users, and a browser that keeps cookies and fills in the forms it was shown."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID

import httpx
from starlette.applications import Starlette

from core import ids
from core.access import passwords, users
from core.access.models import Role
from core.audit import COMMAND_LINE
from core.storage.database import Database
from tests.platform import Platform

ORIGIN = "http://127.0.0.1:8000"  # the default public URL
PASSWORD, WRONG = "a horse in the rain", "not that horse at all"
SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin", "Accept": "text/html"}
_hashes: dict[str, str] = {}


def form_token_in(page: str) -> str:
    found = re.search(r'name="form_token" value="([0-9a-f]{64})"', page)
    return found[1] if found else ""


class Visitor:
    """A browser as far as the server sees one."""

    def __init__(self, app: Starlette, address: str = "203.0.113.7", origin: str = ORIGIN) -> None:
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(address, 40_000)), base_url=origin, headers=SAME_ORIGIN
        )
        self.page = httpx.Response(200)

    async def get(self, path: str, **headers: str) -> httpx.Response:
        self.page = await self.client.get(path, headers=headers)
        return self.page

    @property
    def form_token(self) -> str:
        """Of the page that it was shown last."""
        return form_token_in(self.page.text)

    async def post(self, path: str, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
        """Sends a form of the page that it was shown last."""
        data = {"form_token": self.form_token, **fields}
        answer = await self.client.post(path, data=data, headers=headers)
        if not answer.is_redirect:
            self.page = answer
        return answer

    async def sign_in(self, email: str, password: str = PASSWORD, to: str = "/") -> httpx.Response:
        await self.get("/sign-in")
        return await self.post("/sign-in", email=email, password=password, next=to)

    def plant(self, name: str, value: str) -> None:
        """Puts a cookie into it, in place of the server's."""
        self.client.cookies.set(name, value, domain=self.client.base_url.host, path="/")

    @property
    def session_cookie(self) -> str | None:
        return self.client.cookies.get("hookwright_session")


class HasDatabase(Protocol):
    """A platform, in this process or another."""

    @property
    def database(self) -> Database: ...


async def make_user(
    p: HasDatabase, email: str, role: Role = Role.VIEWER, password: str | None = PASSWORD, *, disabled: bool = False
) -> UUID:
    """A user who has chosen a password already."""
    if password is not None and password not in _hashes:
        _hashes[password] = await passwords.hash_of(password)
    async with p.database.session() as session:
        user = await users.create(session, COMMAND_LINE, email=email, role=role)
        user.password_hash = None if password is None else _hashes[password]
        user.disabled_at = datetime.now(UTC) if disabled else None
        session.add(user)
    return user.id


@asynccontextmanager
async def signed_in(p: Platform, email: str, role: Role | None = None) -> AsyncIterator[Visitor]:
    """A browser signed in as this user, who is made where a role is given."""
    if role is not None:
        await make_user(p, email, role)
    visitor = Visitor(p.app)
    async with visitor.client:
        assert (await visitor.sign_in(email)).status_code == 303
        yield visitor


async def audited(p: Platform, *actions: str) -> list[tuple[str, str, str, str | None]]:
    """Action, actor, resource and address of the audit log's entries, in order; of these actions alone, if any."""
    rows = await p.sql("SELECT action, actor, resource, address FROM audit_log ORDER BY id")
    return [tuple(row) for row in rows if not actions or row["action"] in actions]


def shown(user_id: UUID) -> str:
    return ids.show(ids.USER, user_id)


async def everything(p: Platform, *tables: str) -> Any:
    """All that is stored about access."""
    names = tables or ("users", "user_sessions", "sign_in_links", "audit_log")
    return {name: [tuple(row) for row in await p.sql(f"SELECT * FROM {name} ORDER BY 1")] for name in names}
