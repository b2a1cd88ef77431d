"""All that a database holds, as somebody would find it who got hold of a backup."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterable

from sqlalchemy.engine import make_url

from cli.embedded.binaries import postgres_bin


def dump(database_url: str) -> str:
    """What pg_dump writes: every table as text, bytes in hex."""
    url = make_url(database_url)
    host, port = url.query.get("host") or url.host, url.query.get("port") or url.port or 5432
    env = os.environ | {"PGPASSWORD": url.password or ""}
    done = subprocess.run(
        [
            *(postgres_bin(None) / "pg_dump", "--data-only", "--no-owner", "--host", str(host), "--port", str(port)),
            *("--username", url.username or "", str(url.database)),
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def forms(secret: str) -> set[str]:
    """How a secret may stand in a text: as it is, in hex, in base64 at any alignment, and its bytes where it is base64
    itself."""
    kinds = [secret.encode()]
    if secret.startswith("whsec_"):
        kinds += [secret.removeprefix("whsec_").encode(), base64.b64decode(secret.removeprefix("whsec_"))]
    found = set()
    for raw in kinds:
        found |= {raw.hex(), raw.hex().upper()}
        if raw.isascii():
            found.add(raw.decode())
        for shift in range(3):  # less the characters that the neighbours have a part in
            inside = base64.b64encode(b"\0" * shift + raw + b"\0" * 3).decode()
            found.add(inside[shift and shift + 1 : (shift + len(raw)) * 4 // 3 - 1])
    return {one for one in found if len(one) >= 8}


def leaks(text: str, secrets: Iterable[str]) -> list[str]:
    """Which of `secrets` are in `text`, in whatever form, each with where."""
    found = []
    for secret in secrets:
        for form in forms(secret):
            at = text.find(form)
            if at >= 0:
                found.append(f"{secret[:24]}… as {form[:24]}…: {text[max(0, at - 200) : at + 60]!r}")
                break
    return found
