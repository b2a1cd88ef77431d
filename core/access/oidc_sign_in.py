"""Signing in with an identity provider: what is kept while the browser is there, and who it is that comes back.

A pending sign-in is for one use, ten minutes, and the browser that began it: the state is in the address, and the
browser alone has the cookie that fits it. Without the cookie somebody could have another end a sign-in of their own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from core import audit
from core.access import sign_in, throttle, users
from core.access.models import User
from core.access.oidc import Identity, OidcFailed, Pending, Provider
from core.access.sign_in import Browser, SignedIn
from core.secrets.sealing import Sealer
from core.storage.database import Database

LIFETIME = timedelta(minutes=10)
MAX_PENDING = 10_000  # beyond it the oldest end: anybody can begin one, and nobody has to come back
BY = "single sign-on"  # in the audit log


@dataclass(frozen=True, slots=True)
class Begun:
    url: str  # where the browser goes
    cookie: str  # what it must come back with


class Unknown(OidcFailed):
    """The identity provider knows you, but nobody has invited you to Hookwright; ask an admin"""


async def begin(database: Database, sealer: Sealer, provider: Provider, to: str) -> Begun:
    """`to`: the path to go to afterwards. Raises `Unavailable`, `OidcFailed`."""
    state, cookie = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
    pending = Pending(verifier=secrets.token_urlsafe(64), nonce=secrets.token_urlsafe(32))
    url = await provider.authorization_url(state, pending)
    kept = {"verifier": pending.verifier, "nonce": pending.nonce, "cookie": cookie, "to": to}
    state_hash = _hash(state)
    sealed = sealer.seal(json.dumps(kept).encode(), _context(state_hash))
    async with database.driver() as driver:
        await driver.execute(_KEEP, state_hash, sealed, LIFETIME)
        await driver.execute(_MAKE_ROOM, MAX_PENDING)
    return Begun(url, cookie)


async def end(
    database: Database,
    sealer: Sealer,
    provider: Provider,
    *,
    state: str,
    cookie: str | None,
    code: str,
    browser: Browser,
) -> tuple[SignedIn, str]:
    """Who has come back, and the path to go to. Not counted as an attempt: behind a state for one use and PKCE there
    is nothing to guess. Raises `OidcFailed`, `Unknown`, `Unavailable`.
    """
    pending, to = await _take(database, sealer, state, cookie)
    try:
        identity = await provider.redeem(code, pending)
    except OidcFailed:
        await _note_failure(database, sealer, None, browser)
        raise
    async with database.session() as session:
        user = await _find(session, identity, browser)
        if user is not None and user.disabled_at is None:
            return await sign_in.finish(session, user, browser, by=BY), to
    await _note_failure(database, sealer, user, browser)
    if user is not None:
        raise Unknown("Your account is disabled; ask an admin")
    if identity.email is None:
        raise Unknown(
            "The identity provider does not vouch for your email address, so it can't be told who you are here"
        )
    raise Unknown


async def _note_failure(database: Database, sealer: Sealer, user: User | None, browser: Browser) -> None:
    """One entry for each user and address a while: anybody can fail as often as they like."""
    of = "" if user is None else users.shown_id(user)
    network = throttle.network(browser.address)
    subject = throttle.subject(sealer, f"failed single sign-on of {of} from address {network}")
    async with database.session() as session:
        if await throttle.may_note(session, subject):
            audit.record(session, browser.anybody, "sign_in.failed", of, organization_id=None, after={"by": BY})


async def _take(database: Database, sealer: Sealer, state: str, cookie: str | None) -> tuple[Pending, str]:
    """What was kept; it is gone by that, whatever comes of it."""
    state_hash = _hash(state)
    async with database.driver() as driver:
        sealed = await driver.fetchval(_TAKE, state_hash)
    if sealed is None:
        raise OidcFailed("This sign-in has ended, or took longer than 10 minutes; start again from the sign-in page")
    kept = json.loads(sealer.open(sealed, _context(state_hash)))
    if cookie is None or not hmac.compare_digest(cookie.encode(), kept["cookie"].encode()):
        raise OidcFailed("This sign-in was begun in another browser; start again from the sign-in page")
    return Pending(kept["verifier"], kept["nonce"]), kept["to"]


async def _find(session: AsyncSession, identity: Identity, browser: Browser) -> User | None:
    """The user of this identity, locked. The first time it is found by its email, and from then on by its own name: an
    email may go to somebody else one day, a subject does not. Only by an email in ASCII, as all of ours are: what
    merely looks like one, or becomes one in lower case, may have been verified for somebody else."""
    by_identity = User.oidc_issuer == identity.issuer, User.oidc_subject == identity.subject
    found = (await session.exec(select(User).where(*by_identity).with_for_update())).one_or_none()
    if found is not None or identity.email is None or not identity.email.isascii() or "\0" in identity.email:
        return found
    by_email = User.email == users.normal_email(identity.email), col(User.oidc_subject).is_(None)
    found = (await session.exec(select(User).where(*by_email).with_for_update())).one_or_none()
    if found is not None and found.disabled_at is None:
        found.oidc_issuer, found.oidc_subject = identity.issuer, identity.subject
        found.name = found.name or (identity.name if identity.name.isprintable() else "")
        session.add(found)
        after = {"oidc_issuer": identity.issuer, "oidc_subject": identity.subject}
        shown = users.shown_id(found)
        audit.record(session, browser.actor(found), "user.identity_linked", shown, organization_id=None, after=after)
    return found


def _hash(state: str) -> bytes:
    return hashlib.sha256(f"hookwright oidc state {state}".encode("utf-8", "surrogatepass")).digest()


def _context(state_hash: bytes) -> str:
    return f"oidc_sign_in:{state_hash.hex()}"


_KEEP = "INSERT INTO oidc_sign_ins (state_hash, sealed, expires_at) VALUES ($1, $2, now() + $3::interval)"
# Two for each that is added, so that it is always less; those that others remove just now are passed over.
_MAKE_ROOM = """
DELETE FROM oidc_sign_ins WHERE state_hash IN (
    SELECT state_hash FROM oidc_sign_ins
    WHERE expires_at <= greatest(
        now(), (SELECT expires_at FROM oidc_sign_ins ORDER BY expires_at DESC OFFSET $1::integer LIMIT 1)
    )
    LIMIT 2 FOR UPDATE SKIP LOCKED
)
"""
_TAKE = "WITH taken AS (DELETE FROM oidc_sign_ins WHERE state_hash = $1 RETURNING sealed, expires_at)"
_TAKE += " SELECT sealed FROM taken WHERE expires_at > now()"
