"""A producer as the promise asks for: whatever has no answer, it sends again with the same `event_id`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle

import aiohttp

from tests.platform import HANGS_S

POSTERS = 6
PAUSE_S = (0.0, 0.06)  # some 150 events a second in all
RETRY_S = 0.05  # sooner than Retry-After asks for: the harder the better
ANSWER_WITHIN_S = 30.0  # longer than any answer may take


@dataclass(frozen=True)
class Try:
    began: float
    ended: float
    status: int | None  # None: no answer
    retry_after: str | None = None


@dataclass
class Sent:
    """One event of the producer's."""

    event_id: str  # the producer's own
    shown_id: str | None = None  # the platform's, once accepted
    tries: list[Try] = field(default_factory=list)

    @property
    def accepted_at(self) -> float | None:
        return self.tries[-1].ended if self.shown_id is not None else None


class Producer:
    """`others`: URLs of more web processes; each try goes to the next of all."""

    def __init__(
        self, url: str, key: str, rng: random.Random, *others: str, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        self.sent: list[Sent] = []
        self._answer_within_s = answer_within_s
        self._urls = cycle([f"{one}/v1/events" for one in (url, *others)])
        self._key = key
        self._rng = rng
        self._stopping = False

    @asynccontextmanager
    async def producing(self) -> AsyncIterator[Producer]:
        """Posts for as long as the block lasts; at its end waits until all that was begun is accepted."""
        timeout = aiohttp.ClientTimeout(total=self._answer_within_s)
        async with aiohttp.ClientSession(headers={"X-API-Key": self._key}, timeout=timeout) as client:
            posters = [asyncio.create_task(self._post(client, number)) for number in range(POSTERS)]
            try:
                yield self
                self._stopping = True
                async with asyncio.timeout(HANGS_S):
                    await asyncio.gather(*posters)
            finally:
                for poster in posters:
                    poster.cancel()
                await asyncio.gather(*posters, return_exceptions=True)

    @property
    def accepted(self) -> list[Sent]:
        return [one for one in self.sent if one.shown_id is not None]

    def tries(self) -> list[Try]:
        return [one for sent in self.sent for one in sent.tries]

    def since(self, moment: float) -> list[Try]:
        """The tries that began after `moment` and have ended."""
        return [one for one in self.tries() if one.began > moment]

    def ended_since(self, moment: float) -> list[Try]:
        return [one for one in self.tries() if one.ended > moment]

    async def refused(self, more: int, within_s: float = HANGS_S) -> None:
        """Waits until `more` tries that begin from now on were answered with 503."""
        began = time.monotonic()
        async with asyncio.timeout(within_s):
            while sum(one.status == 503 for one in self.since(began)) < more:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)

    async def accepts(self, more: int, within_s: float = HANGS_S) -> None:
        """Waits until `more` events have been accepted from now on."""
        wanted = len(self.accepted) + more
        async with asyncio.timeout(within_s):
            while len(self.accepted) < wanted:  # noqa: ASYNC110 - it changes in other tasks, several times a turn
                await asyncio.sleep(0.01)

    async def _post(self, client: aiohttp.ClientSession, poster: int) -> None:
        number = 0
        while not self._stopping:
            number += 1
            sent = Sent(f"{poster}-{number}")
            self.sent.append(sent)
            while not await self._try(client, sent):  # noqa: ASYNC110 - each try is a request
                await asyncio.sleep(RETRY_S)
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))

    async def _try(self, client: aiohttp.ClientSession, sent: Sent) -> bool:
        body = {"event_type": "order.paid", "event_id": sent.event_id, "data": {"text": "x" * 300}}
        began = time.monotonic()
        try:
            async with client.post(next(self._urls), json=body) as answer:
                text = await answer.text()
                status, retry_after = answer.status, answer.headers.get("Retry-After")
                shown_id = (await answer.json())["data"]["event_id"] if answer.ok else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            sent.tries.append(Try(began, time.monotonic(), None))
            return False
        sent.tries.append(Try(began, time.monotonic(), status, retry_after))
        assert status in (200, 202, 503), f"{status}: {text}"
        sent.shown_id = shown_id
        return shown_id is not None
