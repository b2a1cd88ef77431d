"""OAuth 2.0 client credentials: an API key in exchange for an access token, and what becomes of that."""

from __future__ import annotations

import base64
import hmac
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
from authlib.oauth2.auth import ClientAuth
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from core import ids
from core.access import access_tokens
from core.access.access_tokens import AccessTokens
from core.access.api_keys import ALL_SCOPES, ORGANIZATION_SCOPES
from core.secrets.sealing import Sealer, generate_key
from tests.api import SUBSCRIPTIONS, URL, another_app, error_of, make_key, run, shown_organization, success_of
from tests.platform import SECRET_KEY, Platform, eventually, shown

PATH = "/oauth/token"
FORM = {"grant_type": "client_credentials"}
EVENT = {"event_type": "a.b", "data": {}}
ISSUER = "http://127.0.0.1:8000"  # the default public URL


def client_of(p: Platform) -> tuple[str, str]:
    return ids.show(ids.API_KEY, p.key_id), p.key


def in_body(p: Platform, **more: str) -> dict[str, str]:
    client_id, secret = client_of(p)
    return FORM | {"client_id": client_id, "client_secret": secret} | more


async def token_of(p: Platform, **more: str) -> str:
    answer = await p.client.post(PATH, data=in_body(p, **more))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


async def with_token(client: httpx.AsyncClient, method: str, path: str, token: str, body: Any = None) -> httpx.Response:
    """The client's own API key left out."""
    request = client.build_request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})
    del request.headers["X-API-Key"]
    return await client.send(request)


def test_a_key_is_exchanged_for_a_token_that_does_what_the_key_does_and_no_more(
    database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        client_id, secret = client_of(p)
        basic = {"Authorization": "Basic " + base64.b64encode(f"{client_id}:{secret}".encode()).decode()}
        for answer in (
            await p.client.post(PATH, data=in_body(p)),
            await p.client.post(PATH, data=FORM, headers=basic),
            await p.client.post(PATH, data=FORM | {"client_id": client_id, "scope": "", "unknown": "x"}, headers=basic),
        ):
            assert answer.status_code == 200, answer.text
            body = answer.json()
            token = body.pop("access_token")
            assert body == {"token_type": "Bearer", "expires_in": 900, "scope": " ".join(ORGANIZATION_SCOPES)}
            assert answer.headers["content-type"] == "application/json"
            assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
            assert answer.headers["x-request-id"].startswith("req_")
            assert (await with_token(p.client, "GET", "/v1/events", token)).status_code == 200
        accepted = await with_token(p.client, "POST", "/v1/events", token, EVENT)
        success_of(accepted, 202)
        error = error_of(await p.client.get("/v1/events", headers={"X-API-Key": token}), 401, "AUTHENTICATION_FAILED")
        assert "X-API-Key takes an API key" in error["message"]
        # Narrowed, in any order and twice.
        narrow = await p.client.post(PATH, data=in_body(p, scope="events.write events.read  events.write"))
        assert narrow.json()["scope"] == "events.write events.read"
        token = narrow.json()["access_token"]
        assert (await with_token(p.client, "GET", "/v1/events", token)).status_code == 200
        error = error_of(await with_token(p.client, "GET", "/v1/deliveries", token), 403, "PERMISSION_DENIED")
        assert error["details"] == {"required_scope": "deliveries.read"}
        # A platform key's token names its organization as the key does.
        [row] = await p.sql("SELECT id FROM api_keys WHERE organization_id IS NULL")
        form = FORM | {"client_id": ids.show(ids.API_KEY, row["id"]), "client_secret": p.platform_key}
        token = (await p.client.post(PATH, data=form)).json()["access_token"]
        assert (await with_token(p.client, "GET", "/v1/organizations", token)).status_code == 200
        assert "X-Organization-ID" in (await with_token(p.client, "GET", "/v1/events", token)).text
        # As a client's library puts it.
        for method in ("client_secret_basic", "client_secret_post"):
            _, headers, form_text = ClientAuth(client_id, secret, method).prepare(
                "POST", PATH, {"Content-Type": "application/x-www-form-urlencoded"}, "grant_type=client_credentials"
            )
            assert (await p.client.post(PATH, content=form_text, headers=headers)).status_code == 200, method

    run(database_url, redis_url, check)


def refusals(p: Platform, other_key: str) -> Iterator[tuple[str, int, str, dict[str, Any]]]:
    """What is wrong, the status, the error, and the request."""
    client_id, secret = client_of(p)

    def basic(text: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    good = in_body(p)
    yield "another key's secret", 401, "invalid_client", {"data": good | {"client_secret": other_key}}
    yield "no such secret", 401, "invalid_client", {"data": good | {"client_secret": secret[:-1] + "x"}}
    yield "no secret", 401, "invalid_client", {"data": FORM | {"client_id": client_id}}
    yield "an empty secret", 401, "invalid_client", {"data": good | {"client_secret": ""}}
    yield "nobody", 401, "invalid_client", {"data": FORM}
    yield "NUL", 401, "invalid_client", {"data": good | {"client_secret": "sk_live_\0"}}
    yield "no such client", 401, "invalid_client", {"data": FORM, "headers": basic(f"key_{'0' * 26}:{secret}")}
    yield "no colon", 401, "invalid_client", {"data": FORM, "headers": basic(secret)}
    yield "no base64", 401, "invalid_client", {"data": FORM, "headers": {"Authorization": "Basic ?"}}
    yield "a bearer", 401, "invalid_client", {"data": good, "headers": {"Authorization": f"Bearer {secret}"}}
    yield "both ways", 400, "invalid_request", {"data": good, "headers": basic(f"{client_id}:{secret}")}
    yield (
        *("two clients", 400, "invalid_request"),
        {"data": FORM | {"client_id": "key_x"}, "headers": basic(f"{client_id}:{secret}")},
    )
    yield "no grant", 400, "invalid_request", {"data": good | {"grant_type": ""}}
    yield "another grant", 400, "unsupported_grant_type", {"data": good | {"grant_type": "password"}}
    yield "doubled", 400, "invalid_request", {"content": "grant_type=client_credentials&grant_type=password"}
    yield "in the URL", 400, "invalid_request", {"data": good, "params": {"scope": "events.read"}}
    yield "JSON", 400, "invalid_request", {"json": good}
    yield "no UTF-8", 400, "invalid_request", {"content": "grant_type=%ff"}
    yield "no ASCII", 400, "invalid_request", {"content": b"grant_type=\xff"}
    yield "many fields", 400, "invalid_request", {"content": "&".join(f"a{n}=1" for n in range(100))}
    yield "a long body", 413, "invalid_request", {"content": "a=" + "x" * 9_000}
    yield "a scope it has not", 400, "invalid_scope", {"data": good | {"scope": "events.read organizations.admin"}}
    yield "no such scope", 400, "invalid_scope", {"data": good | {"scope": 'every"thing\\\u00e9'}}


def test_what_is_refused_is_refused_in_the_words_of_the_rfc(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        other = await make_key(p, p.organization_id)
        for what, status, error, request in refusals(p, other):
            headers = {"Content-Type": "application/x-www-form-urlencoded"} if "content" in request else {}
            answer = await p.client.post(PATH, **request | {"headers": headers | request.get("headers", {})})
            body = answer.json()
            assert (answer.status_code, body["error"]) == (status, error), what
            assert list(body) == ["error", "error_description"], what
            assert all(" " <= char <= "~" and char not in '"\\' for char in body["error_description"]), what
            assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache"), what
            assert ("www-authenticate" in answer.headers) == (status == 401), what
            assert p.key not in answer.text, what
        assert answer.headers.get("x-ratelimit-limit") == "1000", "of a client that is known, it counts"
        error_of(await p.client.get(PATH), 405, "METHOD_NOT_ALLOWED")

    run(database_url, redis_url, check, RATE_LIMIT_DEFAULT="1000/100")


def test_asking_for_tokens_counts_as_a_request_of_the_key(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        token = await token_of(p)
        assert (await with_token(p.client, "GET", "/v1/events", token)).headers["x-ratelimit-remaining"] == "0"
        answer = await p.client.post(PATH, data=in_body(p))
        assert (answer.status_code, answer.json()["error"]) == (429, "temporarily_unavailable")
        assert 50 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["x-ratelimit-remaining"] == "0"
        error_of(await with_token(p.client, "GET", "/v1/events", token), 429, "RATE_LIMIT_EXCEEDED")
        error_of(await p.client.get("/v1/events"), 429, "RATE_LIMIT_EXCEEDED")

    run(database_url, redis_url, check, RATE_LIMIT_DEFAULT="1/2")


def test_tokens_end_with_their_key_and_their_organization_in_every_process(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        subscription = await p.subscribe(URL)
        calls = [
            ("POST", "/v1/events", EVENT, 202),
            ("POST", "/v1/events/batch", {"events": [EVENT]}, 202),
            ("POST", f"{SUBSCRIPTIONS}/{subscription['id']}/test", {}, 202),
            ("GET", "/v1/events", None, 200),
        ]

        async def ask(client: httpx.AsyncClient, credential: str) -> list[int]:
            return [(await with_token(client, *call[:2], credential, call[2])).status_code for call in calls]

        async with another_app(p, database_url, redis_url) as other:
            token = await token_of(p)
            revoked = await make_key(p, p.organization_id)
            [row] = await p.sql("SELECT id FROM api_keys WHERE name = 'a key'")
            key_id = ids.show(ids.API_KEY, row["id"])
            form = FORM | {"client_id": key_id, "client_secret": revoked}
            its_token = (await p.client.post(PATH, data=form)).json()["access_token"]
            for credential in (token, p.key, its_token):
                for client in (p.client, other):  # each of them now knows it
                    assert await ask(client, credential) == [202, 202, 202, 200]
            stored = len(await p.sql("SELECT id FROM events"))
            headers = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
            success_of(await p.client.delete(f"/v1/api-keys/{key_id}", headers=headers), 200)
            for client in (p.client, other):
                assert await ask(client, its_token) == [401] * 4
            assert (await p.client.post(PATH, data=form)).json()["error"] == "invalid_client"
            await p.sql("UPDATE organizations SET deleted_at = now() WHERE id = $1", p.organization_id)
            for credential in (token, p.key):
                for client in (p.client, other):
                    # What takes events may still know the key; then its organization is not there.
                    assert set(await ask(client, credential)) <= {401, 404}
                    refused = await with_token(client, "GET", "/v1/events", credential)
                    assert "deleted" in error_of(refused, 401, "AUTHENTICATION_FAILED")["message"]
            assert (await p.client.post(PATH, data=in_body(p))).json()["error"] == "invalid_client"
            assert len(await p.sql("SELECT id FROM events")) == stored

    run(database_url, redis_url, check)


def test_a_token_expires_also_where_it_was_found_valid_a_moment_ago(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        ends = datetime.now(UTC) + timedelta(seconds=1.5)
        issued = ends - timedelta(seconds=access_tokens.LIFETIME_S + access_tokens.LEEWAY_S)
        token = p.services.access_tokens.issue(p.key_id, p.organization_id, ORGANIZATION_SCOPES, issued)
        success_of(await with_token(p.client, "POST", "/v1/events", token, EVENT), 202)

        async def expired() -> bool:
            answer = await with_token(p.client, "POST", "/v1/events", token, EVENT)
            return answer.status_code == 401 and "has expired" in answer.text

        await eventually(expired, 4, "the end of a token that is remembered for 5 s")
        error_of(await with_token(p.client, "GET", "/v1/events", token), 401, "AUTHENTICATION_FAILED")

    run(database_url, redis_url, check)


def test_tokens_outlive_a_rotation_of_the_secret_keys_and_no_removal(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        new = generate_key()
        old_token = await token_of(p)
        async with another_app(p, database_url, redis_url, SECRET_KEYS=f"{new},{SECRET_KEY}") as both:
            assert (await with_token(both, "GET", "/v1/events", old_token)).is_success
            new_token = (await both.post(PATH, data=in_body(p))).json()["access_token"]
            assert (await with_token(both, "GET", "/v1/events", new_token)).is_success
        async with another_app(p, database_url, redis_url, SECRET_KEYS=new) as only_new:
            assert (await with_token(only_new, "GET", "/v1/events", new_token)).is_success
            error_of(await with_token(only_new, "GET", "/v1/events", old_token), 401, "AUTHENTICATION_FAILED")
        error_of(await with_token(p.client, "GET", "/v1/events", new_token), 401, "AUTHENTICATION_FAILED")

    run(database_url, redis_url, check)


def by_hand(header: Any, claims: Any, secret: bytes) -> str:
    """What no library would make."""
    parts = [base64.urlsafe_b64encode(orjson.dumps(part)).rstrip(b"=") for part in (header, claims)]
    digest = hmac.digest(secret, b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(digest).rstrip(b"=")]).decode()


def forgeries(p: Platform, good: str) -> Iterator[tuple[str, str]]:
    """Tokens that are wrong in one thing each. All but the first few are signed with our very key."""
    sealer = Sealer([SECRET_KEY])
    [(kid, secret)] = sealer.derived_keys(b"hookwright access token").items()
    key = OctKey.import_key(secret)
    head, body, signature = good.split(".")
    now = int(time.time())
    header = {"typ": "at+jwt", "alg": "HS256", "kid": kid.hex()}
    claims = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": client_of(p)[0],
        "org": shown(p),
        "scope": "events.read",
        "iat": now,
        "exp": now + 900,
        "jti": "x",
    }

    def signed(header: dict[str, Any], claims: dict[str, Any], key: Any = key, algorithm: str = "HS256") -> str:
        return jwt.encode(header, claims, key, [algorithm], default_type=None)

    yield "as ours", signed(header, claims)
    yield "as ours by hand", by_hand(header, claims, secret)
    yield "no signature", f"{head}.{body}."
    yield "another signature", f"{head}.{body}.{'A' * len(signature)}"
    unsigned = base64.urlsafe_b64encode(b'{"alg":"none","typ":"at+jwt","kid":"%s"}' % kid.hex().encode()).decode()
    yield "alg none", f"{unsigned.rstrip('=')}.{body}."
    rsa = RSAKey.generate_key(2048)
    yield "RS256", signed(header | {"alg": "RS256"}, claims, rsa, "RS256")
    yield "HS256 under a public key", by_hand(header, claims, rsa.as_pem(private=False))
    yield "the secret key itself", signed(header, claims, OctKey.import_key(base64.b64decode(SECRET_KEY)))
    yield "HS512", signed(header | {"alg": "HS512"}, claims, key, "HS512")
    yield (
        "another installation",
        AccessTokens(Sealer([generate_key()]), ISSUER).issue(
            p.key_id, p.organization_id, ["events.read"], datetime.now(UTC)
        ),
    )
    yield "another kid", signed(header | {"kid": "00000000"}, claims)
    yield "no kid", signed({"typ": "at+jwt", "alg": "HS256"}, claims)
    yield "a list for a kid", by_hand({**header, "kid": [kid.hex()]}, claims, secret)
    yield "typ JWT", signed(header | {"typ": "JWT"}, claims)
    yield "no typ", signed({"alg": "HS256", "kid": kid.hex()}, claims)
    yield "a key of its own", signed(header | {"jwk": {"kty": "oct", "k": "eA"}}, claims)
    yield "another issuer", signed(header, claims | {"iss": "http://elsewhere.example"})
    yield "another audience", signed(header, claims | {"aud": "http://elsewhere.example"})
    yield "another subject", signed(header, claims | {"sub": f"key_{'0' * 26}"})
    yield "no key's id", signed(header, claims | {"sub": shown(p)})
    yield "another organization", signed(header, claims | {"org": f"org_{'0' * 26}"})
    yield "no organization", signed(header, {name: value for name, value in claims.items() if name != "org"})
    yield "expired", signed(header, claims | {"exp": now - 6})
    yield "from the future", signed(header, claims | {"iat": now + 60})
    yield "no number for an end", signed(header, claims | {"exp": "never"})
    yield "an endless end", signed(header, claims | {"exp": 10**30})
    yield "no scope", signed(header, claims | {"scope": None})
    for name in ("iss", "aud", "sub", "exp", "iat", "scope"):
        yield f"without {name}", signed(header, {one: value for one, value in claims.items() if one != name})
    yield "no object", by_hand(header, [claims], secret)
    yield "deeply nested", f"{base64.urlsafe_b64encode(b'[' * 1_400).decode().rstrip('=')}.{body}.{signature}"
    yield "a long one", signed(header, claims | {"jti": "x" * 4_000})
    yield "dots", ".."
    yield "five parts", f"{good}.a.b"
    yield "one part", head


def test_no_token_but_ours_to_the_letter_is_accepted(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        seen = {}
        for what, token in forgeries(p, await token_of(p)):
            answer = await with_token(p.client, "GET", "/v1/events", token)
            seen[what] = answer.status_code
            if answer.status_code == 401:
                error_of(answer, 401, "AUTHENTICATION_FAILED")
        assert seen.pop("as ours") == seen.pop("as ours by hand") == 200, "what the others vary holds"
        assert set(seen.values()) == {401}, seen

    run(database_url, redis_url, check)


def test_a_token_has_no_scope_that_its_key_has_not(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        tokens = p.services.access_tokens
        forged = tokens.issue(p.key_id, p.organization_id, ALL_SCOPES, datetime.now(UTC))
        answer = await with_token(p.client, "GET", "/v1/organizations", forged)
        assert error_of(answer, 403, "PERMISSION_DENIED")["details"] == {"required_scope": "organizations.admin"}
        other = shown_organization(ids.new_id())
        request = p.client.build_request(
            "GET", "/v1/events", headers={"Authorization": f"Bearer {forged}", "X-Organization-ID": other}
        )
        del request.headers["X-API-Key"]
        error_of(await p.client.send(request), 404, "NOT_FOUND")
        [row] = await p.sql("SELECT last_used_at FROM api_keys WHERE id = $1", p.key_id)
        assert row["last_used_at"] is not None

    run(database_url, redis_url, check)
