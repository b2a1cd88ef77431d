"""One attempt, over a transport that answers as it is told; what a plan keeps between attempts."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from core import ids
from core.deliveries import Claimed, Finish
from core.egress import EgressPolicy, Target
from core.failures import ErrorKind
from core.payloads import StoredEvent
from core.retry import RetryPolicy
from core.secrets.signing import Signer
from core.states import DeadReason, PendingReason, State
from worker.plans import MASK, USER_AGENT, Plan
from worker.send_errors import SendError
from worker.sending import STORED_BODY_BYTES, attempt
from worker.transport import Answer

URL = "https://hooks.example.com/in"
NOW = datetime.now(UTC)
SECRETS = ["whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in range(3)]
EVENT = StoredEvent(ids.new_id(), ids.new_id(), "order.paid", NOW, b'{"event_id":"evt_1","data":{"n":1}}', 27)


class Told:
    """Does as it is told, and remembers what it was given."""

    def __init__(self, outcome: Answer | BaseException) -> None:
        self.outcome = outcome
        self.lines = b""
        self.body = b""
        self.deadline_s = 0.0

    async def post(self, target: Target, lines: bytes, body: bytes, deadline_s: float) -> Answer:
        self.lines, self.body, self.deadline_s = lines, body, deadline_s
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


def plan(
    headers: Mapping[str, str] | None = None, secrets: Any = ((SECRETS[0], None),), url: str = URL, **given: Any
) -> Plan:
    return Plan(
        **{
            "organization_id": UUID(int=1),
            "version": 1,
            "url": url,
            "target": EgressPolicy().check_url(url),
            "refusal": None,
            "scheme": "standard",
            "payload_format": "default",
            "policy": RetryPolicy(),
            "headers": headers or {},
            "timeout_s": 15.0,
            "secrets": secrets,
            **given,
        }
    )


def claimed(**given: Any) -> Claimed:
    some = UUID(int=1)
    return Claimed(
        **{
            "id": some,
            "organization_id": some,
            "subscription_id": some,
            "event_id": EVENT.id,
            "event_type": EVENT.event_type,
            "series": 0,
            "attempt_count": 0,
            "replay_id": None,
            "subscription_version": 1,
            "subscription_status": "active",
            "timeout_ms": 15_000,
            "token": some,
            **given,
        }
    )


def answer(status: int = 200, headers: Any = (), body: bytes = b"ok") -> Answer:
    return Answer(status, headers, body, truncated=False, broken=False)


def tried(outcome: Answer | BaseException, of: Plan | None = None, **given: Any) -> tuple[Told, Finish]:
    told = Told(outcome)
    return told, asyncio.run(attempt(told, of or plan(), claimed(**given), EVENT))


# --- what is sent and what is recorded of it ---


def test_what_is_sent_is_signed_and_what_is_recorded_shows_no_custom_value() -> None:
    told, finish = tried(answer(), plan({"Authorization": "Bearer hidden", "X-B": "b"}))
    assert finish.tried is not None
    stamp = int(finish.tried.started_at.timestamp())
    signed = Signer("standard", [SECRETS[0]]).headers(EVENT.shown_id, stamp, EVENT.payload)
    fixed = [("content-type", "application/json"), ("user-agent", USER_AGENT)]
    sent = [*fixed, ("Authorization", "Bearer hidden"), ("X-B", "b"), *signed]
    assert told.lines == "".join(f"{name}: {value}\r\n" for name, value in sent).encode()
    assert told.body == EVENT.payload
    shown = [*fixed, ("Authorization", MASK), ("X-B", MASK), *signed]
    assert json.loads(finish.tried.request_headers) == [list(pair) for pair in shown]
    assert "hidden" not in repr(finish)


def test_a_plan_serves_many_attempts() -> None:
    it = plan({"X-A": "a"}, payload_format="cloudevents")
    first, second = tried(answer(), it)[0], tried(answer(), it)[0]
    assert first.body == second.body
    assert first.lines.startswith(b"content-type: application/cloudevents+json; charset=utf-8\r\n")
    assert first.lines.count(b"\r\n") == second.lines.count(b"\r\n") == 6


@pytest.mark.parametrize(("timeout_s", "timeout_ms", "deadline_s"), [(15.0, 2_000, 2.0), (3.0, 15_000, 3.0)])
def test_the_deadline_never_outlasts_the_lease(timeout_s: float, timeout_ms: int, deadline_s: float) -> None:
    assert tried(answer(), plan(timeout_s=timeout_s), timeout_ms=timeout_ms)[0].deadline_s == deadline_s


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
def test_a_stored_header_that_would_be_two_is_not_sent(value: str) -> None:
    told, finish = tried(answer(), plan({"X-A": value}))
    assert (told.lines, told.body) == (b"", b"")
    assert finish.tried is not None
    assert finish.tried.error_kind is ErrorKind.PROTOCOL
    assert ["X-A", MASK] in json.loads(finish.tried.request_headers)


# --- what comes of it ---


def test_a_success() -> None:
    _, finish = tried(answer(204, [(b"X-L", b"\xff\0"), (b"Date", b"now")], b"x" * 9_000))
    assert finish.verdict.state is State.DELIVERED
    assert finish.tried is not None
    assert (finish.tried.status_code, finish.tried.error_kind) == (204, None)
    assert finish.tried.response_headers is not None
    assert json.loads(finish.tried.response_headers) == [["X-L", "ÿ\0"], ["Date", "now"]]
    assert finish.tried.response_body == b"x" * STORED_BODY_BYTES


@pytest.mark.parametrize("status", [199, 300, 302, 404, 503])
def test_any_other_status_is_a_failure(status: int) -> None:
    _, finish = tried(answer(status))
    assert finish.verdict.state is State.PENDING
    assert finish.tried is not None
    assert (finish.tried.error_kind, finish.tried.error_message) == (
        ErrorKind.STATUS,
        f"The receiver answered {status}",
    )


def test_headers_steer_in_any_case_and_doubled_ones_are_one_with_commas() -> None:
    def delay_s(*headers: tuple[bytes, bytes]) -> float:
        found = tried(answer(503, headers))[1].verdict.delay_s
        assert found is not None
        return found

    assert delay_s((b"RETRY-After", b"3600")) == 3600
    assert delay_s((b"Retry-After", b"3600"), (b"retry-after", b"7200")) < 60  # "3600, 7200" says nothing
    assert delay_s((b"Retry-After", b"\xff")) < 60
    _, finish = tried(answer(500, [(b"Webhook-Delivery", b"Abort-Message")]))
    assert (finish.verdict.state, finish.verdict.reason) == (State.DEAD, DeadReason.ABORTED)
    assert tried(answer(200, [(b"webhook-delivery", b"disable")]))[1].verdict.disables


def test_an_error_is_recorded_with_its_kind_and_message() -> None:
    _, finish = tried(SendError(ErrorKind.TLS, "odd \0 name \udcff"))
    assert finish.verdict.state is State.PENDING
    assert finish.tried is not None
    assert (finish.tried.status_code, finish.tried.response_headers, finish.tried.response_body) == (None, None, None)
    assert (finish.tried.error_kind, finish.tried.error_message) == (ErrorKind.TLS, "odd \\0 name ?")


def test_a_url_that_policy_forbids_is_not_called() -> None:
    told, finish = tried(answer(), plan(target=None, refusal="Must be https"))
    assert told.lines == b""
    assert (finish.verdict.state, finish.verdict.reason) == (State.DEAD, DeadReason.REJECTED)
    assert finish.tried is not None
    assert finish.tried.error_message == "Must be https"
    assert len(json.loads(finish.tried.request_headers)) == 5


def test_a_stop_hands_the_delivery_back_with_the_attempt_recorded() -> None:
    _, finish = tried(asyncio.CancelledError())
    assert (finish.verdict.state, finish.verdict.reason, finish.verdict.delay_s) == (
        State.PENDING,
        PendingReason.RETRY,
        0.0,
    )
    assert finish.tried is not None
    assert finish.tried.error_kind is ErrorKind.RESET


def test_a_bug_of_ours_counts_as_an_attempt() -> None:
    _, finish = tried(KeyError("x"))
    assert finish.verdict.state is State.PENDING
    assert finish.tried is not None
    assert (finish.tried.error_kind, finish.tried.error_message) == (
        ErrorKind.PROTOCOL,
        "The attempt failed on the sender's side",
    )


# --- secrets by time ---


def signatures(it: Plan, now: datetime) -> int:
    return len(dict(it.signer(now).headers("evt_1", 1, b""))["webhook-signature"].split(" "))


def test_a_secret_signs_until_its_grace_ends_whichever_way_the_clock_goes() -> None:
    it = plan(secrets=[(SECRETS[0], None), (SECRETS[1], NOW), (SECRETS[2], NOW + timedelta(hours=1))])
    second = timedelta(seconds=1)
    for after, expected in (
        (-second, 3),
        (timedelta(), 2),
        (-second, 3),
        (second, 2),
        (timedelta(hours=1) - second, 2),
        (timedelta(hours=1), 1),
        (timedelta(days=999), 1),
        (-second, 3),
    ):
        assert signatures(it, NOW + after) == expected, after


def test_a_signer_is_kept_as_long_as_the_same_secrets_live() -> None:
    it = plan(secrets=[(SECRETS[0], None), (SECRETS[1], NOW)])
    before = it.signer(NOW - timedelta(days=1))
    assert it.signer(NOW - timedelta(seconds=1)) is before
    after = it.signer(NOW)
    assert after is not before
    assert it.signer(NOW + timedelta(days=1)) is after


def test_at_most_ten_secrets_sign() -> None:
    it = plan(secrets=[(SECRETS[0], None)] * 12)
    assert signatures(it, NOW) == 10
