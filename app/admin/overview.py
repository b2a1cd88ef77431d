"""The overview: how the installation, or one organization in it, is doing; and if it is not well, whether that is us.

Everything shown comes from the statistics or is counted within bounds, so it costs the same however much was delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

import structlog
from starlette.responses import Response

from app.admin import charts, start
from app.admin.explanations import explain
from app.admin.visit import Visit
from core import ids, organizations, stats, unwell, workers
from core.access.models import Role
from core.errors import InvalidId, NotFound
from core.health import Health
from core.limiting.breaker import Breaker
from core.limiting.breakers import UNREACHABLE
from core.listing import labels
from core.models import Organization
from core.stats import INSTALLATION, History, Queue, Span
from core.unwell import Judged, Reach, Unwell

REDIS_TIMEOUT_S: Final = 0.5  # the page does not wait for a Redis that hangs
LATE: Final = timedelta(seconds=60)  # what should have been sent so long ago, workers do not keep up with
MOST_CHOICES: Final = 100  # organizations that a list lets choose from; of more, the id is asked for

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of time that may be chosen."""

    name: str  # in the URL
    label: str
    words: str
    span: Span
    form: str  # of the times in the chart


RANGES: Final = {
    one.name: one
    for one in (
        Range("1h", "1 hour", "the last hour", stats.LAST_HOUR, "%H:%M"),
        Range("24h", "24 hours", "the last 24 hours", stats.LAST_DAY, "%H:%M"),
        Range("7d", "7 days", "the last 7 days", stats.LAST_WEEK, "%a %H:%M"),
    )
}
DEFAULT: Final = "24h"


class Tone(StrEnum):
    GOOD = "good"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Notice:
    """One line at the top of the page: how our own side is doing."""

    tone: Tone
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that the page shows, as of one moment."""

    now: datetime
    history: History
    judged: Judged
    queue: Queue
    workers: int
    reach: Reach
    has_redis: bool


async def show(visit: Visit) -> Response:
    if visit.user is None and visit.is_by_itself:  # then the page says that the session has ended, and stays as it is
        return visit.redirect("/sign-in")
    if visit.user is None:
        return await start.show(visit)
    asked = visit.request.query_params
    chosen = RANGES.get(asked.get("range", ""), RANGES[DEFAULT])
    given = asked.get("organization", "").strip()
    async with visit.transaction() as session:
        known = await organizations.oldest(session, MOST_CHOICES + 1)
        errors: dict[str, list[str]] = {}
        organization: Organization | None = None
        try:
            if given:
                organization = await organizations.get(session, ids.parse(ids.ORGANIZATION, given))
        except (InvalidId, NotFound) as error:
            errors["organization"] = [error.message]
    of = organization.id if organization else None
    snapshot = await visit.services.overviews.get((chosen.name, of), lambda: take(visit, chosen.span, of))
    return visit.render(
        "overview/index.html",
        404 if errors else 200,
        errors=errors,
        chosen=chosen,
        tabs=[(one.label, url_of(one.name, given)) for one in RANGES.values()],
        given=given,
        organization=organization,
        choices=[(ids.show(ids.ORGANIZATION, one.id), one.name) for one in known] if len(known) <= MOST_CHOICES else [],
        steps=steps_of(known, snapshot),
        snapshot=snapshot,
        figures=snapshot.history.figures,
        notices=notices(snapshot),
        healths=[(state, snapshot.judged.counts[state]) for state in Health],
        unwell=[_row(one) for one in snapshot.judged.unwell],
        errors_seen=[(one, explain(one.error_kind)) for one in snapshot.history.errors],
        chart=charts.bars(snapshot.history.points, f"What came of deliveries in {chosen.words}", chosen.form),
        legend=charts.legend(),
        most_counted=stats.MOST_COUNTED,
    )


def url_of(range_name: str, organization: str) -> str:
    asked = {"range": range_name if range_name != DEFAULT else "", "organization": organization}
    query = urlencode({name: value for name, value in asked.items() if value})
    return f"/?{query}" if query else "/"


async def take(visit: Visit, span: Span, organization_id: UUID | None) -> Snapshot:
    now = datetime.now(UTC)
    breakers = await _breakers(visit)
    async with visit.services.database.driver() as driver:
        return Snapshot(
            now,
            await visit.services.histories.of(driver, organization_id or INSTALLATION, span, now),
            await unwell.judge(driver, breakers, now, organization_id),
            await stats.queue(driver, organization_id),
            await workers.alive(driver),
            await unwell.reach(driver, now),
            breakers is not None,
        )


async def _breakers(visit: Visit) -> Mapping[UUID, Breaker] | None:
    """None when Redis does not answer in time."""
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            return await visit.services.breakers.all()
    except UNREACHABLE as error:
        log.warning("Redis does not answer; circuit breakers are not known", error=repr(error))
        return None


def notices(seen: Snapshot) -> list[Notice]:
    """Whether we are well ourselves, the worst first: whoever is called at night asks that before anything else."""
    found = []
    if not seen.workers:
        found.append(
            Notice(
                Tone.BAD,
                "No worker is alive, so nothing is being delivered. What is accepted waits; nothing is lost.",
                "Start one with: hookwright worker. The log of the one that was there says why it ended.",
            )
        )
    if seen.reach.is_ours:
        found.append(
            Notice(
                Tone.BAD,
                f"It looks like us: {seen.reach.unreached:,} of the {seen.reach.tried:,} subscriptions that were tried"
                " in the last 5 minutes could not be reached at all.",
                "Look at the network of this installation first: its name look-up, its firewall, its proxy.",
            )
        )
    if not seen.has_redis:
        found.append(
            Notice(
                Tone.WARN,
                "Redis does not answer. Deliveries go on without it, up to a second later than else; which circuit"
                " breakers are open is not known.",
            )
        )
    if seen.workers and seen.queue.oldest_due_at is not None and seen.now - seen.queue.oldest_due_at > LATE:
        found.append(
            Notice(
                Tone.WARN,
                f"Deliveries are late: the oldest should have been sent at {seen.queue.oldest_due_at:%H:%M} UTC.",
                "Workers do not keep up with what comes in: start another, or give it some minutes after a standstill.",
            )
        )
    if found:
        return found
    alive = "1 worker is" if seen.workers == 1 else f"{seen.workers:,} workers are"
    fails = seen.judged.counts[Health.FAILING] + seen.judged.counts[Health.DEGRADED]
    theirs = " What fails below fails at the receivers." if fails else ""
    return [Notice(Tone.GOOD, f"Our side is well: {alive} alive, nothing is late.{theirs}")]


def _row(one: Unwell) -> dict[str, object]:
    return {
        "row": one,
        "id": ids.show(ids.SUBSCRIPTION, one.id),
        "label": labels.of_url(one.url),
        "delivery_id": ids.show(ids.DELIVERY, one.failed_delivery_id) if one.failed_delivery_id else None,
        "explanation": explain(one.error_kind, one.status_code) if one.error_kind else None,
    }


# --- first steps ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    text: str
    label: str
    href: str
    role: Role  # the least that may do it
    is_done: bool


def steps_of(known: Sequence[Organization], seen: Snapshot) -> list[Step]:
    """What is to be done before anything can be seen here; none once something was sent."""
    if seen.history.figures.attempts or seen.history.figures.accepted or seen.queue.pending or seen.queue.dead:
        return []
    has_subscription = seen.judged.total > 0
    whose = f"?{urlencode({'organization': ids.show(ids.ORGANIZATION, known[0].id)})}" if known else ""
    return [
        Step(
            "Make an organization: a tenant, who owns what follows.",
            "New organization",
            "/organizations/new",
            Role.ADMIN,
            bool(known),
        ),
        Step(
            "Subscribe a URL to events. Its secret, by which the receiver knows that an event is ours, is shown once.",
            "New subscription",
            f"/subscriptions/new{whose}",
            Role.ADMIN,
            has_subscription,
        ),
        Step(
            "Send a test event from the subscription's page, and watch it arrive.",
            "Subscriptions",
            "/subscriptions",
            Role.OPERATOR,
            False,
        ),
    ]
