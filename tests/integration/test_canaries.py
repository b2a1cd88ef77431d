"""Secrets stay where they belong: not in logs, not in Redis, not in the audit log, not in errors, not in a dump.

The real processes run with logging at its most talkative, everything is done that shows or takes a secret, secrets
stand where they should not, and everything goes wrong that may. Then whatever was written is searched for them.
"""

from __future__ import annotations

import asyncio
import base64
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import redis
import structlog
from sqlalchemy.engine import make_url

from core import ids, organizations
from core.access import api_keys, set_up_link
from core.audit import COMMAND_LINE, record
from core.logs import _forget_details, _without_details
from core.secrets.sealing import Sealer
from core.storage.database import Database
from tests.api import SUBSCRIPTIONS
from tests.commands import clean_env
from tests.dumps import dump, forms, leaks
from tests.forks import Forked
from tests.pages import SAME_ORIGIN, form_token_in
from tests.platform import SECRET_KEY, environment, eventually
from tests.ports import free_port
from tests.receiver import Receiver
from tests.services import Services, plain_url

SIGNING = "whsec_" + base64.b64encode(b"canary of the signing secret 1").decode()
ROTATED = "whsec_" + base64.b64encode(b"canary of the signing secret 2").decode()
PLAIN = "canary-of-a-plain-signing-secret-3"
HEADER = "canary-of-a-custom-header-4"
WRONG_KEY = "sk_live_canaryOfAKeyThatIsNone55555555555555555"
URL_TOKEN = "canary-of-a-token-in-a-url-6"
PAYLOAD = "canary-of-a-payload-7"
METADATA = "canary-of-metadata-8"
PASSWORD, WRONG_PASSWORD = "canary of a password 9", "canary of a wrong password 10"
CLIENT_SECRET = "canary-of-an-oidc-client-secret-11"
MASTER = base64.b64decode(SECRET_KEY).decode()

ONCE = {"backoff_strategy": "fixed", "base_delay_ms": 1, "max_attempts": 2}


def test_a_secret_is_found_in_whatever_form() -> None:
    for secret in (SIGNING, HEADER):
        raw = base64.b64decode(secret[6:]) if secret == SIGNING else secret.encode()
        for text in (
            f"x{secret}y",
            raw.hex(),
            "\\x" + (b"left" + raw + b"right").hex(),
            *(base64.b64encode(b"." * n + raw + b"more").decode() for n in range(4)),
        ):
            assert leaks(text, [secret]), text
    assert not leaks("nothing of it", [SIGNING, HEADER])
    assert all(len(form) >= 8 for form in forms(SIGNING))


def test_log_lines_lose_what_postgresql_says_of_the_failing_row() -> None:
    """Which may hold anything, also what looks like the end of it."""
    for row in ("(x, secret\nin two lines)", "(x,\n\nsecret)", "(x,\nHINT:  secret)", "(x,\n[SQL: secret)"):
        said = f"new row violates check\nDETAIL:  Failing row contains {row}."
        for text in (said, f"{said!r}", f"Error('{said!r}')", f"{said}\n\nDuring handling\nDETAIL:  secret"):
            kept = _without_details(None, "", {"exception": text})["exception"]
            assert "secret" not in kept
            assert "violates check" in kept
    inner = asyncpg.CheckViolationError("violates check")
    inner.detail = "Failing row contains (secret)."  # type: ignore[attr-defined]
    outer = ValueError("what failed over it")
    outer.__cause__ = inner
    line = structlog.processors.format_exc_info(None, "", _forget_details(None, "", {"exc_info": outer}))
    assert "secret" not in line["exception"]
    assert "violates check" in line["exception"]
    assert "what failed over it" in line["exception"]  # which comes after it


class Watched:
    """Every command that anybody sends to Redis."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._url = url
        self.commands: list[str] = []
        self._ended = threading.Event()

    def __enter__(self) -> Watched:
        self._monitor = self._client.monitor().__enter__()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def _listen(self) -> None:
        with suppress(Exception):  # the connection is closed at the end
            while True:
                self.commands.append(str(self._monitor.next_command()["command"]))

    def __exit__(self, *_: object) -> None:
        self._monitor.connection.disconnect()
        self._thread.join(5)
        self._client.close()

    def text(self) -> str:
        with redis.Redis.from_url(self._url) as client:
            stored = []
            for key in client.scan_iter():
                kind = client.type(key).decode()
                read = {
                    "string": lambda key: client.get(key),
                    "hash": lambda key: client.hgetall(key),
                    "list": lambda key: client.lrange(key, 0, -1),
                    "zset": lambda key: client.zrange(key, 0, -1),
                    "set": lambda key: client.smembers(key),
                }[kind]
                stored.append(f"{key!r} {read(key)!r}")
        return "\n".join([*self.commands, *stored])


class System:
    """Two web and two worker processes, one of each logging for people and one for machines."""

    def __init__(self, database_url: str, owner_url: str, redis_url: str, folder: Path) -> None:
        self.owner_url, self.folder = owner_url, folder
        self._stack = ExitStack()
        self.ports = [free_port() for _ in range(2)]
        for port, log_format in zip(self.ports, ("text", "json"), strict=True):
            more = {
                "OIDC_ISSUER": "http://127.0.0.1:1",
                "OIDC_CLIENT_ID": "hookwright",
                "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            }
            env = clean_env(environment(database_url, redis_url, LOG_LEVEL="debug", LOG_FORMAT=log_format, **more))
            for arguments in (("web", "--port", str(port)), ("worker",)):
                log = self._stack.enter_context((folder / f"{arguments[0]}-{log_format}.log").open("wb"))
                process = Forked(*arguments, env=env, stdout=log.fileno(), stderr=log.fileno())
                self._stack.callback(process.wait)
                self._stack.callback(process.kill)

    def close(self) -> None:
        self._stack.close()

    async def says(self, text: str) -> None:
        """Waits until any process has logged it."""

        async def said() -> bool:
            return text in self.logs()

        await eventually(said, what=text)

    def logs(self) -> str:
        return "\n".join(path.read_text("utf-8", "replace") for path in sorted(self.folder.glob("*.log")))


class Caller:
    """Calls both web processes in turn, and keeps what they said."""

    def __init__(self, system: System, key: str) -> None:
        self._clients = [
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": key}, timeout=90)
            for port in system.ports
        ]
        self._turn = 0
        self.refusals: list[str] = []
        self.views: list[str] = []

    async def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> httpx.Response:
        self._turn += 1
        client = self._clients[self._turn % 2]
        if body is not None:
            options["json"] = body
        answer = await client.request(method, path, **options)
        if answer.is_error:
            self.refusals.append(f"{answer.status_code} {answer.text} {dict(answer.headers)}")
        elif method == "GET":
            self.views.append(answer.text)
        return answer

    async def data(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        answer = await self(method, path, body, **options)
        assert answer.is_success, answer.text
        return answer.json()["data"]

    async def serves(self) -> bool:
        try:
            return all([(await client.get("/readyz")).is_success for client in self._clients])
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


async def do_it_right(call: Caller, receiver: Receiver) -> list[str]:
    """All that takes or shows a secret. Returns the subscriptions."""
    ways = ("ok", "status/500", "reset", "garbage", "hang", "redirect", "status/410", "huge-header", "nul")
    made = []
    for way in ways:
        body = {
            "url": receiver.url(f"/{way}?to=/ok&token={URL_TOKEN}"),
            "events": ["*"],
            "authentication": {"type": "standard", "secret": SIGNING},
            "headers": {"X-Token": HEADER},
            "retry_policy": ONCE,
            "timeout_ms": 1000,
        }
        made.append((await call.data("POST", SUBSCRIPTIONS, body, headers={"Idempotency-Key": way}))["id"])
        await call.data("POST", SUBSCRIPTIONS, body, headers={"Idempotency-Key": way})  # the answer again
    closed = f"http://127.0.0.1:{free_port()}/"
    hmac = {"url": closed, "events": ["*"], "retry_policy": ONCE, "headers": {"X-Token": HEADER}}
    made.append(
        (await call.data("POST", SUBSCRIPTIONS, hmac | {"authentication": {"type": "hmac_sha256", "secret": PLAIN}}))[
            "id"
        ]
    )
    one = f"{SUBSCRIPTIONS}/{made[0]}"
    await call.data("POST", f"{one}/secret/rotate", {"secret": ROTATED})
    assert (await call.data("POST", f"{one}/secret/reveal"))["secret_key"] == ROTATED
    await call.data("PATCH", one, {"headers": {"X-Token": HEADER, "X-More": HEADER}})
    await call.data("POST", f"{one}/test", {"data": {"secret": PAYLOAD}})
    event = {"event_type": "a.b", "data": {"secret": PAYLOAD}, "metadata": {"secret": METADATA}}
    for number in range(4):
        await call.data(
            "POST", "/v1/events", event | {"event_id": f"e{number}"}, headers={"Idempotency-Key": f"{number}"}
        )
    await call.data("POST", "/v1/events/batch", {"events": [event] * 4})
    return made


async def let_people_in(system: System, key_id: str, key: str) -> list[str]:
    """Set-up by the link, sign-ins that fail and succeed, and an access token. Returns the secrets that came of it."""
    connection = await asyncpg.connect(plain_url(system.owner_url))
    link = await set_up_link.make(connection)
    await connection.close()
    assert link is not None
    found = [link]
    for port in system.ports:
        origin = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=origin, headers=SAME_ORIGIN, timeout=90) as browser:

            async def post(
                path: str, shown: httpx.Response, browser: httpx.AsyncClient = browser, **fields: str
            ) -> int:
                return (await browser.post(path, data={"form_token": form_token_in(shown.text), **fields})).status_code

            if port == system.ports[0]:
                chosen = {"token": link, "email": "a@example.com", "name": "A"}
                shown = await browser.get(f"/set-up/{link}")
                assert await post("/set-up", shown, password=WRONG_PASSWORD, again=PASSWORD, **chosen) == 400
                assert await post("/set-up", shown, password=PASSWORD, again=PASSWORD, **chosen) == 303
                found += browser.cookies.values()
                assert await post("/sign-out", await browser.get("/account")) == 303
            assert (await browser.get(f"/set-up/{link}")).status_code == 404
            shown = await browser.get("/sign-in")
            assert await post("/sign-in", shown, email="a@example.com", password=WRONG_PASSWORD, next="/") >= 400
            assert await post("/sign-in", shown, email=PASSWORD, password=PASSWORD, next="/") >= 400
            assert await post("/sign-in", shown, email="a@example.com", password=PASSWORD, next="/") == 303
            await browser.get("/sign-in/sso")
            form = {"grant_type": "client_credentials", "client_id": key_id, "client_secret": key}
            token = (await browser.post("/oauth/token", data=form)).json()["access_token"]
            spoilt = {"Authorization": f"Bearer {token[:-4]}AAAA"}
            assert (await browser.get("/v1/events", headers=spoilt)).status_code == 401
            found += [*browser.cookies.values(), token]
    return found


async def do_it_wrong(call: Caller, one: str) -> None:
    """Secrets where they don't belong. Every answer is a refusal."""
    before = len(call.refusals)
    subscription = {"url": "https://example.com/", "events": ["*"]}
    bodies = [
        ("/v1/events", {"event_type": HEADER + " ", "data": {}}),
        ("/v1/events", {"event_type": "a.b", "data": HEADER}),
        ("/v1/events", {"event_type": "a.b", "data": {}, "occurred_at": HEADER}),
        ("/v1/events", {"event_type": "a.b", "data": {}, "branch_id": HEADER + "\n"}),
        ("/v1/events", {"event_type": "a.b", "data": {}, "event_id": PAYLOAD + "\n"}),
        ("/v1/events", {"event_type": "a.b", "data": {}, "metadata": {"x": METADATA * 400}}),
        ("/v1/events", {"event_type": "a.b", "data": {}, "metadata": {"x": METADATA + "\0"}}),
        ("/v1/events", {"event_type": "a.b", "data": {}, "unknown": SIGNING}),
        ("/v1/events", {"event_type": "a.b", "data": {"x": PAYLOAD * 20_000}}),
        ("/v1/events/batch", {"events": [{"event_type": PAYLOAD + " ", "data": {}}]}),
        (SUBSCRIPTIONS, subscription | {"url": SIGNING}),
        (SUBSCRIPTIONS, subscription | {"url": f"https://user:{HEADER}@example.com/"}),
        (SUBSCRIPTIONS, subscription | {"url": f"https://10.0.0.1/?token={URL_TOKEN}"}),
        (SUBSCRIPTIONS, subscription | {"url": f"https://example.com:22/?token={URL_TOKEN}#x"}),
        (SUBSCRIPTIONS, subscription | {"events": [SIGNING + "*"]}),
        (SUBSCRIPTIONS, subscription | {"filters": {"x": {"$bad": SIGNING}, "$and": HEADER}}),
        (SUBSCRIPTIONS, subscription | {"headers": {"X-A": HEADER + "\n"}}),
        (SUBSCRIPTIONS, subscription | {"headers": {"X-A": {"x": HEADER}}}),
        (SUBSCRIPTIONS, subscription | {"headers": HEADER}),
        (SUBSCRIPTIONS, subscription | {"retry_policy": {"backoff_strategy": SIGNING, "max_attempts": HEADER}}),
        (SUBSCRIPTIONS, subscription | {"limits": {"max_in_flight": SIGNING}}),
        (SUBSCRIPTIONS, subscription | {"circuit_breaker": {"timeout_ms": SIGNING}}),
        (SUBSCRIPTIONS, subscription | {"payload_format": SIGNING, "timeout_ms": SIGNING}),
        (SUBSCRIPTIONS, subscription | {"authentication": {"type": SIGNING}}),
        (SUBSCRIPTIONS, subscription | {"authentication": SIGNING}),
        (SUBSCRIPTIONS, subscription | {"authentication": {"type": "standard", "secret": SIGNING + "!"}}),
        (SUBSCRIPTIONS, subscription | {"authentication": {"type": "standard", "secret": [SIGNING]}}),
        (f"{one}/secret/rotate", {"secret": ROTATED * 3}),
        (f"{one}/secret/rotate", {"secret": ROTATED, "grace_period_s": HEADER}),
        (f"{one}/resume", {"sync_from": SIGNING}),
        ("/v1/replays", {"filters": {"status": SIGNING, "error": HEADER, "ids": [HEADER]}}),
        ("/v1/event-types", {"name": HEADER + " ", "schema": SIGNING}),
    ]
    for path, body in bodies:
        await call("POST", path, body)
    raw = [
        b'{"event_type": "a.b", "data": {"x": "%s"' % PAYLOAD.encode(),
        b'{"secret": %s}' % SIGNING.encode(),
        b"\xff" + SIGNING.encode(),
        b"[" * 100 + SIGNING.encode(),
        b'{"event_type": "a.b", "data": {"x": "\\ud800%s"}}' % PAYLOAD.encode(),
    ]
    for content in raw:
        for path in ("/v1/events", SUBSCRIPTIONS):
            await call("POST", path, content=content, headers={"Content-Type": "application/json"})
    event = {"event_type": "a.b", "data": {}}
    for headers in (
        {"X-API-Key": WRONG_KEY},
        {"X-API-Key": "", "Authorization": f"Bearer {WRONG_KEY}"},
        {"X-API-Key": "", "Authorization": f"Basic {WRONG_KEY}"},
        {"X-Organization-ID": HEADER},
        {"Idempotency-Key": HEADER + "\x7f"},
        {"Content-Type": HEADER},
        {"X-Branch-ID": HEADER + "\x07"},
        {"Idempotency-Key": "0"},  # with another body
    ):
        await call("POST", "/v1/events", event, headers=headers)
    await call("PATCH", one, {"description": HEADER}, headers={"If-Match": HEADER})
    for query in (
        "filters[status]",
        "filters[created_after]",
        "sort",
        "limit",
        "after_key",
        "include",
        "page",
        "fields",
    ):
        await call("GET", f"/v1/deliveries?{query}={HEADER}")
    await call("GET", f"{one}?token={URL_TOKEN}")
    await call("DELETE", f"/v1/api-keys/{WRONG_KEY}")
    await call("GET", f"/v1/events/{WRONG_KEY}")
    assert len(call.refusals) - before == len(bodies) + 2 * len(raw) + 8 + 1 + 8 + 3, "\n".join(call.refusals)


async def let_things_fail(system: System, call: Caller, made: list[str], redis_url: str) -> None:
    """What the platform does not foresee, and what it waits out."""
    event = {"event_type": "boom", "data": {"secret": PAYLOAD}, "metadata": {"secret": METADATA}}
    connection = await asyncpg.connect(plain_url(system.owner_url))
    try:
        # A row that the database refuses: its error shows the row.
        await connection.execute("ALTER TABLE events ADD CONSTRAINT no_boom CHECK (event_type <> 'boom') NOT VALID")
        await connection.execute(
            "ALTER TABLE attempts ADD CONSTRAINT no_answer CHECK (response_body IS NULL OR duration_ms < 0) NOT VALID"
        )
        for _ in range(2):
            assert (await call("POST", "/v1/events", event | {"event_id": PAYLOAD})).status_code == 500
        await call.data("POST", "/v1/events", event | {"event_type": "a.b"})
        await system.says("no_answer")
        # Secrets that can't be opened: of a key that is missing, and not what was sealed.
        await connection.execute(
            "UPDATE subscription_secrets SET sealed = overlay(sealed PLACING '\\x00112233' FROM 2)"
            " WHERE subscription_id = $1",
            ids.parse(ids.SUBSCRIPTION, made[0]),
        )
        await connection.execute(
            "UPDATE subscriptions"
            " SET headers = set_byte(headers, 29, get_byte(headers, 29) # 255), version = version + 1"
        )
        for id_ in made[:2]:
            assert (await call("GET", f"{SUBSCRIPTIONS}/{id_}")).status_code == 500
        assert (await call("POST", f"{SUBSCRIPTIONS}/{made[0]}/secret/reveal")).status_code == 500
        await call.data("POST", "/v1/events", event | {"event_type": "a.b"})
        await system.says("a subscription can't be sent to")
        # The database is away, and Redis stands still, while events come.
        name = make_url(system.owner_url).database
        with redis.Redis.from_url(redis_url) as client:
            client.client_pause(1500)
        maintenance = await asyncpg.connect(
            plain_url(make_url(system.owner_url).set(database="postgres").render_as_string(hide_password=False))
        )
        try:
            await maintenance.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
            await maintenance.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
            for path, body in (("/v1/events", event), ("/v1/events", event), (SUBSCRIPTIONS, {"url": HEADER})) * 2:
                assert (await call("POST", path, body)).status_code >= 500
        finally:
            await maintenance.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
            await maintenance.close()
        await eventually(call.serves)
    finally:
        await connection.close()


def test_no_secret_is_in_logs_redis_audit_errors_or_a_dump(
    services: Services, database_url: str, owner_url: str, redis_url: str, tmp_path: Path
) -> None:
    secrets: list[str] = [SIGNING, ROTATED, PLAIN, HEADER, WRONG_KEY, SECRET_KEY, MASTER]
    secrets += [PASSWORD, WRONG_PASSWORD, CLIENT_SECRET]
    server_log = services.postgres_log
    logged_before = len(server_log.read_bytes())

    async def make_key() -> tuple[str, str]:
        database = Database(database_url)
        async with database.session() as session:
            organization = await organizations.create(session, "Test")
            row, key = await api_keys.create(
                session, Sealer([SECRET_KEY]), organization_id=organization.id, name="canary"
            )
            # As an audited change of a subscription has it.
            url = {"webhook_url": f"https://example.com/?token={URL_TOKEN}"}
            record(session, COMMAND_LINE, "test", "", organization_id=organization.id, before=url, after=url | {"a": 1})
            record(session, COMMAND_LINE, "test", "", organization_id=organization.id, after=url)
        await database.close()
        return ids.show(ids.API_KEY, row.id), key

    async def main(system: System, receiver: Receiver) -> Caller:
        key_id, key = await make_key()
        secrets.append(key)
        call = Caller(system, key)
        try:
            await eventually(call.serves, 60)
            secrets.extend(await let_people_in(system, key_id, key))
            made = await do_it_right(call, receiver)
            await do_it_wrong(call, f"{SUBSCRIPTIONS}/{made[0]}")

            async def tried() -> bool:
                found = await call.data("GET", "/v1/deliveries?limit=200&include=attempts")
                return len(found) > 60 and all(one["attempts"] or one["reason"] for one in found)

            await eventually(tried)
            for path in (SUBSCRIPTIONS, "/v1/api-keys", "/v1/replays", "/v1/webhooks/performance"):
                await call("GET", path)
            await let_things_fail(system, call, made, redis_url)
        finally:
            await call.close()
        return call

    with Receiver() as receiver, Watched(redis_url) as watched:
        system = System(database_url, owner_url, redis_url, tmp_path)
        try:
            call = asyncio.run(main(system, receiver))
        finally:
            system.close()
        bodies = b"".join(one.body for one in receiver.requests)
        in_redis = watched.text()
    passwords = [make_url(url).password or "" for url in (database_url, owner_url)]
    assert all(passwords)
    everywhere = [*secrets, *passwords]
    content = [URL_TOKEN, PAYLOAD, METADATA]

    # What was to be provoked was provoked, in each log.
    logs = system.logs()
    assert PAYLOAD.encode() in bodies
    for path in sorted(tmp_path.glob("*.log")):
        text = path.read_text("utf-8", "replace")
        assert "Traceback" in text or "does not answer" in text, path.name
    assert "no_boom" in logs
    assert "RPUSH hookwright:hints [" in in_redis

    assert not leaks(logs, [*everywhere, *content])
    assert not leaks(server_log.read_bytes()[logged_before:].decode("utf-8", "replace"), [*everywhere, *content])
    assert not leaks(in_redis, [*everywhere, *content])
    assert not leaks("\n".join(call.refusals), [*everywhere, *content])
    assert not leaks("\n".join(call.views), [*everywhere, METADATA])
    text = dump(owner_url)
    assert not leaks(text, everywhere)
    tables = {part.split(" ", 1)[0]: part for part in text.split("COPY public.")[1:]}
    assert "test" in tables["audit_log"]
    assert not leaks(tables["audit_log"], [*everywhere, *content])
