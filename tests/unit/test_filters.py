"""Subscription filters: meaning by table and against a naive model; every refusal with its path."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidFilter
from core.matching import filters
from core.matching.filters import compile_filter

EVENT = {
    "event_type": "order.paid",
    "event_id": "evt_1",
    "occurred_at": "2026-01-28T10:15:00Z",
    "branch_id": None,
    "organization_id": "org_1",
    "metadata": {"source": "pos", "none": None},
    "data": {
        "total": 120,
        "ratio": 1.0,
        "code": "5",
        "status": "paid",
        "vip": True,
        "one": 1,
        "zero": 0,
        "nothing": None,
        "empty": "",
        "no_items": [],
        "tags": ["new", "eu", 1],
        "customer": {"tier": "gold", "address": {"city": "Bern"}},
        "items": [{"sku": "a", "price": 5}, {"sku": "b", "price": 25, "gift": None}, "loose"],
        "grid": [[{"x": 1}]],
        "0": "digit key",
        "event": {"branch_id": "in the data"},
        "dotted.key": "out of reach",
    },
}


def matches(spec: dict[str, Any]) -> bool:
    return compile_filter(spec).matches(EVENT)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        # scalars
        {"status": "paid"},
        {"total": 120},
        {"total": 120.0},
        {"one": 1.0},
        {"vip": True},
        {"nothing": None},
        {"empty": ""},
        {"customer.tier": "gold", "customer.address.city": "Bern"},
        {"0": "digit key"},
        # arrays
        {"status": ["sent", "paid"]},
        {"tags": ["eu", "us"]},
        {"tags": [1]},
        {"nothing": ["x", None]},
        {"vip": [1, True]},
        # operators
        {"status": {"$eq": "paid"}},
        {"status": {"$ne": "sent"}},
        {"missing": {"$ne": "sent"}},
        {"total": {"$gt": 119, "$gte": 120, "$lt": 121, "$lte": 120}},
        {"status": {"$gt": "order", "$lt": "q"}},
        {"total": {"$gt": 119.5}},
        {"status": {"$in": ["paid"]}},
        {"tags": {"$in": ["eu"]}},
        {"status": {"$nin": ["sent"]}},
        {"missing": {"$nin": ["sent"]}},
        {"tags": {"$nin": ["us"]}},
        {"total": {"$exists": True}},
        {"nothing": {"$exists": True}},
        {"no_items": {"$exists": True}},
        {"missing": {"$exists": False}},
        {"customer.missing": {"$exists": False}},
        {"total.deeper": {"$exists": False}},
        {"status": {"$startsWith": "pa", "$endsWith": "id", "$contains": "ai"}},
        {"tags": {"$contains": "eu"}},
        {"tags": {"$contains": 1}},
        # the envelope
        {"event.event_type": "order.paid"},
        {"event.metadata.source": "pos"},
        {"event.branch_id": {"$exists": False}},
        {"event.metadata.none": {"$exists": True}},
        {"event.data.event.branch_id": "in the data"},
        # arrays on the way
        {"items.sku": "b"},
        {"items.sku": ["b", "z"]},
        {"items.0.sku": "a"},
        {"items.2": "loose"},
        {"items.price": {"$gt": 4, "$lt": 6}},
        {"items.gift": {"$exists": True}},
        {"items.color": {"$exists": False}},
        {"items.sku": {"$ne": "c"}},
        {"items.3": {"$exists": False}},
        {"items.9": {"$exists": False}},
        {"items.9.sku": {"$ne": "a"}},
        {"no_items.sku": {"$exists": False}},
        {"grid.0.0.x": 1},
        {"grid.0.x": 1},
        # combinators
        {"$and": [{"status": "paid"}, {"total": 120}]},
        {"$or": [{"status": "sent"}, {"total": 120}]},
        {"$not": {"status": "sent"}},
        {"status": "paid", "$or": [{"vip": False}, {"$not": {"vip": False}}]},
        {"$not": {"missing": "x"}},
    ],
    ids=str,
)
def test_matches(spec: dict[str, Any]) -> None:
    assert matches(spec)


@pytest.mark.parametrize(
    "spec",
    [
        # strict types
        {"one": True},
        {"vip": 1},
        {"zero": False},
        {"vip": [1]},
        {"one": [True]},
        {"code": 5},
        {"code": [5]},
        {"nothing": False},
        {"nothing": 0},
        {"empty": None},
        {"zero": None},
        {"missing": None},
        {"missing": "x"},
        {"missing": ["x"]},
        {"missing": {"$exists": True}},
        {"nothing": {"$exists": False}},
        {"total": {"$exists": False}},
        # a scalar is not an array that holds it, nor an object
        {"tags": "eu"},
        {"tags": {"$eq": "eu"}},
        {"customer": "gold"},
        {"customer": ["gold"]},
        {"tags": ["us"]},
        {"tags": [True]},
        {"no_items": ["x"]},
        # ordering needs two of a kind
        {"code": {"$gt": 4}},
        {"total": {"$gt": "1"}},
        {"vip": {"$gte": 1}},
        {"nothing": {"$gte": 0}},
        {"missing": {"$lt": 9}},
        {"tags": {"$gt": 0}},
        {"total": {"$gt": 120}},
        {"total": {"$lt": 120}},
        {"total": {"$gte": 121}},
        {"total": {"$lte": 119}},
        # the rest
        {"status": {"$ne": "paid"}},
        {"nothing": {"$ne": None}},
        {"status": {"$nin": ["sent", "paid"]}},
        {"tags": {"$nin": ["us", "eu"]}},
        {"items.sku": {"$ne": "b"}},
        {"items.sku": {"$nin": ["b"]}},
        {"items.color": {"$exists": True}},
        {"items.sku": {"$exists": False}},
        {"items.price": {"$gte": 10, "$lt": 20}},
        {"items.1.sku": "a"},
        {"items.01.sku": "b"},
        {"items.-1": "loose"},
        {"grid.x": 1},
        {"status": {"$startsWith": "aid"}},
        {"status": {"$endsWith": "pai"}},
        {"status": {"$contains": "PAID"}},
        {"total": {"$startsWith": "1"}},
        {"total": {"$contains": 1}},
        {"tags": {"$contains": "e"}},
        {"tags": {"$contains": True}},
        {"tags": {"$startsWith": "n"}},
        {"dotted.key": "out of reach"},
        {"event.branch_id": "in the data"},
        {"event.branch_id": {"$exists": True}},
        {"event_type": "order.paid"},
        {"status": "paid", "total": 1},
        {"$and": [{"status": "paid"}, {"total": 1}]},
        {"$or": [{"status": "sent"}, {"total": 1}]},
        {"$not": {"status": "paid"}},
        {"$not": {}},
    ],
    ids=str,
)
def test_does_not_match(spec: dict[str, Any]) -> None:
    assert not matches(spec)


def test_same_element_must_meet_all_operators_but_one_that_does_is_enough() -> None:
    between = compile_filter({"n": {"$gte": 10, "$lt": 20}, "list.n": {"$gte": 10, "$lt": 20}})
    assert not between.matches({"data": {"n": 15, "list": [{"n": 5}, {"n": 25}]}})
    assert between.matches({"data": {"n": 15, "list": [{"n": 5}, {"n": 15}]}})


@pytest.mark.parametrize("envelope", [{}, {"data": None}, {"data": 5}, {"data": []}, {"data": {}}])
def test_an_event_without_data_has_only_missing_paths(envelope: dict[str, Any]) -> None:
    assert not compile_filter({"a.b": 1}).matches(envelope)
    assert compile_filter({"a.b": {"$ne": 1, "$nin": [1], "$exists": False}}).matches(envelope)


@pytest.mark.parametrize(
    ("spec", "path", "hint"),
    [
        (None, "filters", "object"),
        ([], "filters", "object"),
        ("x", "filters", "object"),
        ({1: 2}, "filters", "strings"),
        ({"total": {"$gte": True}}, "filters.total.$gte", "number or a string"),
        ({"total": {"$lt": None}}, "filters.total.$lt", "number or a string"),
        ({"total": {"$gt": [1]}}, "filters.total.$gt", "string"),
        ({"total": {"$eq": [1]}}, "filters.total.$eq", "$in"),
        ({"total": {"$ne": {}}}, "filters.total.$ne", "$in"),
        ({"total": {"$regex": "x"}}, "filters.total.$regex", "$startsWith"),
        ({"total": {}}, "filters.total", "at least one operator"),
        ({"total": {"x": 1}}, "filters.total", "customer.tier"),
        ({"total": {"$gt": 1, "x": 1}}, "filters.total.x", "mixed"),
        ({"total": {"$or": [{}]}}, "filters.total.$or", "where field paths stand"),
        ({"$gt": 5}, "filters.$gt", "inside a field"),
        ({"$nor": []}, "filters.$nor", "$and"),
        ({"$and": []}, "filters.$and", "at least one"),
        ({"$or": {"a": 1}}, "filters.$or", "list"),
        ({"$or": [{"a": 1}, 5]}, "filters.$or.1", "object"),
        ({"$or": [{"a": 1}, {"b": {"$in": 5}}]}, "filters.$or.1.b.$in", "list"),
        ({"$not": [{}]}, "filters.$not", "object"),
        ({"$not": {"a": {"$exists": 1}}}, "filters.$not.a.$exists", "true or false"),
        ({"a": []}, "filters.a", "at least one value"),
        ({"a": {"$in": []}}, "filters.a.$in", "at least one value"),
        ({"a": {"$nin": "x"}}, "filters.a.$nin", "list"),
        ({"a": [1, [2]]}, "filters.a.1", "Must be a string, a number"),
        ({"a": [1, {"$gt": 2}]}, "filters.a.1", "Must be a string, a number"),
        ({"a": {"$startsWith": ""}}, "filters.a.$startsWith", "not empty"),
        ({"a": {"$endsWith": 5}}, "filters.a.$endsWith", "string"),
        ({"a": {"$contains": ""}}, "filters.a.$contains", "empty"),
        ({"a": float("nan")}, "filters.a", "finite"),
        ({"a": {"$gt": float("inf")}}, "filters.a.$gt", "finite"),
        ({"a": 1 << 64}, "filters.a", "64 bits"),
        ({"a": 10**5000}, "filters.a", "64 bits"),
        ({"a": "x\0"}, "filters.a", "NUL"),
        ({"a": "\ud800"}, "filters.a", "surrogates"),
        ({"\ud800": 1}, "filters.?", "surrogates"),
        ({"": 1}, "filters.", "single dots"),
        ({"a..b": 1}, "filters.a..b", "single dots"),
        ({"event.": 1}, "filters.event.", "single dots"),
        ({"event.brnch_id": 1}, "filters.event.brnch_id", "branch_id"),
    ],
)
def test_a_bad_filter_is_refused_with_the_path_to_the_fault(spec: Any, path: str, hint: str) -> None:
    with pytest.raises(InvalidFilter) as refused:
        compile_filter(spec)
    assert refused.value.path == path
    assert hint in refused.value.fault


def test_an_unknown_operator_is_answered_with_all_that_are_known() -> None:
    with pytest.raises(InvalidFilter) as refused:
        compile_filter({"a": {"$regex": "x"}})
    assert [each for each in filters.OPERATORS if each not in refused.value.fault] == []


def nested(depth: int) -> dict[str, Any]:
    """A filter of that depth, the outermost counted."""
    spec: dict[str, Any] = {"a": 1}
    for _ in range(depth - 1):
        spec = {"$not": spec}
    return spec


def wide(conditions: int) -> dict[str, Any]:
    return {f"f{index}": 1 for index in range(conditions)}


def of_bytes(size: int) -> dict[str, Any]:
    """A filter of exactly that many bytes, in values of at most 1,000 two-byte characters."""
    spec: dict[str, Any] = {"a": ["é" * 1000] * (size // 2003)}
    rest = size - len(str(spec["a"]).replace(" ", "").encode()) - len('{"a":,"b":""}')
    return spec | {"b": "x" * (rest % 2) + "é" * (rest // 2)}


@pytest.mark.parametrize(
    ("fits", "exceeds", "path"),
    [
        (nested(5), nested(6), "filters" + ".$not" * 5),
        (wide(100), wide(101), "filters.f100"),
        ({"a": list(range(200))}, {"a": list(range(201))}, "filters.a"),
        ({"a": {"$in": list(range(200))}}, {"a": {"$in": list(range(201))}}, "filters.a.$in"),
        ({"a": "x" * 1024}, {"a": "x" * 1025}, "filters.a"),
        ({"a": {"$contains": "x" * 1024}}, {"a": {"$contains": "x" * 1025}}, "filters.a.$contains"),
        ({"x" * 256: 1}, {"x" * 257: 1}, "filters." + "x" * 64),
        ({".".join("a" * 16): 1}, {".".join("a" * 17): 1}, "filters." + ".".join("a" * 17)),
        (of_bytes(16 * 1024), of_bytes(16 * 1024 + 1), "filters"),
        ({"$or": [{}] * 100}, {"$or": [{}] * 101}, "filters.$or"),
        ({"a": (1 << 64) - 1}, {"a": -(1 << 63) - 1}, "filters.a"),
    ],
    ids=[
        "depth",
        "conditions",
        "values",
        "$in",
        "string",
        "$contains",
        "path",
        "segments",
        "size",
        "$or",
        "int",
    ],
)
def test_bounds_are_met_exactly(fits: dict[str, Any], exceeds: dict[str, Any], path: str) -> None:
    compile_filter(fits)
    with pytest.raises(InvalidFilter) as refused:
        compile_filter(exceeds)
    assert refused.value.path == path


def test_endless_nesting_is_refused_before_it_exhausts_the_stack() -> None:
    with pytest.raises(InvalidFilter):
        compile_filter(nested(100_000))


# --- Against a naive model ---


MISSING = object()
scalars = st.sampled_from([None, True, False, 0, 1, 1.0, 2, 1.5, "", "a", "ab", "1"])
names = st.sampled_from(["a", "b", "0", "1"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=12,
)
objects = st.dictionaries(names, values, max_size=4)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)
texts = st.sampled_from(["a", "b", "ab"])
operator_objects = st.fixed_dictionaries(
    {},
    optional={
        "$eq": scalars,
        "$ne": scalars,
        "$gt": st.sampled_from([0, 1, 1.5, "a"]),
        "$gte": st.sampled_from([0, 1, 1.5, "a"]),
        "$lt": st.sampled_from([1, 2, "ab", "b"]),
        "$lte": st.sampled_from([1, 2, "ab", "b"]),
        "$in": st.lists(scalars, min_size=1, max_size=3),
        "$nin": st.lists(scalars, min_size=1, max_size=3),
        "$exists": st.booleans(),
        "$startsWith": texts,
        "$endsWith": texts,
        "$contains": scalars.filter(lambda value: value != ""),
    },
).filter(bool)
conditions = st.one_of(scalars, st.lists(scalars, min_size=1, max_size=3), operator_objects)
flat = st.dictionaries(paths, conditions, max_size=3)
specs = st.recursive(
    flat,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=3,
)


def kind(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def same(value: Any, want: Any) -> bool:
    return kind(value) == kind(want) and value == want


def reached(value: Any, path: list[str]) -> list[Any]:
    if not path:
        return [value]
    name, rest = path[0], path[1:]
    if isinstance(value, dict):
        return reached(value[name], rest) if name in value else []
    if isinstance(value, list) and name.isdigit():
        return reached(value[int(name)], rest) if int(name) < len(value) else []
    if isinstance(value, list):
        return [found for item in value if isinstance(item, dict) for found in reached(item, path)]
    return []


def holds(value: Any, name: str, want: Any) -> Any:
    if name == "$eq":
        return same(value, want)
    if name == "$in":
        return any(same(item, each) for item in (value if isinstance(value, list) else [value]) for each in want)
    if name == "$contains":
        if isinstance(value, list):
            return any(same(item, want) for item in value)
        return isinstance(value, str) and isinstance(want, str) and want in value
    if name in ("$startsWith", "$endsWith"):
        if not isinstance(value, str):
            return False
        return want == (value[: len(want)] if name == "$startsWith" else value[-len(want) :])
    if kind(value) != kind(want):
        return False
    return {"$gt": value > want, "$gte": value >= want, "$lt": value < want, "$lte": value <= want}[name]


def naive(spec: dict[str, Any], data: dict[str, Any]) -> bool:
    return all(entry_holds(key, want, data) for key, want in spec.items())


def entry_holds(key: str, want: Any, data: dict[str, Any]) -> bool:
    if key == "$and":
        return all(naive(each, data) for each in want)
    if key == "$or":
        return any(naive(each, data) for each in want)
    if key == "$not":
        return not naive(want, data)
    if isinstance(want, list):
        want = {"$in": want}
    elif not isinstance(want, dict):
        want = {"$eq": want}
    found = reached(data, key.split("."))
    positive = {name: each for name, each in want.items() if name not in ("$ne", "$nin", "$exists")}
    return (
        (not positive or any(all(holds(value, *item) for item in positive.items()) for value in found))
        and ("$ne" not in want or not any(same(value, want["$ne"]) for value in found))
        and ("$nin" not in want or not any(holds(value, "$in", want["$nin"]) for value in found))
        and ("$exists" not in want or want["$exists"] == (len(found) > 0))
    )


@given(specs, objects)
def test_filters_agree_with_the_naive_model(spec: dict[str, Any], data: dict[str, Any]) -> None:
    assert compile_filter(spec).matches({"data": data}) == naive(spec, data)


@given(
    st.recursive(
        st.one_of(scalars, st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.one_of(st.sampled_from(["a", "$and", "$not", "$in", "$eq", "event.x"]), st.text(max_size=3)),
                inner,
                max_size=3,
            ),
        ),
        max_leaves=10,
    ),
    objects,
)
def test_any_json_is_compiled_or_refused_and_matching_never_raises(spec: Any, data: dict[str, Any]) -> None:
    try:
        compiled = compile_filter(spec)
    except InvalidFilter as refused:
        fault = refused
    else:
        assert compiled.matches({"data": data}) in (True, False)
        return
    assert fault.path.split(".")[0] == "filters"
    assert fault.details == {fault.path: [fault.fault]}
