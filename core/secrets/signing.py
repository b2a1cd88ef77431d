"""Signatures of outbound webhooks.

Every delivery carries the three headers of Standard Webhooks (spec 1.0.0), so that a receiver can verify it
with a published library. A subscription may choose a scheme that adds the header of a well-known sender
beside them.

A secret has two readings, and which one applies depends on the header:

    whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
          └── base64 of the key ─────────┘     webhook-signature: the key is the decoded bytes
    └── the whole string ────────────────┘     every other scheme: the key is these UTF-8 bytes

Secrets come current first. While one is being rotated out, `webhook-signature` and `Stripe-Signature` carry
one signature for each; the other schemes have room for one only, which is the current secret's.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from core.errors import ValidationFailed

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - the prefix of a secret, not a secret
SHORTEST_KEY: Final = 24  # bytes, as are the two below
LONGEST_KEY: Final = 64
# 264 bits, above the 256 that HMAC-SHA256 can use; a multiple of three, so that base64 has no padding, over
# which several receivers' libraries stumble.
GENERATED_KEY: Final = 33
MOST_SECRETS: Final = 10  # live at once: the spec's bound on signatures in one header

Headers = list[tuple[str, str]]
Mac = Callable[[bytes], bytes]  # HMAC-SHA256 under one key
# One Mac for each secret (its key: UTF-8 of the whole string; current first), message id, Unix seconds, body.
Scheme = Callable[[Sequence[Mac], str, int, bytes], Headers]


# --- Secrets ------------------------------------------------------------------------------------------------


def generate_secret(random_bytes: Callable[[int], bytes]) -> str:
    """A new secret: `whsec_` and 44 base64 characters without padding. Pass `os.urandom`."""
    return _show_key(random_bytes(GENERATED_KEY))


def normalize_secret(text: object, scheme: str = "standard", path: str = "authentication.secret") -> str:
    """The secret to store, to sign with and to show back as `secret_key`, of what a user supplied.

    A well-formed `whsec_…` is kept as it is. So is any other printable string of 24 to 64 bytes in UTF-8, for its
    owner will verify with the very string they gave; only where no scheme but the standard one is asked for does it
    become `whsec_` and the base64 of those bytes, which is what the standard's libraries take. Both forms give
    `webhook-signature` the same key. Raises `ValidationFailed` at `path`; no message repeats the secret.
    """
    if not isinstance(text, str):
        raise ValidationFailed.of(path, "Must be a string, or left out to have a secret made")
    if text.startswith(SECRET_PREFIX):
        parse_secret(text, path)
        return text
    if not text.isprintable() or text != text.strip():
        raise ValidationFailed.of(path, "Must be printable characters, without spaces around them")
    key = _of_right_length(text.encode(), path)
    return _show_key(key) if scheme == "standard" else text


def key_of(secret: str) -> bytes:
    """The key of `webhook-signature`: what a `whsec_…` string holds, or the UTF-8 bytes of any other."""
    return parse_secret(secret) if secret.startswith(SECRET_PREFIX) else secret.encode()


def parse_secret(text: str, path: str = "authentication.secret") -> bytes:
    """The key inside a `whsec_…` string, 24 to 64 bytes. Raises `ValidationFailed` at `path`.

    Only padded standard base64 in its one canonical form passes, for that is what every receiver's library
    decodes.
    """
    encoded = text.removeprefix(SECRET_PREFIX)
    if encoded == text:
        raise ValidationFailed.of(path, f"Must begin with {SECRET_PREFIX}")
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        key = b""
    if base64.b64encode(key).decode() != encoded:
        raise ValidationFailed.of(path, f"After {SECRET_PREFIX} must come standard base64 with its padding")
    return _of_right_length(key, path)


def _of_right_length(key: bytes, path: str) -> bytes:
    if not SHORTEST_KEY <= len(key) <= LONGEST_KEY:
        raise ValidationFailed.of(path, f"Must be {SHORTEST_KEY} to {LONGEST_KEY} bytes, not {len(key)}")
    return key


def _show_key(key: bytes) -> str:
    return SECRET_PREFIX + base64.b64encode(key).decode()


# --- Standard Webhooks --------------------------------------------------------------------------------------


def standard_signature(secrets: Sequence[bytes], msg_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` value: one `v1,<base64>` for each key, current first, one space between.

    `timestamp` is the attempt's, in Unix seconds. Receivers raise on double spaces and on commas between
    signatures. Raises `ValueError` unless there are 1 to 10 keys.
    """
    if not 1 <= len(secrets) <= MOST_SECRETS:
        raise ValueError(f"a signature takes 1 to {MOST_SECRETS} secrets, not {len(secrets)}")
    return _standard([keyed(key) for key in secrets], msg_id, timestamp, body)


def keyed(key: bytes) -> Mac:
    """Signs under `key`, which is hashed here once: then 1 KiB takes 7 µs, and `hmac.digest` 10."""
    start = hmac.new(key, digestmod="sha256")

    def mac(content: bytes) -> bytes:
        signing = start.copy()
        signing.update(content)
        return signing.digest()

    return mac


def _standard(macs: Sequence[Mac], msg_id: str, timestamp: int, body: bytes) -> str:
    content = b"%b.%d.%b" % (msg_id.encode(), timestamp, body)
    return " ".join([f"v1,{_base64(mac(content))}" for mac in macs])


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


# --- Schemes beside it --------------------------------------------------------------------------------------


def _nothing_more(_macs: Sequence[Mac], _msg_id: str, _timestamp: int, _body: bytes) -> Headers:
    return []


def _hmac_sha256(macs: Sequence[Mac], _msg_id: str, _timestamp: int, body: bytes) -> Headers:
    return [("X-Webhook-Signature", f"sha256={macs[0](body).hex()}")]


def _github(macs: Sequence[Mac], _msg_id: str, _timestamp: int, body: bytes) -> Headers:
    return [("X-Hub-Signature-256", f"sha256={macs[0](body).hex()}")]


def _stripe(macs: Sequence[Mac], _msg_id: str, timestamp: int, body: bytes) -> Headers:
    content = b"%d.%b" % (timestamp, body)
    signatures = [f"v1={mac(content).hex()}" for mac in macs]
    return [("Stripe-Signature", ",".join([f"t={timestamp}", *signatures]))]


def _shopify(macs: Sequence[Mac], _msg_id: str, _timestamp: int, body: bytes) -> Headers:
    return [("X-Shopify-Hmac-Sha256", _base64(macs[0](body)))]


def _slack(macs: Sequence[Mac], _msg_id: str, timestamp: int, body: bytes) -> Headers:
    digest = macs[0](b"v0:%d:%b" % (timestamp, body))
    return [("X-Slack-Signature", f"v0={digest.hex()}"), ("X-Slack-Request-Timestamp", str(timestamp))]


SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        "standard": _nothing_more,
        "hmac_sha256": _hmac_sha256,
        "github": _github,
        "stripe": _stripe,
        "shopify": _shopify,
        "slack": _slack,
    }
)

# Whose own header has room for one signature, the current secret's.
ONE_SIGNATURE: Final = frozenset({"hmac_sha256", "github", "shopify", "slack"})


class Signer:
    """Signs for one version of a subscription: its scheme and its live secrets, read once. Shareable."""

    __slots__ = ("_extra", "_extra_macs", "_macs")

    def __init__(self, scheme: str, secrets: Sequence[str]) -> None:
        """`secrets` are 1 to 10 strings as `normalize_secret` gives them, current first.

        Raises `ValidationFailed` on an unknown scheme or a malformed secret, `ValueError` on their number.
        """
        extra = SCHEMES.get(scheme)
        if extra is None:
            raise ValidationFailed.of("authentication.type", f"Must be one of {', '.join(SCHEMES)}")
        if not 1 <= len(secrets) <= MOST_SECRETS:
            raise ValueError(f"a signer takes 1 to {MOST_SECRETS} secrets, not {len(secrets)}")
        self._extra = extra
        self._macs = [keyed(key_of(secret)) for secret in secrets]
        self._extra_macs = [keyed(secret.encode()) for secret in secrets]

    def headers(self, msg_id: str, timestamp: int, body: bytes) -> Headers:
        """The headers to send with exactly these bytes: the three standard ones, then the scheme's own.

        `timestamp` is this attempt's, in Unix seconds: receivers allow 5 minutes, so a retry is signed
        afresh.
        """
        return [
            ("webhook-id", msg_id),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", _standard(self._macs, msg_id, timestamp, body)),
            *self._extra(self._extra_macs, msg_id, timestamp, body),
        ]
