"""Who takes part in the demo: the catalogue, the three subscribers and the events that are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.demo.receiver import FAILING, FLAKY, HEALTHY

ATTEMPTS = 4
# 0.5, 1, 2 s: a life in some 4 seconds. The default's takes over three days.
RETRY_POLICY: Mapping[str, Any] = {"backoff_strategy": "exponential", "base_delay_ms": 500, "max_attempts": ATTEMPTS}


@dataclass(frozen=True)
class Subscriber:
    name: str
    path: str
    events: Sequence[str]
    behaviour: str


# Each of the two that fail does so less than 5 times in a row, which is where a circuit breaker would step in.
SUBSCRIBERS = (
    Subscriber("healthy", HEALTHY, ("*",), "accepts everything"),
    Subscriber("flaky", FLAKY, ("order.paid",), "fails twice for each event, then recovers"),
    Subscriber("failing", FAILING, ("invoice.overdue",), "always fails"),
)

EVENT_TYPES: Sequence[Mapping[str, Any]] = (
    {
        "name": "order.created",
        "description": "A customer placed an order",
        "schema": {
            "type": "object",
            "properties": {"order": {"type": "string"}, "total": {"type": "number"}},
            "required": ["order"],
        },
        "example": {"order": "A-1001", "total": 42.5},
    },
    {
        "name": "order.paid",
        "description": "The payment for an order arrived",
        "schema": {
            "type": "object",
            "properties": {"order": {"type": "string"}, "method": {"enum": ["card", "transfer"]}},
            "required": ["order"],
        },
        "example": {"order": "A-1001", "method": "card"},
    },
    {
        "name": "invoice.overdue",
        "description": "An invoice was not paid in time",
        "schema": {"type": "object", "properties": {"invoice": {"type": "string"}, "days": {"type": "integer"}}},
        "example": {"invoice": "R-17", "days": 14},
    },
)

EVENTS: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("invoice.overdue", {"invoice": "R-17", "days": 14}),
    ("order.created", {"order": "A-1001", "total": 42.5}),
    ("order.paid", {"order": "A-1001", "method": "card"}),
    ("order.created", {"order": "A-1002", "total": 7}),
    ("order.paid", {"order": "A-1002", "method": "transfer"}),
)

# What must come of it: 5 for healthy, 2 for flaky, 1 for failing.
EXPECTED: Mapping[str, int] = {"delivered": 7, "dead": 1}
