"""The start page, for who has not signed in. It shows nothing of anybody's."""

from __future__ import annotations

from starlette.responses import Response

from app.admin.visit import Visit


async def show(visit: Visit) -> Response:
    return visit.render("start/index.html", public_url=visit.public_url)
