"""The cookies: the session's, and one that forms are bound to before there is a session.

Over https they are `__Host-` cookies (RFC 6265bis, section 4.1.3.2): browsers take such a one only from this very host,
so that no other name of the domain can plant it.
"""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import Response

from app import headers

SESSION, VISITOR, OIDC = "hookwright_session", "hookwright_visitor", "hookwright_oidc"
MAX_CHARS = 200  # longer than any of ours


def name(kind: str, public_url: str) -> str:
    return f"__Host-{kind}" if headers.is_https(public_url) else kind


def get(request: Request, kind: str, public_url: str) -> str | None:
    value = request.cookies.get(name(kind, public_url))
    return value if value and len(value) <= MAX_CHARS and value.isascii() else None


def put(response: Response, kind: str, value: str, public_url: str, max_age_s: int | None = None) -> None:
    """Until the browser is closed, unless `max_age_s` says otherwise."""
    response.set_cookie(
        name(kind, public_url),
        value,
        max_age=max_age_s,
        path="/",
        secure=headers.is_https(public_url),
        httponly=True,
        samesite="lax",
    )


def drop(response: Response, kind: str, public_url: str) -> None:
    put(response, kind, "", public_url, max_age_s=0)


def new_value() -> str:
    return secrets.token_urlsafe(32)
