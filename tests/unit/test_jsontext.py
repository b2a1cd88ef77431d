"""JSON keeps every digit of a whole number, and whatever is not JSON is refused in words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import jsontext
from core.errors import ValidationFailed

characters = st.characters(exclude_categories=["Cs"])
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**60), max_value=10**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(characters)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(characters), inner), max_leaves=20
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types: Python has 1 == 1.0 == True."""
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@given(values)
def test_what_is_written_reads_back_equal(value: Any) -> None:
    text = jsontext.dumps(value)
    assert same(jsontext.loads(text), value)
    assert same(json.loads(text), value)


@given(values)
def test_any_standard_writing_is_read(value: Any) -> None:
    for ascii_only in (True, False):
        text = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode()
        assert same(jsontext.loads(text), value)


@given(values)
def test_a_second_writing_equals_the_first(value: Any) -> None:
    text = jsontext.dumps(value)
    assert jsontext.dumps(jsontext.loads(text)) == text


@given(st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_or_refused(text: bytes) -> None:
    try:
        value = jsontext.loads(text)
    except ValidationFailed:
        return
    assert same(json.loads(text), value)


@given(st.text('[]{},:"\\u0d8eE+-.123456789aNIntflrus ', max_size=40).map(str.encode))
def test_what_resembles_json_is_read_as_the_standard_library_does_or_refused(text: bytes) -> None:
    try:
        value = jsontext.loads(text)
    except ValidationFailed:
        return
    assert same(json.loads(text), value) or "e" in text.decode().lower()


digits = st.text("0123456789", min_size=1, max_size=40)
fractions = st.builds("{}{}.{}".format, st.sampled_from(["", "-"]), st.integers(0, 10**20), digits)
exponents = st.builds("{}{}{}{}".format, fractions, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), digits)


@given(fractions | exponents, st.sampled_from(["{}", "[{}]", '{{"a":{}}}', "[ 1,\t{}\n]"]))
def test_a_fraction_of_any_length_is_read_as_python_reads_it_or_is_too_large(number: str, around: str) -> None:
    try:
        value = jsontext.loads(around.format(number).encode())
    except ValidationFailed:
        assert math.isinf(float(number))
        return
    assert same(value, json.loads(around.format(number)))


@pytest.mark.parametrize("number", [10**15 + 1, 2**63, 2**64, 10**19 + 1, 10**25 + 1])
@pytest.mark.parametrize("space", ["", " ", "\n", "\r", "\t"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_whole_number_keeps_its_digits_wherever_it_stands(number: int, space: str, sign: int) -> None:
    shown, value = f"{space}{sign * number}{space}", sign * number
    for text, expected in (
        (shown, value),
        (f"[{shown}]", [value]),
        (f"[1,{shown},{shown}]", [1, value, value]),
        (f'{{"1234567890123456":{shown}}}', {"1234567890123456": value}),
        (f'{{"a": "1234567890123456","b":{shown}}}', {"a": "1234567890123456", "b": value}),
    ):
        assert same(jsontext.loads(text.encode()), expected)


LONG = b', "long": 12345678901234567890'  # makes the slower reader take the text


@pytest.mark.parametrize("long", [b"", LONG], ids=["short", "long"])
@pytest.mark.parametrize(
    "value",
    [
        *(b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400", b"01", b"+1", b".5", b"1.", b"0x1"),
        *(rb'"\ud800"', rb'"\udc00\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b'"\x00"', b'"\n"', b"'a'", b"True"),
        *(b"1" * 5000, b"", b"[1,]", b"{,}", b"// no\n1"),
    ],
)
def test_both_readers_refuse_what_is_not_json(value: bytes, long: bytes) -> None:
    with pytest.raises(ValidationFailed) as caught:
        jsontext.loads(b'{"a": ' + value + long + b"}")
    [said] = caught.value.details["body"]
    assert 0 < len(said) <= 200
    assert "sys." not in said


@pytest.mark.parametrize("long", [b"1", b"12345678901234567890"])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_64_levels_are_read_and_65_are_refused(long: bytes, opening: bytes, closing: bytes) -> None:
    def nested(levels: int) -> bytes:
        return opening * levels + long + closing * levels

    assert jsontext.loads(nested(64))
    for levels in (65, 300, 5_000, 200_000):
        with pytest.raises(ValidationFailed):
            jsontext.loads(nested(levels))
    assert jsontext.loads(nested(70), max_depth=70)


def test_brackets_in_a_text_are_no_levels() -> None:
    for value in ("[" * 500, ["{" * 500], {"[" * 500: 1}):
        assert jsontext.loads(json.dumps(value).encode()) == value


def test_4300_digits_are_kept() -> None:
    number = 10**4299 + 7
    assert jsontext.loads(jsontext.dumps([number, -number // 10])) == [number, -number // 10]


def test_the_last_of_a_doubled_key_counts_in_both_readers() -> None:
    assert jsontext.loads(b'{"a": 1, "a": 2}') == {"a": 2}
    assert jsontext.loads(b'{"a": 12345678901234567890, "a": 2}') == {"a": 2}


def test_writing_is_compact_utf8_in_the_given_order() -> None:
    value = {"z": "Zoë 😀", "a": [1.5, None, True], "n": "\0"}
    expected = '{"z":"Zoë 😀","a":[1.5,null,true],"n":"\\u0000"}'
    assert jsontext.dumps(value).decode() == expected
    assert jsontext.dumps({**value, "big": 2**70}).decode() == expected[:-1] + f',"big":{2**70}}}'


def test_what_cannot_be_json_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        jsontext.dumps([2**70, math.inf])
