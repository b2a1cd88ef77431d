"""Deliveries that hints named and this worker has not claimed yet, handed out fairly.

Organizations take turns, and within one its subscriptions, so that whoever posts a hundred thousand events stands in
nobody's way. What does not fit in is forgotten here: it stands in the database, and the sweep finds it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import Enum
from uuid import UUID

from core.hints import Hint

MAX_SUBSCRIPTION = 500
MAX_ORGANIZATION = 2_000
MAX_ALL = 50_000
MAX_CROWD = 100  # subscriptions


class Admission(Enum):
    YES = "yes"
    SKIP = "skip"  # this one is not wanted
    WAIT = "wait"
    CROWD = "crowd"  # wait, unless too many subscriptions of its organization do
    FORGET = "forget"  # all that waits here for this subscription; it had better wait in the database


_Queues = OrderedDict[UUID, deque[UUID]]  # delivery ids by subscription


class Ready:
    """A queue of queues. What its operations cost grows with what they hand out and with how many subscriptions there
    are, not with what waits."""

    def __init__(self) -> None:
        self._organizations: OrderedDict[UUID, _Queues] = OrderedDict()
        self._sizes: dict[UUID, int] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, hint: Hint, most: int = MAX_ALL) -> bool:
        """Whether there was room for it; `most` wait for its subscription at the most."""
        organization_id, subscription_id, delivery_id = hint
        size = self._sizes.get(organization_id, 0)
        if self._size >= MAX_ALL or size >= MAX_ORGANIZATION:
            return False
        queue = self._organizations.setdefault(organization_id, OrderedDict()).setdefault(subscription_id, deque())
        if len(queue) >= min(most, MAX_SUBSCRIPTION):
            return False
        queue.append(delivery_id)
        self._sizes[organization_id] = size + 1
        self._size += 1
        return True

    def take(self, most: int, admit: Callable[[UUID, UUID], Admission]) -> list[UUID]:
        """Up to `most` deliveries that `admit` (subscription, delivery) lets through, one of each organization at a
        time. One that it does not let through keeps the others of its subscription waiting."""
        taken: list[UUID] = []
        going = {one: deque(queues) for one, queues in self._organizations.items()}  # who has not said to wait
        while going and len(taken) < most:
            for organization_id in list(going):
                if len(taken) >= most:
                    break
                one = self._take_one(organization_id, going[organization_id], admit)
                if one is None:
                    del going[organization_id]
                else:
                    taken.append(one)
        return taken

    def _take_one(
        self, organization_id: UUID, going: deque[UUID], admit: Callable[[UUID, UUID], Admission]
    ) -> UUID | None:
        queues = self._organizations.get(organization_id, OrderedDict())
        while going:
            subscription_id = going[0]
            queue = queues[subscription_id]
            admission = admit(subscription_id, queue[0])
            if admission is Admission.CROWD:
                admission = Admission.WAIT if len(queues) <= MAX_CROWD else Admission.FORGET
            if admission is Admission.WAIT:
                going.popleft()
                continue
            delivery_id = queue.popleft()
            gone = 1 + len(queue) if admission is Admission.FORGET else 1
            going.rotate(-1)
            if admission is Admission.FORGET or not queue:
                del queues[subscription_id]
                going.pop()
            else:
                queues.move_to_end(subscription_id)
            self._shrink(organization_id, gone)
            if admission is Admission.YES:
                return delivery_id
        return None

    def _shrink(self, organization_id: UUID, size: int) -> None:
        self._size -= size
        self._sizes[organization_id] -= size
        if self._sizes[organization_id] == 0:
            del self._sizes[organization_id], self._organizations[organization_id]
        elif organization_id in self._organizations:
            self._organizations.move_to_end(organization_id)
