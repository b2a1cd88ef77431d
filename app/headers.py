"""Headers that go with everything a browser may show."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not no-referrer: with that a form posts `Origin: null`, which `app.admin.forms` could not tell from a stranger's.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
HTTPS_ONLY = {"Strict-Transport-Security": "max-age=31536000"}  # a year, of this host alone (RFC 6797)


def of(public_url: str) -> dict[str, str]:
    return HEADERS | HTTPS_ONLY if is_https(public_url) else dict(HEADERS)


def is_https(public_url: str) -> bool:
    return public_url.startswith("https://")


def adding(headers: dict[str, str], send: Send) -> Send:
    """`send`, with these headers on the answer, whatever answers: a page, a file or an error."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending
