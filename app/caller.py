"""Who does something to what is stored: a program by way of the API, or a person by way of the pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol
from uuid import UUID

import structlog
from sqlmodel.ext.asyncio.session import AsyncSession

from app.services import Services
from core.audit import Actor

log = structlog.get_logger(__name__)

Work = Callable[[], Awaitable[Any]]


class Caller(Protocol):
    """What `app.actions` need of whoever calls them: `app.api.calls.Call` and `app.admin.visit.Visit` are such."""

    @property
    def services(self) -> Services: ...

    @property
    def actor(self) -> Actor:
        """Who it is, for the audit log."""

    def transaction(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Commits at the end of the block, unless it raises."""

    def audit(
        self,
        session: AsyncSession,
        action: str,
        resource: str,
        *,
        before: Mapping[str, Any] | None = None,
        after: Mapping[str, Any] | None = None,
        organization_id: UUID | None = None,
    ) -> None:
        """Says in the audit log what is done, in the transaction in which it is done (`core.audit.record`).
        `organization_id`: whose log it belongs to; an API call knows it by itself where it is one organization's."""

    def after_commit(self, work: Work) -> None:
        """Does `work` once all is committed and before the answer leaves. It may fail: a worker must be able to do it
        too."""

    def check_version(self, current: int) -> None:
        """Raises `Conflict` when the caller has seen another version than the current one."""


async def finish(works: list[Work], request_id: str) -> None:
    """What is left to do is left to workers if it fails here: the change is committed, and the answer says so."""
    for work in works:
        try:
            await work()
        except Exception as error:
            log.warning("a worker will finish what a call began", request_id=request_id, error=repr(error))
