"""Forms: that they come from our own pages (CSRF), and what is in them.

Three things stand against a form on somebody else's page: cookies are SameSite=Lax; the browser says where a request
comes from; and each form of ours carries a token that only the holder of the cookie was shown.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.types import Message

from app.api import body
from core.errors import PermissionDenied, ValidationFailed

TOKEN = "form_token"  # nosec B105 # noqa: S105 - a field's name
MAX_BYTES = 65_536
MAX_FIELDS = 200


class Foreign(PermissionDenied):
    """This form did not come from one of our own pages, so nothing was done"""


class Form:
    """What was filled in."""

    def __init__(self, data: FormData) -> None:
        self._data = data

    def text(self, name: str) -> str:
        """A field's first value; empty if it was not there."""
        value = self._data.get(name)
        return value if isinstance(value, str) else ""


def check_origin(headers: Mapping[str, str], public_url: str) -> None:
    """Raises `Foreign` unless the browser says that the request comes from our own pages.

    Browsers send Sec-Fetch-Site (W3C Fetch Metadata) to https and to localhost, and Origin with every POST.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site in ("same-origin", "none"):  # none: the person's own doing, such as a reload
            return
        raise Foreign("This form came from another site, so nothing was done. Open the page here and fill it in again.")
    origin = headers.get("origin")
    if origin is not None and origin.lower() == origin_of(public_url):
        return
    raise Foreign(
        "It can't be told that this form came from one of our own pages, so nothing was done. Open"
        f" {public_url} and try again there. If you reach this page under another address, then that address"
        " must be set as HOOKWRIGHT_PUBLIC_URL."
    )


def origin_of(url: str) -> str:
    """Scheme, host and port as in an Origin header (RFC 6454): in lower case, without a port that is the default."""
    parts = urlsplit(url)
    host = parts.netloc.lower().removesuffix({"https": ":443", "http": ":80"}.get(parts.scheme, ""))
    return f"{parts.scheme}://{host}"


def token_for(cookie: str) -> str:
    """What a form carries to prove that its page was shown to the holder of this cookie."""
    return hmac.new(cookie.encode(), b"hookwright form", "sha256").hexdigest()


def check_token(form: Form, *cookies: str | None) -> None:
    """Raises `Foreign` unless the form's token is that of one of these cookies."""
    given = form.text(TOKEN).encode("utf-8", "replace")
    if not any(hmac.compare_digest(token_for(one).encode(), given) for one in cookies if one is not None):
        raise Foreign(
            "This form is no longer valid: you have signed in or out since it was shown, or your browser does not"
            " keep our cookies. Go back, reload the page and try again."
        )


async def read(request: Request) -> Form:
    """Raises `PayloadTooLarge`, or `ValidationFailed` when it is no form."""
    content = await body.read(request.receive, request.headers, MAX_BYTES)

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    data = await Request(request.scope, receive).form(max_files=0, max_fields=MAX_FIELDS)
    if any("\0" in name or (isinstance(value, str) and "\0" in value) for name, value in data.multi_items()):
        raise ValidationFailed("The form holds a NUL character, which can't be stored")
    return Form(data)
