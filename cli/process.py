"""One child process: started so that it can't outlive us, waited for, and stopped within a deadline.

Linux sends a child its parent-death signal when the *thread* that forked it ends, so start long-lived
children from the main thread, where asyncio.run is, never from a pool.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
STDERR = 2
MAX_LOG_BYTES = 16 * 1024 * 1024  # a larger log is put aside, as .1, when its process starts

# The first stop signal asks; it gets this share of the time, the harsher ones divide the rest.
FIRST_SIGNAL_SHARE = 0.7


@dataclass(frozen=True)
class Account:
    """Whom a process runs as, when that is not us."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """What to run and how it wants to be ended."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None  # None: ours
    account: Account | None = None  # None: ours
    log: Path | None = None  # None: our stderr, so that only our own lines are on stdout
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)  # SIGKILL follows the last
    parent_death_signal: signal.Signals = signal.SIGKILL


class Process:
    """A started command."""

    def __init__(self, command: Command, popen: subprocess.Popen[bytes]) -> None:
        self.command = command
        self.started_at = time.monotonic()
        self._popen = popen

    @classmethod
    def spawn(cls, command: Command) -> Process:
        account = command.account
        output = STDERR if command.log is None else open_log(command.log)
        try:
            popen = subprocess.Popen(  # nosec B603 # noqa: S603 - the argv is ours, and no shell reads it
                command.argv,
                env=None if command.env is None else dict(command.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=account.uid if account else None,
                group=account.gid if account else None,
                extra_groups=[] if account else None,
                # A group of its own: the terminal's Ctrl-C reaches us alone, and we say who stops when.
                process_group=0,
                preexec_fn=_die_with_parent(command.parent_death_signal),
            )
        finally:
            if output != STDERR:
                os.close(output)
        return cls(command, popen)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._popen.poll()

    async def wait(self) -> int:
        while (code := self._popen.poll()) is None:
            await _until_exit(self._popen.pid)
        return code

    def send(self, signum: signal.Signals) -> None:
        self._popen.send_signal(signum)  # does nothing when the process was reaped, so never hits a reused id

    def kill(self) -> None:
        """Ends it, and what it may have started in its own group, now."""
        if self.exit_code is None:
            os.killpg(self._popen.pid, signal.SIGKILL)

    async def stop(self, within_s: float) -> int:
        """Asks, asks harshly, kills; returns the exit code."""
        signals = self.command.stop_signals
        for index, signum in enumerate(signals):
            if len(signals) == 1:
                share = 1.0
            elif index == 0:
                share = FIRST_SIGNAL_SHARE
            else:
                share = (1 - FIRST_SIGNAL_SHARE) / (len(signals) - 1)
            self.send(signum)
            try:
                return await asyncio.wait_for(self.wait(), within_s * share)
            except TimeoutError:
                continue
        self.kill()
        return await self.wait()


async def run_to_end(command: Command) -> int:
    """Runs a command that ends by itself; if we are cancelled it ends at once."""
    process = Process.spawn(command)
    try:
        return await process.wait()
    finally:
        if process.exit_code is None:
            process.kill()
            await process.wait()


def describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def open_log(path: Path) -> int:
    """A descriptor that appends to the log; an overgrown log is put aside first."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_suffix(path.suffix + ".1"))
    except FileNotFoundError:
        pass
    # 0600: a database's log quotes values.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def log_tail(path: Path, lines: int = 12) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError as fault:
        return f"(the log can't be read: {fault})"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"


def _die_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    """What the child calls between fork and exec. subprocess changes the user id before it calls this, which
    matters: a change of user id clears the parent-death signal."""
    if sys.platform != "linux":
        return None  # macOS has nothing alike; leftovers are ended at the next start
    prctl = ctypes.CDLL(None).prctl
    arguments = (ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signum), *([ctypes.c_ulong(0)] * 3))
    parent = os.getpid()

    def in_child() -> None:
        prctl(*arguments)
        if os.getppid() != parent:  # it died before the line above, so nobody would tell us
            os._exit(1)

    return in_child


async def _until_exit(pid: int) -> None:
    """Returns when the process ended, possibly earlier: the caller looks again."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (AttributeError, OSError):  # not Linux, or forbidden in this sandbox
        await asyncio.sleep(0.05)
        return
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
