"""Signing in with a password, and signing out."""

from __future__ import annotations

import contextlib

from starlette.responses import Response

from app.admin import cookies, single_sign_on
from app.admin.visit import Visit, local_path
from core.access import sign_in, users
from core.access.sign_in import SignInFailed, SignInThrottled
from core.errors import NotFound


async def show(visit: Visit) -> Response:
    to = local_path(visit.request.query_params.get("next", "/"))
    if visit.user is not None:
        return visit.redirect(to)
    async with visit.services.database.session() as session:
        is_set_up = await users.there_are_any(session)
    return _form(visit, to, is_set_up=is_set_up)


async def submit(visit: Visit) -> Response:
    to = local_path(visit.form.text("next"))
    email, password = visit.form.text("email"), visit.form.text("password")
    if not email or not password:
        missing = {name: ["Is needed"] for name in ("email", "password") if not visit.form.text(name)}
        return _form(visit, to, 400, email=email, errors=missing)
    try:
        services = visit.services
        done = await sign_in.with_password(services.database, services.sealer, email, password, visit.browser)
    except SignInThrottled as error:
        response = _form(visit, to, 429, email=email, message=error.message)
        response.headers["Retry-After"] = str(error.retry_after_s)
        return response
    except SignInFailed as error:
        return _form(visit, to, 401, email=email, message=f"{error.message}.")
    return visit.signed_in(done, to)


async def sign_out(visit: Visit) -> Response:
    with contextlib.suppress(NotFound):  # ended meanwhile, in another tab
        await sign_in.sign_out(visit.services.database, visit.actor, visit.me.id, visit.here.id)
    response = visit.redirect("/sign-in")
    cookies.drop(response, cookies.SESSION, visit.public_url)
    return response


def _form(
    visit: Visit,
    to: str,
    status: int = 200,
    *,
    email: str = "",
    message: str = "",
    errors: dict[str, list[str]] | None = None,
    is_set_up: bool = True,
) -> Response:
    return visit.render(
        "sign_in/show.html",
        status,
        next=to,
        email=email,
        message=message,
        errors=errors or {},
        is_set_up=is_set_up,
        single_sign_on=single_sign_on.PATH if visit.services.oidc is not None else "",
    )
