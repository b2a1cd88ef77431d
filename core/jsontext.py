"""JSON in and out, without losing a digit.

orjson turns integers beyond 64 bits into floats; the standard library keeps them. So orjson reads what it can't harm,
and the slower reader takes bodies in which a long whole number appears.
"""

from __future__ import annotations

import json
import math
from typing import Any

import orjson

from core.errors import ValidationFailed

MAX_DEPTH = 64
MAX_DIGITS = 4_300  # of a whole number: reading takes quadratic time, and Python itself refuses more
# A whole number stands at the start of the text or after one of `[,:-` and white space. Those are made the same here,
# and all digits too, so that one search finds any of 16 digits or more, 25 times as fast as a regular expression,
# which starts anew at each digit. It finds some within strings as well; the slower reader reads those just as well.
_ALIKE = bytes.maketrans(b"123456789[:- \t\n\r", b"000000000,,,,,,,")
_LONG_NUMBER = b"," + b"0" * 16


def loads(text: bytes, *, max_depth: int = MAX_DEPTH) -> Any:
    """The value in `text`, which must be JSON (RFC 8259) in UTF-8, at most `max_depth` levels deep.

    Raises `ValidationFailed` when it is not.
    """
    try:
        if _LONG_NUMBER in b"," + text.translate(_ALIKE):
            value = json.loads(text.decode("utf-8"), parse_int=_whole, parse_float=_finite, parse_constant=_refuse)
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # refuses lone surrogates, as orjson does
        else:
            value = orjson.loads(text)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as error:  # both readers' errors, and UnicodeError, are ValueErrors
        raise ValidationFailed("The body is not valid JSON", details={"body": [_first_line(error)]}) from None
    # A text without that many brackets cannot be that deep: most bodies are spared the walk.
    if text.count(b"{") + text.count(b"[") > max_depth and _deeper_than(value, max_depth):
        raise _too_deep(max_depth)
    return value


def dumps(value: Any) -> bytes:
    """Compact JSON in UTF-8: no spaces, no ASCII escapes, key order kept."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            child
            for parent in layer
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not layer:
            return False
    return True


def _too_deep(max_depth: int) -> ValidationFailed:
    return ValidationFailed("The body is nested too deeply", details={"body": [f"At most {max_depth} levels"]})


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"number {text[:40]}… has more than {MAX_DIGITS} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"number {text[:40]} exceeds a double")
    return value


def _first_line(error: ValueError) -> str:
    return str(error).split("\n")[0][:200]
