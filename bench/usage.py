"""CPU time and memory of processes, from /proc (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Stat:
    pid: int
    parent: int
    cpu_s: float  # its own
    reaped_s: float  # of children that ended


def stat(pid: int) -> Stat | None:
    """None when there is no such process any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split(" ")  # a name may hold spaces and brackets
    return Stat(
        pid,
        parent=int(fields[1]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS,
        reaped_s=(int(fields[13]) + int(fields[14])) / TICKS,
    )


def children(pid: int) -> list[int]:
    every = [found for name in os.listdir("/proc") if name.isdigit() and (found := stat(int(name)))]
    return sorted(one.pid for one in every if one.parent == pid)


def command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def cpu_s(pid: int) -> float:
    """Of a process and all below it, ended ones included: a database has a process a connection."""
    own = stat(pid)
    if own is None:
        return 0.0
    return own.cpu_s + own.reaped_s + sum(cpu_s(one) for one in children(pid))


def memory_mb(pid: int, line: str = "VmHWM") -> float:
    """The most that it ever held (`VmHWM`), or what it holds now (`VmRSS`), in MB of 1,000,000 bytes."""
    for text in Path(f"/proc/{pid}/status").read_text("ascii", "replace").splitlines():
        if text.startswith(f"{line}:"):
            return int(text.split()[1]) * 1024 / 1e6
    return 0.0
