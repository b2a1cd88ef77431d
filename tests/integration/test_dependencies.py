"""`make audit` by the real pip-audit, against an OSV of our own: what it says when it knows, and when it does not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULT = {
    "id": "PYSEC-2026-1",
    "summary": "A fault",
    "affected": [
        {
            "package": {"name": "idna", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
        }
    ],
}


@contextmanager
def osv() -> Iterator[str]:
    """A vulnerability service that knows of one fault, in idna; its URL."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = {"vulns": [FAULT]} if asked["package"]["name"] == "idna" else {}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def audit(tmp_path: Path, names: str, url: str) -> tuple[int, str]:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("".join(f"{name}==3.1\n" for name in names.split()))
    argv = [sys.executable, str(ROOT / ".ci/audit"), str(requirements), "--osv-url", url]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, env={"HOME": str(tmp_path)})
    return done.returncode, done.stdout + done.stderr


def test_the_audit_tells_clean_vulnerable_and_unknown_apart(tmp_path: Path) -> None:
    with osv() as url:
        status, said = audit(tmp_path, "jinja2 starlette", url)
        assert (status, "nothing is known against any" in said) == (0, True), said
        status, said = audit(tmp_path, "jinja2 idna", url)
        assert (status, "idna is vulnerable: PYSEC-2026-1, mended in 99.0" in said) == (1, True), said
    status, said = audit(tmp_path, "jinja2 starlette", url)  # nobody is there any more
    assert status == 3, said
    assert "2 of 2 dependencies COULD NOT BE AUDITED" in said
    assert "docs/dependencies.md" in said
    assert "nothing is known against any" not in said


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


@pytest.mark.parametrize("group", ["The platform", "Tests and checks"])
def test_every_direct_dependency_has_been_looked_at_in_the_version_that_is_installed(group: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["dependencies"] if group == "The platform" else project["optional-dependencies"]["dev"]
    pinned = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M))
    versions = {_name(name): version for name, version in pinned.items()}
    direct = {_name(re.split(r"[\[<>=!~ ;]", one)[0]) for one in wanted}
    section = (ROOT / "docs/dependencies.md").read_text("utf-8").split(f"## {group}\n")[1].split("\n## ")[0]
    row = r"^\| `(\S+)` \| (\S+) \| [`\w][^|]+ \| \w[^|]+ \|[^|]*\| (\d{4}-\d\d-\d\d) \|$"
    listed = {_name(name): version for name, version, _ in re.findall(row, section, re.M)}
    assert listed == {name: versions[name] for name in direct}
