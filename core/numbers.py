"""Objects of numbers in a request, such as `limits`: each field with its bounds, every fault told at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import ValidationFailed


@dataclass(frozen=True, slots=True)
class Bounds:
    """From `low` to `high`, both included. `whole`: no fractions."""

    low: float
    high: float
    whole: bool = True

    def hold(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.low} to {self.high}"


def read(given: object, fields: Mapping[str, Bounds], path: str) -> dict[str, Any]:
    """Those of `fields` that `given` has, except nulls, which ask for the default as leaving out does.

    Raises `ValidationFailed` with every fault, each under its path, such as `limits.per_second`.
    """
    if not isinstance(given, Mapping):
        raise ValidationFailed.of(path, "Must be an object, or left out for the defaults")
    faults: dict[str, list[str]] = {}
    for name, value in given.items():
        if name not in fields:
            faults[f"{path}.{str(name)[:64]}"] = [f"Unknown field; known are {', '.join(fields)}"]
        elif value is not None and not fields[name].hold(value):
            faults[f"{path}.{name}"] = [f"Must be {fields[name]}"]
    if faults:
        raise ValidationFailed(details=faults)
    return {
        name: given[name] if bounds.whole else float(given[name])
        for name, bounds in fields.items()
        if given.get(name) is not None
    }
