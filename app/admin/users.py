"""Users, for admins: who may sign in, and as what."""

from __future__ import annotations

from starlette.responses import Response

from app.admin.lists import Filter, PageQuery
from app.admin.visit import Visit
from core import ids
from core.access import sessions, set_up_link, users
from core.access.models import Role, User
from core.errors import Conflict, ValidationFailed

ROLES = {
    Role.VIEWER: "sees everything but secrets",
    Role.OPERATOR: "also replays, discards, pauses and resumes",
    Role.ADMIN: "also manages subscriptions, secrets, keys, organizations and users",
}


FILTERS = (Filter.text("text", "Email or name"),)


async def index(visit: Visit) -> Response:
    return await _list(visit)


async def invite(visit: Visit) -> Response:
    form = visit.form
    try:
        async with visit.services.database.session() as session:
            user, token = await users.invite(
                session, visit.actor, email=form.text("email"), role=form.text("role"), name=form.text("name")
            )
    except ValidationFailed as error:
        return await _list(visit, error.status, error.details)
    except Conflict as error:
        return await _list(visit, error.status, {"email": [error.message]})
    return _link(visit, user, token)


async def show(visit: Visit) -> Response:
    return await _show(visit)


async def update(visit: Visit) -> Response:
    user_id, form = visit.path_id(ids.USER), visit.form
    try:
        async with visit.services.database.session() as session:
            await users.update(session, visit.actor, user_id, name=form.text("name"), role=form.text("role"))
    except ValidationFailed as error:
        return await _show(visit, error.status, error.details)
    except Conflict as error:
        return await _show(visit, error.status, {"role": [error.message]})
    return visit.redirect(visit.request.scope["path"])


async def disable(visit: Visit) -> Response:
    try:
        async with visit.services.database.session() as session:
            user = await users.disable(session, visit.actor, visit.path_id(ids.USER))
    except Conflict as error:
        return await _show(visit, error.status, {"disable": [error.message]})
    return visit.redirect(f"/users/{users.shown_id(user)}")


async def enable(visit: Visit) -> Response:
    async with visit.services.database.session() as session:
        user = await users.enable(session, visit.actor, visit.path_id(ids.USER))
    return visit.redirect(f"/users/{users.shown_id(user)}")


async def reset(visit: Visit) -> Response:
    async with visit.services.database.session() as session:
        user, token = await users.reset(session, visit.actor, visit.path_id(ids.USER))
    return _link(visit, user, token)


async def end_session(visit: Visit) -> Response:
    """Signs somebody out in one browser."""
    user_id, session_id = visit.path_id(ids.USER), visit.path_id(ids.SESSION, "session")
    shown = ids.show(ids.USER, user_id)
    async with visit.transaction() as session:
        await sessions.end(session, user_id, session_id)
        visit.audit(session, "session.revoked", ids.show(ids.SESSION, session_id), after={"user_id": shown})
    return visit.redirect(f"/users/{shown}?done=signed_out")


async def end_all_sessions(visit: Visit) -> Response:
    async with visit.transaction() as session:
        user = await users.get(session, visit.path_id(ids.USER))
        ended = await sessions.end_all(session, user.id)
        if ended:
            visit.audit(session, "session.all_revoked", users.shown_id(user), after={"count": ended})
    return visit.redirect(f"/users/{users.shown_id(user)}?done=signed_out")


async def _list(visit: Visit, status: int = 200, errors: dict[str, list[str]] | None = None) -> Response:
    query = PageQuery.of(visit, FILTERS, ids.USER)
    async with visit.transaction() as session:
        page = await query.page(session, lambda asked: users.walk(asked.get("text", "")))
    form = visit.form
    return visit.render(
        "users/index.html",
        query.status if status == 200 else status,
        query=query,
        page=page,
        users=[{"id": users.shown_id(one), "row": one} for one in page.rows],
        roles=ROLES,
        given={"email": form.text("email"), "name": form.text("name"), "role": form.text("role") or Role.VIEWER},
        errors=errors or {},
    )


async def _show(visit: Visit, status: int = 200, errors: dict[str, list[str]] | None = None) -> Response:
    async with visit.services.database.session() as session:
        user = await users.get(session, visit.path_id(ids.USER))
        theirs = await sessions.of_user(session, user.id)
    return visit.render(
        "users/show.html",
        status,
        user=user,
        path=f"/users/{users.shown_id(user)}",
        id=users.shown_id(user),
        sessions=[
            {"id": ids.show(ids.SESSION, one.id), "is_here": one.id == visit.here.id, "row": one} for one in theirs
        ],
        done={"signed_out": "They are signed out."},
        roles=ROLES,
        given={"name": visit.form.text("name"), "role": visit.form.text("role")}
        if errors and "disable" not in errors
        else {"name": user.name, "role": user.role},
        errors=errors or {},
    )


def _link(visit: Visit, user: User, token: str) -> Response:
    """Shows the link in the answer to the form itself: there is no second time."""
    link = f"{visit.public_url}{set_up_link.path(token)}"
    return visit.render(
        "users/link.html", user=user, link=link, hours=int(set_up_link.LIFETIME.total_seconds() // 3600)
    )
