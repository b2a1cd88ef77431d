"""Ports to listen on, that stay free until the test does."""

from __future__ import annotations

import contextlib
import os
import random

from cli.service import StartError
from cli.supervisor import ports

LOWEST = 15_000
EACH = 1_000  # for each of pytest's processes
PROCESSES = 15

_given: set[int] = set()


def free_port(in_a_row: int = 1) -> int:
    """The first of so many free ones, none given before, nor to another of up to 15 processes of a run of pytest.

    They lie below those that the system gives to outgoing connections (from 32,768 on): of these, one may be taken
    before the test listens on it, and a client that dials it in the meantime may be given the very same for itself,
    speak with itself and keep it.
    """
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % PROCESSES
    while True:
        port = LOWEST + process * EACH + random.SystemRandom().randrange(EACH - in_a_row)
        wanted = range(port, port + in_a_row)
        with contextlib.suppress(StartError):
            if _given.isdisjoint(wanted):
                for one in wanted:
                    ports.free_port("127.0.0.1", one)
                _given.update(wanted)
                return port
