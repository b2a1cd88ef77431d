"""Sessions: how long they last, what ends them, and who may."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.admin import visit
from core import ids
from core.access import passwords, sessions
from core.access.models import Role
from tests.api import run
from tests.pages import PASSWORD, WRONG, Visitor, audited, make_user, shown, signed_in
from tests.platform import Platform
from worker import loops

EMAIL = "ada@example.com"
NEW = "another horse, in the snow"


async def is_in(visitor: Visitor) -> bool:
    return (await visitor.get("/account")).status_code == 200


async def stored(p: Platform, email: str = EMAIL) -> list[Any]:
    return await p.sql(
        "SELECT s.* FROM user_sessions s JOIN users u ON u.id = s.user_id WHERE u.email = $1 ORDER BY s.id", email
    )


async def pass_time(p: Platform, interval: str) -> None:
    """As if this much more had gone by."""
    moved = ", ".join(
        f"{column} = {column} - interval '{interval}'" for column in ("created_at", "seen_at", "expires_at")
    )
    await p.sql(f"UPDATE user_sessions SET {moved}")


def test_a_session_ends_when_idle_and_after_seven_days_in_any_case(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as idle:
            await pass_time(p, "11 hours 59 minutes")
            assert await is_in(idle)
            await pass_time(p, "12 hours 1 second")
            assert not await is_in(idle)
            assert "next=%2Faccount" in idle.page.headers["location"]
        async with signed_in(p, EMAIL) as busy:
            for _ in range(15):
                assert await is_in(busy)
                await pass_time(p, "11 hours")
            assert await is_in(busy), "165 of 168 hours"
            [_, row] = await stored(p)
            assert (row["expires_at"] - row["created_at"]).total_seconds() == 7 * 86_400
            await pass_time(p, "3 hours")
            assert not await is_in(busy)
        await loops.keep_house(p.database, 30)
        assert await stored(p) == []

    run(database_url, redis_url, check)


def test_a_page_that_keeps_itself_fresh_keeps_nobody_signed_in(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as left_open:
            await pass_time(p, "11 hours")
            page = await left_open.get("/", **{"HX-Request": "true"})
            assert page.status_code == 200
            assert "hx-trigger" in page.text, "the overview is such a page"
            await pass_time(p, "61 minutes")
            gone = await left_open.get("/", **{"HX-Request": "true"})
            assert gone.headers["location"] == "/sign-in", "and not the start page, which would take the part's place"

    run(database_url, redis_url, check)


def test_being_seen_is_written_once_a_minute(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as visitor:
            versions = set()
            for _ in range(3):
                assert await is_in(visitor)
                [row] = await p.sql("SELECT xmin::text, seen_at FROM user_sessions")
                versions.add(row["xmin"])
            assert len(versions) == 1
            await pass_time(p, "61 seconds")
            assert await is_in(visitor)
            [row] = await p.sql("SELECT now() - seen_at AS ago, expires_at - seen_at AS left FROM user_sessions")
            assert row["ago"].total_seconds() < 60
            assert row["left"] == sessions.IDLE

    run(database_url, redis_url, check)


def test_what_is_stored_is_of_no_use_as_a_cookie(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as visitor:
            token = visitor.session_cookie
            assert token is not None
            assert len(token) == 43, "256 bits"
            [row] = await stored(p)
            assert row["token_hash"] == sessions.hash_of(token)
            assert token not in str(row)
            for wrong in (row["token_hash"].hex(), token[:-1], token + "x", "é" * 10, "x" * 5000, ""):
                cookie = {b"Cookie": f"hookwright_session={wrong}".encode()}
                answer = await Visitor(p.app).client.get("/account", headers=cookie)
                assert answer.status_code == 303, wrong

    run(database_url, redis_url, check)


def test_signing_in_gives_a_new_token_and_ends_the_one_before(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as visitor:
            first = visitor.session_cookie
            thief = Visitor(p.app)
            thief.plant("hookwright_session", first or "")
            assert await is_in(thief)
            form = Visitor(p.app)  # shown in another tab before signing in
            await form.get("/sign-in")
            visitor.plant("hookwright_visitor", form.client.cookies["hookwright_visitor"])
            answer = await visitor.post("/sign-in", form_token=form.form_token, email=EMAIL, password=PASSWORD)
            assert answer.status_code == 303
            assert visitor.session_cookie != first
            assert not await is_in(thief)
            assert await is_in(visitor)
            assert len(await stored(p)) == 1
        planted = Visitor(p.app)
        planted.plant("hookwright_session", "x" * 43)
        await planted.sign_in(EMAIL)
        assert "x" * 43 not in (planted.session_cookie or "")

    run(database_url, redis_url, check)


def test_own_sessions_are_listed_and_ended_and_others_are_not_to_be_found(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with (
            signed_in(p, EMAIL, Role.ADMIN) as here,
            signed_in(p, EMAIL) as there,
            signed_in(p, EMAIL) as elsewhere,
            signed_in(p, "eve@example.com", Role.VIEWER) as eve,
        ):
            rows = [ids.show(ids.SESSION, row["id"]) for row in await stored(p)]
            page = await here.get("/account")
            assert page.text.count("Sign out</button>") == 3, "its own by the head alone"
            await eve.get("/account")
            for wrong in (rows[1], "ses_nonsense", ids.show(ids.SESSION, ids.new_id())):
                assert (await eve.post(f"/account/sessions/{wrong}/revoke")).status_code == 404
                await eve.get("/account")
            assert await is_in(there)

            await here.get("/account")
            assert (await here.post(f"/account/sessions/{rows[1]}/revoke")).status_code == 303
            assert (await is_in(here), await is_in(there), await is_in(elsewhere)) == (True, False, True)
            await here.get("/account")
            assert (await here.post("/account/sessions/revoke-others")).status_code == 303
            assert (await is_in(here), await is_in(elsewhere), await is_in(eve)) == (True, False, True)

            await here.get("/account")
            answer = await here.post("/sign-out")
            assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in")
            assert here.session_cookie is None
            assert await stored(p) == []
            entries = await audited(p, "session.revoked", "session.others_revoked", "session.signed_out")
            assert [(action, resource) for action, _, resource, _ in entries] == [
                ("session.revoked", rows[1]),
                ("session.others_revoked", entries[0][1]),
                ("session.signed_out", rows[0]),
            ]

    run(database_url, redis_url, check)


def test_another_password_ends_every_other_session(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as here, signed_in(p, EMAIL) as there:
            before = here.session_cookie
            await here.get("/account")
            fields = {"current_password": PASSWORD, "new_password": NEW, "again": NEW}
            for wrong, field in (
                ({"current_password": WRONG}, "current_password"),
                ({"again": WRONG}, "again"),
                ({"new_password": "short", "again": "short"}, "new_password"),
            ):
                refused = await here.post("/account/password", **fields | wrong)
                assert (refused.status_code, f'id="{field}-error"' in refused.text) == (400, True)
            assert await is_in(there)

            await here.get("/account")
            assert (await here.post("/account/password", **fields)).status_code == 303
            assert here.session_cookie != before
            assert (await is_in(here), await is_in(there)) == (True, False)
            assert (await Visitor(p.app).sign_in(EMAIL, PASSWORD)).status_code == 401
            assert (await Visitor(p.app).sign_in(EMAIL, NEW)).status_code == 303
            changes = await audited(p, "user.password_changed")
            assert [entry[0] for entry in changes] == ["user.password_changed"]

            # Whoever finds a browser open can't guess on and on.
            await here.get("/account")
            tries = [await here.post("/account/password", **fields) for _ in range(6)]
            assert [one.status_code for one in tries] == [400] * 5 + [429]
            assert "Try again in" in tries[-1].text
            assert len(await audited(p, "sign_in.failed")) == 1 + 1 + 5

    run(database_url, redis_url, check)


def test_a_sign_in_that_is_under_way_when_the_password_changes_fails(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        user_id = await make_user(p, EMAIL)
        looked, go_on = asyncio.Event(), asyncio.Event()
        is_right = passwords.is_right

        async def slowly(password: str, password_hash: str | None) -> bool:
            right = await is_right(password, password_hash)
            looked.set()
            await go_on.wait()
            return right

        monkeypatch.setattr(passwords, "is_right", slowly)
        for change in ("password_hash = 'another'", "disabled_at = now()"):
            looked.clear()
            go_on.clear()
            visitor = Visitor(p.app)
            signing_in = asyncio.create_task(visitor.sign_in(EMAIL))
            await asyncio.wait_for(looked.wait(), 15)
            [row] = await p.sql("SELECT password_hash FROM users")
            await p.sql(f"UPDATE users SET {change} WHERE id = $1", user_id)
            go_on.set()
            assert (await signing_in).status_code == 401
            await p.sql("UPDATE users SET password_hash = $1, disabled_at = NULL", row["password_hash"])
        assert await stored(p) == []
        assert [one[2] for one in await audited(p, "sign_in.failed")] == [shown(user_id)] * 2

    run(database_url, redis_url, check)


def test_without_the_database_pages_say_so(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, EMAIL, Role.VIEWER) as visitor:

            async def away(*_: object, **__: object) -> None:
                raise ConnectionRefusedError

            monkeypatch.setattr(visit.sessions, "find", away)
            answer = await visitor.get("/account")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert "database does not answer" in answer.text

    run(database_url, redis_url, check)
