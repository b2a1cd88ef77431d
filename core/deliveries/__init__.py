"""The only writer of delivery states. Every function is one row of `core.states.TRANSITIONS`, or several.

`leases` claims deliveries and ends claims, for workers; `requests` is what people ask for; `bulk` is what a change of
a subscription's status does to all that waits for it. A delivery is born in `core.acceptance`, with its event.
"""

from core.deliveries.bulk import discard_pending, release_held
from core.deliveries.leases import (
    Claimed,
    Finish,
    Tried,
    Verdict,
    claim,
    claim_due,
    finish,
    hold,
    is_entangled,
    verdict_without_sending,
)
from core.deliveries.requests import create_missing, discard, refusal, replay

__all__ = [
    "Claimed",
    "Finish",
    "Tried",
    "Verdict",
    "claim",
    "claim_due",
    "create_missing",
    "discard",
    "discard_pending",
    "finish",
    "hold",
    "is_entangled",
    "refusal",
    "release_held",
    "replay",
    "verdict_without_sending",
]
