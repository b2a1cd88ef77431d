"""Ids: UUIDv7 (RFC 9562) in the database, a prefix and 26 Crockford base32 characters everywhere else.

An id sorts by the time in its first 48 bits (Unix milliseconds), in both forms. The next 12 bits are a counter, so
that ids made by one process within one millisecond keep their order (RFC 9562, section 6.2, method 1). A delivery's
id repeats the first 64 bits of its event's: the deliveries of an event are therefore one range of the primary key
and live in the same daily partition as the event.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from threading import Lock
from uuid import UUID

from asyncpg.pgproto import pgproto

from core.errors import InvalidId, quoted

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_LOW_60 = (1 << 60) - 1
_LOW_62 = (1 << 62) - 1
_VARIANT = 0b10 << 62
_VERSION_7 = 0x7 << 76 | _VARIANT
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_WORDS = struct.Struct("!256Q")
_PAIRS = [high + low for high in ALPHABET for low in ALPHABET]  # the text of each 10 bits
_VALUE = {char: value for value, char in enumerate(ALPHABET)}
_VALUE |= {char.lower(): value for char, value in list(_VALUE.items())}

EVENT = "evt"
DELIVERY = "dlv"
ATTEMPT = "att"
SUBSCRIPTION = "sub"
ORGANIZATION = "org"
REPLAY = "rpl"
API_KEY = "key"
USER = "usr"
SESSION = "ses"
AUDIT_ENTRY = "aud"
BREAKER_CHANGE = "brc"
SECRET = "sec"  # nosec B105 # noqa: S105 - the prefix of a signing secret's id, not a secret


class IdFactory:
    """Makes UUIDv7s that never go backwards within the process. Thread safe."""

    def __init__(
        self,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._last = 0  # milliseconds << 12 | counter
        self._lock = Lock()
        self._words: list[int] = []  # random ones that no id has yet

    def __call__(self) -> UUID:
        with self._lock:
            # When the clock stands still or steps back, count on from the last id instead: order is kept, and an
            # overflow of the 12-bit counter simply borrows the next millisecond.
            self._last = stamp = max(self._last + 1, self._now_ms() << 12)
        return _made(stamp >> 12 << 80 | (stamp & 0xFFF) << 64 | _VERSION_7 | self._tail())

    def within(self, parent: UUID) -> UUID:
        """An id that shares the first 64 bits (time and counter) of `parent`."""
        return _made(parent.int >> 64 << 64 | _VARIANT | self._tail())

    def _tail(self) -> int:
        while True:
            try:
                return self._words.pop() & _LOW_62
            except IndexError:  # many at a time: a call of the system for each was a thirtieth of a worker's time
                self._words += _WORDS.unpack(self._random_bytes(_WORDS.size))


def from_hex(text: str) -> UUID:
    """The UUID of 32 hexadecimal digits, hyphens allowed. Raises ValueError or TypeError on anything else."""
    made: UUID = pgproto.UUID(text)
    return made


def _made(number: int) -> UUID:
    # The database driver's own kind of UUID, which is a `uuid.UUID`, but makes, hashes and compares in C: ids are the
    # keys of most that is looked up for an event.
    made: UUID = pgproto.UUID(number.to_bytes(16))
    return made


new_id = IdFactory()
os.register_at_fork(after_in_child=new_id._words.clear)  # or two processes would use the same


def lowest_at(moment: datetime) -> UUID:
    """The least UUID whose time is not before `moment`: the bound between partitions."""
    # Rounded up, in whole numbers: an id of 12:00:00.345 is before 12:00:00.345678.
    return UUID(int=-((_EPOCH - moment) // _MILLISECOND) << 80)


def time_of(id_: UUID) -> datetime:
    """The time inside a UUIDv7, to the millisecond, in UTC."""
    return datetime.fromtimestamp((id_.int >> 80) / 1000, UTC)


def day_of(id_: UUID) -> date:
    """The UTC day whose partition holds this id."""
    return time_of(id_).date()


def day_bounds(day: date) -> tuple[UUID, UUID]:
    """The least id of a UTC day and the least id of the next."""
    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return lowest_at(start), lowest_at(start + timedelta(days=1))


def family_bounds(parent: UUID) -> tuple[UUID, UUID]:
    """The least and the greatest id that `IdFactory.within(parent)` can make."""
    head = parent.int >> 64 << 64
    return UUID(int=head), UUID(int=head | (1 << 64) - 1)


@lru_cache(maxsize=1024)  # an event's is shown where it is built and in the answer, its organization's in every event
def show(prefix: str, id_: UUID) -> str:
    """`evt_01JZ…`: the prefix and 26 Crockford base32 characters, most significant first."""
    # A loop, or shifting all 128 bits each time, takes two to five times as long.
    pairs, number = _PAIRS, id_.int
    high, low = number >> 60, number & _LOW_60
    return (
        f"{prefix}_{pairs[high >> 60]}{pairs[high >> 50 & 1023]}{pairs[high >> 40 & 1023]}{pairs[high >> 30 & 1023]}"
        f"{pairs[high >> 20 & 1023]}{pairs[high >> 10 & 1023]}{pairs[high & 1023]}"
        f"{pairs[low >> 50]}{pairs[low >> 40 & 1023]}{pairs[low >> 30 & 1023]}{pairs[low >> 20 & 1023]}"
        f"{pairs[low >> 10 & 1023]}{pairs[low & 1023]}"
    )


def parse(prefix: str, text: str) -> UUID:
    """The UUID in `text`.

    Raises `InvalidId` where the prefix is another's, the length is wrong or a character is not in the alphabet.
    """
    head, _, body = text.partition("_")
    if head != prefix or len(body) != 26:
        raise InvalidId(f"{quoted(text)} is not an id of this kind: expected {prefix}_ and 26 characters")
    number = 0
    for char in body:
        value = _VALUE.get(char)
        if value is None:
            raise InvalidId(f"{quoted(text)} is not an id: {char!r} is no character of Crockford base32")
        number = number << 5 | value
    if number >> 128:
        raise InvalidId(f"{quoted(text)} is not an id: it exceeds 128 bits")
    return _made(number)
