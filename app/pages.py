"""Pages for the browser. So far one: the start page, which says what to do first. It shows nothing of anybody's."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates

from app.api import calls
from app.services import Services

HERE = Path(__file__).parent
TEMPLATES = Jinja2Templates(HERE.parent / "templates")

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


async def start(request: Request) -> Response:
    services: Services = request.app.state.services
    return TEMPLATES.TemplateResponse(
        request,
        "start/index.html",
        {"public_url": services.settings.public_url},
        headers=HEADERS | {"X-Request-ID": calls.request_id_of(request)},
    )


def routes() -> list[BaseRoute]:
    return [
        Route("/", start),
        Mount("/static", StaticFiles(directory=HERE / "static"), name="static"),
    ]
