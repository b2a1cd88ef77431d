"""What the URL of a list page asks, and the URLs that lead on from it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import pytest

from app.admin.lists import Filter, PageQuery, time_of
from core import ids
from core.errors import ValidationFailed
from core.states import State

NOW = datetime(2026, 1, 28, 10, 15, tzinfo=UTC)
SUBSCRIPTION = ids.show(ids.SUBSCRIPTION, UUID("01907000-0000-7000-8000-000000000001"))
DELIVERY_ID = UUID("01907000-0000-7000-8000-000000000002")
DELIVERY = ids.show(ids.DELIVERY, DELIVERY_ID)
FILTERS = (
    Filter.choice("status", "State", State),
    Filter.of_id("subscription", "Subscription", ids.SUBSCRIPTION, field="subscription_id"),
    Filter.text("event_type", "Event type"),
    Filter.time("created_after", "Since"),
)


def parse(*params: tuple[str, str]) -> PageQuery:
    return PageQuery.parse("/deliveries", params, FILTERS, ids.DELIVERY, NOW)


def test_nothing_asked() -> None:
    query = parse()
    assert (query.asked, query.errors, query.after, query.before) == ({}, {}, None, None)
    assert (query.status, query.is_narrowed, query.url(), query.clear_url) == (200, False, "/deliveries", "/deliveries")


def test_what_is_given_is_asked_of_core_and_stands_in_every_url() -> None:
    given = (
        ("status", "dead"),
        ("subscription", f" {SUBSCRIPTION.lower().replace('sub_', 'sub_')} "),
        ("event_type", "a&b=c d/é"),
        ("created_after", "24h"),
    )
    query = parse(*given, ("after", DELIVERY), ("unknown", "x"))
    assert query.asked == {
        "status": "dead",
        "subscription_id": SUBSCRIPTION,
        "event_type": "a&b=c d/é",
        "created_after": "2026-01-27T10:15:00Z",
    }
    assert (query.after, query.errors, query.is_narrowed) == (DELIVERY_ID, {}, True)

    again = parse(*parse_qsl(urlsplit(query.url()).query))
    assert (again.asked, again.after) == (query.asked, None)
    assert query.url(status="pending", event_type=None, subscription=None) == (
        "/deliveries?status=pending&created_after=24h"
    )
    assert query.url("/replays/new", subscription=None, event_type=None) == "/replays/new?status=dead&created_after=24h"
    fixed = dict(parse_qsl(urlsplit(query.fixed_url("/replays/new")).query))
    assert fixed["created_after"] == "2026-01-27T10:15:00Z", "24 hours before now, whenever it is followed"
    assert set(fixed) == {"status", "subscription", "event_type", "created_after"}


def test_empty_fields_of_the_form_ask_nothing() -> None:
    query = parse(("status", ""), ("event_type", "  "), ("after", ""))
    assert (query.asked, query.errors, query.is_narrowed) == ({}, {}, False)


def test_several_choices() -> None:
    assert parse(("status", "dead,pending")).asked == {"status": "dead,pending"}
    assert parse(("status", "dead"), ("status", "pending"), ("status", "dead")).asked == {"status": "dead,pending"}
    assert parse(("event_type", "a"), ("event_type", "b")).asked == {"event_type": "b"}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("status", "lost", "Must be among"),
        ("status", "dead,", "Must be among"),
        ("subscription", "x", "sub_"),
        ("subscription", DELIVERY, "sub_"),
        ("event_type", "x" * 501, "at most 500"),
        ("event_type", "a\0", "at most 500"),
        ("created_after", "yesterday", "Must be a time"),
        ("created_after", "1960-01-01", "between the years"),
        ("created_after", "9999-12-31T23:59:59-12:00", "between the years"),
        ("after", "x", "dlv_"),
        ("before", SUBSCRIPTION, "dlv_"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field_and_kept_in_it(name: str, value: str, says: str) -> None:
    query = parse((name, value), ("event_type", "order.paid")) if name != "event_type" else parse((name, value))
    assert list(query.errors) == [name]
    assert says in query.errors[name][0]
    assert query.status == 400
    assert query.given.get(name, value) == value


def test_what_core_says_is_wrong_comes_to_the_field_it_is_about() -> None:
    query = parse(("subscription", SUBSCRIPTION))
    query.refuse(ValidationFailed(details={"filters.subscription_id": ["no"], "filters.other": ["nor this"]}))
    assert query.errors == {"subscription": ["no"], "other": ["nor this"]}
    query.refuse(ValidationFailed("All of it is wrong"))
    assert query.errors[""] == ["All of it is wrong"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("30m", NOW - timedelta(minutes=30)),
        ("30 min", NOW - timedelta(minutes=30)),
        ("24h", NOW - timedelta(days=1)),
        ("7d", NOW - timedelta(days=7)),
        ("2026-01-28", datetime(2026, 1, 28, tzinfo=UTC)),
        ("2026-01-28 10:15", NOW),
        ("2026-01-28 10:15 UTC", NOW),
        ("2026-01-28T10:15:00Z", NOW),
        ("2026-01-28T11:15:00+01:00", NOW),
    ],
)
def test_times_as_people_write_them(text: str, moment: datetime) -> None:
    assert time_of(text, NOW) == moment
