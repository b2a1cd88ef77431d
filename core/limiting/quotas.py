"""How much of a kind one organization may have, so that no tenant fills the database or slows what others share.

The count and what is added after it stand in one transaction that holds the organization's row: of two that add at the
same moment, the second counts the first. Counting reads an index, and no more of it than the quota.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core.errors import Conflict
from core.models import Organization

MAX_API_KEYS = 1_000  # that are not revoked
MAX_EVENT_TYPES = 2_000


async def check_room(
    session: AsyncSession,
    organization_id: UUID,
    model: Any,
    *conditions: ColumnElement[bool],
    most: int,
    advice: str,
) -> None:
    """Raises `Conflict` when the organization has `most` of `model` already, as far as `conditions` hold. Until the
    transaction ends nobody else adds to the organization. `advice` says what to do then."""
    # Foreign keys may still refer to it meanwhile.
    await session.exec(
        select(Organization.id).where(Organization.id == organization_id).with_for_update(key_share=True)
    )
    found = select(literal(1)).select_from(model).where(col(model.organization_id) == organization_id, *conditions)
    count = (await session.exec(select(func.count()).select_from(found.limit(most).subquery()))).one()
    if count >= most:
        raise Conflict(
            f"The organization has {most} of these already, which is the most; {advice}", details={"most": most}
        )
