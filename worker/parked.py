"""Subscriptions that something is parked for, as far as this worker knows, each with its organization.

Organizations take turns, and within one its subscriptions: ten thousand endpoints of one that are all down don't stand
before the one of another that has room.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from uuid import UUID

_Subscriptions = OrderedDict[UUID, bool]  # in the order of their turns; whether first attempts are among it


class Parked:
    def __init__(self) -> None:
        self._organizations: OrderedDict[UUID, _Subscriptions] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._organizations)

    def has_first(self, organization_id: UUID | None, subscription_id: UUID) -> bool:
        """Whether first attempts are parked for it."""
        subscriptions = None if organization_id is None else self._organizations.get(organization_id)
        return subscriptions is not None and subscriptions.get(subscription_id, False)

    def add(self, organization_id: UUID, subscription_id: UUID, *, first: bool) -> None:
        """Something was parked for it; `first`: a first attempt."""
        subscriptions = self._organizations.setdefault(organization_id, OrderedDict())
        subscriptions[subscription_id] = first or subscriptions.get(subscription_id, False)

    def found(self, organization_id: UUID, subscription_id: UUID, *, first: bool) -> None:
        """What is parked for it now was looked at; `first`: there are first attempts among it."""
        self._organizations.setdefault(organization_id, OrderedDict())[subscription_id] = first

    def discard(self, organization_id: UUID, subscription_id: UUID) -> None:
        subscriptions = self._organizations.get(organization_id)
        if subscriptions is not None:
            subscriptions.pop(subscription_id, None)
            if not subscriptions:
                del self._organizations[organization_id]

    def to_end(self, organization_id: UUID, subscription_id: UUID) -> None:
        """It had its turn."""
        self._organizations[organization_id].move_to_end(subscription_id)
        self._organizations.move_to_end(organization_id)

    def turns(self) -> Iterator[tuple[UUID, UUID]]:
        """Each (organization, subscription), one of each organization at a time. Change nothing meanwhile."""
        going = {one: iter(subscriptions) for one, subscriptions in self._organizations.items()}
        while going:
            for organization_id in list(going):
                subscription_id = next(going[organization_id], None)
                if subscription_id is None:
                    del going[organization_id]
                else:
                    yield organization_id, subscription_id
