"""The `hookwright` command as a process of its own, and what it leaves running."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cli.embedded.accounts import find_home
from cli.embedded.paths import socket_dir_path
from tests.forks import Forked
from tests.services import make_data_dir

STARTS_WITHIN_S = 120.0  # everything with a new database, on a machine that is busy with more
HOOKWRIGHT = (sys.executable, "-P", "-m", "cli")


def clean_env(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, without any setting of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("HOOKWRIGHT_")} | dict(more or {})


def hookwright(*arguments: str | Path, env: Mapping[str, str] | None = None, code: int = 0) -> str:
    """Runs a command to its end; returns its standard output. Fails unless its exit code is `code`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        forked = Forked(*map(str, arguments), env=clean_env(env), stdout=out.fileno(), stderr=err.fileno())
        done = forked.wait(STARTS_WITHIN_S)
        out.seek(0)
        err.seek(0)
        said, errors = out.read().decode(), err.read().decode()
    assert done == code, f"{arguments}: exit code {done}\n{said}\n{errors}"
    assert "Traceback" not in errors
    return said if code == 0 else errors


@contextmanager
def data_folder() -> Iterator[Path]:
    """A folder that does not exist yet; everything that belongs to it is gone afterwards."""
    folder = make_data_dir()
    try:
        yield folder
    finally:
        home = find_home(folder)
        owners = {os.geteuid()} | ({(home / "postgres").stat().st_uid} if home else set())
        for uid in owners:
            shutil.rmtree(socket_dir_path(folder, uid), ignore_errors=True)
        shutil.rmtree(folder.parent)


class Running:
    """A command that goes on until it is stopped. Killed at the end of the `with` block if it still runs."""

    def __init__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, as_users_start_it: bool = False
    ) -> None:
        self.lines: list[str] = []  # of its standard output
        self._partial = b""
        self._errors = b""
        argv, environment = tuple(map(str, arguments)), clean_env(env)
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        self._process: Forked | subprocess.Popen[bytes] = (
            subprocess.Popen([*HOOKWRIGHT, *argv], env=environment, stdout=its_out, stderr=its_err)
            if as_users_start_it
            else Forked(*argv, env=environment, stdout=its_out, stderr=its_err)
        )
        os.close(its_out)
        os.close(its_err)
        self._streams = out, err
        self._selector = selectors.DefaultSelector()
        self._selector.register(out, selectors.EVENT_READ, "out")
        self._selector.register(err, selectors.EVENT_READ, "err")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            for pid in (self._process.pid, *self.descendants()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self._process.wait()
        self._selector.close()
        for stream in self._streams:
            os.close(stream)

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return self._errors.decode()

    def wait_for(self, text: str, within_s: float = STARTS_WITHIN_S, after: int = 0) -> str:
        """The first line of standard output, from number `after` on, that has `text` in it."""
        deadline = time.monotonic() + within_s
        while True:
            for line in self.lines[after:]:
                if text in line:
                    return line
            left_s = deadline - time.monotonic()
            seen = "\n".join(self.lines)
            assert left_s > 0, f"{text!r} did not come within {within_s} s:\n{seen}\n{self.errors}"
            assert self._read(left_s), f"it ended before {text!r} came:\n{seen}\n{self.errors}"

    def wait_for_error(self, text: str, within_s: float = STARTS_WITHIN_S) -> None:
        """Returns once its standard error has `text` in it."""
        deadline = time.monotonic() + within_s
        while text not in self.errors:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"{text!r} did not come within {within_s} s:\n{self.errors}"
            assert self._read(left_s), f"it ended before {text!r} came:\n{self.errors}"

    def stop(self, signum: signal.Signals = signal.SIGINT, within_s: float = 10) -> int:
        """Asks it to stop; returns the exit code. Fails unless it and all that it started have ended in time."""
        started = self.descendants()
        assert started, "it runs nothing"
        deadline = time.monotonic() + within_s
        self._process.send_signal(signum)
        while self._read(deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"not stopped within {within_s} s\n{self.errors}"
        code = self._process.wait(max(0.0, deadline - time.monotonic()))
        left = [pid for pid in started if not ended(pid)]
        assert not left, f"processes {left} were left behind"
        return code

    def descendants(self) -> list[int]:
        """Every process under it."""
        found: list[int] = []
        parents = {self._process.pid}
        table = dict(_parents())
        while parents:
            parents = {pid for pid, parent in table.items() if parent in parents}
            found += parents
        return found

    def _read(self, within_s: float) -> bool:
        """Takes in what it prints next; False once it has closed its output."""
        for key, _ in self._selector.select(max(0.0, within_s)):
            piece = os.read(key.fd, 65_536)
            if not piece:
                self._selector.unregister(key.fileobj)
            elif key.data == "err":
                self._errors += piece
            else:
                *whole, self._partial = (self._partial + piece).split(b"\n")
                self.lines += [line.decode() for line in whole]
        return bool(self._selector.get_map())


def ended(pid: int) -> bool:
    """Gone, or a zombie that its parent has yet to notice."""
    try:
        return _stat(pid)[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), int(_stat(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue


def _stat(pid: int) -> list[str]:
    """State, parent and so on: what follows the name, which may have spaces and brackets in it."""
    return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
