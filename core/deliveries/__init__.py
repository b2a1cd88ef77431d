"""The only writer of delivery states. Every function is one row of `core.states.TRANSITIONS`, or several.

For workers, `queues` finds what to claim next, and `leases` claims it and ends claims. `requests` is what people ask
for; `bulk` is what a change of a subscription's status does to all that waits for it. A delivery is born in
`core.acceptance`, with its event.
"""

from core.deliveries.bulk import discard_pending, release_held
from core.deliveries.leases import (
    Claimed,
    Finish,
    Tried,
    Verdict,
    claim,
    finish,
    hold,
    is_entangled,
    under_lease,
    verdict_without_sending,
)
from core.deliveries.queues import (
    Choice,
    Chooser,
    Due,
    Park,
    ParkedFor,
    ParkedRoom,
    Swept,
    claim_parked,
    parked_subscriptions,
    shares_of,
    sweep,
)
from core.deliveries.requests import create_missing, discard, discard_many, redact, refusal, replay

__all__ = [
    "Choice",
    "Chooser",
    "Claimed",
    "Due",
    "Finish",
    "Park",
    "ParkedFor",
    "ParkedRoom",
    "Swept",
    "Tried",
    "Verdict",
    "claim",
    "claim_parked",
    "create_missing",
    "discard",
    "discard_many",
    "discard_pending",
    "finish",
    "hold",
    "is_entangled",
    "parked_subscriptions",
    "redact",
    "refusal",
    "release_held",
    "replay",
    "shares_of",
    "sweep",
    "under_lease",
    "verdict_without_sending",
]
