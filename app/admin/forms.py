"""Forms: that they come from our own pages (CSRF), and what is in them.

Three things stand against a form on somebody else's page: cookies are SameSite=Lax; the browser says where a request
comes from; and each form of ours carries a token that only the holder of the cookie was shown.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import FormData
from starlette.requests import Request

from app.api import body
from core.errors import PermissionDenied, UnsupportedMediaType, ValidationFailed

TOKEN = "form_token"  # nosec B105 # noqa: S105 - a field's name
MAX_BYTES = 65_536
ENCODED = 6  # times its size that a text takes in a form, at most: laid out over lines, and each byte as %xx
MAX_FIELDS = 200
MEDIA_TYPE = "application/x-www-form-urlencoded"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


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

    def texts(self, name: str) -> list[str]:
        """All values of a field, as of boxes that were checked."""
        return [value for value in self._data.getlist(name) if isinstance(value, str)]


def check_origin(headers: Mapping[str, str], public_url: str) -> None:
    """Raises `Foreign` unless the browser says that the request comes from our own pages.

    Browsers send Sec-Fetch-Site (W3C Fetch Metadata) to https and to localhost, and Origin with every POST.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site not in (None, "same-origin", "none"):  # none: the person's own doing, such as a reload
        raise Foreign("This form came from another site, so nothing was done. Open the page here and fill it in again.")
    if origin is None and site is not None:
        return
    if origin is not None and origin.lower() == origin_of(public_url):
        return
    # Our own page under another address. Of this machine that is harmless, a forwarded port for instance; elsewhere it
    # is a public URL that nobody has set, with cookies that are not `Secure` and links that lead nowhere.
    if site is not None and _is_loopback(origin) and _is_loopback(public_url):
        return
    raise Foreign(
        "It can't be told that this form came from one of our own pages, so nothing was done. Open"
        f" {public_url} and try again there. If you reach this page under another address, then that address"
        " must be set as HOOKWRIGHT_PUBLIC_URL."
    )


def _is_loopback(url: str | None) -> bool:
    try:
        return urlsplit(url or "").hostname in LOOPBACK
    except ValueError:
        return False


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


async def read(request: Request, max_bytes: int = MAX_BYTES) -> Form:
    """Raises `UnsupportedMediaType`, `PayloadTooLarge`, or `ValidationFailed` when it is no form.

    What our own pages send and nothing else: a multipart form names the codecs that its fields are decoded by, and
    Python has such as take minutes. This kind is UTF-8, whatever it says (WHATWG URL Standard, section 5.1).
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != MEDIA_TYPE:
        raise UnsupportedMediaType(f"Send the form as {MEDIA_TYPE}, as the pages here do")
    content = await body.read(request.receive, request.headers, max_bytes)
    try:
        pairs = parse_qsl(content.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeError as error:
        raise ValidationFailed("The form can't be read: it is not UTF-8") from error
    except ValueError as error:
        raise ValidationFailed(f"The form can't be read: it has more than {MAX_FIELDS} fields") from error
    if any("\0" in text for pair in pairs for text in pair):
        raise ValidationFailed("The form holds a NUL character, which can't be stored")
    return Form(FormData([*pairs]))
