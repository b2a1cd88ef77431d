"""`hookwright`, in a process that is altered first. Run as a script, with in its environment:

| name | does |
|---|---|
| `FAULTS_CLOCK` | a file: the wall clock is off by the seconds that stand in it, at each look anew |
| `FAULTS_CONSTANTS` | `module.NAME=number,…`: constants that would make a test take minutes |

The monotonic clock stays right, as it does when a real wall clock is set.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any


def shift_clock(offset_s: Callable[[], float]) -> None:
    """Every way to ask for the time that the product and its libraries use, before any of them is imported.

    `datetime` is written in C and asks the system itself. Were it replaced by a subclass, `isinstance` and pydantic
    would see two kinds of datetime, so its methods are put into the type that there is.
    """
    real_time, real_time_ns = time.time, time.time_ns
    time.time = lambda: real_time() + offset_s()
    time.time_ns = lambda: real_time_ns() + int(offset_s() * 1_000_000_000)

    def now(cls: type[datetime], tz: tzinfo | None = None) -> datetime:
        return cls.fromtimestamp(time.time(), tz)

    def utcnow(cls: type[datetime]) -> datetime:
        return cls.utcfromtimestamp(time.time())  # noqa: DTZ004, RUF100 - naive, as it was asked for

    [attributes] = gc.get_referents(datetime.__dict__)
    attributes |= {"now": classmethod(now), "utcnow": classmethod(utcnow)}
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(datetime))


def read_offset(path: Path) -> Callable[[], float]:
    def offset_s() -> float:
        return float(path.read_text() or 0)  # empty while it is being written

    return offset_s


def set_constants(text: str) -> None:
    for assignment in text.split(","):
        name, _, value = assignment.partition("=")
        module, _, constant = name.rpartition(".")
        loaded: Any = importlib.import_module(module)
        assert hasattr(loaded, constant), assignment
        setattr(loaded, constant, float(value))


if __name__ == "__main__":
    if clock := os.environ.get("FAULTS_CLOCK"):
        shift_clock(read_offset(Path(clock)))
    if constants := os.environ.get("FAULTS_CONSTANTS"):
        set_constants(constants)
    from cli.main import main

    main()
