"""One attempt: sign, send, and say what came of it. Touches no database."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import orjson
import structlog

from core import ids
from core.attempt import STEERING_HEADERS, Result, judge
from core.deliveries import Claimed, Finish, Tried, Verdict
from core.egress import Target
from core.failures import ErrorKind
from core.payloads import StoredEvent, render
from core.states import PendingReason, State
from worker.plans import Plan
from worker.send_errors import SendError
from worker.transport import Answer, header_lines

STORED_BODY_BYTES = 4096
MAX_MESSAGE_CHARS = 500

_STEERING = {name.encode(): name for name in STEERING_HEADERS}

log = structlog.get_logger(__name__)


class Transport(Protocol):
    """What of `EgressTransport` is needed here."""

    def post(self, target: Target, lines: bytes, body: bytes, deadline_s: float) -> Awaitable[Answer]: ...


@dataclass(slots=True)
class _Exchange:
    """What is known of an attempt so far."""

    url: str
    started_at: datetime
    clock: float
    headers: Sequence[tuple[str, str]] = ()  # as sent, custom values masked
    answer: Answer | None = None
    kind: ErrorKind | None = None
    message: str | None = None

    def tried(self) -> Tried:
        answer = self.answer
        return Tried(
            id=ids.new_id(),
            started_at=self.started_at,
            duration_ms=round((time.perf_counter() - self.clock) * 1000),
            status_code=answer.status if answer is not None else None,
            error_kind=self.kind,
            error_message=_storable(self.message)[:MAX_MESSAGE_CHARS] if self.message else None,
            url=self.url,
            request_headers=_headers_json(self.headers),
            response_headers=_response_headers(answer),
            response_body=answer.body[:STORED_BODY_BYTES] if answer is not None else None,
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
    answer = exchange.answer
    result = Result(
        answer.status if answer is not None else None,
        exchange.kind,
        _steering(answer.headers) if answer is not None else {},
    )
    verdict = judge(result, plan.policy, claimed.attempt_count + 1, now=exchange.started_at, rng=random.random)
    return Finish(claimed, verdict, exchange.tried())


async def _exchange(
    exchange: _Exchange, transport: Transport, plan: Plan, claimed: Claimed, event: StoredEvent
) -> None:
    _, body = render(plan.payload_format, event)
    signed = plan.signer(exchange.started_at).headers(event.shown_id, int(exchange.started_at.timestamp()), body)
    exchange.headers = [*plan.shown_headers, *signed]
    if plan.target is None:
        raise SendError(ErrorKind.BLOCKED_ADDRESS, plan.refusal or "The URL can't be called")
    # The lease was measured by the timeout at the claim; the plan may be of a later version.
    deadline_s = min(plan.timeout_s, claimed.timeout_ms / 1000)
    answer = await transport.post(plan.target, plan.lines + header_lines(signed), body, deadline_s)
    exchange.answer = answer
    if not 200 <= answer.status < 300:
        exchange.kind, exchange.message = ErrorKind.STATUS, f"The receiver answered {answer.status}"


def _steering(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that a verdict depends on; one that came several times is one with commas."""
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = _STEERING.get(raw_name.lower())
        if name is not None:
            value = raw_value.decode("latin-1")
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _headers_json(pairs: Sequence[tuple[str, str]]) -> str:
    return orjson.dumps(pairs).decode()


def _response_headers(answer: Answer | None) -> str | None:
    if answer is None:
        return None
    # Latin-1 maps every byte to a character, so whatever the receiver sent can be stored; JSON escapes the rest.
    return _headers_json([(name.decode("latin-1"), value.decode("latin-1")) for name, value in answer.headers])


def _storable(text: str) -> str:
    """PostgreSQL's text takes neither NUL nor lone surrogates."""
    return text.replace("\0", "\\0").encode("utf-8", "replace").decode("utf-8")
