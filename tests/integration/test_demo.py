"""`hookwright demo`: the story as it is shown, the commands that it offers, and an end without a trace."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess

import pytest

from tests.commands import Running, data_folder
from tests.ports import free_port


@pytest.mark.skipif(shutil.which("curl") is None, reason="the commands that it prints need curl")
def test_the_demo_shows_each_delivery_to_its_end_and_its_commands_work() -> None:
    port = free_port(in_a_row=2)
    with (
        data_folder() as folder,
        socket.create_server(("127.0.0.1", port)),
        Running("demo", "--port", str(port), "--data-dir", folder, as_users_start_it=True) as demo,
    ):
        demo.wait_for("Ctrl-C stops everything")
        assert f"Port {port} is taken" in demo.errors
        shown = [line for line in demo.lines if "signature" in line]
        assert not [line for line in shown if "NOT verified" in line]
        assert len([line for line in shown if "  delivered  " in line]) == 7
        assert "DEAD LETTER" in shown[-1]
        assert "4 attempts" in shown[-1]

        dead = json.loads(run(offered(demo, "filters[status]=dead")))["data"]
        assert [one["event_type"] for one in dead] == ["invoice.overdue"]
        run(offered(demo, "/mend"))
        before = len(demo.lines)
        run(offered(demo, "/replay"))
        line = demo.wait_for("invoice.overdue", after=before)
        assert "delivered" in line
        assert "1 attempt " in line
        assert demo.stop() == 0


def offered(demo: Running, text: str) -> str:
    """The curl command with `text` in it."""
    return next(line for line in demo.lines if line.lstrip().startswith("curl") and text in line)


def run(command: str) -> str:
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=90, check=True)
    assert "error" not in json.loads(done.stdout), done.stdout
    return done.stdout
