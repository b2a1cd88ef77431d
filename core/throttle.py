"""How often somebody may try a password: counted by account and by address, in PostgreSQL.

After `ACCOUNT_FREE` failures of an account, or `ADDRESS_FREE` from an address, each further attempt must wait:

    failures beyond    0     1     2      3      4      5 and more
    wait              30 s  60 s  120 s  240 s  480 s  900 s

An attempt counts as failed when it begins, under a lock on both counts, and is taken back if it succeeds: however many
come at once, in however many processes, no more passwords are looked at than one after the other would have been.
One that must wait is refused before, and counts for nothing. A day without attempts forgets.

Accounts are counted whether they exist or not, under a keyed hash: the table says nothing of who was tried.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sqlmodel.ext.asyncio.session import AsyncSession

from core.database import driver_of
from core.sealing import Sealer

ACCOUNT_FREE, ADDRESS_FREE = 5, 20
FIRST_WAIT_S, MAX_WAIT_S = 30, 900
IPV6_PREFIX = 64  # what one customer commonly has all addresses of (RFC 6177)


@dataclass(frozen=True, slots=True)
class Subjects:
    """What an attempt is counted for."""

    account: bytes | None  # none: no account is named
    address: bytes

    @property
    def all(self) -> list[bytes]:
        return [self.address] if self.account is None else [self.account, self.address]


def subjects(sealer: Sealer, email: str | None, address: str | None) -> Subjects:
    """`email` in lower case. After a rotation of the secret keys all counts begin anew."""

    def hashed(text: str) -> bytes:
        return sealer.keyed_hash(text.encode("utf-8", "surrogatepass"))[1]

    return Subjects(
        None if email is None else hashed(f"sign-in failures of account {email}"),
        hashed(f"sign-in failures from address {network(address)}"),
    )


def network(address: str | None) -> str:
    """What counts as one address: of IPv6, a /64."""
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((int(parsed), IPV6_PREFIX), strict=False))
    return str(parsed)


def wait_s(failures: int, free: int) -> int:
    """Seconds from the last failure until the next attempt may be made."""
    if failures < free:
        return 0
    return min(FIRST_WAIT_S << min(failures - free, 10), MAX_WAIT_S)


async def admit(session: AsyncSession, given: Subjects) -> int:
    """0 when an attempt may be made now, which is then counted; else the seconds to wait. Commit it before looking at
    the password."""
    driver = await driver_of(session)
    await driver.execute(_APPEAR, given.all)
    counts = {row["subject"]: row for row in await driver.fetch(_LOCK, given.all)}
    waits = [0.0]
    for subject, free in ((given.account, ACCOUNT_FREE), (given.address, ADDRESS_FREE)):
        if subject in counts:
            waits.append(wait_s(counts[subject]["count"], free) - counts[subject]["ago_s"])
    if max(waits) > 0:
        return int(max(waits)) + 1
    await driver.execute(_COUNT, given.all)
    return 0


async def succeeded(session: AsyncSession, given: Subjects) -> None:
    """Takes the attempt back. The account begins anew; the address does not, or somebody with an account of their own
    could go on guessing others'."""
    driver = await driver_of(session)
    await driver.fetch(_LOCK, given.all)
    await driver.execute("DELETE FROM sign_in_failures WHERE subject = $1", given.account)
    await driver.execute(
        "UPDATE sign_in_failures SET count = count - 1 WHERE subject = $1 AND count > 0", given.address
    )


async def forget(session: AsyncSession, account: bytes | None) -> None:
    """Lets an account begin anew: somebody proved by another way that it is theirs."""
    driver = await driver_of(session)
    await driver.execute("DELETE FROM sign_in_failures WHERE subject = $1", account)


# In the order of the subjects, so that no two of these transactions wait for each other.
_APPEAR = """
INSERT INTO sign_in_failures (subject) SELECT given FROM unnest($1::bytea[]) given ORDER BY given
ON CONFLICT DO NOTHING
"""
# clock_timestamp(), since a transaction that waited for the lock began before its time.
_LOCK = """
SELECT subject, extract(epoch FROM clock_timestamp() - last_at)::float8 AS ago_s,
    CASE WHEN last_at > clock_timestamp() - interval '1 day' THEN count ELSE 0 END AS count
FROM sign_in_failures WHERE subject = ANY($1) ORDER BY subject FOR UPDATE
"""
_COUNT = """
UPDATE sign_in_failures SET last_at = clock_timestamp(),
    count = 1 + CASE WHEN last_at > clock_timestamp() - interval '1 day' THEN count ELSE 0 END
WHERE subject = ANY($1)
"""
