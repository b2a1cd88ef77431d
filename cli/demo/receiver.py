"""The demo's receiver: what a partner would run. It verifies every request with the `standardwebhooks` library.

| path | answers a request whose signature holds |
|---|---|
| `/healthy` | 200 |
| `/flaky` | 500 twice for each `webhook-id`, then 200 |
| `/failing` | 500, until somebody sends `POST /mend`; then 200 |

Anything that can't be verified is answered 401.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from typing import Self

from cli.receiving import Server, holds

HEALTHY, FLAKY, FAILING, MEND = "/healthy", "/flaky", "/failing", "/mend"
FLAKY_FAILURES = 2


class Receiver:
    """Serves on a thread within the `with` block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: dict[str, str] = {}
        self._seen: Counter[tuple[str, str]] = Counter()  # (path, webhook-id): requests
        self._verified: dict[tuple[str, str], bool] = {}
        self._mended = False
        self._server = Server(self.answer)

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.port}{path}"

    def expect(self, path: str, secret: str) -> None:
        """Requests for `path` are signed with this secret from now on."""
        with self._lock:
            self._secrets[path] = secret

    def verified(self, path: str, webhook_id: str) -> bool:
        """Whether requests came for it, and every one had a signature that holds."""
        with self._lock:
            return self._verified.get((path, webhook_id), False)

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        """The status and a word about it."""
        with self._lock:
            if path == MEND:
                self._mended = True
                return 200, "mended: from now on it accepts everything"
            secret = self._secrets.get(path)
            if secret is None:
                return 404, "no such path"
            key = path, headers.get("webhook-id", "")
            self._seen[key] += 1
            verified = holds(secret, headers, body)
            self._verified[key] = verified and self._verified.get(key, True)
            if not verified:
                return 401, "the signature does not hold"
            if path == FLAKY and self._seen[key] <= FLAKY_FAILURES:
                return 500, f"flaky: this fails {FLAKY_FAILURES} times"
            if path == FAILING and not self._mended:
                return 500, f"broken, until POST {MEND}"
            return 200, "thank you"
