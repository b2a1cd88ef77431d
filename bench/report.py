"""The table for people and the JSON for machines. Targets are those that the engine is built towards."""

from __future__ import annotations

import os
import platform as machine
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from bench.scenarios import Result


@dataclass(frozen=True)
class Row:
    what: str
    figure: str
    target: str = ""
    floor: str = ""


def rows(results: Sequence[Result], floors: Mapping[str, float]) -> list[Row]:
    return [row for result in results for row in _SECTIONS.get(result.name, _load)(result.figures, floors)]


def _burst(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    return [
        Row(
            "acceptance alone: accepted/s",
            _n(f, "accepted_per_s"),
            "5,000",
            _ratio(f, "accepted_per_s", floors, "web"),
        ),
        Row("  POST to 202, ms", _p(f, "answer_ms")),
        Row("delivery alone: delivered/s", _n(f, "drained_per_s"), "", _ratio(f, "drained_per_s", floors, "post")),
    ]


def _closed(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    return [
        Row("closed loop at the most: accepted/s", _n(f, "accepted_per_s")),
        Row("  delivered/s while the load lasts", _n(f, "delivered_per_s_under_load")),
        Row("  delivered/s from the first event to the last receipt", _n(f, "delivered_per_s")),
        Row("  backlog halfway, at the end", f"{_n(f, 'backlog_halfway')}, {_n(f, 'backlog_at_end')}"),
        Row("  seconds to drain", _n(f, "drain_s", 2)),
    ]


def _sustained(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    cpu = " + ".join(_n(f, f"{part}_cpu_us") for part in ("web", "worker", "postgres"))
    both = f"{f['web_cpu_us'] + f['worker_cpu_us']:,.0f}" if "web_cpu_us" in f else "-"
    return [
        Row(
            "sustained, fan-out 1: delivered/s",
            _n(f, "delivered_per_s"),
            "3,000",
            f"{_ratio(f, 'delivered_per_s', floors, 'insert')}, {_ratio(f, 'delivered_per_s', floors, 'post')}",
        ),
        Row("  backlog halfway, at the end", f"{_n(f, 'backlog_halfway')}, {_n(f, 'backlog_at_end')}", "flat"),
        Row("  CPU µs a delivery, web + worker", both, "≤ 450"),
        Row("  CPU µs a delivery, web + worker + postgres", cpu),
    ]


def _fan_out(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    return [
        Row("fan-out: delivered/s", _n(f, "delivered_per_s"), "6,000", _ratio(f, "delivered_per_s", floors, "post")),
        Row("  backlog halfway, at the end", f"{_n(f, 'backlog_halfway')}, {_n(f, 'backlog_at_end')}", "flat"),
    ]


def _latency(name: str, target: str) -> Callable[[Mapping[str, float], Mapping[str, float]], list[Row]]:
    def section(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
        return [
            Row(f"at {name} events/s: POST written to receipt, ms", _p(f, "receipt_ms"), target),
            Row("  from the 202 to receipt, ms", _p(f, "receipt_from_202_ms")),
            Row("  accepted/s; events written late", f"{_n(f, 'accepted_per_s')}; {_n(f, 'late')}"),
        ]

    return section


def _load(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    return [
        Row("chosen load: accepted/s", _n(f, "accepted_per_s")),
        Row("  delivered/s", _n(f, "delivered_per_s")),
        Row("  backlog halfway, at the end", f"{_n(f, 'backlog_halfway')}, {_n(f, 'backlog_at_end')}"),
        Row("  POST written to receipt, ms", _p(f, "receipt_ms")),
        Row("  events written late", _n(f, "late")),
    ]


def _idle(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    return [
        Row(f"idle: {part}, % of a core", _n(f, f"{part}_cpu_percent", 1), "≤ 3" if part in ("web", "worker") else "")
        for part in ("web", "worker", "postgres", "valkey")
    ]


def _isolation(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    def both(name: str, digits: int) -> str:
        return f"{f[name]:.2f} × ({_n(f, f'{name}_alone', digits)} → {_n(f, f'{name}_beside', digits)})"

    return [
        Row("beside as much for 20 endpoints that hang: delivered/s", both("delivered_per_s", 0), "≥ 0.9"),
        Row("  POST written to receipt, p50 ms", both("receipt_ms_p50", 1)),
        Row("  POST written to receipt, p99 ms", both("receipt_ms_p99", 1), "≤ 2"),
        Row("  the p99 of each 2 s, their median", both("receipt_ms_p99_of_spans", 1)),
    ]


def _memory(f: Mapping[str, float], floors: Mapping[str, float]) -> list[Row]:
    return [Row(f"most memory: {part}, MB a process", _n(f, f"{part}_peak_mb"), "≤ 150") for part in ("web", "worker")]


_SECTIONS: dict[str, Callable[[Mapping[str, float], Mapping[str, float]], list[Row]]] = {
    "burst": _burst,
    "closed": _closed,
    "sustained": _sustained,
    "fan-out": _fan_out,
    "latency-50": _latency("50", "p50 ≤ 12, p99 ≤ 40"),
    "latency-1000": _latency("1,000", "p50 ≤ 40, p99 ≤ 150"),
    "alone": lambda f, floors: [],
    "beside": lambda f, floors: [],
    "isolation": _isolation,
    "idle": _idle,
    "memory": _memory,
}


def table(found: Sequence[Row], floors: Mapping[str, float]) -> str:
    head = Row("what", "figure", "target", "of the floor")
    every = [head, *found]
    widths = [max(len(cell) for cell in column) for column in zip(*(_cells(row) for row in every), strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(_cells(row), widths, strict=True)).rstrip() for row in every]
    lines.insert(1, "  ".join("-" * width for width in widths))
    told = "; ".join(f"{_FLOORS[name]} {value:,.0f}/s" for name, value in floors.items())
    return "\n".join([*lines, *([f"floors: {told}"] if told else [])])


_FLOORS = {
    "web": "web (bare uvicorn + Starlette, JSON POST)",
    "insert": "insert (same rows, 100 events a transaction)",
    "post": "post (bare aiohttp)",
}


def document(
    results: Sequence[Result], floors: Mapping[str, float], options: Mapping[str, Any], found: Sequence[Row]
) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cores": os.cpu_count(),
            "memory_mb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6),
            "system": f"{machine.system()} {machine.machine()}",
            "python": machine.python_version(),
        },
        "options": dict(options),
        "floors": dict(floors),
        "results": [asdict(result) for result in results],
        "table": [asdict(row) for row in found],
    }


def commit() -> str:
    """The short id, with a + where the tree differs from it; empty outside a repository."""
    try:
        return _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*argv: str) -> str:
    done = subprocess.run(  # nosec B603 B607 # the argv is fixed, and the git of whoever measures is meant
        ["git", *argv], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.what, row.figure, row.target, row.floor


def _n(f: Mapping[str, float], name: str, digits: int = 0) -> str:
    return f"{f[name]:,.{digits}f}" if name in f else "-"


def _p(f: Mapping[str, float], name: str) -> str:
    found = [f"p{p} {f[f'{name}_p{p}']:,.1f}" for p in (50, 95, 99) if f"{name}_p{p}" in f]
    return ", ".join(found) or "-"


def _ratio(f: Mapping[str, float], name: str, floors: Mapping[str, float], floor: str) -> str:
    return f"{f[name] / floors[floor]:.2f} {floor}" if name in f and floors.get(floor) else ""
