"""Access tokens: JWTs (RFC 7519, profile RFC 9068) that an API key is exchanged for at `/oauth/token`.

Nobody but this installation reads them, so they are signed with HMAC-SHA256 under keys derived from the secret keys:
there is nothing more to store or to hand out, and they rotate as those do: the newest signs, all verify. `kid` is the
secret key's id.

A token narrows its API key and never outlives it: who is named by `sub` is looked up at each call, like a key itself
(`core.access.api_keys.authenticate_token`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import GuestProtocol, OctKey

from core import ids
from core.errors import AuthenticationFailed, InvalidId
from core.secrets.sealing import Sealer

LIFETIME_S: Final = 900
LEEWAY_S: Final = 5  # hosts' clocks may differ by as much
ALGORITHM: Final = "HS256"
TYPE: Final = "at+jwt"
MAX_CHARS: Final = 2_048  # ours have some 500


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that holds says."""

    key_id: UUID
    organization_id: UUID | None  # None: a platform key's
    scopes: frozenset[str]
    ends_at: datetime  # from then on it is refused, `LEEWAY_S` included


class AccessTokens:
    """Issues and reads tokens under a sealer's secret keys. `issuer` is the platform's public URL, and the audience as
    well: tokens of another installation, or of this one for others, are refused."""

    def __init__(self, sealer: Sealer, issuer: str) -> None:
        self._issuer = issuer
        derived = sealer.derived_keys(b"hookwright access token")
        self._keys = {key_id.hex(): OctKey.import_key(key) for key_id, key in derived.items()}
        self._newest = next(iter(self._keys))

    def issue(self, key_id: UUID, organization_id: UUID | None, scopes: Iterable[str], now: datetime) -> str:
        """A token that holds for `LIFETIME_S` from `now` on."""
        issued_at = int(now.timestamp())
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "sub": ids.show(ids.API_KEY, key_id),
            "aud": self._issuer,
            "iat": issued_at,
            "exp": issued_at + LIFETIME_S,
            "jti": uuid4().hex,
            "client_id": ids.show(ids.API_KEY, key_id),
            "scope": " ".join(scopes),
        }
        if organization_id is not None:
            claims["org"] = ids.show(ids.ORGANIZATION, organization_id)
        return jwt.encode(_header(self._newest), claims, self._keys[self._newest], [ALGORITHM])

    def read(self, text: str, now: datetime) -> Claims:
        """What the token says. Raises `AuthenticationFailed` unless it is exactly such a one as `issue` makes, under a
        secret key that is configured, and has not expired."""
        if len(text) > MAX_CHARS:
            raise AuthenticationFailed("This access token is none of ours")
        exact = {"essential": True, "value": self._issuer}
        registry = jwt.JWTClaimsRegistry(
            now=int(now.timestamp()),
            leeway=LEEWAY_S,
            iss=exact,  # type: ignore[arg-type]
            aud=exact,  # type: ignore[arg-type]
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            scope={"essential": True},
        )
        try:
            # Only this algorithm, though `_key` finds a key for no other: `none` and public keys have no way in.
            claims = jwt.decode(text, self._key, [ALGORITHM]).claims
            registry.validate(claims)
            return _read(claims)
        except ExpiredTokenError:
            raise AuthenticationFailed("This access token has expired; get a new one at /oauth/token") from None
        except (JoseError, InvalidId, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise AuthenticationFailed("This access token is none of ours") from None

    def _key(self, token: GuestProtocol) -> OctKey:
        """The key of a header that is ours to the letter. Whatever else a header may ask for is not looked at."""
        header = token.headers()
        key = self._keys.get(str(header.get("kid")))
        if key is None or header != _header(str(header.get("kid"))):
            raise ValueError("not our header")
        return key


def _header(kid: str) -> dict[str, Any]:
    return {"typ": TYPE, "alg": ALGORITHM, "kid": kid}


def _read(claims: dict[str, Any]) -> Claims:
    organization = claims.get("org")
    return Claims(
        key_id=ids.parse(ids.API_KEY, claims["sub"]),
        organization_id=None if organization is None else ids.parse(ids.ORGANIZATION, organization),
        scopes=frozenset(claims["scope"].split(" ")),
        ends_at=datetime.fromtimestamp(claims["exp"], UTC) + timedelta(seconds=LEEWAY_S),
    )
