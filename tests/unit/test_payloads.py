"""Every format is put together from the stored bytes; `data` is the producer's, unchanged."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import events, ids, jsontext
from core.payloads import FORMATS, StoredEvent, render

ORGANIZATION = UUID("019b1e5c-0000-7000-8000-000000000001")
EVENT = UUID("019b1e5c-0000-7000-8000-000000000002")
AT = datetime(2026, 1, 28, 10, 15, tzinfo=UTC)


def stored(data: dict[str, Any], **fields: Any) -> StoredEvent:
    new = events.build(
        organization_id=ORGANIZATION, event_type="a.b", data=data, occurred_at=AT, event_id=EVENT, **fields
    )
    return StoredEvent(new.id, new.organization_id, new.event_type, new.occurred_at, new.payload, new.data_at)


def test_each_format_has_its_shape() -> None:
    event = stored({"n": 1}, branch_id="berlin", metadata={"not": "sent"})
    event_id, organization_id = ids.show(ids.EVENT, EVENT), ids.show(ids.ORGANIZATION, ORGANIZATION)
    at = "2026-01-28T10:15:00Z"
    assert {name: json.loads(render(name, event)[1]) for name in FORMATS} == {
        "default": {
            "event_id": event_id,
            "event_type": "a.b",
            "occurred_at": at,
            "organization_id": organization_id,
            "branch_id": "berlin",
            "data": {"n": 1},
        },
        "standard": {"type": "a.b", "timestamp": at, "data": {"n": 1}},
        "data": {"n": 1},
        "cloudevents": {
            "specversion": "1.0",
            "id": event_id,
            "source": f"/organizations/{organization_id}",
            "type": "a.b",
            "time": at,
            "datacontenttype": "application/json",
            "data": {"n": 1},
        },
    }


@pytest.mark.parametrize("name", FORMATS)
def test_the_content_type_is_the_formats_own(name: str) -> None:
    expected = "application/cloudevents+json; charset=utf-8" if name == "cloudevents" else "application/json"
    assert render(name, stored({}))[0] == expected


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(min_value=10**20) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


@given(st.dictionaries(texts, values), st.none() | texts.filter(str.isprintable))
def test_data_is_the_same_bytes_in_every_format(data: dict[str, Any], branch_id: str | None) -> None:
    event = stored(data, branch_id=branch_id)
    expected = jsontext.dumps(data)
    assert event.data == expected
    for name in FORMATS:
        body = render(name, event)[1]
        assert body == expected if name == "data" else body.endswith(b',"data":' + expected + b"}")
        assert json.loads(body) == data if name == "data" else json.loads(body)["data"] == data
