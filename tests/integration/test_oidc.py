"""Single sign-on with a real identity provider, which misbehaves in every way that is known."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from core import settings
from core.access import oidc, oidc_sign_in, throttle
from core.access.models import Role
from core.settings import WrongSettings
from tests.api import run
from tests.identity_provider import CLIENT_ID, CLIENT_SECRET, IdentityProvider, identity_provider
from tests.pages import PASSWORD, Visitor, audited, make_user, shown
from tests.platform import Platform, environment, eventually

EMAIL = "ada@example.com"


@pytest.fixture(scope="module")
def running() -> Iterator[IdentityProvider]:
    with identity_provider() as provider:
        yield provider


@pytest.fixture
def idp(running: IdentityProvider) -> IdentityProvider:
    """One that behaves."""
    issuer, fresh = running.issuer, IdentityProvider()
    vars(running).update(vars(fresh) | {"issuer": issuer})
    return running


def at(idp: IdentityProvider, database_url: str, redis_url: str, check: Callable[[Platform], Awaitable[None]]) -> None:
    client = {"OIDC_ISSUER": idp.issuer, "OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET": CLIENT_SECRET}
    run(database_url, redis_url, check, **client)


async def out_and_back(visitor: Visitor, to: str = "/") -> str:
    """Goes to the provider; the path by which it sends the browser back."""
    answer = await visitor.get(f"/sign-in/sso?next={to}")
    assert answer.status_code == 303, answer.text
    async with httpx.AsyncClient() as outside:
        back = await outside.get(answer.headers["location"])
    parts = urlsplit(back.headers["location"])
    return f"{parts.path}?{parts.query}"


async def sign_in(p: Platform, to: str = "/") -> tuple[httpx.Response, Visitor]:
    visitor = Visitor(p.app)
    return await visitor.get(await out_and_back(visitor, to)), visitor


def test_who_was_invited_signs_in_and_is_known_from_then_on(
    idp: IdentityProvider, database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        user_id = await make_user(p, EMAIL, Role.OPERATOR, password=None)
        assert 'href="/sign-in/sso?next=%2Fusers"' in (await Visitor(p.app).get("/sign-in?next=/users")).text
        answer, visitor = await sign_in(p, "/account?a=b")
        assert (answer.status_code, answer.headers["location"]) == (303, "/account?a=b")
        assert (await visitor.get("/account")).status_code == 200
        assert "operator" in visitor.page.text
        assert "Ada Lovelace" in visitor.page.text
        [asked] = idp.asked
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        assert asked["redirect_uri"] == "http://127.0.0.1:8000/sign-in/sso/callback"
        assert len(asked["state"]) == len(asked["nonce"]) == 43
        assert CLIENT_SECRET not in str(asked)
        [user] = await p.sql("SELECT oidc_issuer, oidc_subject FROM users")
        assert tuple(user) == (idp.issuer, "subject-1")
        assert await p.sql("SELECT FROM oidc_sign_ins") == []
        linked, in_ = await audited(p, "user.identity_linked", "sign_in.succeeded")
        assert (linked[0], in_[0], linked[1], in_[2]) == (
            "user.identity_linked",
            "sign_in.succeeded",
            *[shown(user_id)] * 2,
        )

        # Known by the provider's own id: whatever becomes of the email, there or here.
        for algorithm in ("ES256", "Ed25519"):
            idp.email, idp.email_verified, idp.algorithm = "other@example.com", False, algorithm
            assert (await sign_in(p))[0].status_code == 303
        # And somebody else who gets the email one day is somebody else.
        idp.subject, idp.email, idp.email_verified = "subject-2", EMAIL, True
        answer, _ = await sign_in(p)
        assert (answer.status_code, "nobody has invited you" in answer.text) == (401, True)

        await p.sql("UPDATE users SET disabled_at = now()")
        idp.subject = "subject-1"
        answer, visitor = await sign_in(p)
        assert (answer.status_code, "Your account is disabled" in answer.text) == (401, True)
        assert visitor.session_cookie is None

    at(idp, database_url, redis_url, check)


def test_who_was_not_invited_is_refused_and_so_is_an_email_that_nobody_verified(
    idp: IdentityProvider, database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, EMAIL, Role.ADMIN)
        await make_user(p, "mike@example.com", Role.ADMIN)
        for claims, said in (
            ({"email": "eve@example.com"}, "nobody has invited you"),
            ({"email_verified": False}, "does not vouch for your email"),
            ({"email_verified": "true"}, "does not vouch for your email"),
            ({"email_verified": None}, "does not vouch for your email"),
            ({"email": None}, "does not vouch for your email"),
            ({"email": [EMAIL]}, "does not vouch for your email"),
            ({"email": "mi\u212ae@example.com"}, "nobody has invited you"),  # in lower case it is mike
            *[({"email": f"somebody{n}@example.com"}, "nobody has invited you") for n in range(throttle.ADDRESS_FREE)],
        ):
            idp.claims = claims
            answer, visitor = await sign_in(p)
            assert (answer.status_code, said in answer.text) == (401, True), claims
            assert visitor.session_cookie is None
        assert len(await p.sql("SELECT FROM users WHERE oidc_subject IS NULL")) == 2
        assert len(await audited(p, "sign_in.failed")) == 1, "one a while from each address"
        assert (await Visitor(p.app).sign_in(EMAIL, PASSWORD)).status_code == 303, "it was nobody's guess"
        idp.claims = {"email": "ADA@example.com"}
        assert (await sign_in(p))[0].status_code == 303

    at(idp, database_url, redis_url, check)


NOW = int(time.time())
LIES: dict[str, dict[str, Any]] = {
    "wrong nonce": {"claims": {"nonce": "another"}},
    "no nonce": {"claims": {"nonce": None}},
    "a list of nonces": {"claims": {"nonce": ["a"]}},
    "for another client": {"claims": {"aud": "another"}},
    "for another client, of several": {"claims": {"aud": ["another", "third"]}},
    "for several, and it does not say whose": {"claims": {"aud": [CLIENT_ID, "another"]}},
    "authorized for another": {"claims": {"aud": [CLIENT_ID, "another"], "azp": "another"}},
    "for nobody": {"claims": {"aud": None}},
    "expired": {"claims": {"exp": NOW - 120}},
    "without an end": {"claims": {"exp": None}},
    "from the future": {"claims": {"iat": NOW + 3600}},
    "without a beginning": {"claims": {"iat": None}},
    "of another issuer": {"claims": {"iss": "https://another.example"}},
    "of no issuer": {"claims": {"iss": None}},
    "about nobody": {"claims": {"sub": None}},
    "about a number": {"claims": {"sub": 1}},
    "alg none": {"forge": "none"},
    "HS256 with the public key": {"forge": "hs256"},
    "signed by a stranger": {"forge": "key"},
}


def test_no_lie_about_a_token_is_believed(idp: IdentityProvider, database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, EMAIL, Role.ADMIN)
        behaves = dict(vars(idp))
        for lie, how in LIES.items():
            vars(idp).update(behaves | how)
            answer, visitor = await sign_in(p)
            assert answer.status_code == 401, lie
            assert visitor.session_cookie is None
            assert await p.sql("SELECT FROM oidc_sign_ins") == []
            await p.sql("UPDATE sign_in_failures SET noted_at = noted_at - interval '15 min'")
        assert len(await audited(p, "sign_in.failed")) == len(LIES)
        assert not await p.sql("SELECT FROM user_sessions")
        assert not await p.sql("SELECT FROM users WHERE oidc_subject IS NOT NULL")
        vars(idp).update(behaves | {"claims": {"aud": [CLIENT_ID, "another"], "azp": CLIENT_ID}})
        assert (await sign_in(p))[0].status_code == 303, "what is true is believed"

    at(idp, database_url, redis_url, check)


def test_an_answer_is_for_one_use_in_the_browser_that_asked(
    idp: IdentityProvider, database_url: str, redis_url: str
) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, EMAIL)
        idp.codes_last = True  # so that it is us who refuse
        ada, eve = Visitor(p.app), Visitor(p.app)
        eves = await out_and_back(eve)
        adas = await out_and_back(ada)

        async def refused(visitor: Visitor, path: str, status: int = 401) -> None:
            answer = await visitor.get(path)
            assert answer.status_code == status, path
            assert visitor.session_cookie is None

        await refused(ada, eves)  # somebody is made to end another's sign-in
        await refused(eve, eves)  # by which it is used up
        state, code = (parse_qs(urlsplit(adas).query)[name][0] for name in ("state", "code"))
        callback = "/sign-in/sso/callback"
        await refused(ada, f"{callback}?state={state[:-1]}x&code={code}")
        await refused(ada, f"{callback}?state={state}&code={code}&iss=https://another.example")
        await refused(ada, f"{callback}?state={state}&error=access_denied")
        await refused(ada, f"{callback}?state={state}", 400)
        assert (await ada.get(adas)).status_code == 303
        again = Visitor(p.app)
        again.plant("hookwright_oidc", "x" * 43)
        await refused(again, adas)

        # A code of another sign-in does not fit the verifier of this one.
        one, other = Visitor(p.app), Visitor(p.app)
        ones, others = await out_and_back(one), await out_and_back(other)
        ones_state, others_code = (
            parse_qs(urlsplit(path).query)[name][0] for path, name in ((ones, "state"), (others, "code"))
        )
        await refused(one, f"{callback}?state={ones_state}&code={others_code}")
        assert len(await audited(p, "sign_in.failed")) == 1, "what answers nothing that was asked is no attempt"
        # Who has to wait with a password need not here, where there is nothing to guess.
        for n in range(throttle.ADDRESS_FREE):
            assert (await Visitor(p.app).sign_in(f"somebody{n}@example.com")).status_code == 401
        assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 429
        assert (await sign_in(p))[0].status_code == 303

        late = Visitor(p.app)
        path = await out_and_back(late)
        [row] = await p.sql("SELECT *, expires_at - now() AS left FROM oidc_sign_ins ORDER BY expires_at DESC LIMIT 1")
        assert 590 < row["left"].total_seconds() <= 600
        asked = idp.asked[-1]
        assert asked["nonce"].encode() not in row["sealed"]
        await p.sql("UPDATE oidc_sign_ins SET expires_at = now()")
        await refused(late, path)

    at(idp, database_url, redis_url, check)


def test_a_new_key_is_found_and_an_absent_provider_is_said_to_be(
    idp: IdentityProvider, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, EMAIL)
        idp.published = ["RS256"]
        assert (await sign_in(p))[0].status_code == 303
        idp.published, idp.algorithm = ["RS256", "ES256"], "ES256"
        assert (await sign_in(p))[0].status_code == 401, "it was looked for a moment ago"
        monkeypatch.setattr(oidc, "KEYS_AGAIN_S", -1)
        assert (await sign_in(p))[0].status_code == 303

        visitor = Visitor(p.app)
        path = await out_and_back(visitor)
        provider = p.services.oidc
        assert provider is not None
        (await provider._metadata.get(60))["token_endpoint"] = "http://127.0.0.1:1/token"
        answer = await visitor.get(path)
        assert (answer.status_code, "does not answer" in answer.text) == (503, True)
        assert (await Visitor(p.app).sign_in(EMAIL, PASSWORD)).status_code == 303, "passwords work on"

    at(idp, database_url, redis_url, check)


def test_beginning_takes_little_room_however_often(
    idp: IdentityProvider, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        async def begin(times: int) -> None:
            for _ in range(times):
                assert (await Visitor(p.app).get(f"/sign-in/sso?next=/{'a' * 60_000}")).status_code == 303

        await begin(5)
        [row] = await p.sql("SELECT count(*), max(length(sealed)) AS longest FROM oidc_sign_ins")
        assert (row["count"], row["longest"] < 1_000) == (5, True)
        await p.sql("UPDATE oidc_sign_ins SET expires_at = now() - interval '1 s'")
        await begin(4)
        [row] = await p.sql("SELECT count(*) FROM oidc_sign_ins WHERE expires_at < now()")
        assert row["count"] == 0, "what has expired goes with what comes"
        monkeypatch.setattr(oidc_sign_in, "MAX_PENDING", 3)
        await make_user(p, EMAIL)
        ended, lasting = Visitor(p.app), Visitor(p.app)
        ended_path = await out_and_back(ended)
        await begin(3)
        lasting_path = await out_and_back(lasting)
        await begin(2)
        assert len(await p.sql("SELECT FROM oidc_sign_ins")) == 3
        assert (await ended.get(ended_path)).status_code == 401, "the oldest makes room"
        assert (await lasting.get(lasting_path)).status_code == 303

    at(idp, database_url, redis_url, check)


def test_a_provider_that_hangs_is_waited_for_once(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "TIMEOUT_S", 0.5)
    asked: list[bytes] = []
    under_way: set[asyncio.StreamWriter] = set()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Its answer never ends, and no byte of it takes as long as the limit of a read."""
        asked.append(await reader.readline())
        under_way.add(writer)
        with contextlib.suppress(ConnectionError):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.close()
        under_way.discard(writer)

    async def have_ended() -> bool:
        return not under_way

    async def check(p: Platform) -> None:
        async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
            assert p.services.oidc is not None
            p.services.oidc.issuer = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with asyncio.timeout(4):  # one after the other it would be 5 s
                answers = await asyncio.gather(*(Visitor(p.app).get("/sign-in/sso") for _ in range(10)))
            answers.append(await Visitor(p.app).get("/sign-in/sso"))
            assert {answer.status_code for answer in answers} == {503}
            assert len(asked) == 1, "and that it failed is remembered for a moment"
            monkeypatch.setattr(oidc, "FAILURE_S", -1)
            assert (await Visitor(p.app).get("/sign-in/sso")).status_code == 503
            assert len(asked) == 2
            await eventually(have_ended, what="the end of the connections")

    client = {"OIDC_ISSUER": "http://127.0.0.1:1", "OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET": CLIENT_SECRET}
    run(database_url, redis_url, check, **client)


def test_without_a_provider_there_is_no_such_page(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        assert (await Visitor(p.app).get("/sign-in/sso")).status_code == 404
        assert "single sign-on" not in (await Visitor(p.app).get("/sign-in")).text

    run(database_url, redis_url, check)
    base = environment(database_url, redis_url)
    for wrong in (
        {"OIDC_ISSUER": "https://id.example.com"},
        {"OIDC_CLIENT_ID": "hookwright"},
        {"OIDC_ISSUER": "http://id.example.com", "OIDC_CLIENT_ID": "x", "OIDC_CLIENT_SECRET": "y"},
        {"OIDC_ISSUER": "https://x.y", "OIDC_CLIENT_ID": "x", "OIDC_CLIENT_SECRET": "y", "OIDC_SCOPES": "email"},
    ):
        with pytest.raises(WrongSettings, match="HOOKWRIGHT_OIDC_"):
            settings.load(base | {f"HOOKWRIGHT_{name}": value for name, value in wrong.items()})
