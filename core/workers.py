"""Which workers are alive: each says so in the database every few seconds (`worker.membership`)."""

from __future__ import annotations

from typing import Any, Final

GONE_AFTER_S: Final = 10.0


async def alive(driver: Any) -> int:
    """How many workers have said so lately."""
    count: int = await driver.fetchval(_ALIVE, GONE_AFTER_S)
    return count


_ALIVE = "SELECT count(*) FROM workers WHERE seen_at > now() - make_interval(secs => $1::float8)"
