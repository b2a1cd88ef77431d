"""Processes of an earlier run that still use our folder.

They are stopped, not adopted: an adopted process would keep its old settings and old binary, would not die
with us, and we could not wait for its exit, as it is not our child. A start takes 0.1 s, so little is won.

They are known by their command line, which every process may read. /proc/…/exe and cwd would say more, but
root in a container without CAP_SYS_PTRACE can't read those of another user. Only processes of the given user
count, and only while we hold the folder's lock, so nobody else can be running them on purpose.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from cli.service import POLL_S, StartError

PROC = Path("/proc")  # macOS has none


def find_leftovers(uid: int, program: str, marks: Iterable[str]) -> list[int]:
    """Ids of the user's processes that run `program` with one of `marks` in the command line."""
    marks = tuple(marks)
    found = []
    for pid, owner, line in _processes():
        if owner != uid or pid == os.getpid() or not any(mark in line for mark in marks):
            continue
        # argv[0] may have spaces in it; a PostgreSQL backend renames itself to "postgres: …"
        before = line[: min(line.index(mark) for mark in marks if mark in line)]
        if before == "" or f"/{program} " in f"/{before} ":
            found.append(pid)
    return found


class Stage(NamedTuple):
    """One way to end them: `signum` (None: nothing is sent), and how long they have. `chief`: only those with the first
    mark are sent it, and end the others; where there is none, the stage is left out."""

    signum: signal.Signals | None
    wait_s: float
    chief: bool = False


async def end_leftovers(uid: int, program: str, marks: tuple[str, ...], stages: tuple[Stage, ...]) -> list[int]:
    """Takes the stages until nobody is left; returns who was there. Raises `StartError` where somebody stays."""
    first = remaining = find_leftovers(uid, program, marks)
    for stage in stages:
        asked = find_leftovers(uid, program, marks[:1]) if stage.chief else remaining
        if not asked:
            continue
        for pid in asked if stage.signum is not None else ():
            try:
                os.kill(pid, stage.signum or 0)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + stage.wait_s
        while remaining and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
            remaining = find_leftovers(uid, program, marks)
        if not remaining:
            return first
    if remaining:
        raise StartError(f"processes {remaining} of an earlier run ({program}) can't be ended")
    return first


def _processes() -> Iterator[tuple[int, int, str]]:
    """(process id, user id, command line) of every process; arguments are joined with a space."""
    if PROC.is_dir():
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                try:
                    raw = (entry / "cmdline").read_bytes()
                    owner = entry.stat().st_uid
                except OSError:
                    continue  # it ended meanwhile
                yield int(entry.name), owner, os.fsdecode(raw).replace("\0", " ")
        return
    listing = subprocess.run(  # nosec B603 # the argv is fixed
        ["/bin/ps", "-axww", "-o", "pid=,uid=,command="], capture_output=True, text=True, check=True
    )
    for row in listing.stdout.splitlines():
        pid, owner_text, line = row.split(None, 2)
        yield int(pid), int(owner_text), line
