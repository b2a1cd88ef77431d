"""A producer of so many events a second, whatever comes back. What has no answer, or 503, it sends again with the same
`event_id` until it is accepted; one in a hundred it sends once more on purpose."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import aiohttp

from core import ids

TYPES = ("order.paid", "order.sent", "order.returned", "stock.low")  # of event n: the one at n modulo 4
SIZES = (40, 120, 300, 300, 800, 2_000)  # characters of data, of event n: the one at n modulo 6
AT_ONCE = 64
ANSWER_WITHIN_S = 8.0
RETRY_S = (0.2, 1.5)
ONCE_MORE = 0.01


class SoakProducer:
    def __init__(self, url: str, key: str, rate: float, seed: int) -> None:
        self.accepted: list[int] = []  # of event n: the platform's id as a number; 0 as long as it has none
        self.answers: Counter[str] = Counter()  # by status, or by the kind of the failure
        self.faults: list[str] = []  # answers that should never be given
        self.slowest_s = 0.0
        self.ending = asyncio.Event()
        self._url = f"{url}/v1/events"
        self._key = key
        self._rate = rate
        self._rng = random.Random(seed)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._sending: set[asyncio.Task[None]] = set()

    @property
    def accepted_count(self) -> int:
        return len(self.accepted) - self.accepted.count(0)

    async def run(self, seconds: float, accepted_within_s: float) -> None:
        """Produces for so long, then waits until all is accepted. TimeoutError when that takes too long."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN_S)
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"X-API-Key": self._key}
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as client:
            began = time.monotonic()
            try:
                while (now := time.monotonic() - began) < seconds and not self.ending.is_set():
                    while len(self.accepted) < now * self._rate:
                        self.accepted.append(0)
                        task = asyncio.create_task(self._send(client, len(self.accepted) - 1))
                        self._sending.add(task)
                        task.add_done_callback(self._sending.discard)
                    await asyncio.sleep(0.5 / self._rate)
                async with asyncio.timeout(accepted_within_s):
                    while self._sending:
                        await asyncio.wait(self._sending)
            finally:
                for task in self._sending:
                    task.cancel()

    async def _send(self, client: aiohttp.ClientSession, number: int) -> None:
        began = time.monotonic()
        while not (found := await self._try(client, number)):  # noqa: ASYNC110 - each try is a request
            await asyncio.sleep(self._rng.uniform(*RETRY_S))
        self.accepted[number] = found
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        if self._rng.random() < ONCE_MORE:
            again = await self._try(client, number)
            if again not in (0, found):
                self.faults.append(f"event {number} sent again became {again:x}, having been {found:x}")

    async def _try(self, client: aiohttp.ClientSession, number: int) -> int:
        """The platform's id of event `number`; 0 when it was not accepted."""
        body = {
            "event_type": TYPES[number % len(TYPES)],
            "event_id": str(number),
            "data": {"number": number, "text": "x" * SIZES[number % len(SIZES)]},
        }
        try:
            async with self._slots, client.post(self._url, json=body) as answer:
                status, retry_after, text = answer.status, answer.headers.get("Retry-After"), await answer.text()
                self.answers[str(status)] += 1
                if answer.ok:
                    return ids.parse(ids.EVENT, (await answer.json())["data"]["event_id"]).int
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1
            return 0
        if status != 503 or retry_after is None:
            self.faults.append(f"event {number}: {status}, Retry-After {retry_after}: {text[:500]}")
        return 0
