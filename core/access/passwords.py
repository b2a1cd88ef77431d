"""Passwords: Argon2id (RFC 9106), with the parameters of OWASP's Password Storage Cheat Sheet; which are refused."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from core.errors import Unavailable, ValidationFailed

MIN_CHARS, MAX_CHARS = 12, 1_000
Result = TypeVar("Result")

# 19 MiB and two passes take about 60 ms of a core. Raise them here, and each hash is renewed at its owner's sign-in.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16)

# Each takes its 19 MiB, so of one process no more run at once; and no more wait than are answered within seconds.
AT_ONCE = 4
MAX_WAITING = 200
_threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="passwords")
_waiting = 0

# What is verified for somebody who has no password here, so that it takes the same time. Nobody knows its password.
_DUMMY = "$argon2id$v=19$m=19456,t=2,p=1$/MoOFN3q2QIHfdjciViTUQ$OJyZ52S8kNNZxntUQ9hV37bJlKeonyWx/de8WnZF2Ho"

# The commonest in published leaks that are long enough to pass otherwise, and what is typed in place of a choice.
_COMMON_TEXT = (
    "123456789012 1234567890123 1234567890123456 12345678901234567890 123123123123 121212121212 112233445566 "
    "987654321098 0987654321098 098765432109 102030405060 147258369147 password1234 password12345 password123456 "
    "password1234! passwordpassword password123password mypassword123 mypassword1234 passw0rd1234 p@ssw0rd1234 "
    "p@ssword1234 qwertyuiop12 qwertyuiop123 qwertyuiopas qwertyuiopasdfgh qwertyuiopasdfghjkl qwerty123456 "
    "qwerty1234567 qwertyqwerty qwerty123qwerty 1q2w3e4r5t6y 1q2w3e4r5t6y7u 1q2w3e4r5t6y7u8i 1qaz2wsx3edc "
    "1qaz2wsx3edc4rfv qazwsxedcrfv zaq12wsxcde3 asdfghjkl123 asdfasdfasdf zxcvbnm12345 abcdefghijkl abcdefg12345 "
    "abcd12345678 abc123abc123 a1b2c3d4e5f6 iloveyou1234 iloveyouforever letmein12345 letmeinletmein welcome12345 "
    "welcome123456 changeme1234 changemechangeme changemeplease administrator administrator1 admin1234567 "
    "admin12345678 adminadminadmin administrator123 superadmin123 rootrootroot testtesttest testing12345 "
    "temporary123 default12345 secretsecret topsecret123 trustno1trustno1 correcthorsebatterystaple "
    "unbelievable christopher1 basketball12 footballfootball liverpool123 hookwright12 hookwright123 hookwright1234 "
    "hookwrighthookwright"
)
_COMMON = frozenset(_COMMON_TEXT.split())


def check(password: str, email: str = "", path: str = "password") -> str:
    """The password, if it may be chosen. Raises `ValidationFailed`.

    Length and not classes of characters, as NIST SP 800-63B advises.
    """
    if len(password) < MIN_CHARS:
        raise ValidationFailed.of(path, f"Must have at least {MIN_CHARS} characters; a few words in a row do well")
    if len(password) > MAX_CHARS:
        raise ValidationFailed.of(path, f"Must have at most {MAX_CHARS:,} characters")
    plain = password.casefold()
    if plain in _COMMON or len(set(plain)) < 4:
        raise ValidationFailed.of(path, "This is among the first that somebody would try; choose another")
    if email and plain in (email.casefold(), email.casefold().partition("@")[0]):
        raise ValidationFailed.of(path, "Must not be your email address; choose another")
    return password


async def hash_of(password: str) -> str:
    """How a password rests, in Argon2's own encoding. Raises `Unavailable` when too many wait."""
    return await _in_thread(_HASHER.hash, _normal(password))


async def is_right(password: str, password_hash: str | None) -> bool:
    """Whether it is the password of this hash. Without one it takes as long, and it is not.

    Raises `Unavailable` when too many wait.
    """
    if len(password) > MAX_CHARS:
        return False
    verified = await _in_thread(_verify, password_hash or _DUMMY, _normal(password))
    return verified and password_hash is not None


def is_dated(password_hash: str) -> bool:
    """Whether it was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(password_hash)


def _verify(password_hash: str, password: bytes) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False


def _normal(password: str) -> bytes:
    """The same bytes for the same characters, whatever keyboard they came from (NIST SP 800-63B, 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


async def _in_thread(work: Callable[..., Result], *arguments: object) -> Result:
    """Off the event loop, which it would hold up; Argon2 lets go of the interpreter's lock meanwhile."""
    global _waiting
    if _waiting >= MAX_WAITING:
        raise Unavailable("Too many people are signing in just now; try again", retry_after_s=5)
    _waiting += 1
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)
    finally:
        _waiting -= 1
