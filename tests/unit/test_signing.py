"""Signatures against published check values; secrets as users supply them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ValidationFailed
from core.secrets.signing import (
    SCHEMES,
    Signer,
    generate_secret,
    keyed,
    normalize_secret,
    parse_secret,
    standard_signature,
)

# Source: receivers.md; the first is the vector of the Standard Webhooks specification.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_" + base64.b64encode(b"o" * 24).decode()
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT = 1614265330
BODY = b'{"test": 2432232314}'
STANDARD = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
STRIPE_V1 = "2e37df5d4a028c51a7f3133d64ae1e300d2c2c900f1b1d49d4369ad2530f8964"
SHOPIFY = "gOyKic480iEzoQZsrstNBP6nRnZXyFFNcX7ELDilyUw="


def extra(scheme: str, *secrets: str) -> list[tuple[str, str]]:
    """The headers that a scheme adds to the standard ones."""
    return Signer(scheme, secrets or (SECRET,)).headers(ID, AT, BODY)[3:]


def hex_mac(secret: str, content: bytes) -> str:
    return hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_sends_the_standard_headers_first(scheme: str) -> None:
    assert Signer(scheme, [SECRET]).headers(ID, AT, BODY)[:3] == [
        ("webhook-id", ID),
        ("webhook-timestamp", "1614265330"),
        ("webhook-signature", STANDARD),
    ]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("standard", []),
        # body alone under the same key as shopify's check value, in hex
        ("hmac_sha256", [("X-Webhook-Signature", f"sha256={base64.b64decode(SHOPIFY).hex()}")]),
        ("github", [("X-Hub-Signature-256", f"sha256={base64.b64decode(SHOPIFY).hex()}")]),
        ("stripe", [("Stripe-Signature", f"t=1614265330,v1={STRIPE_V1}")]),
        ("shopify", [("X-Shopify-Hmac-Sha256", SHOPIFY)]),
        (
            "slack",
            [
                ("X-Slack-Signature", f"v0={hex_mac(SECRET, b'v0:1614265330:' + BODY)}"),
                ("X-Slack-Request-Timestamp", "1614265330"),
            ],
        ),
    ],
)
def test_schemes_give_their_check_values(scheme: str, expected: list[tuple[str, str]]) -> None:
    assert extra(scheme) == expected


def test_schemes_reproduce_the_senders_own_published_vectors() -> None:
    # The secrets of these publications are no whsec_ strings, so the scheme's function is called itself.
    github = SCHEMES["github"]([keyed(b"It's a Secret to Everybody")], "", 0, b"Hello, World!")
    slack_body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    slack = SCHEMES["slack"]([keyed(b"8f742231b10e8888abcd99yyyzzz85a5")], "", 1531420618, slack_body)
    assert github == [
        ("X-Hub-Signature-256", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17")
    ]
    assert slack[0] == (
        "X-Slack-Signature",
        "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_signature_does_not_depend_on_what_was_signed_before(scheme: str) -> None:
    signer = Signer(scheme, [SECRET, OLD_SECRET])
    first = signer.headers(ID, AT, BODY)
    assert signer.headers(ID, AT, b"another body") != first
    assert signer.headers(ID, AT, BODY) == first


def test_while_rotating_the_current_secret_signs_first_and_the_old_one_too() -> None:
    headers = dict(Signer("stripe", [OLD_SECRET, SECRET]).headers(ID, AT, BODY))
    old = dict(Signer("stripe", [OLD_SECRET]).headers(ID, AT, BODY))
    assert headers["webhook-signature"] == f"{old['webhook-signature']} {STANDARD}"
    assert headers["Stripe-Signature"] == f"{old['Stripe-Signature']},v1={STRIPE_V1}"


@pytest.mark.parametrize("scheme", ["hmac_sha256", "github", "shopify", "slack"])
def test_schemes_with_room_for_one_signature_sign_with_the_current_secret(scheme: str) -> None:
    assert extra(scheme, SECRET, OLD_SECRET) == extra(scheme, SECRET)
    assert extra(scheme, OLD_SECRET, SECRET) != extra(scheme, SECRET)


@given(st.lists(st.binary(min_size=24, max_size=64), min_size=1, max_size=10), st.binary(max_size=200))
def test_signatures_are_separated_by_exactly_one_space(keys: list[bytes], body: bytes) -> None:
    signatures = standard_signature(keys, ID, AT, body).split(" ")
    assert len(signatures) == len(keys)
    for key, signature in zip(keys, signatures, strict=True):
        content = ID.encode() + b".1614265330." + body
        mac = hmac.new(key, content, hashlib.sha256).digest()
        assert signature == "v1," + base64.b64encode(mac).decode()


@pytest.mark.parametrize("count", [0, 11])
def test_a_signature_takes_one_to_ten_secrets(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 10"):
        standard_signature([b"k" * 24] * count, ID, AT, BODY)
    with pytest.raises(ValueError, match="1 to 10"):
        Signer("standard", [SECRET] * count)


def test_a_signer_signs_each_attempt_afresh() -> None:
    signer = Signer("standard", [SECRET])
    assert dict(signer.headers(ID, AT, BODY))["webhook-signature"] == STANDARD
    assert signer.headers(ID, AT + 1, BODY)[2] != signer.headers(ID, AT, BODY)[2]


def test_an_unknown_scheme_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(ValidationFailed) as refused:
        Signer("md5", [SECRET])
    [message] = refused.value.details["authentication.type"]
    assert [each for each in SCHEMES if each not in message] == []


def test_a_generated_secret_has_no_padding_and_parses() -> None:
    secret = generate_secret(os.urandom)
    assert secret.startswith("whsec_")
    assert "=" not in secret
    assert len(parse_secret(secret)) == 33
    assert generate_secret(lambda count: b"\xff" * count) == "whsec_" + "/" * 44


def test_a_well_formed_secret_is_kept_verbatim() -> None:
    assert normalize_secret(SECRET) == SECRET
    assert parse_secret(SECRET) == base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")


@pytest.mark.parametrize("text", ["k" * 24, "pass phrase with blanks in it", "é" * 32, "k" * 64])
def test_another_string_becomes_one_whose_key_is_its_bytes(text: str) -> None:
    assert parse_secret(normalize_secret(text)) == text.encode()


def encoded(size: int) -> str:
    return base64.b64encode(b"\xfbk\xff" * 30)[: size // 3 * 4].decode()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (None, "string"),
        (5, "string"),
        ("", "24 to 64 bytes, not 0"),
        ("k" * 23, "not 23"),
        ("k" * 65, "not 65"),
        ("é" * 33, "not 66"),
        (" " + "k" * 30, "spaces"),
        ("k" * 30 + "\n", "printable"),
        ("k" * 30 + "\0", "printable"),
        ("k" * 30 + "\ud800", "printable"),
        ("whsec_", "24 to 64 bytes, not 0"),
        ("whsec_" + encoded(21), "not 21"),
        ("whsec_" + encoded(66), "not 66"),
        ("whsec_" + encoded(24).replace("+", "-").replace("/", "_"), "standard base64"),
        ("whsec_" + base64.b64encode(b"k" * 25).decode().rstrip("="), "padding"),
        ("whsec_" + encoded(24) + "\n", "standard base64"),
        ("whsec_" + "é" * 32, "standard base64"),
        ("whsec_" + "k" * 33, "standard base64"),
        ("whsec_" + base64.b64encode(b"k" * 25).decode()[:-3] + "x==", "standard base64"),  # stray low bits
    ],
)
def test_a_bad_secret_is_refused_without_being_repeated(text: object, hint: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        normalize_secret(text)
    [message] = refused.value.details["authentication.secret"]
    assert hint in message
    assert str(text)[6:].strip() == "" or str(text)[6:] not in message


def test_only_the_stored_form_parses() -> None:
    with pytest.raises(ValidationFailed) as refused:
        parse_secret("k" * 32, "secret")
    assert refused.value.details == {"secret": ["Must begin with whsec_"]}
