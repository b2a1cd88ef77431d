"""Ids: order, families, partitions, and the text form."""

from __future__ import annotations

import contextlib
import os
import threading
from datetime import UTC, date, datetime, timedelta
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import ids
from core.errors import InvalidId
from core.ids import ALPHABET, EVENT, IdFactory, parse, show

START_MS = 1_769_595_300_000  # 2026-01-28T10:15:00Z
uuids = st.integers(0, (1 << 128) - 1).map(lambda number: UUID(int=number))
milliseconds = st.integers(1, (1 << 46) - 1)


def factory(*clock_ms: int) -> IdFactory:
    """A factory whose clock reads these values in turn, then stands still at the last."""
    readings = list(clock_ms)
    return IdFactory(now_ms=lambda: readings.pop(0) if len(readings) > 1 else readings[0])


def stamp_ms(id_: UUID) -> int:
    return id_.int >> 80


def test_an_id_is_a_uuid_version_7_with_the_time_in_front() -> None:
    id_ = factory(START_MS)()
    assert (id_.version, id_.variant, stamp_ms(id_)) == (7, RFC_4122, START_MS)


def test_the_random_tail_is_62_bits_of_what_is_given() -> None:
    low = IdFactory(lambda: START_MS, lambda count: b"\x00" * count)()
    high = IdFactory(lambda: START_MS, lambda count: b"\xff" * count)()
    assert high.int - low.int == (1 << 62) - 1
    assert high.variant == RFC_4122


@given(st.lists(milliseconds, min_size=2, max_size=50))
def test_ids_rise_whatever_the_clock_does(clock_ms: list[int]) -> None:
    make = factory(*clock_ms)
    made = [make() for _ in clock_ms]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert {each.version for each in made} == {7}


def test_a_clock_that_steps_back_is_not_followed_until_it_catches_up() -> None:
    make = factory(START_MS, START_MS - 60_000, START_MS - 1, START_MS + 5)
    assert [stamp_ms(make()) - START_MS for _ in range(4)] == [0, 0, 0, 5]


def test_a_full_counter_borrows_the_next_millisecond() -> None:
    make = factory(START_MS)
    made = [make() for _ in range(4097)]
    assert [stamp_ms(made[index]) - START_MS for index in (0, 4095, 4096)] == [0, 0, 1]
    assert made == sorted(made)
    assert {each.version for each in made} == {7}


def test_threads_never_share_an_id() -> None:
    # The clock holds a thread until the other reads it too; the lock lets in one, which gives up waiting.
    both_inside = threading.Barrier(2)

    def now_ms() -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait(timeout=0.05)
        return START_MS

    make = IdFactory(now_ms, lambda count: b"\x00" * count)  # only the counter tells ids apart
    made: list[UUID] = []
    threads = [threading.Thread(target=lambda: made.append(make())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 2


@given(milliseconds)
def test_a_child_lies_in_its_parents_family_and_no_other(ms: int) -> None:
    make = factory(ms)
    parent, other = make(), make()
    child = make.within(parent)
    low, high = ids.family_bounds(parent)
    assert low <= child <= high
    assert low <= parent <= high
    assert not low <= make.within(other) <= high
    assert (child.version, child.variant) == (7, RFC_4122)
    assert ids.time_of(child) == ids.time_of(parent)


def test_children_of_one_parent_differ() -> None:
    make = factory(START_MS)
    parent = make()
    assert len({make.within(parent) for _ in range(100)} | {parent}) == 101


def test_no_random_tail_is_used_twice_however_many_are_drawn_at_a_time() -> None:
    make = factory(START_MS)
    parent = make()
    tails = [make.within(parent).int for _ in range(2_000)]
    assert len(set(tails)) == len(tails)


def test_a_forked_process_makes_ids_of_its_own() -> None:
    parent = ids.new_id()  # so that more were drawn than are used
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.write(write_end, ids.new_id.within(parent).bytes)
        os._exit(0)
    os.waitpid(child, 0)
    made = os.read(read_end, 16)
    os.close(read_end)
    os.close(write_end)
    assert len(made) == 16
    assert made not in {ids.new_id.within(parent).bytes for _ in range(1_000)}


def test_an_id_is_a_uuid_of_the_standard_library_too() -> None:
    one = ids.new_id()
    same = UUID(int=one.int)
    assert isinstance(one, UUID)
    assert one == same
    assert hash(one) == hash(same)
    assert {one: "found"}[same] == "found"
    assert ids.from_hex(one.hex) == ids.from_hex(str(one)) == one


def test_family_bounds_are_exact() -> None:
    parent = UUID("019c0422-ab20-7001-8abc-0123456789ab")
    assert ids.family_bounds(parent) == (
        UUID("019c0422-ab20-7001-0000-000000000000"),
        UUID("019c0422-ab20-7001-ffff-ffffffffffff"),
    )


def test_time_is_read_back_to_the_millisecond() -> None:
    moment = datetime(2026, 1, 28, 10, 15, 0, 123_000, tzinfo=UTC)
    assert ids.time_of(factory(START_MS + 123)()) == moment
    assert ids.lowest_at(moment).int == (START_MS + 123) << 80


@given(st.dates(date(1970, 1, 1), date(2999, 12, 30)), st.integers(0, 86_399_999))
def test_an_id_lies_within_the_bounds_of_its_day_only(day: date, ms: int) -> None:
    midnight_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
    id_ = factory(midnight_ms + ms)()
    low, high = ids.day_bounds(day)
    assert low <= id_ < high
    assert ids.day_of(id_) == day
    assert ids.day_bounds(day + timedelta(days=1))[0] == high


@given(uuids)
def test_text_reads_back(id_: UUID) -> None:
    text = show(EVENT, id_)
    assert len(text) == 30
    assert parse(EVENT, text) == id_
    assert parse(EVENT, "evt_" + text[4:].lower()) == id_


@given(uuids)
def test_text_is_the_number_in_base_32(id_: UUID) -> None:
    number, expected = id_.int, ""
    for _ in range(26):
        number, digit = divmod(number, 32)
        expected = ALPHABET[digit] + expected
    assert show(EVENT, id_) == f"evt_{expected}"


@given(uuids, uuids)
def test_text_sorts_as_the_ids_do(one: UUID, other: UUID) -> None:
    assert (show(EVENT, one) < show(EVENT, other)) == (one < other)


def test_known_texts() -> None:
    assert show("evt", UUID(int=0)) == "evt_" + "0" * 26
    assert show("evt", UUID(int=(1 << 128) - 1)) == "evt_7" + "Z" * 25
    assert show("sub", UUID(int=32)) == "sub_" + "0" * 24 + "10"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "evt",
        "evt_",
        "0" * 26,
        "_" + "0" * 26,
        "dlv_" + "0" * 26,
        "EVT_" + "0" * 26,
        "evt_" + "0" * 25,
        "evt_" + "0" * 27,
        "evt_" + "0" * 25 + "\n",
        " evt_" + "0" * 26,
        "evt_8" + "0" * 25,  # 129 bits
        "evt_" + "Z" * 26,
        *("evt_" + "0" * 25 + char for char in "ILOUilou_- é٣"),
    ],
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidId):
        parse(EVENT, text)


def test_a_refusal_quotes_no_more_than_64_characters() -> None:
    with pytest.raises(InvalidId) as refused:
        parse(EVENT, "x" * 10_000)
    assert len(refused.value.message) < 200


def test_the_alphabet_is_crockfords() -> None:
    assert "".join(char for char in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ" if char not in "ILOU") == ALPHABET
