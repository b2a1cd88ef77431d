"""docs/api.md against the code: every path with its methods and scopes, every code, filter, format and field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.api import audit_log
from app.routes import API
from cli.commands.parts import KEEP_ALIVE_S
from cli.serving import Bounds
from core import errors
from core.access import access_tokens
from core.failures import ErrorKind
from core.limiting import rates
from core.listing import selection
from core.matching import filters
from core.models import RateTier
from core.payloads import FORMATS
from core.settings import Settings
from tests.api import FAST, SUBSCRIPTIONS, run, success_of
from tests.platform import Platform, shown
from tests.receiver import Receiver

TEXT = (Path(__file__).parents[2] / "docs/api.md").read_text()


def test_every_path_and_method_is_documented_with_its_scope() -> None:
    rows = re.findall(r"^\| `(/v1/[^`]+)` \| ([A-Z]+) \| `([a-z.]+)` \| 20[0-2] \|", TEXT, re.M)
    code = [(path, method, action.scope) for path, actions in API.items() for method, action in actions.items()]
    assert sorted(rows) == sorted(code)


def test_every_error_code_is_documented_with_its_status() -> None:
    def kinds(of: type[errors.HookwrightError]) -> Iterator[type[errors.HookwrightError]]:
        yield of
        for one in of.__subclasses__():
            yield from kinds(one)

    rows = re.findall(r"^\| ([45]\d\d) \| `([A-Z_]+)` \|", TEXT, re.M)
    assert {(int(status), code) for status, code in rows} == {
        (one.status, one.code) for one in kinds(errors.HookwrightError)
    }


def test_bounds_and_limits_are_documented_as_they_are() -> None:
    bounds = Bounds()
    [section] = re.findall(r"### What a client may take\n(.*?)\n## ", TEXT, re.S)
    for said in (
        f"{bounds.head_bytes >> 10} KiB, and {bounds.headers} headers",
        f"within {bounds.head_s:.0f} s of connecting",
        f"a body within {bounds.body_s:.0f} s, or longer where it comes at {bounds.body_bytes_per_s >> 10} KiB/s",
        f"something of an answer taken every {bounds.answer_s:.0f} s",
        f"| {bounds.pipelined} requests that wait behind another",
        f"within {bounds.linger_s:.0f} s |",
        f"within {KEEP_ALIVE_S} s |",
        f"{bounds.connections:,} connections",
    ):
        assert said in section
    assert f'"expires_in": {access_tokens.LIFETIME_S}' in TEXT
    for tier in RateTier:
        rate = rates.parse(Settings.model_fields[f"rate_limit_{tier}"].default)
        assert rate
        setting = f"`HOOKWRIGHT_RATE_LIMIT_{tier.upper()}`"
        assert f"| `{tier}` | {rate.per_minute:,} | {rate.burst} | {setting} |" in TEXT


def test_filters_operators_formats_and_errors_are_documented() -> None:
    [row] = re.findall(r"^\| deliveries \| (.*) \|$", TEXT, re.M)
    assert sorted(re.findall(r"`([a-z_]+)`", row)) == sorted(selection._FILTERS)
    [row] = re.findall(r"^\| audit log \| (.*) \|$", TEXT, re.M)
    assert sorted(re.findall(r"`([a-z_]+)`", row)) == sorted(audit_log._FILTERS)
    for name in (*filters.OPERATORS, *filters.COMBINATORS):
        assert name in TEXT
    assert re.findall(r"^\| `([a-z]+)` \| (?:`\{|the data|CloudEvents)", TEXT, re.M) == list(FORMATS)
    for kind in ErrorKind:
        assert f"`{kind}`" in TEXT


def test_every_action_of_the_audit_log_is_documented() -> None:
    rows = re.findall(r"^\| (`[a-z_]+\.[a-z_]+`(?: `\.[a-z]+`)*) \|", TEXT.partition("## Audit log")[2], re.M)
    documented = {
        noun + verb for row in rows for noun in [row[1:].partition(".")[0]] for verb in re.findall(r"\.[a-z_]+", row)
    }
    declared = {action.audited for actions in API.values() for action in actions.values() if action.audited}
    by_itself = {"subscription.disabled", "organization.erased", "audit_log.erased", "secret_keys.rotated"}
    assert documented == declared | by_itself


def examples() -> list[dict[str, Any]]:
    """The JSON objects shown; snippets of an envelope are no objects of their own."""
    blocks = re.findall(r"```json\n(\{.*?)```", TEXT, re.S)
    return [json.loads(block) for block in blocks]


def test_examples_have_exactly_the_fields_of_real_answers(database_url: str, redis_url: str) -> None:
    shapes = [set(one) for one in examples()]

    async def check(p: Platform) -> None:
        admin = {"X-API-Key": p.platform_key, "X-Organization-ID": shown(p)}
        made = await p.client.post(
            SUBSCRIPTIONS, json={"url": receiver.url("/status/503"), "events": ["*"], "retry_policy": FAST}
        )
        id_ = made.json()["data"]["id"]
        event = await p.send()
        [delivery] = await p.settled(1, "dead")
        whole = (await p.call("GET", f"/v1/deliveries/{delivery['id']}"))["data"]
        replay = (await p.call("POST", "/v1/replays", {}))["data"]
        answers = {
            "success": success_of(made, 201),
            "error": (await p.client.get("/v1/nothing")).json(),
            "subscription": made.json()["data"],
            "circuit breaker": (await p.call("GET", f"{SUBSCRIPTIONS}/{id_}/circuit-breaker"))["data"],
            "health": (await p.call("GET", f"{SUBSCRIPTIONS}/{id_}/health"))["data"],
            "performance": (await p.call("GET", "/v1/webhooks/performance"))["data"],
            "accepted": event,
            "event": (await p.call("GET", f"/v1/events/{event['event_id']}"))["data"],
            "delivery": delivery,
            "attempt": whole["attempts"][0],
            "dry run": (await p.call("POST", "/v1/replays", {"dry_run": True}))["data"],
            "replay": (await p.call("GET", f"/v1/replays/{replay['id']}"))["data"],
            "item": (await p.call("GET", f"/v1/replays/{replay['id']}/items"))["data"][0],
            "event type": (await p.call("POST", "/v1/event-types", {"name": "a"}))["data"],
            "organization": (await p.client.post("/v1/organizations", json={"name": "n"}, headers=admin)).json()[
                "data"
            ],
            "audit entry": (await p.client.get("/v1/audit-log", headers=admin)).json()["data"][0],
            "key": (await p.client.post("/v1/api-keys", json={"name": "n"}, headers=admin)).json()["data"],
        }
        missing = {name: sorted(answer) for name, answer in answers.items() if set(answer) not in shapes}
        assert not missing

    with Receiver() as receiver:
        run(database_url, redis_url, check, with_worker=True)


@pytest.mark.parametrize("path", ["/v1/events", SUBSCRIPTIONS])
def test_example_requests_are_accepted(database_url: str, redis_url: str, path: str) -> None:
    field = "data" if path == "/v1/events" else "url"
    [body] = [one for one in examples() if field in one and "id" not in one and "responseType" not in one]

    async def check(p: Platform) -> None:
        assert (await p.client.post(path, json=body)).is_success

    run(database_url, redis_url, check)
