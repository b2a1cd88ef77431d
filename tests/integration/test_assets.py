"""What pages are drawn with: that libraries are what was taken from npm, and how long each file may be kept."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from app import assets
from tests.api import run
from tests.platform import Platform

VENDOR = Path(assets.FOLDER) / "vendor"
LIBRARIES = json.loads((VENDOR / "vendor.json").read_text("utf-8"))


def test_libraries_are_as_they_were_taken_and_nothing_lies_beside_them() -> None:
    locked = {name: hash_ for library in LIBRARIES for name, hash_ in library["sha256"].items()}
    found = {
        str(path.relative_to(VENDOR)): sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.name != "vendor.json"
    }
    assert found == locked
    for library in LIBRARIES:
        folder = f"{library['name'].split('/')[-1]}-{library['version']}"
        assert {name.split("/")[0] for name in library["sha256"]} == {folder}, "its version stands in its path"
        assert f"{folder}/LICENSE" in library["sha256"]
        assert library["licence"]


def test_libraries_are_named_where_they_are_renewed_and_documented() -> None:
    script = (assets.FOLDER.parents[1] / ".ci/vendor").read_text("utf-8")
    documented = (assets.FOLDER.parents[1] / "docs/dependencies.md").read_text("utf-8")
    for library in LIBRARIES:
        assert f"'{library['name']} {library['version']} " in script
        assert f"| `{library['name']}` | {library['version']} |" in documented


def test_each_block_of_the_style_ends_before_the_next_begins() -> None:
    """A block that is left open takes the rules after it in: those would hold on phones only, and nothing says so."""
    style = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", (assets.FOLDER / "hookwright.css").read_text("utf-8"), flags=re.DOTALL)
    depth = 0
    for line in style.splitlines():
        if line and not line[0].isspace() and line != "}":
            assert depth == 0, line
        depth += line.count("{") - line.count("}")
    assert depth == 0


def test_what_never_changes_is_kept_for_ever_and_nothing_else(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        ours = [assets.url(name) for name in ("hookwright.css", "hookwright.js")]
        libraries = [assets.library_url(library["name"]) for library in LIBRARIES]
        for url in (*ours, *libraries):
            answer = await p.client.get(url)
            assert (answer.status_code, answer.headers["cache-control"]) == (200, assets.FOR_EVER), url
        for url in (
            "/static/hookwright.css",
            "/static/hookwright.css?v=",
            "/static/hookwright.css?v=0123456789abcdef",  # of a release that this process is not
            f"{ours[0]}&v=1",
            "/static/vendor/vendor.json",
        ):
            answer = await p.client.get(url)
            assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache"), url
        etag = (await p.client.get(ours[0])).headers["etag"]
        unchanged = await p.client.get(ours[0], headers={"If-None-Match": etag})
        assert (unchanged.status_code, unchanged.headers["cache-control"]) == (304, assets.FOR_EVER)

        page = await p.client.get("/sign-in")
        assert re.findall(r'(?:href|src)="(/static/[^"]+)"', page.text) == [ours[0]], "before signing in no script"

    run(database_url, redis_url, check)


@pytest.mark.parametrize("name", ["hookwright.png", "../main.py/x"])
def test_a_page_that_wants_what_is_not_there_fails(name: str) -> None:
    with pytest.raises((FileNotFoundError, NotADirectoryError)):
        assets.url(name)
    with pytest.raises(KeyError):
        assets.library_url(name)
