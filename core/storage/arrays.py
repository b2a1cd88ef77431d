"""Arrays that `unnest` turns into rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def sparse(values: Sequence[Any]) -> Sequence[Any]:
    """`values`, or an empty array where all are None: `unnest` fills the shorter of its arrays with NULLs, and each
    element that is sent costs the driver most of a microsecond. Never for the longest of the arrays."""
    return values if any(value is not None for value in values) else ()
