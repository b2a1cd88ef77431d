"""The HTTP API's client, for the commands that go through it: `HOOKWRIGHT_URL` and `HOOKWRIGHT_API_KEY` say where."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from typing import Any, Self

import httpx

from cli.options import DEFAULT_HOST, DEFAULT_PORT
from core.errors import HookwrightError
from core.settings import WrongSettings

URL, KEY = "HOOKWRIGHT_URL", "HOOKWRIGHT_API_KEY"
DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
TIMEOUT_S = 30.0
PAGE = 100


class ApiError(HookwrightError):
    """The platform refused it, or does not answer"""


class Api:
    """Use it in a `with` block. Every method raises `ApiError` with what the API said."""

    def __init__(self, url: str, key: str, organization: str | None = None) -> None:
        headers = {"X-API-Key": key, "Accept": "application/json", "User-Agent": "hookwright-cli"}
        if organization is not None:
            headers["X-Organization-ID"] = organization
        self._url = url.rstrip("/")
        self._client = httpx.Client(
            headers=headers,
            timeout=TIMEOUT_S,
            trust_env=False,  # a proxy of the environment has no business with our key
            verify=ssl.create_default_context(),  # the system's authorities, among which may be a company's own
        )

    @classmethod
    def from_environment(cls, organization: str | None = None) -> Self:
        """Raises `WrongSettings`."""
        url = os.environ.get(URL) or DEFAULT_URL
        key = os.environ.get(KEY, "").strip()
        if not url.startswith(("http://", "https://")):
            raise WrongSettings(f"{URL}: must start with https:// or http://, as {DEFAULT_URL}")
        if not key:
            raise WrongSettings(f"{KEY}: is required; `hookwright key create --org ORG` makes one")
        for name, value in ((KEY, key), ("--org", organization or "org")):
            if not (value.isascii() and value.isprintable()):
                raise WrongSettings(f"{name}: has characters that no such value has")
        return cls(url, key, organization)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The whole answer: `data`, `meta`, `message`."""
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | bytes | None = None) -> dict[str, Any]:
        """Sends an object, or bytes that are JSON already."""
        if isinstance(body, bytes):
            return self._call("POST", path, content=body, headers={"Content-Type": "application/json"})
        return self._call("POST", path, json=body or {})

    def items(self, path: str, params: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        """The first `limit` items of a list, page by page."""
        found: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while len(found) < limit:
            answer = self.get(path, {**params, **cursor, "limit": str(min(PAGE, limit - len(found)))})
            found += answer["data"]
            after = answer["meta"]["pagination"]["nextCursor"]
            if after is None:
                break
            cursor = {"after_key": after}
        return found

    def _call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, self._url + path, **options)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ApiError(
                f"No answer from {self._url} ({error or type(error).__name__}). Does the platform run there? "
                f"{URL} says where it is."
            ) from error
        return read(answer, self._url)


def read(answer: httpx.Response, url: str) -> dict[str, Any]:
    """The whole answer of the platform at `url`. Raises `ApiError` with what it said if it refused."""
    try:
        body = answer.json()
        failed = body.get("error")
    except (ValueError, AttributeError):
        raise ApiError(
            f"{url} answers {answer.status_code}, and not as Hookwright does; {URL} says where it is"
        ) from None
    if failed or not answer.is_success:
        said = failed or {}
        raise ApiError(
            f"{said.get('message', 'refused')} ({answer.status_code} {said.get('code', '')}, "
            f"request {said.get('request_id', '-')})",
            details=said.get("details") or {},
        )
    return dict(body)
