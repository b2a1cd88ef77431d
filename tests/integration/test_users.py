"""Users: invited, changed, disabled, and let in again."""

from __future__ import annotations

import asyncio
import re
from itertools import pairwise

import httpx

from core import ids
from core.access import users
from core.access.models import Role
from core.audit import COMMAND_LINE
from core.errors import Conflict
from tests.api import run
from tests.pages import ORIGIN, PASSWORD, Visitor, audited, make_user, shown, signed_in
from tests.platform import Platform

ADMIN, EMAIL = "admin@example.com", "grace@example.com"
NEW = "another horse, in the snow"


def link_in(page: httpx.Response) -> str:
    """The path of the link that is shown."""
    [path] = re.findall(rf">{ORIGIN}(/set-up/[\w-]{{43}})<", page.text)
    return str(path)


async def choose(p: Platform, path: str, password: str = PASSWORD) -> tuple[int, Visitor]:
    """Follows a link and chooses a password by it."""
    visitor = Visitor(p.app)
    if (await visitor.get(path)).status_code == 404:
        await visitor.get("/sign-in")  # a form of some kind, so that only the link can be what is wrong
    token = path.rpartition("/")[2]
    return (await visitor.post("/set-up", token=token, password=password, again=password)).status_code, visitor


def test_somebody_is_invited_and_chooses_a_password(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, ADMIN, Role.ADMIN) as admin:
            await admin.get("/users")
            invited = await admin.post("/users", email=" Grace@Example.com", name="Grace", role="operator")
            assert invited.status_code == 200
            path = link_in(invited)
            [row] = await p.sql("SELECT token_hash FROM sign_in_links")
            assert path not in str(row)
            await admin.get("/users")
            assert path not in admin.page.text, "it is shown once"
            assert "invited</span>" in admin.page.text
            for wrong, field in (
                ({"email": "GRACE@example.com", "role": "viewer"}, "email"),
                ({"email": "no email", "role": "viewer"}, "email"),
                ({"email": "mi\u212ae@example.com", "role": "viewer"}, "email"),  # in lower case it is mike
                ({"email": "two@example.com", "role": "owner"}, "role"),
                ({"email": "two@example.com", "role": "viewer", "name": "x" * 201}, "name"),
            ):
                refused = await admin.post("/users", **wrong)
                assert refused.status_code in (400, 409)
                assert f'id="{field}-error"' in refused.text
            assert len(await users_of(p)) == 2

        assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 401, "there is no password to sign in with yet"
        seen = await Visitor(p.app).get(path)
        assert EMAIL in seen.text
        assert (await Visitor(p.app).get(path)).status_code == 200, "to look at it does not use it up"
        status, grace = await choose(p, path)
        assert status == 303
        assert (await grace.get("/account")).status_code == 200
        assert "operator" in grace.page.text
        assert (await choose(p, path))[0] == 404, "it works once"
        assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 303
        created = await audited(p, "user.created")
        assert [(actor, resource) for _, actor, resource, _ in created][1][1] == shown((await users_of(p))[EMAIL]["id"])

    run(database_url, redis_url, check)


async def users_of(p: Platform) -> dict[str, dict[str, object]]:
    return {row["email"]: dict(row) for row in await p.sql("SELECT * FROM users")}


def test_an_admin_changes_disables_and_lets_in_again(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with signed_in(p, ADMIN, Role.ADMIN) as admin, signed_in(p, EMAIL, Role.VIEWER) as grace:
            user_id = (await users_of(p))[EMAIL]["id"]
            page = f"/users/{shown(user_id)}"
            await admin.get(page)
            assert (await grace.get("/users")).status_code == 403
            assert (await admin.post(page, name="Grace", role="admin")).status_code == 303
            assert (await grace.get("/users")).status_code == 200, "at once, in the session that there is"
            assert (await admin.post(page, name="Grace", role="nobody")).status_code == 400
            await admin.get(page)
            path = link_in(await admin.post(f"{page}/reset"))
            assert (await grace.get("/account")).status_code == 200, "the old password holds until there is a new one"

            await admin.get(page)
            assert (await admin.post(f"{page}/disable")).status_code == 303
            assert (await grace.get("/account")).status_code == 303
            assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 401
            assert (await choose(p, path))[0] == 404, "links have ended as well"
            assert (await admin.post(f"{page}/reset")).status_code == 409
            await admin.get(page)
            assert (await admin.post(f"{page}/enable")).status_code == 303
            assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 303

            await admin.get(page)
            older, newer = link_in(await admin.post(f"{page}/reset")), ""
            await admin.get(page)
            newer = link_in(await admin.post(f"{page}/reset"))
            assert (await choose(p, older))[0] == 404
            async with signed_in(p, EMAIL) as other:
                assert (await choose(p, newer, NEW))[0] == 303
                assert (await other.get("/account")).status_code == 303, "a new password ends all sessions"
            assert (await Visitor(p.app).sign_in(EMAIL)).status_code == 401
            assert (await Visitor(p.app).sign_in(EMAIL, NEW)).status_code == 303

            for path in ("/users/usr_nonsense", f"/users/{shown(ids.new_id())}"):
                assert (await admin.get(path)).status_code == 404
            rows = await p.sql(
                "SELECT action, before, after FROM audit_log WHERE resource = $1 ORDER BY id", shown(user_id)
            )
            changes = [tuple(row) for row in rows if row["action"].startswith("user.")]
            assert [one[0] for one in changes] == [
                *("user.created", "user.updated", "user.link_created", "user.disabled", "user.enabled"),
                *("user.link_created", "user.link_created", "user.password_changed"),
            ]
            assert changes[1][1] == {"name": "", "role": "viewer"}
            assert changes[1][2] == {"name": "Grace", "role": "admin"}
            assert "argon2" not in str(rows)

    run(database_url, redis_url, check)


def test_an_admin_who_can_sign_in_is_always_left(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        one = await make_user(p, ADMIN, Role.ADMIN)
        await make_user(p, "invited@example.com", Role.ADMIN, password=None)
        await make_user(p, "gone@example.com", Role.ADMIN, disabled=True)
        async with signed_in(p, ADMIN) as admin:
            page = f"/users/{shown(one)}"
            await admin.get(page)
            assert (await admin.post(page, name="", role="viewer")).status_code == 409
            assert "last admin" in admin.page.text
            assert (await admin.post(f"{page}/disable")).status_code == 409
            assert "last admin" in admin.page.text
            assert (await admin.post(page, name="Ada", role="admin")).status_code == 303
        other = await make_user(p, "other@example.com", Role.ADMIN)

        async def changes(way: str, user_id: object) -> bool:
            try:
                async with p.database.session() as session:
                    if way == "disable":
                        await users.disable(session, COMMAND_LINE, user_id)
                    else:
                        await users.update(session, COMMAND_LINE, user_id, name="", role="viewer")
            except Conflict:
                return False
            return True

        # Of two who end each other at the same moment, one remains; tried often, since most often they do not meet.
        for way, other_way in pairwise(("disable", "demote", "disable", "disable", "demote", "demote")):
            done = await asyncio.gather(changes(way, one), changes(other_way, other))
            assert sorted(done) == [False, True], (way, other_way)
            await p.sql("UPDATE users SET role = 'admin', disabled_at = NULL WHERE id = ANY($1)", [one, other])

    run(database_url, redis_url, check)
