"""What a soak prints while it runs: a line each minute; and how memory grew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from tests.faults.soak.producer import SoakProducer
from tests.faults.soak.stage import Stage


def say(text: str) -> None:
    print(text, flush=True)


@dataclass
class Report:
    stage: Stage
    producer: SoakProducer
    sizes: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)  # (at s, MB) by name and id

    async def every(self, interval_s: float) -> None:
        """Until cancelled."""
        began, lines = self.stage.began, 0
        while True:
            lines += 1
            await asyncio.sleep(max(0.0, began + lines * interval_s - time.monotonic()))
            say(await self.line())

    async def watch_memory(self, interval_s: float) -> None:
        """Until cancelled."""
        while True:
            for name, size in self.stage.memory_mb().items():
                process = self.stage.processes.get(name)
                series = self.sizes.setdefault((name, process.pid if process else 0), [])
                series.append((time.monotonic() - self.stage.began, size))
            await asyncio.sleep(interval_s)

    async def line(self) -> str:
        counts = await self.stage.look()
        shown = "the database does not answer"
        if counts is not None:
            states = ", ".join(
                f"{name} {counts.get(name, 0):,}" for name in ("delivered", "dead", "pending", "sending")
            )
            shown = f"{states}, oldest due {max(0.0, counts['overdue_s']):.1f} s"
        memory = ", ".join(f"{name} {size:.0f}" for name, size in self.stage.memory_mb().items())
        return (
            f"{time.monotonic() - self.stage.began:6.0f} s: accepted {self.producer.accepted_count:,}, {shown}; "
            f"{self.stage.done.total()} faults; MB: {memory}"
        )

    def growth(self, seconds: float) -> list[str]:
        """In the middle third, in which none of our processes ends: what each grew from its first quarter on."""
        low_s, high_s = seconds * (1 / 3 + 1 / 12), seconds * 2 / 3
        lines = []
        for (name, _), series in self.sizes.items():
            inside = [size for at, size in series if low_s <= at <= high_s]
            if len(inside) > 1:
                grew = f"{inside[0]:.1f} → {inside[-1]:.1f} MB"
                lines.append(f"{name}: {grew} in {high_s - low_s:.0f} s, at most {max(inside):.1f}")
        return lines
