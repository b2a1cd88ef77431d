"""Bounds processes to a share of a core each, by Linux control groups (cgroups(7), version 1 or 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.platform import BenchError

PERIOD_US = 10_000  # in which a process gets its share; the shorter, the more even


@contextmanager
def bounded(pids: Sequence[int], share: float) -> Iterator[None]:
    """Each of these processes gets at most `share` of a core. Raises `BenchError` where that can't be had."""
    made: list[Path] = []
    try:
        try:
            root = _cpu_root()
            for pid in pids:
                group = root / f"hookwright-bench-{pid}"
                group.mkdir()
                made.append(group)
                quota_us = round(share * PERIOD_US)
                if (group / "cpu.max").exists():
                    (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
                else:
                    (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                    (group / "cpu.cfs_quota_us").write_text(str(quota_us))
                (group / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise BenchError(f"processes can't be bounded, which takes root and control groups: {error}") from error
        yield
    finally:
        for group in made:
            for left in (group / "cgroup.procs").read_text().split():
                (group.parent / "cgroup.procs").write_text(left)
            group.rmdir()


def _cpu_root() -> Path:
    """Where groups with a bound on the processor can be made. Raises `BenchError` where nothing of it is mounted."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, folder, kind, options, *_ = line.split(" ")
        root = Path(folder)
        if kind == "cgroup" and "cpu" in options.split(","):
            return root
        if kind == "cgroup2" and "cpu" in (root / "cgroup.subtree_control").read_text().split():
            return root
    raise BenchError("processes can't be bounded: no control groups for the processor are mounted")
