"""OpenID Connect: what is asked of the identity provider, and what is believed of its answer.

Authorization code flow (OpenID Connect Core 1.0, section 3.1) with PKCE S256 (RFC 7636). An ID token counts only if its
signature verifies under a key that the issuer publishes, by an asymmetric algorithm from a fixed list, whatever its
header asks for; and if it was made by this issuer, for us, just now, and for this very sign-in.
"""

from __future__ import annotations

import asyncio
import hmac
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote_plus

import httpx
import structlog
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri  # type: ignore[import-untyped]
from authlib.oauth2.rfc7636 import create_s256_code_challenge  # type: ignore[import-untyped]
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry, KeySet

from core import urls
from core.errors import AuthenticationFailed, Unavailable

# EdDSA is what providers still call Ed25519 (RFC 9864).
ALGORITHMS = ("RS256", "ES256", "EdDSA", "Ed25519")
KEY_TYPES = ("RSA", "EC", "OKP")
CLOCK_SKEW_S = 60
TIMEOUT_S = 10.0
METADATA_S = 3600  # for which the provider's own description is remembered
KEYS_AGAIN_S = 60  # between two looks for a key that was not there
FAILURE_S = 5  # for which it is remembered that the provider failed
Result = TypeVar("Result")

log = structlog.get_logger(__name__)


class OidcFailed(AuthenticationFailed):
    """Single sign-on failed"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who has signed in, as the provider says. `email` only if it says that it has verified it."""

    issuer: str
    subject: str
    email: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Pending:
    """A sign-in under way: what the answer must fit."""

    verifier: str
    nonce: str


class Remembered(Generic[Result]):
    """What the provider says, fetched once for all who want it at the same time; and so is that it failed."""

    def __init__(self, fetch: Callable[[], Awaitable[Result]]) -> None:
        self._fetch = fetch
        self._fetching: asyncio.Task[None] | None = None
        self._value: tuple[Result, float] | None = None
        self._failure: tuple[Exception, float] | None = None

    async def get(self, max_age_s: float) -> Result:
        """Raises what fetching it raised."""
        if self._value is not None and time.monotonic() - self._value[1] <= max_age_s:
            return self._value[0]
        if self._failure is None or time.monotonic() - self._failure[1] > FAILURE_S:
            if self._fetching is None:
                self._fetching = asyncio.create_task(self._run())
            await asyncio.shield(self._fetching)  # one who goes away does not take it from the others
        if self._failure is not None:
            raise self._failure[0].with_traceback(None)
        assert self._value is not None  # nosec B101 # noqa: S101 - it is one or the other
        return self._value[0]

    async def _run(self) -> None:
        try:
            self._value, self._failure = (await self._fetch(), time.monotonic()), None
        except Exception as error:
            self._failure = error, time.monotonic()
        finally:
            self._fetching = None

    def stop(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()


class Provider:
    """One identity provider, and ourselves as its client. One for each process."""

    def __init__(
        self, issuer: str, client_id: str, client_secret: str, redirect_uri: str, scopes: str = "openid email profile"
    ) -> None:
        self.issuer = issuer
        self._client_id, self._client_secret = client_id, client_secret
        self._redirect_uri, self._scopes = redirect_uri, scopes
        # No proxy from the environment, and nothing followed: it is one host, which the operator has named.
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False)
        self._metadata = Remembered(self._fetch_metadata)
        self._keys = Remembered(self._fetch_keys)

    async def close(self) -> None:
        self._keys.stop()
        self._metadata.stop()
        await self._http.aclose()

    async def authorization_url(self, state: str, pending: Pending) -> str:
        """Where the browser goes. Raises `Unavailable`, `OidcFailed`."""
        url: str = prepare_grant_uri(
            (await self._metadata.get(METADATA_S))["authorization_endpoint"],
            client_id=self._client_id,
            response_type="code",
            redirect_uri=self._redirect_uri,
            scope=self._scopes,
            state=state,
            nonce=pending.nonce,
            code_challenge=create_s256_code_challenge(pending.verifier),
            code_challenge_method="S256",
        )
        return url

    async def redeem(self, code: str, pending: Pending) -> Identity:
        """Exchanges the code for an ID token, and believes it or not. Raises `Unavailable`, `OidcFailed`."""
        metadata = await self._metadata.get(METADATA_S)
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": pending.verifier,
        }
        auth = None
        if "client_secret_basic" in metadata.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
            # RFC 6749, section 2.3.1: both are form-encoded first.
            auth = httpx.BasicAuth(quote_plus(self._client_id), quote_plus(self._client_secret))
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        answer = await self._ask("POST", metadata["token_endpoint"], data=form, auth=auth)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise OidcFailed("The identity provider sent no ID token")
        return identity_in(await self._verify(token), self.issuer, self._client_id, pending.nonce)

    async def _verify(self, token: str) -> dict[str, Any]:
        """The claims of a token whose signature holds. A key that is not known may be new: then it looks once more."""
        try:
            return claims_of(token, await self._keys.get(METADATA_S))
        except InvalidKeyIdError:
            keys = await self._keys.get(KEYS_AGAIN_S)
        except (JoseError, ValueError) as error:
            raise _refused(error) from error
        try:
            return claims_of(token, keys)
        except (JoseError, ValueError) as error:
            raise _refused(error) from error

    async def _fetch_metadata(self) -> dict[str, Any]:
        """The provider's description of itself (OpenID Connect Discovery 1.0)."""
        said = await self._ask("GET", f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
        if said.get("issuer") != self.issuer:
            raise OidcFailed(f"HOOKWRIGHT_OIDC_ISSUER is {self.issuer}, but that provider calls itself otherwise")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            try:
                urls.identity_provider(str(said.get(name, "")))
            except ValueError as error:
                raise OidcFailed(f"The identity provider's {name} {error}") from error
        return said

    async def _fetch_keys(self) -> KeySet:
        return keys_in(await self._ask("GET", (await self._metadata.get(METADATA_S))["jwks_uri"]))

    async def _ask(self, method: str, url: str, **how: Any) -> dict[str, Any]:
        try:
            async with asyncio.timeout(TIMEOUT_S):  # httpx counts from one byte to the next
                answer = await self._http.request(method, url, headers={"Accept": "application/json"}, **how)
        except (httpx.HTTPError, TimeoutError) as error:
            log.warning("the identity provider does not answer", url=url, error=repr(error))
            raise Unavailable("The identity provider does not answer; try again", retry_after_s=5) from error
        try:
            said = answer.json()
        except ValueError:
            said = None
        if answer.status_code != 200 or not isinstance(said, dict):
            code = str(said.get("error", ""))[:100] if isinstance(said, dict) else ""
            log.warning("the identity provider refuses", url=url, status=answer.status_code, error=code)
            if answer.status_code >= 500:
                raise Unavailable("The identity provider does not answer; try again", retry_after_s=5)
            raise OidcFailed("The identity provider refused; start again from the sign-in page")
        return said


def keys_in(published: Mapping[str, Any]) -> KeySet:
    """The keys of a JWK Set (RFC 7517) that can verify. Others are passed over, as its section 5 wants."""
    keys = []
    listed = published.get("keys")
    for one in listed if isinstance(listed, list) else []:
        if not isinstance(one, dict) or one.get("kty") not in KEY_TYPES or one.get("use", "sig") != "sig":
            continue
        try:
            keys.append(JWKRegistry.import_key(one))
        except (JoseError, ValueError, TypeError, KeyError) as error:
            log.warning("a key of the identity provider can't be read", error=repr(error))
    if not keys:
        raise OidcFailed("The identity provider publishes no key that its tokens could be verified with")
    return KeySet(keys)


def claims_of(token: str, keys: KeySet) -> dict[str, Any]:
    """The claims of a token whose signature holds. Raises `JoseError` or ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of the name EdDSA; see ALGORITHMS
        return jwt.decode(token, keys, algorithms=ALGORITHMS).claims


def identity_in(claims: dict[str, Any], issuer: str, client_id: str, nonce: str, now_s: int | None = None) -> Identity:
    """What the claims say, if they are for us and for this sign-in (OpenID Connect Core 1.0, section 3.1.3.7).

    Raises `OidcFailed`.
    """
    wanted = jwt.JWTClaimsRegistry(
        now_s,
        CLOCK_SKEW_S,
        iss={"essential": True, "value": issuer},
        aud={"essential": True, "value": client_id},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
        nonce={"essential": True},
    )
    try:
        wanted.validate(claims)
    except JoseError as error:
        raise _refused(error) from error
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if claims.get("azp", None if several else client_id) != client_id:
        raise OidcFailed("The ID token is not for us (azp)")
    if not hmac.compare_digest(str(claims["nonce"]).encode("utf-8", "replace"), nonce.encode()):
        raise OidcFailed("The ID token is not of this sign-in (nonce)")
    email = claims.get("email")
    verified = claims.get("email_verified") is True and isinstance(email, str)
    return Identity(issuer, claims["sub"], email if verified else None, str(claims.get("name") or "")[:200])


def _refused(error: Exception) -> OidcFailed:
    log.warning("an ID token is refused", error=repr(error))
    return OidcFailed("What the identity provider sent can't be believed; start again from the sign-in page")
