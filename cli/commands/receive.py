"""`hookwright receive`: a receiver to try things with. It shows what arrives and whether the signature holds."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import typer

from cli.options import DEFAULT_HOST, Host, Port, read_secret
from cli.output import give, say
from cli.supervisor.ports import base_url, free_port, reachable_host

DEFAULT_PORT = 9000
SHOWN_CHARS = 100  # of a body


def receive(
    port: Port = DEFAULT_PORT,
    host: Host = DEFAULT_HOST,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET|@FILE|-",
            help="The subscription's signing secret, to verify with; - reads standard input.",
        ),
    ] = None,
) -> None:
    """Run a receiver to try things with: answers 200 and prints a line for each request. Ctrl-C stops it."""
    from cli.receiving import Server

    known = _checked(read_secret(secret))
    printing = threading.Lock()

    def answer(_path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        shown = line(known, headers, body)
        with printing:
            give(shown)
        return 200, "thank you"

    stopping = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stopping.set())
    with Server(answer, host, free_port(host, port)) as server:
        say("Answers 200 to every POST; Ctrl-C stops it.")
        give(f"ready {base_url(reachable_host(host), server.port)}")
        stopping.wait()


def line(secret: str | None, headers: Mapping[str, str], body: bytes) -> str:
    """What is told of a request: time, event type, webhook-id, signature and body."""
    from cli.receiving import holds

    if secret is None:
        verified = "no secret given"
    else:
        verified = "verified ✓" if holds(secret, headers, body) else "NOT verified ✗"
    text = " ".join(body[: 8 * SHOWN_CHARS].decode("utf-8", "replace").split())
    shown = text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"
    parts = (
        f"{datetime.now():%H:%M:%S}",
        _event_type(body),
        headers.get("webhook-id", "no webhook-id"),
        verified,
        shown,
    )
    return "  ".join(parts).replace("\n", " ")


def _event_type(body: bytes) -> str:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "-"
    named = (found.get("event_type") or found.get("type")) if isinstance(found, dict) else None
    return named[:SHOWN_CHARS] if isinstance(named, str) else "-"


def _checked(secret: str | None) -> str | None:
    """Read as `subscription create` reads it."""
    if secret is None:
        return None
    from core.errors import ValidationFailed
    from core.secrets.signing import normalize_secret

    try:
        return normalize_secret(secret)
    except ValidationFailed as error:
        [[said]] = error.details.values()
        raise typer.BadParameter(said, param_hint="--secret") from error
