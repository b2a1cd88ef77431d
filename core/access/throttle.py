"""How often somebody may try a password: counted by account and by address, in PostgreSQL.

After `ACCOUNT_FREE` failures of an account, or `ADDRESS_FREE` from an address, each further attempt must wait:

    failures beyond    0     1     2      3      4      5 and more
    wait              30 s  60 s  120 s  240 s  480 s  900 s

An attempt counts as failed when it begins, under a lock on both counts, and is taken back if it succeeds: however many
come at once, in however many processes, no more passwords are looked at than one after the other would have been.
One that must wait is refused before, and counts for nothing. A day after the first of them, all are forgotten.

Accounts are counted whether they exist or not, under a keyed hash: the table says nothing of who was tried.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime

from sqlmodel.ext.asyncio.session import AsyncSession

from core.secrets.sealing import Sealer
from core.storage.database import driver_of

ACCOUNT_FREE, ADDRESS_FREE = 5, 20
FIRST_WAIT_S, MAX_WAIT_S = 30, 900
NOTE_AGAIN_S = 900
IPV6_PREFIX = 64  # what one customer commonly has all addresses of (RFC 6177)


@dataclass(frozen=True, slots=True)
class Subjects:
    """What an attempt is counted for."""

    account: bytes | None  # none: no account is named
    address: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """Whether it may be made; and if so, what undoes that it was counted."""

    given: Subjects
    wait_s: int = 0
    waits: bytes | None = None  # the subject for which it must wait
    is_to_note: bool = False
    at: datetime | None = None
    before: dict[bytes, datetime] = field(default_factory=dict)  # the last attempt of each subject


def subjects(sealer: Sealer, email: str | None, address: str | None) -> Subjects:
    """`email` as `users.normal_email` has it. After a rotation of the secret keys all counts begin anew."""
    return Subjects(
        None if email is None else subject(sealer, f"sign-in failures of account {email}"),
        subject(sealer, f"sign-in failures from address {network(address)}"),
    )


def subject(sealer: Sealer, text: str) -> bytes:
    return sealer.keyed_hash(text.encode("utf-8", "surrogatepass"))[1]


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


async def admit(session: AsyncSession, given: Subjects) -> Attempt:
    """An attempt, which is counted if it may be made now: `wait_s` is 0. Commit it before looking at the password.

    The address first: one that must wait adds nothing to what is counted, whatever accounts it makes up.
    """
    driver = await driver_of(session)
    before: dict[bytes, datetime] = {}
    for subject, free in ((given.address, ADDRESS_FREE), (given.account, ACCOUNT_FREE)):
        if subject is None:
            continue
        await driver.execute(_APPEAR, subject)
        row = await driver.fetchrow(_LOOK, subject)
        wait = wait_s(row["count"], free) - row["ago_s"]
        if wait > 0:
            return Attempt(given, int(wait) + 1, subject, await may_note(session, subject))
        before[subject] = row["last_at"]
    at = await driver.fetchval("SELECT clock_timestamp()")
    for subject in before:
        await driver.execute(_COUNT, subject, at)
    return Attempt(given, at=at, before=before)


async def succeeded(session: AsyncSession, attempt: Attempt) -> None:
    """Takes the attempt back. The account begins anew; the address does not, or somebody with an account of their own
    could go on guessing others'."""
    await take_back(session, attempt)
    await forget(session, attempt.given.account)


async def take_back(session: AsyncSession, attempt: Attempt) -> None:
    """Of an attempt that was nobody's guess: as if it had not been made."""
    driver = await driver_of(session)
    for subject, last_at in attempt.before.items():
        await driver.execute(_TAKE_BACK, subject, attempt.at, last_at)


async def forget(session: AsyncSession, account: bytes | None) -> None:
    """Lets an account begin anew: somebody proved by another way that it is theirs."""
    driver = await driver_of(session)
    await driver.execute("DELETE FROM sign_in_failures WHERE subject = $1", account)


async def may_note(session: AsyncSession, subject: bytes) -> bool:
    """Whether to put something about this subject into the audit log, which only grows: once in `NOTE_AGAIN_S`."""
    driver = await driver_of(session)
    await driver.execute(_APPEAR, subject)
    return await driver.fetchval(_NOTE, subject, NOTE_AGAIN_S) is not None


# Whoever locks several locks the address first and then the account, so that no two wait for each other.
_APPEAR = "INSERT INTO sign_in_failures (subject) VALUES ($1) ON CONFLICT DO NOTHING"
# clock_timestamp(), since a transaction that waited for the lock began before its time.
_LOOK = """
SELECT last_at, extract(epoch FROM clock_timestamp() - last_at)::float8 AS ago_s,
    CASE WHEN first_at > clock_timestamp() - interval '1 day' THEN count ELSE 0 END AS count
FROM sign_in_failures WHERE subject = $1 FOR UPDATE
"""
_COUNT = """
UPDATE sign_in_failures SET last_at = $2::timestamptz,
    first_at = CASE WHEN count > 0 AND first_at > $2 - interval '1 day' THEN first_at ELSE $2 END,
    count = CASE WHEN first_at > $2 - interval '1 day' THEN count ELSE 0 END + 1
WHERE subject = $1
"""
_TAKE_BACK = """
UPDATE sign_in_failures SET count = greatest(count - 1, 0),
    last_at = CASE last_at WHEN $2::timestamptz THEN $3::timestamptz ELSE last_at END
WHERE subject = $1
"""
_NOTE = """
UPDATE sign_in_failures SET noted_at = clock_timestamp()
WHERE subject = $1 AND coalesce(noted_at < clock_timestamp() - make_interval(secs => $2), true) RETURNING true
"""
