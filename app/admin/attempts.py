"""The attempts of a delivery, as its page shows them: their course in time, and one of them byte for byte."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
from markupsafe import Markup
from starlette.responses import Response

from app import views
from app.admin import contents, curl, shown
from app.admin.contents import Content
from app.admin.visit import Visit
from core import ids, sent_bodies, subscriptions
from core.errors import HookwrightError
from core.models import Attempt, Delivery, Event, Subscription
from core.payloads import StoredEvent
from core.sent_bodies import SentBody
from core.states import State

KEPT_BYTES = 4096  # of an answer's body
NARROWEST = 0.7  # percent of the width that a bar has at least, so that it is seen

Headers = list[tuple[Markup, Markup]]


@dataclass(frozen=True, slots=True)
class Bar:
    """An attempt on the line of the delivery's time, in percent of its width."""

    attempt: Attempt
    id: str
    left: float
    width: float


def timeline(delivery: Delivery, attempts: Sequence[Attempt]) -> list[Bar]:
    """From the acceptance, or the first attempt that is shown, to the last end or what is due."""
    if not attempts:
        return []
    start = min(ids.time_of(delivery.id), attempts[0].started_at) if attempts[0].number == 1 else attempts[0].started_at
    end = max(_end_of(one) for one in attempts)
    if delivery.state == State.PENDING and delivery.due_at is not None:
        end = max(end, delivery.due_at.timestamp() * 1000)
    began = start.timestamp() * 1000
    whole = max(end - began, 1.0)
    bars = []
    for one in attempts:
        width = max(one.duration_ms / whole * 100, NARROWEST)
        left = min(max((one.started_at.timestamp() * 1000 - began) / whole * 100, 0), 100 - width)
        bars.append(Bar(one, ids.show(ids.ATTEMPT, one.id), round(left, 2), round(min(width, 100), 2)))
    return bars


def _end_of(attempt: Attempt) -> float:
    return attempt.started_at.timestamp() * 1000 + attempt.duration_ms


@dataclass(frozen=True, slots=True)
class Exchange:
    """One attempt: what was sent, as far as it may be shown, and what came back."""

    attempt: Attempt
    id: str
    request_headers: Headers
    sent: SentBody | None  # none: the event was redacted
    body: Content | None
    curl: str | None
    is_masked: bool  # some headers' values are not kept
    response_headers: Headers | None
    answer: Content | None
    is_answer_cut: bool


async def exchange(visit: Visit, attempt: Attempt, event: Event, subscription: Subscription) -> Exchange:
    headers: list[tuple[str, str]] = [(name, value) for name, value in orjson.loads(attempt.request_headers)]
    sent = None if event.redacted_at else await _sent(visit, attempt, event, subscription, dict(headers))
    # What came back is removed soon after the event's content, which it may repeat (`core.redaction`).
    answered = None if event.redacted_at else attempt.response_body
    named = None if event.redacted_at else attempt.response_headers
    cut = answered is not None and len(answered) >= KEPT_BYTES
    given = None if named is None else orjson.loads(named)
    return Exchange(
        attempt=attempt,
        id=ids.show(ids.ATTEMPT, attempt.id),
        request_headers=_visible(headers),
        sent=sent,
        body=None if sent is None else contents.of(sent.content),
        curl=None
        if sent is None
        else curl.command(visit.shown_url(attempt.url), headers, sent.content, file_name(attempt)),
        is_masked=any(value == views.HIDDEN for _, value in headers),
        response_headers=None
        if given is None
        else [(shown.visible(name), shown.visible(text)) for name, text in given],
        answer=None if answered is None else contents.of(answered, cut=cut),
        is_answer_cut=cut,
    )


def _visible(headers: Iterable[tuple[str, str]]) -> Headers:
    return [(shown.visible(name), shown.visible(value)) for name, value in headers]


def file_name(attempt: Attempt) -> str:
    return f"{ids.show(ids.ATTEMPT, attempt.id)}.json"


async def _sent(
    visit: Visit, attempt: Attempt, event: Event, subscription: Subscription, headers: Mapping[str, str]
) -> SentBody:
    return sent_bodies.find(stored(event), headers, await _secrets(visit, subscription), subscription.payload_format)


async def _secrets(visit: Visit, subscription: Subscription) -> list[str]:
    """Those that may have signed. They are compared with, and not shown."""
    async with visit.transaction() as session:
        rows = await subscriptions.live_secrets(session, subscription.id, datetime.now(UTC))
    try:
        return [subscriptions.open_secret(visit.services.sealer, one.id, one.sealed) for one in rows]
    except HookwrightError:  # sealed under a key that this process was not given
        return []


def stored(event: Event) -> StoredEvent:
    return StoredEvent(
        event.id, event.organization_id, event.event_type, event.occurred_at, event.payload, event.data_at
    )


def download(content: bytes, name: str) -> Response:
    """As a file that no browser shows: what is in it came from elsewhere."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type="application/octet-stream", headers=headers)
