"""The faults of a run. The same seed and length give the same faults at the same moments.

A fault may wait for another one that still holds the same part; then it comes later than planned, in the same order.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from tests.faults.scene import TIMEOUT_MS

# Longer than in the other fault tests: there, on a machine that is busy with other things too, a worker may stand still
# for two seconds by itself.
LEASE_MARGIN_S = 5.0
LEASE_S = TIMEOUT_MS / 1_000 + LEASE_MARGIN_S
FIRST_AFTER_S = 1.0
GAP_S = (1.0, 8.0)  # between the beginnings of two faults
SHORT_S, SHORT_GAP_S = 120, (0.3, 2.0)  # a run shorter than that has them denser
LAST_BEFORE_S = 1.0  # before the end of the load


@dataclass(frozen=True)
class Kind:
    weight: int
    lasts_s: tuple[float, float] = (0.0, 0.0)
    ends_our_processes: bool = False  # then not in the middle third, in which memory is watched


KINDS: dict[str, Kind] = {
    # web and worker
    "kill web": Kind(4, (0.0, 1.0), ends_our_processes=True),
    "kill worker": Kind(6, (0.0, 2.0), ends_our_processes=True),
    "kill web and worker": Kind(3, (0.0, 2.0), ends_our_processes=True),
    "kill both workers": Kind(2, (0.0, 2.0), ends_our_processes=True),
    "rolling restart": Kind(4, ends_our_processes=True),
    "stop worker past its lease": Kind(5, (LEASE_S + 0.5, LEASE_S + 3.0)),
    "stop web": Kind(2, (0.5, 3.0)),
    # Valkey
    "flush valkey": Kind(4),
    "kill valkey, empty": Kind(4, (0.0, 3.0)),
    "stop valkey": Kind(4, (0.5, 5.0)),
    # PostgreSQL
    "kill postgres": Kind(3, (0.0, 2.0)),
    "stop postgres": Kind(3, (0.5, 6.0)),
    "cut connections": Kind(5),
    # receivers
    "receiver away": Kind(3, (1.0, 8.0)),
    "receiver fails": Kind(4, (2.0, 12.0)),
    "receiver hangs": Kind(3, (2.0, 8.0)),
    "receiver resets": Kind(3, (2.0, 12.0)),
    "receiver closes": Kind(2, (2.0, 12.0)),
    # people
    "pause and resume": Kind(4, (0.5, 10.0)),
    "rotate secret": Kind(3),
    "move to another URL": Kind(3),
    "replay dead letters": Kind(5),
}


@dataclass(frozen=True)
class Fault:
    number: int  # from 1
    at_s: float  # since the load began
    kind: str
    lasts_s: float
    pick: int  # chooses among workers, subscriptions or connections

    def __str__(self) -> str:
        return f"{self.number:4} {self.at_s:8.2f} s  {self.kind}, {self.lasts_s:.2f} s, pick {self.pick}"


def draw(seed: int, seconds: float) -> list[Fault]:
    rng = random.Random(seed)
    gap_s = GAP_S if seconds >= SHORT_S else SHORT_GAP_S
    found: list[Fault] = []
    deck: list[str] = []
    at_s = FIRST_AFTER_S
    while at_s < seconds - LAST_BEFORE_S:
        calm = seconds / 3 <= at_s <= seconds * 2 / 3
        while not deck or (calm and all(KINDS[name].ends_our_processes for name in deck)):
            # As cards, not as dice: each kind comes as often as its weight says, in a short run too.
            more = [name for name, kind in KINDS.items() for _ in range(kind.weight)]
            deck += rng.sample(more, len(more))
        name = next(name for name in deck if not (calm and KINDS[name].ends_our_processes))
        deck.remove(name)
        found.append(Fault(len(found) + 1, at_s, name, rng.uniform(*KINDS[name].lasts_s), rng.randrange(1 << 16)))
        at_s += rng.uniform(*gap_s)
    return found


def digest(faults: list[Fault]) -> str:
    """Equal for equal scenarios."""
    return hashlib.sha256("\n".join(map(str, faults)).encode()).hexdigest()[:12]
