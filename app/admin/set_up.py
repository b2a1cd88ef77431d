"""What a link leads to: making the first admin, or choosing a password.

The link's token is in its address, which nobody can help; but from there it goes on in the body of a form, the page
loads nothing of others, and `Referrer-Policy` keeps the address among ourselves. Only the form uses the link up, so
that programs which look at links in messages do not.
"""

from __future__ import annotations

from starlette.responses import Response

from app.admin.visit import Visit
from core.access import password_choice
from core.access.models import User
from core.errors import ValidationFailed


async def show(visit: Visit) -> Response:
    token: str = visit.request.path_params["token"]
    return _form(visit, token, await password_choice.owner_of(visit.services.database, token))


async def submit(visit: Visit) -> Response:
    form, database, sealer = visit.form, visit.services.database, visit.services.sealer
    token, password = form.text("token"), form.text("password")
    owner = await password_choice.owner_of(database, token)
    try:
        if password != form.text("again"):
            raise ValidationFailed.of("again", "This differs from the password above")
        if owner is not None:
            done = await password_choice.by_link(database, sealer, token, password, visit.browser)
        else:
            email, name = form.text("email"), form.text("name")
            done = await password_choice.set_up(
                database, sealer, token, email=email, name=name, password=password, browser=visit.browser
            )
    except ValidationFailed as error:
        return _form(visit, token, owner, error.status, errors=error.details)
    return visit.signed_in(done, "/")


def _form(
    visit: Visit, token: str, owner: User | None, status: int = 200, errors: dict[str, list[str]] | None = None
) -> Response:
    form = visit.form
    return visit.render(
        "set_up/show.html",
        status,
        token=token,
        owner=owner,
        email=form.text("email"),
        name=form.text("name"),
        errors=errors or {},
    )
