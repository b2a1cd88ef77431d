"""The demo's way to the API. While the platform starts a part again, or stops, it waits instead of failing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from cli.api import read

WAIT_S = 0.2
RETRIED = {502, 503, 504}


class Client:
    """Use it in an `async with` block."""

    def __init__(self, url: str, key: str) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # else a line for each request
        self._http = httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}, trust_env=False, timeout=10)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def post(self, path: str, body: Mapping[str, Any], idempotency_key: str) -> Any:
        """The answer's `data`."""
        return await self._call("POST", path, json=body, headers={"Idempotency-Key": idempotency_key})

    async def get(self, path: str, params: Mapping[str, str]) -> Any:
        return await self._call("GET", path, params=params)

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await self._http.request(method, path, **options)
                if answer.status_code not in RETRIED:
                    return read(answer, str(self._http.base_url))["data"]
            await asyncio.sleep(WAIT_S)
