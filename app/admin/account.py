"""One's own account: name, password, and the browsers that are signed in."""

from __future__ import annotations

from starlette.responses import Response

from app.admin.visit import Visit
from core import audit, ids
from core.access import password_choice, sessions, users
from core.access.sign_in import SignInThrottled
from core.errors import ValidationFailed


async def show(visit: Visit) -> Response:
    return await _page(visit)


async def rename(visit: Visit) -> Response:
    try:
        async with visit.services.database.session() as session:
            await users.rename(session, visit.actor, visit.me.id, visit.form.text("name"))
    except ValidationFailed as error:
        return await _page(visit, error.status, errors=error.details)
    return visit.redirect("/account")


async def change_password(visit: Visit) -> Response:
    form, services = visit.form, visit.services
    current, new = form.text("current_password"), form.text("new_password")
    try:
        if new != form.text("again"):
            raise ValidationFailed.of("again", "This differs from the new password above")
        done = await password_choice.change(
            services.database, services.sealer, visit.me, current=current, new=new, browser=visit.browser
        )
    except SignInThrottled as error:
        return await _page(visit, 429, errors={"current_password": [error.message]})
    except ValidationFailed as error:
        return await _page(visit, error.status, errors=error.details)
    return visit.signed_in(done, "/account?changed=password")


async def end_session(visit: Visit) -> Response:
    """Ends one of one's sessions: another than this, which signing out ends."""
    session_id = visit.path_id(ids.SESSION)
    async with visit.services.database.session() as session:
        await sessions.end(session, visit.me.id, session_id)
        shown = ids.show(ids.SESSION, session_id)
        audit.record(session, visit.actor, "session.revoked", shown, organization_id=None)
    return visit.redirect("/account")


async def end_other_sessions(visit: Visit) -> Response:
    async with visit.services.database.session() as session:
        ended = await sessions.end_all(session, visit.me.id, but=visit.here.id)
        if ended:
            shown = users.shown_id(visit.me)
            audit.record(
                session, visit.actor, "session.others_revoked", shown, organization_id=None, after={"count": ended}
            )
    return visit.redirect("/account")


async def _page(visit: Visit, status: int = 200, errors: dict[str, list[str]] | None = None) -> Response:
    async with visit.services.database.session() as session:
        own = await sessions.of_user(session, visit.me.id)
    return visit.render(
        "account/show.html",
        status,
        name=visit.form.text("name") if "name" in (errors or {}) else visit.me.name,
        sessions=[{"id": ids.show(ids.SESSION, one.id), "is_here": one.id == visit.here.id, "row": one} for one in own],
        errors=errors or {},
        has_password=visit.me.password_hash is not None,
        password_was_changed=visit.request.query_params.get("changed") == "password",
    )
