"""Our signatures through the receiver's own library, unchanged."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import pytest
from freezegun import freeze_time
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from core.secrets.signing import SCHEMES, Signer, generate_secret, normalize_secret

AT = datetime(2026, 1, 28, 10, 15, tzinfo=UTC)
TIMESTAMP = int(AT.timestamp())
BODY = '{"event_type":"order.paid","data":{"name":"Zoë","total":12.50}}'.encode()
ID = "evt_01KG0GZ2Q0000000000000000"


def verify(secret: str, headers: list[tuple[str, str]], body: bytes = BODY) -> object:
    return Webhook(secret).verify(body, dict(headers))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_receiver_verifies_every_scheme(scheme: str) -> None:
    secret = generate_secret(os.urandom)
    with freeze_time(AT):
        payload = verify(secret, Signer(scheme, [secret]).headers(ID, TIMESTAMP, BODY))
    assert payload == {"event_type": "order.paid", "data": {"name": "Zoë", "total": 12.5}}


def test_a_receiver_verifies_with_a_secret_of_the_users_own() -> None:
    secret = normalize_secret("correct horse battery staple")
    with freeze_time(AT):
        assert verify(secret, Signer("standard", [secret]).headers(ID, TIMESTAMP, BODY))


def test_during_rotation_receivers_with_either_secret_verify() -> None:
    current, old, foreign = (generate_secret(os.urandom) for _ in range(3))
    headers = Signer("standard", [current, old]).headers(ID, TIMESTAMP, BODY)
    with freeze_time(AT):
        assert verify(current, headers)
        assert verify(old, headers)
        with pytest.raises(WebhookVerificationError):
            verify(foreign, headers)


def test_ten_live_secrets_verify() -> None:
    secrets = [generate_secret(os.urandom) for _ in range(10)]
    headers = Signer("standard", secrets).headers(ID, TIMESTAMP, BODY)
    with freeze_time(AT):
        assert [secret for secret in secrets if not verify(secret, headers)] == []


def test_a_receiver_refuses_another_body_id_or_time() -> None:
    secret = generate_secret(os.urandom)
    headers = Signer("standard", [secret]).headers(ID, TIMESTAMP, BODY)
    with freeze_time(AT):
        with pytest.raises(WebhookVerificationError):
            verify(secret, headers, BODY.replace(b"12.50", b"12.51"))
        with pytest.raises(WebhookVerificationError):
            verify(secret, [("webhook-id", ID[:-1] + "1"), *headers[1:]])
        with pytest.raises(WebhookVerificationError):
            verify(secret, [headers[0], ("webhook-timestamp", str(TIMESTAMP + 1)), headers[2]])


def test_a_retry_must_be_signed_afresh() -> None:
    secret = generate_secret(os.urandom)
    signer = Signer("standard", [secret])
    later = AT + timedelta(minutes=5, seconds=1)
    with freeze_time(later):
        with pytest.raises(WebhookVerificationError):
            verify(secret, signer.headers(ID, TIMESTAMP, BODY))
        assert verify(secret, signer.headers(ID, int(later.timestamp()), BODY))


def test_our_signature_is_the_one_that_the_library_makes() -> None:
    secret = generate_secret(os.urandom)
    expected = Webhook(secret).sign(ID, AT, BODY.decode())
    assert dict(Signer("standard", [secret]).headers(ID, TIMESTAMP, BODY))["webhook-signature"] == expected
