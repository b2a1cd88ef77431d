"""The bytes that an attempt sent. They are not kept: they are put together again as they were then, from the event, in
the format that the subscription had. Which that was is told by the attempt's own signature, as long as a secret that
made it is still there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.errors import ValidationFailed
from core.payloads import FORMATS, StoredEvent, render
from core.secrets.signing import key_of, standard_signature


class SentBody(NamedTuple):
    content: bytes
    payload_format: str
    is_proven: bool  # the signature is of exactly these bytes


def find(event: StoredEvent, headers: Mapping[str, str], secrets: Sequence[str], payload_format: str) -> SentBody:
    """`headers`: as sent, by names in lower case. `payload_format`: the subscription's of now, which counts where no
    secret tells."""
    for name in (payload_format, *(name for name in FORMATS if name != payload_format)):
        _, content = render(name, event)
        if _is_signed(content, headers, secrets):
            return SentBody(content, name, True)
    return SentBody(render(payload_format, event)[1], payload_format, False)


def _is_signed(content: bytes, headers: Mapping[str, str], secrets: Sequence[str]) -> bool:
    try:
        message, timestamp = headers["webhook-id"], int(headers["webhook-timestamp"])
        given = headers["webhook-signature"].split(" ")
        return any(standard_signature([key_of(secret)], message, timestamp, content) in given for secret in secrets)
    except (KeyError, ValueError, ValidationFailed):  # of an attempt that was refused before anything was signed
        return False
