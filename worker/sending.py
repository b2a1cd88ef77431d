"""One attempt: sign, send, and say what came of it. Touches no database."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import httpx
import orjson
import structlog

from core import ids
from core.attempt import Result, judge
from core.deliveries import Claimed, Finish, Tried, Verdict
from core.failures import ErrorKind
from core.payloads import StoredEvent, render
from core.states import PendingReason, State
from worker.plans import MASK, USER_AGENT, Plan
from worker.send_errors import SendError
from worker.transport import build_request

STORED_BODY_BYTES = 4096
MAX_MESSAGE_CHARS = 500

log = structlog.get_logger(__name__)


class Transport(Protocol):
    """What of httpx's transports is needed here."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response: ...


@dataclass(slots=True)
class _Exchange:
    """What is known of an attempt so far."""

    url: str
    started_at: datetime
    clock: float
    headers: list[tuple[str, str]] = field(default_factory=list)  # as sent, custom values masked
    response: httpx.Response | None = None
    kind: ErrorKind | None = None
    message: str | None = None

    def tried(self) -> Tried:
        response = self.response
        return Tried(
            id=ids.new_id(),
            started_at=self.started_at,
            duration_ms=round((time.perf_counter() - self.clock) * 1000),
            status_code=response.status_code if response is not None else None,
            error_kind=self.kind,
            error_message=_storable(self.message)[:MAX_MESSAGE_CHARS] if self.message else None,
            url=self.url,
            request_headers=_headers_json(self.headers),
            response_headers=_response_headers(response),
            response_body=response.content[:STORED_BODY_BYTES] if response is not None else None,
        )


async def attempt(transport: Transport, plan: Plan, claimed: Claimed, event: StoredEvent) -> Finish:
    """Tries the delivery once and judges the result. Always returns.

    A cancellation means that this process stops: the delivery is handed back, due at once, with the attempt recorded,
    for the request may have been written.
    """
    exchange = _Exchange(plan.url, datetime.now(UTC), time.perf_counter())
    try:
        await _exchange(exchange, transport, plan, claimed, event)
    except asyncio.CancelledError:
        exchange.kind, exchange.message = ErrorKind.RESET, "The sender was stopped before the answer came"
        return Finish(claimed, Verdict(State.PENDING, PendingReason.RETRY, 0.0), exchange.tried())
    except SendError as error:
        exchange.kind, exchange.message = error.kind, str(error)
    except Exception:
        # A bug of ours, maybe after the request was written. It counts as an attempt: were it not recorded, the end
        # of the lease would bring it back, and the request with it, again and again for ever.
        log.exception("an attempt failed in an unforeseen way", delivery=str(claimed.id))
        exchange.kind, exchange.message = ErrorKind.PROTOCOL, "The attempt failed on the sender's side"
    response = exchange.response
    result = Result(
        response.status_code if response is not None else None,
        exchange.kind,
        {name.lower(): value for name, value in response.headers.items()} if response is not None else {},
    )
    verdict = judge(result, plan.policy, claimed.attempt_count + 1, now=exchange.started_at, rng=random.random)
    return Finish(claimed, verdict, exchange.tried())


async def _exchange(
    exchange: _Exchange, transport: Transport, plan: Plan, claimed: Claimed, event: StoredEvent
) -> None:
    content_type, body = render(plan.payload_format, event)
    signed = plan.signer(exchange.started_at).headers(event.shown_id, int(exchange.started_at.timestamp()), body)
    standard = [("content-type", content_type), ("user-agent", USER_AGENT)]
    exchange.headers = [*standard, *((name, MASK) for name in plan.headers), *signed]
    if plan.target is None:
        raise SendError(ErrorKind.BLOCKED_ADDRESS, plan.refusal or "The URL can't be called")
    request = build_request(
        plan.target,
        headers=dict([*standard, *plan.headers.items(), *signed]),
        body=body,
        # The lease was measured by the timeout at the claim; the plan may be of a later version.
        deadline_s=min(plan.timeout_s, claimed.timeout_ms / 1000),
    )
    response = exchange.response = await transport.handle_async_request(request)
    if not response.is_success:
        exchange.kind, exchange.message = ErrorKind.STATUS, f"The receiver answered {response.status_code}"


def _headers_json(pairs: list[tuple[str, str]]) -> str:
    return orjson.dumps(pairs).decode()


def _response_headers(response: httpx.Response | None) -> str | None:
    if response is None:
        return None
    # Latin-1 maps every byte to a character, so whatever the receiver sent can be stored; JSON escapes the rest.
    return _headers_json([(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers.raw])


def _storable(text: str) -> str:
    """PostgreSQL's text takes neither NUL nor lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode("utf-8")
