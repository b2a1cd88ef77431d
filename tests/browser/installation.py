"""A small installation as it may stand after a day: three organizations, eight subscriptions that are well or not, and
who did what with them. Deliveries are real ones, to a receiver that misbehaves; they are made to look older than they
are, and statistics of a busier day are put in place of theirs."""

from __future__ import annotations

import html
import random
import re
import ssl
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count, cycle
from math import cos, pi
from typing import Any
from unittest import mock
from uuid import UUID

import httpx

from core import ids, stats
from core.access import sign_in_links, users
from core.access.models import Role
from core.audit import COMMAND_LINE
from core.stats import durations
from core.storage import partitions
from tests.api import make_key, make_organization, shown_organization
from tests.browser.site import Site
from tests.name_server import NameServer
from tests.pages import Visitor, make_user
from tests.platform import eventually
from tests.receiver import Receiver

ACME, NORTHWIND, GLOBEX = "Acme Shop", "Northwind", "Globex"
HOSTS = ("hooks.warehouse.example", "crm.example", "reports.example", "api.northwind.example", "in.globex.example")
GONE_HOST = "old.globex.example"  # no name server knows it
PORT = 9443
DAY_MIN = 1440
OUTAGE = 220  # events of Northwind while its receiver was down
PROMPT = {"backoff_strategy": "fixed", "base_delay_ms": 1, "max_attempts": 3}
TWICE = PROMPT | {"max_attempts": 2}
LATER = {"backoff_strategy": "exponential", "base_delay_ms": 300_000, "max_attempts": 6}
NEVER_OPENS = {"failure_threshold": 1_000, "failure_rate_threshold": 1}
PEOPLE = {  # email: name and role
    "ada@example.com": ("Ada Lindqvist", Role.ADMIN),
    "omar@example.com": ("Omar Haddad", Role.OPERATOR),
    "vera@example.com": ("Vera Novak", Role.VIEWER),
    "lee@example.com": ("Lee Chen", Role.OPERATOR),  # has left
}
TYPES = {
    ACME: ("order.paid", "order.shipped", "customer.updated", "invoice.created"),
    NORTHWIND: ("shipment.created", "shipment.delivered", "stock.low"),
    GLOBEX: ("ticket.opened", "ticket.closed"),
}
MEANINGS = {
    "order.paid": "An order was paid in full",
    "order.shipped": "The last parcel of an order has left the warehouse",
    "customer.updated": "A customer changed their name, address or consent",
    "invoice.created": "An invoice was made out; its PDF follows within a minute",
}
NAMES = cycle(["Mira Okafor", "Jonas Weber", "Sofia Rossi", "Tom Nguyen", "Lena Fischer"])


class Clock:
    """Ids are made as if it were so many minutes ago."""

    def __init__(self) -> None:
        self.ago_min = 0.0

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000 - round(self.ago_min * 60_000)


@dataclass
class Installation:
    """Ids as the pages show them."""

    organizations: dict[str, str] = field(default_factory=dict)
    subscriptions: dict[str, str] = field(default_factory=dict)
    events: dict[str, str] = field(default_factory=dict)
    replays: dict[str, str] = field(default_factory=dict)
    api_key: str = ""
    set_up_link: str = ""
    links: dict[str, str] = field(default_factory=dict)


@contextmanager
def surroundings(context: ssl.SSLContext) -> Iterator[tuple[Receiver, Clock]]:
    """The receiver with its names, and the clock of the ids; enter it before the platform starts."""
    clock = Clock()
    clock.ago_min = DAY_MIN - 1
    answers = {host: [["127.0.0.1"]] for host in HOSTS}
    with (
        NameServer(answers) as names,
        names.used(),
        Receiver(ssl_context=context, port=PORT) as receiver,
        mock.patch.object(ids.new_id, "_now_ms", clock),
    ):
        yield receiver, clock


class Builder:
    def __init__(self, site: Site, receiver: Receiver, clock: Clock) -> None:
        self.site, self.p, self.receiver, self.clock = site, site.platform, receiver, clock
        self.made = Installation()
        self.keys: dict[str, str] = {}
        self.numbers = count(48211)
        self.random = random.Random(7)

    async def build(self) -> Installation:
        await self._tenants()
        await self._people()
        await self._subscriptions()
        await self._day()
        await self._age()
        await self._statistics()
        return self.made

    # --- who is there ---

    async def _tenants(self) -> None:
        p = self.p
        async with p.database.driver() as driver:
            await partitions.ensure(driver, [ids.time_of(ids.new_id()).date()])
        await p.sql("UPDATE organizations SET name = $1 WHERE id = $2", ACME, p.organization_id)
        for name in TYPES:
            id_ = p.organization_id if name == ACME else await make_organization(p, name)
            self.made.organizations[name] = shown_organization(id_)
            self.keys[name] = await make_key(p, id_)
        await p.sql("UPDATE api_keys SET name = 'Shop backend' WHERE name = 'a key'")
        await p.sql("UPDATE api_keys SET name = 'Checkout' WHERE name = 'test'")
        await p.sql("UPDATE api_keys SET name = 'Provisioning' WHERE name = 'platform'")
        self.made.api_key = ids.show(ids.API_KEY, p.key_id)
        for name, meaning in MEANINGS.items():
            body = {"name": name, "description": meaning, "example": self._data(name)}
            await self.call(ACME, "POST", "/v1/event-types", body)

    async def _people(self) -> None:
        for email, (name, role) in PEOPLE.items():
            user_id = await make_user(self.p, email, role)
            await self.p.sql("UPDATE users SET name = $1 WHERE id = $2", name, user_id)
            self.made.links[email] = ids.show(ids.USER, user_id)
        async with self.p.database.session() as session:
            user, _ = await users.invite(
                session, COMMAND_LINE, email="nils@example.com", role=Role.VIEWER, name="Nils Berg"
            )
        async with self.p.database.session() as session:
            self.made.set_up_link = f"/set-up/{await sign_in_links.make(session, user.id)}"

    async def _subscriptions(self) -> None:
        self.receiver.script("/orders", [200])
        self.receiver.script("/customers", [200])
        self.receiver.script("/legacy", [410])
        self.receiver.script("/tickets", [200])
        wobbles = [self.random.choices([200, 503, 429], [10, 2, 1])[0] for _ in range(400)]
        self.receiver.script("/shipments", [*wobbles, 500])
        warehouse, crm, reports, northwind, globex = HOSTS
        await self._subscribe(ACME, "healthy", warehouse, "/orders", ["order.*"], "Warehouse: pick and pack")
        await self._subscribe(
            ACME,
            "failing",
            crm,
            "/customers",
            ["customer.*", "order.paid"],
            "CRM: keeps customers and their orders in step",
            headers={"Authorization": "Bearer 3f1c"},
            retry_policy=TWICE,
            circuit_breaker={"failure_threshold": 45, "failure_rate_threshold": 1, "timeout_ms": 3_600_000},
        )
        await self._subscribe(ACME, "paused", reports, "/slow/0.3", ["invoice.*"], "Monthly reports")
        await self._subscribe(NORTHWIND, "well", northwind, "/ok", ["stock.*"], "Stock levels")
        await self._subscribe(
            NORTHWIND, "flaky", northwind, "/shipments", ["shipment.*"], "Track and trace", retry_policy=TWICE
        )
        await self._subscribe(NORTHWIND, "disabled", northwind, "/legacy", ["stock.low"], "The old importer")
        await self._subscribe(GLOBEX, "desk", globex, "/tickets", ["ticket.*"], "Help desk")
        await self._subscribe(GLOBEX, "nowhere", GONE_HOST, "/hook", ["ticket.opened"], "Moved in October")

    async def _subscribe(
        self, whose: str, name: str, host: str, path: str, events: list[str], description: str, **fields: Any
    ) -> None:
        body = {
            "url": self.receiver.url(path, host=host),
            "events": events,
            "description": description,
            "retry_policy": PROMPT,
            "circuit_breaker": NEVER_OPENS,
        } | fields
        made = await self.call(whose, "POST", "/v1/webhooks/subscriptions", body)
        self.made.subscriptions[name] = made["data"]["id"]

    # --- what was sent ---

    async def _day(self) -> None:
        """From the oldest to the newest, for ids never go backwards."""
        subscriptions = self.made.subscriptions
        moments = [DAY_MIN - 20 - 44 * step for step in range(32)]
        await self._steps(moments[:24])
        await self._steps(moments[24:25], self._northwind_is_down)
        await self._steps(moments[25:27])
        await self._steps(moments[27:28], self._crm_fails)
        await self._steps(moments[28:30])
        async with self._as("omar@example.com") as omar, self._as("ada@example.com") as ada:
            self.clock.ago_min = 130
            lee = f"/users/{self.made.links['lee@example.com']}"
            await _do(ada, lee, f"{lee}/disable")
            self.clock.ago_min = 95
            paused = f"/subscriptions/{subscriptions['paused']}"
            await _do(omar, paused, f"{paused}/pause")
            await self._send(ACME, ["invoice.created"] * 9)
            await self._steps(moments[30:31])
            self.clock.ago_min = 60
            rotated = f"/subscriptions/{subscriptions['healthy']}"
            await _do(ada, rotated, f"{rotated}/rotate", grace_hours="24")
            self.clock.ago_min = 45
            # They have lost a day's tickets, and ask for them once more.
            self.made.replays["done"] = await self._replay(omar, "desk", status="delivered")
            self.made.replays["discarded"] = await self._replay(omar, "nowhere", action="discard", status="dead")
            await self._steps(moments[31:])
            self.clock.ago_min = 12
            await self._copies(omar, ada)
            self.clock.ago_min = 4
            flaky = f"/v1/webhooks/subscriptions/{subscriptions['flaky']}"
            await self.call(NORTHWIND, "PATCH", flaky, {"retry_policy": LATER})
            await self._send(NORTHWIND, ["shipment.delivered"] * 14)
            await self._send(GLOBEX, ["ticket.opened", "ticket.closed", "ticket.opened"])
            await self._send(ACME, ["order.paid", "customer.updated", "order.paid", "order.shipped"] * 6)
            await self._settled()
            self.receiver.script("/shipments", [*[200] * 12, 500, *[200] * 17, 500, 200])
            self.clock.ago_min = 0
            self.made.replays["running"] = await self._replay(omar, "flaky", rate="2", status="dead")

    async def _steps(self, moments: list[int], happens: Callable[[], Awaitable[None]] | None = None) -> None:
        for self.clock.ago_min in moments:
            if happens is not None:
                await happens()
            for whose in TYPES:
                await self._send(whose, [self.random.choice(TYPES[whose]) for _ in range(3)])
            await self._settled()

    async def _northwind_is_down(self) -> None:
        self.receiver.script("/shipments", [500])
        await self._send(NORTHWIND, ["shipment.created"] * 100)
        await self._send(NORTHWIND, ["shipment.created"] * (OUTAGE - 100))
        await self._dead("flaky", OUTAGE)
        self.receiver.script("/shipments", [200, 200, 503, 200, 200, 429, 200, 200, 200, 200, 200, 200])

    async def _crm_fails(self) -> None:
        self.receiver.script("/customers", [503])
        await self._send(ACME, ["customer.updated", "order.paid"] * 10)
        await self._dead("failing", 15)

    async def _send(self, whose: str, types: list[str]) -> None:
        events = [{"event_type": one, "occurred_at": _at(self.clock.ago_min), "data": self._data(one)} for one in types]
        await self.call(whose, "POST", "/v1/events/batch", {"events": events})

    def _data(self, event_type: str) -> dict[str, Any]:
        number = next(self.numbers)
        match event_type.partition(".")[0]:
            case "order":
                lines = [{"sku": "TEA-0420", "name": "Green tea, 250 g", "quantity": 2, "price": "7.90"}]
                return {"order": f"A-{number}", "total": "15.80", "currency": "EUR", "lines": lines}
            case "customer":
                return {"customer": f"C-{number}", "name": next(NAMES), "newsletter": False}
            case "invoice":
                return {"invoice": f"2026-{number}", "total": "15.80", "currency": "EUR"}
            case "shipment":
                return {"shipment": f"NW-{number}", "carrier": "DHL", "weight_g": 1250}
            case "stock":
                return {"sku": f"NW-{number % 97:03}", "left": number % 9}
        return {"ticket": f"T-{number}", "subject": "The parcel has not arrived"}

    async def _settled(self) -> None:
        """Until nothing is on its way that would be tried within seconds."""
        due = (
            "SELECT 1 FROM deliveries WHERE due_at < now() + interval '10 seconds'"
            " AND (state = 'sending' OR state = 'pending' AND reason IN ('new', 'retry', 'replay')) LIMIT 1"
        )

        async def nothing_is() -> bool:
            return not await self.p.sql(due)

        await eventually(nothing_is, what="the end of what was sent")

    async def _dead(self, name: str, number: int) -> None:
        subscription = ids.parse(ids.SUBSCRIPTION, self.made.subscriptions[name])

        async def are() -> bool:
            [row] = await self.p.sql(
                "SELECT count(*) FROM deliveries WHERE subscription_id = $1 AND state = 'dead'", subscription
            )
            return bool(row["count"] >= number)

        await eventually(are, what="dead letters")

    # --- what people did ---

    async def _copies(self, omar: Visitor, ada: Visitor) -> None:
        failed = await self.call(
            ACME, "GET", "/v1/deliveries?limit=5&filters[status]=dead&filters[event_type]=order.paid"
        )
        event, other = (one["event_id"] for one in failed["data"][:2])
        self.made.events["first"] = event
        page = f"/events/{event}/copy"
        await omar.get(page)
        text = _area(omar.page.text).replace("15.80", "14.20")
        await omar.post(page, data=text)
        answer = await omar.post(page, **_hidden(omar.page.text) | {"data": text, "step": "send"})
        self.made.events["copied"] = _last(answer)
        await _do(ada, f"/events/{other}", f"/events/{other}/redact")
        self.made.events["redacted"] = other
        await self._settled()

    async def _replay(self, who: Visitor, name: str, rate: str = "", action: str = "", **filters: str) -> str:
        asked = {"subscription": self.made.subscriptions[name], **filters}
        if action:
            asked["action"] = action
        answer = await who.get(f"/replays/new?{httpx.QueryParams(asked)}")
        fields = _hidden(answer.text)
        done = await who.post(
            "/replays", **fields | {"rate_per_second": rate or "100", "confirm_count": fields["total"]}
        )
        return _last(done)

    # --- as if it were old ---

    async def _age(self) -> None:
        """Times that the database took from its own clock follow the ids; attempts of one delivery stand apart."""
        time_in = "to_timestamp(('x' || substr(replace({}::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0)"
        made, begun = time_in.format("id"), time_in.format("CASE series WHEN 0 THEN delivery_id ELSE id END")
        old = "< now() - interval '3 minutes'"
        apart = "interval '0.2 seconds' + interval '25 seconds' * (number - 1) ^ 2"
        await self.p.sql(f"UPDATE attempts SET started_at = {begun} + {apart} WHERE {begun} {old}")
        await self.p.sql(
            f"UPDATE deliveries SET created_at = {made}, updated_at = {made} + interval '100 seconds'"
            f" WHERE {made} {old} AND replay_id IS NULL AND state <> 'pending'"
        )
        for table in ("organizations", "subscriptions", "users", "api_keys", "event_types"):
            await self.p.sql(f"UPDATE {table} SET created_at = now() - interval '40 days'")
        await self.p.sql(
            "UPDATE users SET last_signed_in_at = now() - interval '3 hours' WHERE password_hash IS NOT NULL"
        )

    async def _statistics(self) -> None:
        """Of a busier day than was played: a row a minute, as the rollup has them."""
        p = self.p
        assert p.engine is not None
        rows: dict[tuple[UUID, UUID, datetime, str], list[int]] = defaultdict(lambda: [0] * (6 + durations.BUCKETS))
        now = datetime.now(UTC).replace(second=0, microsecond=0)
        for whose, subscriptions in BUSY.items():
            organization = ids.parse(ids.ORGANIZATION, self.made.organizations[whose])
            for ago in range(1, DAY_MIN + 120):
                minute = now - timedelta(minutes=ago)
                daily = 1 - 0.6 * cos(2 * pi * ((minute.hour + minute.minute / 60) - 3) / 24)
                places = [(organization, stats.WHOLE), (stats.INSTALLATION, stats.WHOLE)]
                accepted = 0
                for name, (rate, middle_ms, failures) in subscriptions.items():
                    made = round(rate * daily * self.random.uniform(0.6, 1.4))
                    accepted += made
                    own = (organization, ids.parse(ids.SUBSCRIPTION, self.made.subscriptions[name]))
                    for kind, share, first, last in failures:
                        varies = self.random.uniform(0.5, 1.5) if share < 1 else 1
                        failed = round(made * share * varies) if first >= ago >= last else 0
                        failed = min(failed, made)
                        made -= failed
                        if failed:
                            for place in (own, *places):
                                _add(
                                    rows[*place, minute, kind],
                                    [failed, failed // 2, failed // 3, failed // 3, 900 * failed],
                                )
                    times = [0] * durations.BUCKETS
                    for _ in range(made):
                        times[durations.bucket_of(round(self.random.lognormvariate(0, 0.5) * middle_ms))] += 1
                    if made:
                        for place in (own, *places):
                            _add(rows[*place, minute, ""], [made, made // 12, 0, 0, made * middle_ms, 0, *times])
                for place in places:
                    _add(rows[*place, minute, ""], [0, 0, 0, 0, 0, accepted])
        async with p.database.driver() as driver:
            await p.services.acceptance.tally.flush(driver)
            await p.engine.flush_statistics()
            await driver.execute("DELETE FROM delivery_stats")
            await driver.executemany(
                "INSERT INTO delivery_stats (organization_id, subscription_id, minute, error_kind,"
                " attempts, retries, dead, dead_retried, duration_ms, accepted, durations)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                [(*key, *counts[:6], None if key[3] else counts[6:]) for key, counts in rows.items()],
            )

    # --- by whom ---

    async def call(self, whose: str, method: str, path: str, body: Any = None) -> Any:
        return await self.p.call(method, path, body, X_API_Key=self.keys[whose])

    def _as(self, email: str) -> _SignedIn:
        return _SignedIn(self.site, email)


class _SignedIn:
    """A browser without a window, signed in."""

    def __init__(self, site: Site, email: str) -> None:
        self._visitor, self._email = Visitor(site.platform.app, origin=site.url), email

    async def __aenter__(self) -> Visitor:
        await self._visitor.client.__aenter__()
        answer = await self._visitor.sign_in(self._email)
        assert answer.is_redirect, answer.text
        return self._visitor

    async def __aexit__(self, *_: object) -> None:
        await self._visitor.client.__aexit__()


# By organization and subscription: deliveries a minute, their usual time in ms, and what failed: kind, share, and
# between how many and how few minutes ago.
_Failures = tuple[tuple[str, float, int, int], ...]
BUSY: dict[str, dict[str, tuple[float, int, _Failures]]] = {
    ACME: {
        "healthy": (7, 45, (("timeout", 0.01, 9_999, 0),)),
        "failing": (4, 120, (("status", 0.02, 9_999, 232), ("status", 1.0, 232, 0))),
        "paused": (1, 310, ()),
    },
    NORTHWIND: {
        "well": (3, 30, ()),
        "flaky": (6, 180, (("status", 0.06, 9_999, 0), ("status", 0.9, 420, 350), ("timeout", 0.03, 9_999, 0))),
    },
    GLOBEX: {"desk": (4, 60, ()), "nowhere": (1, 80, (("dns", 1.0, 700, 0),))},
}


def _add(row: list[int], counts: list[int]) -> None:
    for place, value in enumerate(counts):
        row[place] += value


def _at(ago_min: float) -> str:
    return (datetime.now(UTC) - timedelta(minutes=ago_min)).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _do(who: Visitor, page: str, action: str, **fields: str) -> None:
    """Presses a button of a page."""
    await who.get(page)
    answer = await who.post(action, **fields)
    assert answer.status_code in (200, 303), f"{action}: {answer.status_code} {answer.text[-2000:]}"


def _hidden(page: str) -> dict[str, str]:
    found = re.findall(r'<input type="hidden"(?: id="\w+")? name="(\w+)" value="([^"]*)"', page)
    return {name: html.unescape(value) for name, value in found}


def _area(page: str) -> str:
    found = re.search(r"<textarea[^>]*>\n?(.*?)</textarea>", page, re.S)
    assert found, page
    return html.unescape(found[1])


def _last(answer: httpx.Response) -> str:
    """The id in the address that an answer leads to."""
    assert answer.is_redirect, answer.text[-3000:]
    return re.split(r"[?#]", answer.headers["location"])[0].rsplit("/", 1)[-1]
