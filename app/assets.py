"""What pages are drawn with: style sheet, scripts and vendored libraries, at URLs whose content never changes.

A library's version stands in its path, and ours carry a hash of their content as `?v=`; both may be kept for ever.
Asked for in any other way, a file is one that may change.
"""

from __future__ import annotations

import json
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FOLDER = Path(__file__).parent / "static"
VENDOR = "vendor"
LOCK = FOLDER / VENDOR / "vendor.json"  # written by .ci/vendor
FOR_EVER = "public, max-age=31536000, immutable"  # a year (RFC 8246)


@lru_cache
def url(path: str) -> str:
    """Of a file of ours, below app/static. Raises FileNotFoundError."""
    return f"/static/{path}?v={_version(path)}"


@lru_cache
def library_url(name: str) -> str:
    """Of a library by the name of its package. Raises KeyError."""
    return f"/static/{_libraries()[name]}"


@lru_cache
def _version(path: str) -> str:
    return sha256((FOLDER / path).read_bytes()).hexdigest()[:16]


@lru_cache
def _libraries() -> dict[str, str]:
    return {one["name"]: f"{VENDOR}/{one['file']}" for one in json.loads(LOCK.read_bytes())}


class Assets(StaticFiles):
    """The files, each with how long it may be kept."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = FOR_EVER if _never_changes(path, scope) else "no-cache"
        return response


def _never_changes(path: str, scope: Scope) -> bool:
    """Of our own, only the version that lies here: during an upgrade a page of the new release may ask a process of the
    old one, whose answer must not be kept under the new version."""
    if path in _libraries().values():
        return True
    given = parse_qs(scope["query_string"].decode("latin-1")).get("v")
    return given is not None and given == [_version(path)]
