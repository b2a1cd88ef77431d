"""`hookwright` in a process of its own, forked from one that has imported it.

To import the platform takes one to two seconds of CPU, and the tests start some hundred processes. What runs is the
same: a process with its own environment, files and signals, that can be killed at any moment. How it starts by itself
is for the tests of `hookwright up`, of the demo and of the supervisor, which start everything as users do.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing import reduction
from pathlib import Path
from typing import Any

from cli.process import PR_SET_PDEATHSIG, Command, Process, open_log

LOADED = ["cli.main", "app.main", "worker.main", "core.storage.schema", "tests.forks"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LOADED)


class Forked:
    """`hookwright` with these arguments, as far as it is used like a `subprocess.Popen`. Its standard input is empty.

    It ends with us at the latest."""

    def __init__(self, *argv: str, env: Mapping[str, str], stdout: int, stderr: int) -> None:
        """`stdout` and `stderr`: open descriptors, which the caller may close afterwards."""
        target = (argv, dict(env), _Sent(stdout), _Sent(stderr))
        self._process = _context.Process(target=_run, args=target, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """subprocess.TimeoutExpired when it still runs after `timeout` seconds."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired("hookwright", timeout or 0)
        return code

    def send_signal(self, signum: signal.Signals) -> None:
        if self.poll() is None:
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:  # it has just ended
                return

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkedProcess(Process):
    """As the supervisor's, for what our own processes are."""

    def __init__(self, name: str, *argv: str, env: Mapping[str, str], log: Path) -> None:
        output = open_log(log)
        try:
            forked: Any = Forked(*argv, env=env, stdout=output, stderr=output)
        finally:
            os.close(output)
        super().__init__(Command(name, argv, env=env, log=log), forked)

    def kill(self) -> None:
        self.send(signal.SIGKILL)  # it has no process group of its own, and starts nobody


class _Sent:
    """A descriptor that goes to the new process with the arguments."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> Any:
        return _received, (reduction.DupFd(self._descriptor),)


def _received(sent: Any) -> int:
    descriptor: int = sent.detach()
    return descriptor


def _run(argv: tuple[str, ...], env: dict[str, str], stdout: int, stderr: int) -> None:
    """All that the new process does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), *([ctypes.c_ulong(0)] * 3))
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in {stdout, stderr}:
        os.close(descriptor)
    # As a new interpreter makes them: those that were copied know the pipes and files of the one before.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - it stays open
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = ["hookwright", *argv]
    from cli.main import main

    main()
