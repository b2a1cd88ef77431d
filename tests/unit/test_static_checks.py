"""Exceptions from the checks for faults of security say what they except, and why that is no fault."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKED = ("app", "core", "worker", "cli", "migrations", "bench", "tests")
# To ruff one says S603 and, after a hyphen, why; to bandit B603 and, after another #, why. Where both are meant, the
# reason stands once, at the end.
NOSEC = re.compile(r"# nosec(?: B[0-9]{3})+ # (?:noqa: S[0-9]{3}(?:, [A-Z]+[0-9]+)* - )?[`\w].{8,}")
NOQA = re.compile(r"# noqa: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)* - [`\w].{5,}")


def unexplained(line: str) -> bool:
    if "nosec" in line and "#" in line.partition("nosec")[0] and not NOSEC.search(line):
        return True
    excepts = re.search(r"#\s*(?:ruff:\s*|flake8:\s*)?noqa(.*)", line, re.I)
    return excepts is not None and bool(re.match(r"(?!:)|.*\bS[0-9]{3}", excepts[1])) and not NOQA.search(line)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("run(argv)  # nosec", True),
        ("run(argv)  # nosec B603", True),
        ("run(argv)  #nosec B603 # the argv is fixed", True),
        ("run(argv)  # nosec B603 - the argv is fixed", True),
        ("run(argv)  # nosec # the argv is fixed", True),
        ("run(argv)  # noqa", True),
        ("run(argv)  # noqa: S603", True),
        ("run(argv)  # nosec B603 # noqa: S603", True),
        ("# ruff: noqa: S603", True),
        ("run(argv)  # nosec B603 # the argv is fixed", False),
        ("run(argv)  # nosec B603 B607 # the argv is fixed", False),
        ("run(argv)  # noqa: S603 - the argv is fixed", False),
        ("run(argv)  # nosec B603 # noqa: S603 - the argv is fixed", False),
        ("for one in some:  # noqa: SIM110", False),
        ("nosec = 1", False),
    ],
)
def test_what_is_an_explanation(line: str, wrong: bool) -> None:
    assert unexplained(line) == wrong


def test_every_exception_in_the_code_is_explained() -> None:
    here = Path(__file__)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [ROOT / ".ci/audit", *(path for folder in CHECKED for path in (ROOT / folder).rglob("*.py"))]
        if path != here
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if unexplained(line)
    ]
    assert not found, "say which check is meant, and why this is no fault"


def test_every_check_that_is_left_out_is_explained() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    settings = tomllib.loads(text)["tool"]
    ignored = [one for one in settings["ruff"]["lint"]["ignore"] if one.startswith("S") and not one.startswith("SIM")]
    for check in [*ignored, *settings["bandit"]["skips"]]:
        assert re.search(rf'^ *"{check}", # \w.{{10,}}', text, re.M), check
    assert set(settings["bandit"]) == {"skips"}
    for folders in settings["ruff"]["lint"]["per-file-ignores"]:
        assert folders.split("/")[0] in {"tests", "bench"}, "the platform's own code has its exceptions line by line"


def test_bandit_finds_what_is_planted(tmp_path: Path) -> None:
    """`make lint` runs this very command, which therefore is no empty one."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    [command] = re.findall(r"^\t\$\(RUN\) bandit (.*) \$\(CODE\)$", makefile, re.M)
    assert re.search(r"^CODE := app core worker cli migrations bench \.ci/audit$", makefile, re.M)
    argv = [sys.executable, "-m", "bandit", *command.split()]
    planted = tmp_path / "planted.py"
    for text, status in (("import pickle\npickle.loads(given)\n", 1), ("import json\njson.loads(given)\n", 0)):
        planted.write_text(text)
        done = subprocess.run([*argv, str(planted)], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
