"""What `bench.scale_lists` asks of the API: every list, with the filters that people use, and every preview."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from app.api import lists
from bench import history
from bench.history import History
from core import ids


@dataclass(frozen=True)
class Case:
    """One thing to ask of the API. `tenant`: `large` or `small`; `body`: of a POST."""

    name: str
    path: str
    tenant: str = "large"
    body: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sample:
    """What is asked for, in the middle of the history: ids as people write them, and parts of queries."""

    middle: UUID
    deep: str
    day: str
    delivery: str
    subscription: str
    event: str
    replay: str


async def sample_of(driver: Any, made: History) -> Sample:
    low, high = await driver.fetchrow(
        "SELECT (SELECT id FROM deliveries ORDER BY id LIMIT 1), (SELECT id FROM deliveries ORDER BY id DESC LIMIT 1)"
    )
    middle = ids.lowest_at(ids.time_of(low) + (ids.time_of(high) - ids.time_of(low)) / 2)
    day = "&".join(
        f"filters[created_{edge}]={(ids.time_of(middle) + timedelta(hours=n)):%Y-%m-%dT%H:%M:%SZ}"
        for edge, n in (("after", 0), ("before", 24))
    )
    one = await driver.fetchrow(
        "SELECT * FROM deliveries WHERE organization_id = $1 AND id < $2 ORDER BY id DESC LIMIT 1", made.large, middle
    )
    return Sample(
        middle,
        f"after_key={lists._encode(middle)}",
        day,
        ids.show(ids.DELIVERY, one["id"]),
        ids.show(ids.SUBSCRIPTION, one["subscription_id"]),
        ids.show(ids.EVENT, one["event_id"]),
        ids.show(ids.REPLAY, made.replay),
    )


def cases_of(sample: Sample) -> list[Case]:
    """Every list with the filters that people use, rare and common values of each."""
    filters = filters_of(sample)
    return [*of_deliveries(sample, filters), *of_events(filters), *of_the_rest(), *of_previews(sample)]


def filters_of(sample: Sample) -> dict[str, str]:
    """Queries by name."""
    rare, old, common = (
        f"filters[event_type]={name}" for name in (history.RARE_TYPE, history.OLD_TYPE, history.COMMON_TYPE)
    )
    return {
        "": "",
        "oldest first": "sort=created_at",
        "deep": sample.deep,
        "200 deep": f"limit=200&{sample.deep}",
        "with attempts": "include=attempts",
        "200 with attempts": "include=attempts&limit=200",
        "200 with attempts, deep": f"include=attempts&limit=200&{sample.deep}",
        "of a day": sample.day,
        **{
            f"status={one}": f"filters[status]={one}"
            for one in ("dead", "pending", "sending", "delivered", "discarded")
        },
        "status=dead deep": f"filters[status]=dead&{sample.deep}",
        "status=pending,sending": "filters[status]=pending,sending",
        "status=dead,discarded": "filters[status]=dead,discarded",
        **{f"error={one}": f"filters[error]={one}" for one in ("status", "timeout", "tls", "protocol", "dns,tls")},
        **{
            f"reason={one}": f"filters[reason]={one}"
            for one in ("exhausted", "gone", "rejected", "aborted", "retry", "new", "paused", "requested")
        },
        **{f"status_code={one}": f"filters[status_code]={one}" for one in (200, 202, 204, 302, 410, 503)},
        "event_type common": common,
        "event_type rare": rare,
        "event_type of one old event": old,
        "event_type of none": "filters[event_type]=never.seen",
        "event_type rare, of a day": f"{rare}&{sample.day}",
        "event_type rare, deep": f"{rare}&{sample.deep}",
        "dead, event_type common": f"filters[status]=dead&{common}",
        "dead, event_type rare": f"filters[status]=dead&{rare}",
        "dead, error=tls": "filters[status]=dead&filters[error]=tls",
        "dead, error=timeout, of a day": f"filters[status]=dead&filters[error]=timeout&{sample.day}",
        "dead, status_code=410": "filters[status]=dead&filters[status_code]=410",
        "dead, reason=rejected": "filters[status]=dead&filters[reason]=rejected",
        "dead, subscription": f"filters[status]=dead&filters[subscription_id]={sample.subscription}",
        "dead, subscription, error=tls": (
            f"filters[status]=dead&filters[subscription_id]={sample.subscription}&filters[error]=tls"
        ),
        "delivered, event_type rare": f"filters[status]=delivered&{rare}",
        "delivered, event_type of none": "filters[status]=delivered&filters[event_type]=never.seen",
        "delivered, status_code=202": "filters[status]=delivered&filters[status_code]=202",
        "pending, event_type rare": f"filters[status]=pending&{rare}",
        "event_type common, status_code=202": f"{common}&filters[status_code]=202",
        "event": f"filters[event_id]={sample.event}",
        "replay": f"filters[replay_id]={sample.replay}",
        "replay, dead": f"filters[replay_id]={sample.replay}&filters[status]=dead",
        "ids": f"filters[ids]={sample.delivery}",
        "page=1": "page=1",
        "page=50 of 200": "page=50&pageSize=200",
        "page=1 status=dead": "page=1&filters[status]=dead",
        "page=1 status=delivered": "page=1&filters[status]=delivered",
        "page=1 error=tls": "page=1&filters[error]=tls",
        "page=1 event_type rare": f"page=1&{rare}",
        "page=1 event_type common": f"page=1&{common}",
        "page=1 status_code=202": "page=1&filters[status_code]=202",
        "page=1 of a day": f"page=1&{sample.day}",
    }


def of_deliveries(sample: Sample, filters: Mapping[str, str]) -> list[Case]:
    of_subscription = f"/v1/webhooks/subscriptions/{sample.subscription}/deliveries"
    cases = [Case(f"deliveries {name}", f"/v1/deliveries?{asked}") for name, asked in filters.items()]
    cases += [
        Case(f"deliveries of a small tenant {name}", f"/v1/deliveries?{filters[name]}", "small")
        for name in ("", "deep", "status=dead", "error=tls", "status_code=202", "event_type rare", "page=1")
    ]
    of_one = (
        *("", "deep", "status=dead", "status=pending", "error=tls", "status_code=410", "status_code=202"),
        *("event_type rare", "event_type common", "event_type of none", "page=1", "page=1 status=dead", "of a day"),
    )
    cases += [Case(f"subscription's deliveries {name}", f"{of_subscription}?{filters[name]}") for name in of_one]
    return [*cases, Case("event's deliveries", f"/v1/events/{sample.event}/deliveries")]


def of_events(filters: Mapping[str, str]) -> list[Case]:
    chosen = {name: filters[name] for name in ("", "oldest first", "deep", "200 deep", "of a day", "page=1")}
    chosen |= {name: asked for name, asked in filters.items() if name.startswith(("event_type", "page=1 event_type"))}
    del chosen["event_type common, status_code=202"]
    chosen |= {
        "branch": "filters[branch_id]=branch-10",
        "branch of none": "filters[branch_id]=nowhere",
        "event_type rare, branch of none": f"{filters['event_type rare']}&filters[branch_id]=nowhere",
        "page=1 branch of none": "page=1&filters[branch_id]=nowhere",
        "external_id of none": "filters[external_id]=order-4711",
        "page=50 of 200": "page=50&pageSize=200",
    }
    return [Case(f"events {name}", f"/v1/events?{asked}") for name, asked in chosen.items()]


def of_the_rest() -> list[Case]:
    cases = []
    for noun in ("replays", "event-types", "organizations", "api-keys", "webhooks/subscriptions"):
        for asked in ("", "sort=created_at&limit=200", "page=1", "page=20&pageSize=100"):
            cases.append(Case(f"{noun} {asked}", f"/v1/{noun}?{asked}"))
    return cases + [
        Case(f"replays status={one}", f"/v1/replays?filters[status]={one}")
        for one in ("completed", "cancelled", "running")
    ]


def of_previews(sample: Sample) -> list[Case]:
    after, before = (ids.time_of(sample.middle) + timedelta(hours=n) for n in (0, 1))
    previews: dict[str, dict[str, Any]] = {
        "": {},
        "error=tls": {"error": "tls"},
        "subscription": {"subscription_id": sample.subscription},
        "event_type rare": {"event_type": history.RARE_TYPE},
        "status_code=503": {"status_code": 503},
        "of an event": {"event_id": sample.event, "status": "delivered"},
        "delivered within an hour": {
            "status": "delivered",
            "created_after": f"{after:%Y-%m-%dT%H:%M:%SZ}",
            "created_before": f"{before:%Y-%m-%dT%H:%M:%SZ}",
        },
    }
    return [
        Case(f"preview {name}", "/v1/replays", body={"dry_run": True, "filters": chosen})
        for name, chosen in previews.items()
    ]
