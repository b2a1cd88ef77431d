"""A real OpenID Connect provider on loopback, with keys of its own, that can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_plus, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT_ID, CLIENT_SECRET = "hookwright", "s:cret/with+odd chars"
KEYS = {
    "RS256": RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig"}),
    "ES256": ECKey.generate_key("P-256", {"kid": "ec", "use": "sig"}),
    "Ed25519": OKPKey.generate_key("Ed25519", {"kid": "ed", "use": "sig"}),
}
STRANGERS = RSAKey.generate_key(2048, {"kid": "rsa"})  # the name of a real key, and another key


class IdentityProvider:
    """`email` and so on are who signs in there. The rest is how it misbehaves."""

    def __init__(self) -> None:
        self.issuer = ""
        self.subject, self.email, self.email_verified = "subject-1", "ada@example.com", True
        self.algorithm = "RS256"
        self.forge = ""  # none, hs256, key
        self.claims: dict[str, Any] = {}  # in place of the right ones; None leaves one out
        self.codes_last = False  # whether a code can be redeemed again
        self.published = ["RS256", "ES256", "Ed25519"]
        self.asked: list[dict[str, str]] = []  # what came to the authorization endpoint
        self._codes: dict[str, dict[str, str]] = {}

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self._describe),
                Route("/authorize", self._authorize),
                Route("/token", self._token, methods=["POST"]),
                Route("/keys", self._keys),
            ]
        )

    async def _describe(self, _: Request) -> Response:
        return JSONResponse(
            {
                "issuer": self.issuer,
                "authorization_endpoint": f"{self.issuer}/authorize",
                "token_endpoint": f"{self.issuer}/token",
                "jwks_uri": f"{self.issuer}/keys",
            }
        )

    async def _authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        self.asked.append(asked)
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.issuer}
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        form = await request.form()
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        given = [unquote_plus(part) for part in base64.b64decode(credentials).decode().split(":")]
        if scheme != "Basic" or given != [CLIENT_ID, CLIENT_SECRET]:
            return JSONResponse({"error": "invalid_client"}, 401)
        code, verifier = str(form["code"]), str(form["code_verifier"])
        asked = self._codes.get(code) if self.codes_last else self._codes.pop(code, None)
        challenge = _base64(hashlib.sha256(verifier.encode()).digest())
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse({"access_token": "x", "token_type": "Bearer", "id_token": self._id_token(asked["nonce"])})

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": self.subject,
            "aud": CLIENT_ID,
            "iat": now,
            "exp": now + 300,
            "nonce": nonce,
            "email": self.email,
            "email_verified": self.email_verified,
            "name": "Ada Lovelace",
        } | self.claims
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.forge == "none":
            return f"{_part({'alg': 'none', 'kid': 'rsa'})}.{_part(claims)}."
        if self.forge == "hs256":  # the oldest trick: the public key as the secret of a symmetric algorithm
            signed = f"{_part({'alg': 'HS256', 'kid': 'rsa'})}.{_part(claims)}"
            signature = hmac.digest(KEYS["RS256"].as_pem(private=False), signed.encode(), "sha256")
            return f"{signed}.{_base64(signature)}"
        key = STRANGERS if self.forge == "key" else KEYS[self.algorithm]
        header = {"alg": self.algorithm, "kid": key.kid}
        return jwt.encode(header, claims, key, algorithms=[self.algorithm])

    async def _keys(self, _: Request) -> Response:
        keys = [KEYS[name].as_dict(private=False) for name in self.published]
        return JSONResponse({"keys": [{"kty": "new kind", "kid": "x"}, *keys]})


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


@contextmanager
def identity_provider() -> Iterator[IdentityProvider]:
    provider = IdentityProvider()
    config = uvicorn.Config(provider.app(), host="127.0.0.1", port=0, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 15
    while not server.started:
        assert time.monotonic() < deadline, "the identity provider does not start"
        time.sleep(0.01)
    provider.issuer = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.should_exit = True
        thread.join(15)
