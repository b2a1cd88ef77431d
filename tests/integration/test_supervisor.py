"""The supervisor and the platform as real processes, really killed. Their programs are tiny scripts."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from cli.embedded import accounts, find_running
from cli.embedded.paths import socket_dir_path
from cli.process import Command
from cli.service import Program, StartError
from cli.supervisor import supervisor as supervisor_module
from cli.supervisor.ports import base_url, free_port
from cli.supervisor.supervisor import Child, Supervisor
from tests.services import eventually, make_data_dir, plain_url

WEB = """
import http.server, socket, sys
host, port = sys.argv[2], int(sys.argv[4])
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
    def log_message(self, *_): pass
Server((host, port), Ready).serve_forever()
"""
WORKER = """
import os, time
assert os.environ["HOOKWRIGHT_DATABASE_URL"] and os.environ["HOOKWRIGHT_REDIS_URL"]
assert os.environ["HOOKWRIGHT_SECRET_KEYS"] and os.environ["HOOKWRIGHT_TEST"] == "passed on"
time.sleep(600)
"""
STUBBORN = """
import signal, sys, time
for signum in (signal.SIGTERM, signal.SIGINT):
    signal.signal(signum, signal.SIG_IGN)
open(sys.argv[1], "w").close()
time.sleep(600)
"""
PLATFORM = """
import asyncio, sys
from pathlib import Path
from cli.supervisor.platform import Programs, run_platform
host, port, data_dir, migrate, web, *worker = sys.argv[1:]
python = sys.executable
sys.exit(asyncio.run(run_platform(
    host=host, port=int(port), data_dir=Path(data_dir), workers=2,
    settings_env={"HOOKWRIGHT_TEST": "passed on"},
    on_ready=lambda url: print("ready", url, flush=True),
    programs=Programs((python, "-c", migrate), (python, "-c", web), (python, "-c", *worker)),
)))
"""


def python(name: str, code: str, *arguments: str) -> Command:
    return Command(name, (sys.executable, "-c", code, *arguments))


def wait_until(condition: Callable[[], bool], within_s: float = 60) -> None:
    asyncio.run(eventually(condition, within_s))


def lives(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid: int) -> list[int]:
    try:
        children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def pid_of(parent: int, mark: str) -> int:
    (found,) = (
        pid
        for pid in map(int, (Path("/proc") / str(parent) / "task" / str(parent) / "children").read_text().split())
        if mark in (Path("/proc") / str(pid) / "cmdline").read_text()
    )
    return found


# Supervisor -------------------------------------------------------------------------------------------------


def test_a_child_that_dies_is_started_again_after_growing_pauses(tmp_path: Path) -> None:
    lives_log = tmp_path / "lives"
    code = "import sys, time; open(sys.argv[1], 'a').write(f'{time.monotonic()}\\n')"

    def starts() -> list[float]:
        return [float(line) for line in lives_log.read_text().split()] if lives_log.exists() else []

    async def work() -> None:
        supervisor = Supervisor()
        await supervisor.start(Program(python("mayfly", code, str(lives_log))))
        await eventually(lambda: len(starts()) >= 3)
        assert "mayfly ended" in supervisor.explain()
        await supervisor.stop()

    asyncio.run(work())
    first, second, third = starts()[:3]
    assert second - first >= 0.5
    assert third - second >= 1.0


def test_the_pauses_double_up_to_ten_seconds() -> None:
    child = Child(Program(python("any", "")), 0)
    assert [child._next_backoff_s() for _ in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_one_that_ran_long_starts_again_after_the_first_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "STEADY_AFTER_S", 0)
    caplog.set_level(logging.WARNING, "hookwright.supervisor")

    def pauses() -> list[str]:
        return [record.getMessage() for record in caplog.records]

    async def work() -> None:
        supervisor = Supervisor()
        await supervisor.start(Program(python("steady", "raise SystemExit(3)")))
        await eventually(lambda: len(pauses()) >= 3)
        await supervisor.stop()

    asyncio.run(work())
    assert set(pauses()) == {"steady ended (exit code 3); starting it again in 0.5 s"}


def test_stop_ends_the_last_stage_first_and_kills_who_does_not_listen(tmp_path: Path) -> None:
    async def work() -> None:
        supervisor = Supervisor()
        heard = tmp_path / "stubborn"
        order: list[str] = []
        await supervisor.start(Program(python("service", "import time; time.sleep(600)")), stage=0)
        await supervisor.start(Program(python("stubborn", STUBBORN, str(heard))), stage=1)
        await eventually(heard.exists)
        processes = {child.name: child.process for child in supervisor.children}

        async def note(name: str) -> None:
            process = processes[name]
            assert process is not None
            order.append(f"{name} {await process.wait()}")

        notes = [asyncio.create_task(note(name)) for name in processes]
        started = time.monotonic()
        await supervisor.stop(1)
        assert time.monotonic() - started < 1.5
        await asyncio.gather(*notes)
        assert order == [f"stubborn {-signal.SIGKILL}", f"service {-signal.SIGTERM}"]

    asyncio.run(work())


def test_a_program_that_does_not_exist_is_reported() -> None:
    async def work() -> None:
        supervisor = Supervisor()
        with pytest.raises(StartError, match="ghost can't be started"):
            await supervisor.start(Program(Command("ghost", ("/does/not/exist",))))
        await supervisor.stop()

    asyncio.run(work())


def test_addresses() -> None:
    assert base_url("::1", 80) == "http://[::1]:80"
    assert base_url("localhost", 80) == "http://localhost:80"
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StartError, match="is taken by another program"),
    ):
        free_port("127.0.0.1", taken.getsockname()[1])
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(StartError, match="not an address of this machine"):
        free_port("192.0.2.1", 8080)


# Platform ---------------------------------------------------------------------------------------------------


class Platform:
    """A running `run_platform` in a process of its own."""

    def __init__(self, data_dir: Path, **changes: str) -> None:
        self.data_dir = data_dir
        self.folder = data_dir.parent
        self.out, self.err = self.folder / "out", self.folder / "err"
        self._changes = changes
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Platform:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HOOKWRIGHT_")}
        parts = {"host": "127.0.0.1", "port": "0", "migrate": "", "web": WEB, "worker": WORKER, **self._changes}
        order = (parts["host"], parts["port"], str(self.data_dir), parts["migrate"], parts["web"], parts["worker"])
        extra = (parts["argument"],) if "argument" in parts else ()
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PLATFORM, *order, *extra], env=env, stdout=out, stderr=err
            )
        return self

    def start_ready(self) -> Platform:
        self.start()
        wait_until(lambda: self.said() != "" or self.running.poll() is not None, 60)
        assert self.said().startswith("ready http://"), self.complaints()
        return self

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def said(self) -> str:
        return self.out.read_text()

    def complaints(self) -> str:
        return self.err.read_text()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            left = descendants(self.process.pid)
            self.process.kill()
            self.process.wait()
            wait_until(lambda: not any(map(lives, left)))


@pytest.fixture
def platform() -> Iterator[Callable[..., Platform]]:
    made: list[Platform] = []

    def make(**changes: str) -> Platform:
        made.append(Platform(make_data_dir(), **changes))
        return made[-1]

    yield make
    for one in made:
        one.end()
        uids = {os.geteuid(), accounts._system_account().uid} if os.geteuid() == 0 else {os.geteuid()}
        for uid in uids:
            shutil.rmtree(socket_dir_path(one.data_dir, uid), ignore_errors=True)
        shutil.rmtree(one.folder)


def test_the_platform_says_ready_and_sigterm_ends_all_of_it(platform: Callable[..., Platform]) -> None:
    one = platform().start_ready()
    children = descendants(one.running.pid)
    assert len(children) >= 5, "postgres, valkey, web and two workers"
    started = time.monotonic()
    one.running.send_signal(signal.SIGTERM)
    assert one.running.wait(timeout=11) == 0
    assert time.monotonic() - started < 10
    assert not any(map(lives, children)), "all of them ended before we did"
    assert one.said().count("\n") == 1, "only our own line is on stdout"
    assert find_running(one.data_dir) is None


def test_killing_the_platform_leaves_no_process(platform: Callable[..., Platform]) -> None:
    one = platform().start_ready()
    children = descendants(one.running.pid)
    one.running.kill()
    one.running.wait()
    wait_until(lambda: not any(map(lives, children)))
    assert find_running(one.data_dir) is None


def test_a_platform_that_was_killed_starts_again_at_once(platform: Callable[..., Platform]) -> None:
    one = platform().start_ready()
    one.running.kill()
    one.running.wait()
    one.start_ready()
    assert find_running(one.data_dir) is not None


def test_killed_services_come_back_with_what_was_committed(platform: Callable[..., Platform]) -> None:
    one = platform().start_ready()
    found = find_running(one.data_dir)
    assert found is not None
    url = plain_url(found.database_owner_url or "")

    async def query(statement: str) -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    asyncio.run(query("CREATE TABLE note AS SELECT 'kept' AS word"))
    for name in ("postgres", "valkey-server"):
        os.kill(pid_of(one.running.pid, f"/{name}\0"), signal.SIGKILL)
    wait_until(lambda: one.complaints().count(" runs again ") == 2)
    assert asyncio.run(query("SELECT word FROM note")) == "kept"
    one.running.send_signal(signal.SIGINT)
    assert one.running.wait(timeout=11) == 0


def test_a_second_signal_kills(platform: Callable[..., Platform]) -> None:
    one = platform(worker=STUBBORN, argument="/dev/null").start_ready()
    children = descendants(one.running.pid)
    started = time.monotonic()
    one.running.send_signal(signal.SIGINT)
    wait_until(lambda: "stopping" in one.complaints())
    one.running.send_signal(signal.SIGINT)
    assert one.running.wait(timeout=11) == 0
    assert time.monotonic() - started < 5, "a stubborn worker would have got 7 s"
    wait_until(lambda: not any(map(lives, children)))


def test_a_taken_port_is_said_before_anything_starts(platform: Callable[..., Platform]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = platform(port=str(port)).start()
        assert one.running.wait(timeout=120) == 1
    assert f"port {port} on 127.0.0.1 is taken by another program" in one.complaints()
    assert not one.data_dir.exists()


def test_a_migration_that_fails_ends_the_start(platform: Callable[..., Platform]) -> None:
    one = platform(migrate="raise SystemExit(4)").start()
    assert one.running.wait(timeout=120) == 1
    assert "migrate ended (exit code 4)" in one.complaints()
    assert find_running(one.data_dir) is None


def test_a_web_process_that_keeps_dying_ends_the_start(platform: Callable[..., Platform]) -> None:
    one = platform(web="raise SystemExit(5)").start()
    assert one.running.wait(timeout=120) == 1
    assert "web ended 3 times, last with exit code 5" in one.complaints()
    assert find_running(one.data_dir) is None


def test_a_signal_during_the_start_ends_it(platform: Callable[..., Platform]) -> None:
    one = platform(migrate="import time; time.sleep(600)").start()
    wait_until(lambda: one.data_dir.exists() and find_running(one.data_dir) is not None)
    one.running.send_signal(signal.SIGINT)
    assert one.running.wait(timeout=11) == 0
    assert one.said() == ""
    assert find_running(one.data_dir) is None


def test_ipv6(platform: Callable[..., Platform]) -> None:
    try:
        free_port("::1", 0)
    except StartError:
        pytest.skip("no IPv6 on this machine")
    one = platform(host="::1").start_ready()
    assert one.said().startswith("ready http://[::1]:")
