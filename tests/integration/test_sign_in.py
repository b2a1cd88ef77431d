"""Signing in: by the first link and by password, what is refused, how often one may try, and what is logged."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from argon2 import PasswordHasher

from app import main as web
from app.admin.visit import local_path
from cli.supervisor.ports import why_not_200
from core import settings
from core.access import passwords, set_up_link, throttle
from core.access.models import Role
from core.errors import ValidationFailed
from tests.api import run
from tests.commands import Running
from tests.pages import PASSWORD, SAME_ORIGIN, WRONG, Visitor, audited, make_user, shown, signed_in
from tests.platform import Platform, environment, eventually
from tests.ports import free_port

EMAIL = "ada@example.com"


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that a password was held against, as they come."""
    seen: list[str] = []
    real = passwords._verify

    def verify(password_hash: str, password: bytes) -> bool:
        seen.append(password_hash)
        return real(password_hash, password)

    monkeypatch.setattr(passwords, "_verify", verify)
    return seen


async def set_up_token(p: Platform) -> str:
    async with p.database.driver() as driver:
        token = await set_up_link.make(driver)
    assert token is not None
    return token


def test_the_first_admin_is_made_by_the_newest_link_and_once(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        older, token = await set_up_token(p), await set_up_token(p)
        one, other, third = Visitor(p.app), Visitor(p.app), Visitor(p.app)
        assert (await one.get(f"/set-up/{older}")).status_code == 404, "an older link has ended"
        assert "Set up Hookwright" in (await one.get(f"/set-up/{token}")).text
        fields = {"token": token, "email": "Ada@Example.com ", "name": "Ada", "password": PASSWORD, "again": PASSWORD}
        for wrong, where in (
            ({"password": "short", "again": "short"}, "password-error"),
            ({"password": "password1234", "again": "password1234"}, "password-error"),
            ({"password": "Ada@example.com", "again": "Ada@example.com"}, "password-error"),
            ({"again": WRONG}, "again-error"),
            ({"email": "ada"}, "email-error"),
        ):
            refused = await one.post("/set-up", **fields | wrong)
            assert (refused.status_code, f'id="{where}"' in refused.text) == (400, True), wrong
            assert PASSWORD not in refused.text
        assert not await p.sql("SELECT FROM users")

        lasting = await asyncio.gather(*(set_up_token(p) for _ in range(4)))
        [row] = await p.sql("SELECT token_hash FROM sign_in_links")
        [token] = [each for each in lasting if set_up_link.hash_of(each) == row["token_hash"]]
        # A second one, as there should never be.
        kept = "INSERT INTO sign_in_links (token_hash, expires_at) VALUES ($1, now() + interval '1 hour')"
        await p.sql(kept, set_up_link.hash_of(older))
        given = {one: fields | {"token": token}, other: fields | {"token": token}}
        given[third] = fields | {"token": older, "email": "eve@example.com"}
        for visitor, each in given.items():
            assert (await visitor.get(f"/set-up/{each['token']}")).status_code == 200
        posts = (visitor.post("/set-up", **each) for visitor, each in given.items())
        statuses = {v: answer.status_code for v, answer in zip(given, await asyncio.gather(*posts), strict=True)}
        assert sorted(statuses.values()) == [303, 404, 404], "of several at once, one is"
        [user] = await p.sql("SELECT * FROM users")
        [winner] = [visitor for visitor, status in statuses.items() if status == 303]
        email = "eve@example.com" if winner is third else EMAIL
        assert (user["email"], user["role"], user["name"]) == (email, "admin", "Ada")
        assert user["password_hash"].startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert (await winner.get("/users")).status_code == 200, "and is signed in"
        me = shown(user["id"])
        assert await audited(p) == [
            ("user.created", "anybody", me, "203.0.113.7"),
            ("installation.set_up", me, me, "203.0.113.7"),
            ("user.password_changed", me, me, "203.0.113.7"),
            ("sign_in.succeeded", me, me, "203.0.113.7"),
        ]
        async with p.database.driver() as driver:
            assert await set_up_link.make(driver) is None, "from then on, admins invite"

    run(database_url, redis_url, check)


def test_an_expired_link_sets_nothing_up(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        token = await set_up_token(p)
        [row] = await p.sql("SELECT token_hash, expires_at - created_at AS lasts FROM sign_in_links")
        assert row["lasts"].total_seconds() == 24 * 3600
        assert token.encode() not in row["token_hash"]
        visitor = Visitor(p.app)
        await visitor.get(f"/set-up/{token}")
        await p.sql("UPDATE sign_in_links SET expires_at = now()")
        fields = {"token": token, "email": EMAIL, "password": PASSWORD, "again": PASSWORD}
        assert (await visitor.post("/set-up", **fields)).status_code == 404
        assert not await p.sql("SELECT FROM users")

    run(database_url, redis_url, check)


def test_a_refusal_says_and_costs_the_same_whatever_is_wrong(
    database_url: str, redis_url: str, verified: list[str]
) -> None:
    async def check(p: Platform) -> None:
        ada = await make_user(p, EMAIL, Role.ADMIN)
        out = await make_user(p, "out@example.com", disabled=True)
        invited = await make_user(p, "invited@example.com", password=None)
        visitor = Visitor(p.app)
        pages = set()
        for email, password in (
            (EMAIL, WRONG),
            ("nobody@example.com", PASSWORD),
            ("out@example.com", PASSWORD),
            ("invited@example.com", PASSWORD),
            ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), PASSWORD),
        ):
            verified.clear()
            answer = await visitor.sign_in(email, password)
            assert answer.status_code == 401
            [hashed] = verified
            assert not passwords.is_dated(hashed), "of today's parameters, so it takes as long as any other"
            pages.add(answer.text.replace(email, "").replace(visitor.form_token, "").split("<h1>")[1].split("<form")[0])
            assert "hookwright_session" not in answer.headers.get("set-cookie", "")
        assert len(pages) == 1
        assert await audited(p, "sign_in.failed") == [
            ("sign_in.failed", "anybody", resource, "203.0.113.7")
            for resource in (shown(ada), "", shown(out), shown(invited), "")
        ]
        logged = str([tuple(row) for row in await p.sql("SELECT * FROM audit_log")])
        assert PASSWORD not in logged
        assert WRONG not in logged
        assert "nobody@" not in logged, "what was typed as an email may be a password"

        answer = await visitor.sign_in("ADA@example.com ", to="/account?a=b")
        assert (answer.status_code, answer.headers["location"]) == (303, "/account?a=b")
        assert (await visitor.get("/sign-in?next=/users")).headers["location"] == "/users", "who is in, is sent on"

    run(database_url, redis_url, check)


@pytest.mark.parametrize(
    ("given", "leads_to"),
    [
        ("/account", "/account"),
        ("/users?x=1&y=/z", "/users?x=1&y=/z"),
        ("", "/"),
        ("account", "/"),
        ("https://evil.example", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("\n//evil.example", "/"),
        (" //evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/\u2028/evil.example", "/"),
        ("///evil.example", "/"),
        ("/" + "x" * 499, "/" + "x" * 499),
        ("/" + "x" * 500, "/"),
    ],
)
def test_signing_in_leads_to_pages_of_ours_alone(given: str, leads_to: str) -> None:
    assert local_path(given) == leads_to


def test_after_five_failures_an_account_waits_and_no_password_is_looked_at(
    database_url: str, redis_url: str, verified: list[str]
) -> None:
    async def check(p: Platform) -> None:
        ada = await make_user(p, EMAIL)
        # Another process, which knows nothing of the first but by the database; and Redis is away.
        other = web.create(settings.load(environment(database_url, "redis://127.0.0.1:1")))
        async with other.router.lifespan_context(other):
            visitors = [Visitor(app, f"203.0.113.{n}") for n in range(1, 7) for app in (p.app, other)]
            await asyncio.gather(*(visitor.get("/sign-in") for visitor in visitors))
            at_once = (visitor.post("/sign-in", email=EMAIL, password=WRONG) for visitor in visitors)
            answers = await asyncio.gather(*at_once)
            assert sorted(answer.status_code for answer in answers) == [401] * 5 + [429] * 7
            assert len(verified) == 5

            answer = await visitors[0].post("/sign-in", email=EMAIL, password=PASSWORD)
            assert answer.status_code == 429, "the right one as well"
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert "Too many failed attempts. Try again in" in answer.text
            assert len(verified) == 5
            for _ in range(2):
                assert (await visitors[1].post("/sign-in", email="Nobody@x.yz", password=WRONG)).status_code == 401

            await p.sql("UPDATE sign_in_failures SET last_at = last_at - interval '31 s'")
            assert (await visitors[0].post("/sign-in", email=EMAIL, password=WRONG)).status_code == 401
            await p.sql("UPDATE sign_in_failures SET last_at = last_at - interval '31 s'")
            assert (await visitors[0].post("/sign-in", email=EMAIL, password=PASSWORD)).status_code == 429, "longer now"
            await p.sql("UPDATE sign_in_failures SET last_at = last_at - interval '30 s'")
            assert (await visitors[0].post("/sign-in", email=EMAIL, password=PASSWORD)).status_code == 303
        again = Visitor(p.app, "203.0.113.99")
        assert [(await again.sign_in(EMAIL, WRONG)).status_code for _ in range(5)] == [401] * 5, "it began anew"

        entries = await audited(p, "sign_in.throttled")
        assert [entry[2] for entry in entries] == [shown(ada)], "one a while, and not for each attempt"
        await p.sql("UPDATE sign_in_failures SET noted_at = noted_at - interval '15 min'")
        for _ in range(2):
            assert (await again.sign_in(EMAIL, WRONG)).status_code == 429
        assert len(await audited(p, "sign_in.throttled")) == 2, "and then another"
        stored = str([tuple(row) for row in await p.sql("SELECT subject FROM sign_in_failures")])
        assert "ada" not in stored

    run(database_url, redis_url, check)


def test_an_address_that_tries_many_accounts_waits_and_others_do_not(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, EMAIL)
        many = [Visitor(p.app, f"2001:db8:1:2::{n:x}") for n in range(1, 6)]  # addresses of one customer

        async def tries(visitor: Visitor, email: str, password: str = WRONG) -> int:
            await visitor.get("/sign-in")
            return (await visitor.post("/sign-in", email=email, password=password)).status_code

        # A success on the way takes only its own count back: else one's own account would let one go on.
        for n in range(10):
            assert await tries(many[n % 5], f"somebody{n}@example.com") == 401
        assert await tries(many[0], EMAIL, PASSWORD) == 303
        many[0] = Visitor(p.app, "2001:db8:1:2::9")
        for n in range(10, 20):
            assert await tries(many[n % 5], f"somebody{n}@example.com") == 401
        assert await tries(Visitor(p.app, "2001:db8:1:2:ffff::1"), EMAIL, PASSWORD) == 429
        assert await tries(Visitor(p.app, "2001:db8:1:3::1"), EMAIL, PASSWORD) == 303

        # Refused is refused: whatever accounts are made up, from whichever of its addresses, nothing is added.
        assert len(await audited(p, "sign_in.throttled")) == 1
        counted = await p.sql("SELECT count(*) FROM sign_in_failures")
        for n in range(5):
            assert await tries(Visitor(p.app, f"2001:db8:1:2:1::{n}"), f"made.up{n}@example.com") == 429
        assert len(await audited(p, "sign_in.throttled")) == 1
        assert await p.sql("SELECT count(*) FROM sign_in_failures") == counted

        # Who gets in makes nobody wait, also while the address is watched.
        await p.sql("UPDATE sign_in_failures SET last_at = last_at - interval '31 s'")
        for _ in range(3):
            assert await tries(Visitor(p.app, "2001:db8:1:2::a"), EMAIL, PASSWORD) == 303
        assert await tries(many[1], "somebody@example.com") == 401
        assert await tries(Visitor(p.app, "2001:db8:1:2::a"), EMAIL, PASSWORD) == 429
        # And a day after the first failure it begins anew, however lately it was used.
        await p.sql("UPDATE sign_in_failures SET first_at = first_at - interval '1 day'")
        for n in range(throttle.ADDRESS_FREE):
            assert await tries(many[1], f"anybody{n}@example.com") == 401
        assert await tries(many[1], "anybody@example.com") == 429

    run(database_url, redis_url, check)


def test_what_was_nobodys_guess_does_not_count(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        await make_user(p, EMAIL)
        async with signed_in(p, EMAIL) as ada:
            await ada.get("/account")
            monkeypatch.setattr(passwords, "MAX_WAITING", 0)
            change = {"current_password": PASSWORD, "new_password": WRONG, "again": WRONG}
            visitor = Visitor(p.app)
            for _ in range(throttle.ACCOUNT_FREE):
                assert (await visitor.sign_in(EMAIL)).status_code == 503
                assert (
                    await ada.client.post("/account/password", data=change | {"form_token": ada.form_token})
                ).status_code == 503
            monkeypatch.undo()
            assert (await visitor.sign_in(EMAIL, WRONG)).status_code == 401
            assert (await visitor.sign_in(EMAIL)).status_code == 303

    run(database_url, redis_url, check)


def test_waits_double_up_to_a_quarter_of_an_hour() -> None:
    waits = [throttle.wait_s(failures, throttle.ACCOUNT_FREE) for failures in (0, 4, 5, 6, 7, 8, 9, 10, 11, 10_000)]
    assert waits == [0, 0, 30, 60, 120, 240, 480, 900, 900, 900]
    networks = ("203.0.113.7", "::ffff:203.0.113.7", "2001:db8::1", "2001:db8:0:0:ffff::", None, "unix")
    assert [throttle.network(one) for one in networks] == [
        "203.0.113.7",
        "203.0.113.7",
        "2001:db8::/64",
        "2001:db8::/64",
        "unknown",
        "unknown",
    ]


def test_a_hash_of_other_parameters_is_renewed_at_sign_in(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        user_id = await make_user(p, EMAIL)
        weak = PasswordHasher(time_cost=1, memory_cost=8_192, parallelism=1).hash(PASSWORD)
        await p.sql("UPDATE users SET password_hash = $2 WHERE id = $1", user_id, weak)
        for _ in range(2):
            assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 303
        [row] = await p.sql("SELECT password_hash FROM users")
        assert row["password_hash"] != weak
        assert not passwords.is_dated(row["password_hash"])

    run(database_url, redis_url, check)


def test_passwords_that_may_be_chosen() -> None:
    for good in ("a horse in the rain", "пароль с пробелами", "x7!kQ2_z9wLp", "ä" * 4 + "bcdefghi"):
        assert passwords.check(good, EMAIL) == good
    for bad in ("short", "elevenchars", "PassWord1234", "aaaaaaaaaaaaaaaa", "long" * 251, EMAIL, "ADA@example.com"):
        with pytest.raises(ValidationFailed):
            passwords.check(bad, EMAIL)
    assert not passwords.is_dated(passwords._DUMMY)


def test_one_password_however_its_characters_were_typed() -> None:
    async def check() -> None:
        hashed = await passwords.hash_of("caf\u00e9 in the rain")
        assert await passwords.is_right("cafe\u0301 in the rain", hashed)
        assert not await passwords.is_right("cafe in the rain", hashed)
        assert not await passwords.is_right("x" * 1001, hashed)
        assert not await passwords.is_right("anything at all", "no hash")

    asyncio.run(check())


@pytest.mark.parametrize(
    ("trusted", "address"),
    [({}, "127.0.0.1"), ({"TRUSTED_PROXIES": "127.0.0.0/8, 10.0.0.7"}, "203.0.113.50")],
)
def test_an_address_is_believed_from_trusted_proxies_alone(
    database_url: str, redis_url: str, trusted: dict[str, str], address: str
) -> None:
    port = free_port()
    # uvicorn's own variable, which would have it believe anybody.
    env = environment(database_url, redis_url, **trusted) | {"FORWARDED_ALLOW_IPS": "*"}
    # What a client says of itself comes first; what the proxy adds, last.
    said = SAME_ORIGIN | {"X-Forwarded-For": "198.51.100.1, 203.0.113.50"}

    async def check(p: Platform) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=said) as client:

            async def answers() -> bool:
                return await why_not_200("127.0.0.1", port, "/healthz") is None

            await eventually(answers, what="the web process")
            visitor = Visitor(p.app)
            visitor.client = client
            assert (await visitor.sign_in(EMAIL, WRONG)).status_code == 401
        assert await audited(p) == [("sign_in.failed", "anybody", "", address)]

    with Running("web", "--port", str(port), env=env):
        run(database_url, redis_url, check)
