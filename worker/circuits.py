"""Circuit breakers as a worker sees them: in memory for every decision, in Redis twice a second for all to share.

What happens here counts here at once. Every `SYNC_S` the outcomes since the last time are added to what stands in
Redis, and what stands there is taken over. While Redis is away each worker goes by what it sees itself; what it then
finds there counts, so a Redis that was emptied starts all of them CLOSED.

What is added is of the URL that the subscription has by then: requests that were under way when it was moved say
nothing about where it was moved to, and this worker may not have heard of the move.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

import structlog

from core.limiting.breaker import BLANK, Breaker, BreakerSettings, BreakerState
from core.limiting.breakers import UNREACHABLE, Breakers

SYNC_S = 0.5
MAX_OUTCOMES = 200  # of one subscription that are kept while Redis is away

_Outcome = tuple[bool, int, str]  # whether it succeeded; when, in Unix ms; of which URL
_Outcomes = tuple[BreakerSettings, list[_Outcome]]
UrlsNow = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, str]]]  # of those subscriptions that there are

log = structlog.get_logger(__name__)


class Circuits:
    def __init__(self, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._now_ms = now_ms
        self._known: dict[UUID, Breaker] = {}  # those that are not blank
        self._outcomes: dict[UUID, _Outcomes] = {}  # not in Redis yet

    def state(self, subscription_id: UUID, settings: BreakerSettings) -> BreakerState:
        known = self._known.get(subscription_id)
        return BreakerState.CLOSED if known is None else known.state_at(settings, self._now_ms())

    def opens_in_s(self, subscription_id: UUID, settings: BreakerSettings) -> float:
        """Until deliveries to it are tried again; 0 when they may be now."""
        until_ms = self._known.get(subscription_id, BLANK).opens_until_ms(settings)
        return 0.0 if until_ms is None else max(0.0, (until_ms - self._now_ms()) / 1000)

    def record(self, subscription_id: UUID, settings: BreakerSettings, url: str, *, ok: bool) -> None:
        """The outcome of one attempt at `url`."""
        known = self._known.get(subscription_id, BLANK)
        if ok and known is BLANK:
            return  # nothing is known of those that are well, and need not be
        now_ms = self._now_ms()
        self._put(subscription_id, known, known.after(settings, ok, now_ms))
        outcomes = self._outcomes.setdefault(subscription_id, (settings, []))[1]
        if len(outcomes) < MAX_OUTCOMES:
            outcomes.append((ok, now_ms, url))

    async def sync(self, store: Breakers, urls_now: UrlsNow) -> list[tuple[UUID, Breaker]]:
        """Adds what happened here to what stands in Redis, and takes that over. Without Redis, or without an answer of
        `urls_now`, changes nothing. Raises what that raises and is not `UNREACHABLE`.

        Returns the breakers whose state changed there by it: those that no other worker has changed at the same time.
        """
        news, self._outcomes = self._outcomes, {}
        try:
            # In this order: who moves a subscription forgets its breaker, once the move is committed.
            stands = await store.all()
            news = _of_urls(news, await urls_now(list(news))) if news else news
            changes = [(one, stands.get(one, BLANK), _after(stands.get(one, BLANK), *news[one])) for one in news]
            after = await store.swap(changes)
        except UNREACHABLE as error:
            log.debug("breakers go by what this worker sees", error=repr(error))
            self._keep(news)
            return []
        except BaseException:
            self._keep(news)
            raise
        overtaken = {}
        moved = []
        for (one, believed, wanted), breaker in zip(changes, after, strict=True):
            stands[one] = breaker
            if breaker != wanted:  # another worker came first; ours are added to that next time
                overtaken[one] = news[one]
            elif breaker.state is not believed.state:
                moved.append((one, breaker))
        self._keep(overtaken)
        for one, (settings, outcomes) in self._outcomes.items():  # those, and what came in while we waited
            stands[one] = _after(stands.get(one, BLANK), settings, outcomes)
        before, self._known = self._known, {}
        for one in {**before, **stands}:
            self._put(one, before.get(one, BLANK), stands.get(one, BLANK))
        return moved

    def _put(self, subscription_id: UUID, before: Breaker, after: Breaker) -> None:
        if after.is_blank:
            self._known.pop(subscription_id, None)
        else:
            self._known[subscription_id] = after
        if before.state is not after.state:
            log.info("circuit breaker", subscription=str(subscription_id), state=after.state, failures=after.failures)

    def _keep(self, older: Mapping[UUID, _Outcomes]) -> None:
        for one, (settings, outcomes) in older.items():
            newer = self._outcomes.get(one, (settings, []))[1]
            self._outcomes[one] = (settings, [*outcomes, *newer][-MAX_OUTCOMES:])


def _of_urls(news: Mapping[UUID, _Outcomes], urls: Mapping[UUID, str]) -> dict[UUID, _Outcomes]:
    current = {
        one: (settings, [outcome for outcome in outcomes if outcome[2] == urls.get(one)])
        for one, (settings, outcomes) in news.items()
    }
    return {one: entry for one, entry in current.items() if entry[1]}


def _after(breaker: Breaker, settings: BreakerSettings, outcomes: Sequence[_Outcome]) -> Breaker:
    for ok, at_ms, _ in outcomes:
        breaker = breaker.after(settings, ok, at_ms)
    return breaker
