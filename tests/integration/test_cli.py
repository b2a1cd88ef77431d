"""Commands that need no running platform: what they print where, their exit codes, and what they say when it fails."""

from __future__ import annotations

import asyncio
import io
import json
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url
from standardwebhooks import Webhook

from cli.commands.event import _body
from cli.commands.receive import line
from cli.main import main
from cli.output import clean, table
from core import ids
from core.access import api_keys
from core.errors import AuthenticationFailed
from core.secrets.sealing import Sealer
from core.secrets.signing import normalize_secret
from core.storage.database import Database
from tests.api import run
from tests.commands import Running, clean_env, hookwright
from tests.pages import Visitor, audited
from tests.platform import SECRET_KEY, Platform, environment
from tests.receiver import Receiver
from tests.services import Services

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Runs a command in this process. Nothing is set but a data folder on which nothing runs."""
    monkeypatch.setenv("HOOKWRIGHT_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["hookwright", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


@pytest.fixture
def configured(cli: Cli, monkeypatch: pytest.MonkeyPatch, database_url: str, redis_url: str) -> Cli:
    """The same, with a migrated database."""
    for name, value in environment(database_url, redis_url).items():
        monkeypatch.setenv(name, value)
    return cli


@pytest.fixture
def organization(configured: Cli) -> str:
    return configured("org", "create", "Acme").out.strip()


# --- organizations and keys -----------------------------------------------------------------------------------------


def test_the_new_id_alone_is_on_stdout(configured: Cli) -> None:
    made = configured("org", "create", "  Åkerlund & Co ")
    assert made.code == 0
    ids.parse(ids.ORGANIZATION, made.out.removesuffix("\n"))
    assert "Åkerlund & Co" in made.err
    listed = configured("org", "list")
    assert made.out.strip() in listed.out
    assert "Åkerlund & Co" in listed.out


def test_json_has_what_the_api_would_show(configured: Cli) -> None:
    made = configured("org", "create", "Acme", "--json")
    assert made.err == ""
    shown = json.loads(made.out)
    assert (shown["name"], shown["version"]) == ("Acme", 1)
    assert json.loads(configured("org", "list", "--json").out) == [shown]


def test_an_empty_list_says_so_on_stderr(configured: Cli) -> None:
    listed = configured("org", "list")
    assert (listed.code, listed.out) == (0, "")
    assert "no organization yet" in listed.err
    assert json.loads(configured("org", "list", "--json").out) == []


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, "two\nlines", "esc\x1b[2J"])
def test_a_name_that_is_none_is_refused(configured: Cli, name: str) -> None:
    made = configured("org", "create", name)
    assert (made.code, made.out) == (1, "")
    assert "name: Must be 1 to 200 printable characters" in made.err


def test_an_organization_is_deleted_when_its_person_says_so(
    configured: Cli, organization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured("key", "create", "--org", organization)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    asked = configured("org", "delete", organization)
    assert (asked.code, asked.out.strip()) == (1, "")
    assert "Erase 'Acme'" in asked.err
    assert organization in configured("org", "list").out
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert configured("org", "delete", organization).code == 0
    assert configured("org", "list").out == ""
    assert json.loads(configured("key", "list", "--json").out)[0]["revoked_at"] is not None
    again = configured("org", "delete", organization, "--yes")
    assert (again.code, again.err) == (1, f"There is no organization {organization}\n")


def credential(database_url: str, key: str) -> api_keys.Credential:
    async def look() -> api_keys.Credential:
        database = Database(database_url)
        try:
            async with database.session() as session:
                return await api_keys.authenticate(session, Sealer([SECRET_KEY]), key)
        finally:
            await database.close()

    return asyncio.run(look())


def test_a_new_key_acts_for_its_organization(configured: Cli, database_url: str, organization: str) -> None:
    made = configured("key", "create", "--org", organization, "--scopes", "events.write, events.read")
    assert made.code == 0
    assert made.out.strip() not in made.err
    found = credential(database_url, made.out.strip())
    assert found.organization_id == ids.parse(ids.ORGANIZATION, organization)
    assert found.scopes == {"events.write", "events.read"}
    assert found.tier == "default"
    made = configured("key", "create", "--org", organization, "--tier", "bulk", "--json")
    assert json.loads(made.out)["tier"] == "bulk"
    made = configured("key", "create", "--org", organization, "--tier", "gold")
    assert (made.code, made.out) == (1, "")
    assert "tier: Must be one of: default, premium, bulk" in made.err


def test_a_platform_key_has_every_scope(configured: Cli, database_url: str) -> None:
    shown = json.loads(configured("key", "create", "--platform", "--name", "ops", "--json").out)
    assert (shown["name"], shown["organization_id"]) == ("ops", None)
    assert credential(database_url, shown["key"]).scopes == set(api_keys.ALL_SCOPES)


def test_a_revoked_key_is_refused_and_listed_as_revoked(configured: Cli, database_url: str, organization: str) -> None:
    key = json.loads(configured("key", "create", "--org", organization, "--json").out)
    ended = configured("key", "revoke", key["key_id"])
    assert (ended.code, ended.out) == (0, "")
    with pytest.raises(AuthenticationFailed):
        credential(database_url, key["key"])
    [listed] = json.loads(configured("key", "list", "--org", organization, "--json").out)
    assert listed["key_id"] == key["key_id"]
    assert listed["revoked_at"] is not None


def test_lists_never_show_a_key(configured: Cli, organization: str) -> None:
    key = configured("key", "create", "--org", organization).out.strip()
    for listed in (configured("key", "list"), configured("key", "list", "--json")):
        assert key[: api_keys.PREFIX_CHARS] in listed.out
        assert key not in listed.out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--org", "org_01M7X683VVE00AEX4MG777ECTV"), 1, "There is no organization org_01M7X683VVE00AEX4MG777ECTV"),
        (("--org", "acme"), 1, "'acme' is not an id of this kind"),
        (("--platform", "--scopes", "all"), 1, "scopes: 'all' can't be given; choose from: events.write"),
        (("--platform", "--scopes", ","), 1, "scopes: choose from: events.write"),
        ((), 2, "give either --org ORG or --platform"),
        (("--platform", "--org", "org_01M7X683VVE00AEX4MG777ECTV"), 2, "give either --org ORG or --platform"),
    ],
)
def test_a_key_that_cant_be_made_says_why(configured: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    made = configured("key", "create", *arguments)
    assert (made.code, made.out) == (code, "")
    assert said in made.err


def test_a_key_that_there_is_not_cant_be_revoked(configured: Cli) -> None:
    ended = configured("key", "revoke", "key_01M7X683VVE00AEX4MG777ECTV")
    assert ended.code == 1
    assert "There is no API key key_01M7X683VVE00AEX4MG777ECTV" in ended.err


def test_a_key_needs_the_secret_keys_and_an_organization_does_not(
    configured: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOKWRIGHT_SECRET_KEYS")
    monkeypatch.delenv("HOOKWRIGHT_REDIS_URL")
    made = configured("org", "create", "Acme")
    assert made.code == 0
    refused = configured("key", "create", "--org", made.out.strip())
    assert refused.code == 2
    assert "HOOKWRIGHT_SECRET_KEYS: is required" in refused.err
    assert "HOOKWRIGHT_REDIS_URL" not in refused.err


def test_what_is_done_on_the_command_line_is_audited_and_exported(configured: Cli, organization: str) -> None:
    def exported(*options: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in configured("audit", "export", *options).out.splitlines()]

    [first] = exported()
    assert (first["action"], first["resource"], first["actor"]) == (
        "organization.created",
        organization,
        "command line",
    )
    key = configured("key", "create", "--org", organization).out.strip()
    configured("key", "create", "--platform")
    [key_id] = {one["resource"] for one in exported("--org", organization) if one["action"] == "api_key.created"}
    for _ in range(2):  # the second changes nothing
        configured("key", "revoke", key_id)
    actions = ["organization.created", "api_key.created", "api_key.revoked"]
    assert [one["action"] for one in exported("--org", organization)] == actions
    assert [one["organization_id"] for one in exported()] == [organization] * 2 + [None, organization]
    assert exported("--since", "2090-01-01T00:00:00Z") == []
    assert key not in json.dumps(exported())
    wrong = configured("audit", "export", "--since", "yesterday")
    assert (wrong.code, wrong.out) == (1, "")
    assert "2026-01-28T10:15:00Z" in wrong.err


# --- which database ------------------------------------------------------------------------------------------------


def test_without_a_database_it_says_how_to_get_one(cli: Cli, tmp_path: Path) -> None:
    listed = cli("org", "list", "--data-dir", str(tmp_path / "elsewhere"))
    assert (listed.code, listed.out) == (1, "")
    for word in ("elsewhere", "hookwright up", "--data-dir", "HOOKWRIGHT_DATABASE_URL"):
        assert word in listed.err
    assert not (tmp_path / "elsewhere").exists()


def test_a_database_that_does_not_answer_is_told_in_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKWRIGHT_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/hooks")
    listed = cli("org", "list")
    assert listed.code == 1
    assert listed.err.startswith("PostgreSQL does not answer at postgresql://me:***@127.0.0.1:1/hooks: ")
    assert listed.err.count("\n") == 1


def test_a_wrong_password_and_a_missing_database_are_told_apart(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, services: Services
) -> None:
    for change, said in (({"password": "guess"}, "password"), ({"database": "nowhere"}, "does not exist")):
        url = make_url(services.database_url).set(**change)
        monkeypatch.setenv("HOOKWRIGHT_DATABASE_URL", url.render_as_string(hide_password=False))
        listed = cli("org", "list")
        assert listed.code == 1
        assert listed.err.startswith("PostgreSQL refuses ")
        assert said in listed.err
        assert "guess" not in listed.err


@pytest.fixture
def empty_database_url(services: Services) -> Iterator[str]:
    url = services.create_database()
    yield url
    services.drop_database(url)


def test_an_empty_database_is_migrated_once(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, empty_database_url: str, redis_url: str
) -> None:
    env = environment(empty_database_url, redis_url)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    refused = cli("org", "list")
    assert refused.code == 1
    assert "Run: hookwright migrate" in refused.err
    checked = cli("check")
    assert checked.code == 1
    assert "wrong  The schema is at nothing" in checked.err
    for _ in range(2):
        hookwright("migrate", env=env)
        assert cli("org", "list").code == 0


# --- settings and checks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["up", "demo", "web", "worker", "migrate", "check"])
def test_a_wrong_setting_stops_the_start(
    configured: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
) -> None:
    monkeypatch.setenv("HOOKWRIGHT_RETENTION_DAY", "30")
    monkeypatch.setenv("HOOKWRIGHT_SWEEP_INTERVAL_S", "soon")
    started = configured(command, *(("--data-dir", str(tmp_path / "data")) if command == "demo" else ()))
    assert (started.code, started.out) == (2, "")
    assert "HOOKWRIGHT_RETENTION_DAY: there is no such setting; did you mean HOOKWRIGHT_RETENTION_DAYS?" in started.err
    assert "HOOKWRIGHT_SWEEP_INTERVAL_S: Input should be a valid number" in started.err
    assert not (tmp_path / "data").exists()


def test_keys_for_a_shared_database_must_be_given(configured: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOOKWRIGHT_SECRET_KEYS")
    started = configured("up")
    assert started.code == 2
    assert "HOOKWRIGHT_SECRET_KEYS: is required" in started.err


@pytest.mark.parametrize("command", ["up", "web", "worker", "check"])
def test_a_secret_key_that_is_none_is_not_repeated(
    configured: Cli, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("HOOKWRIGHT_SECRET_KEYS", f"{SECRET_KEY},hunter2")
    started = configured(command)
    assert started.code == 2
    assert started.err.startswith("HOOKWRIGHT_SECRET_KEYS: Master key 2 is ")
    assert "hunter2" not in started.err


def test_check_finds_everything_in_order(configured: Cli) -> None:
    checked = configured("check")
    assert (checked.code, checked.err) == (0, "")
    for part in ("settings", "PostgreSQL 18", "schema at revision", "Valkey 9"):
        assert f"ok     {part}" in checked.out


def test_check_looks_at_everything_before_it_ends(configured: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKWRIGHT_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/hooks")
    monkeypatch.setenv("HOOKWRIGHT_REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("HOOKWRIGHT_EGRESS_CA_FILE", "/nowhere/ca.pem")
    checked = configured("check")
    assert (checked.code, checked.out) == (1, "ok     settings\n")
    for said in ("PostgreSQL does not answer", "Redis does not answer", "HOOKWRIGHT_EGRESS_CA_FILE /nowhere/ca.pem"):
        assert f"wrong  {said}" in checked.err
    assert "hunter2" not in checked.err


def test_check_starts_nothing(cli: Cli, tmp_path: Path) -> None:
    checked = cli("check")
    assert checked.code == 1
    assert "HOOKWRIGHT_DATABASE_URL is not set, and no embedded service runs on" in checked.err
    assert not (tmp_path / "data").exists()


def test_a_url_that_asks_for_tls_is_told_when_the_server_has_none(
    configured: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Receiver() as server:  # of HTTP, which is no answer to PostgreSQL's question for TLS
        monkeypatch.setenv("HOOKWRIGHT_DATABASE_URL", f"postgresql://me:x@127.0.0.1:{server.port}/h?sslmode=require")
        for command in ("check", "migrate"):
            ended = configured(command)
            assert ended.code == 1
            assert "PostgreSQL does not answer at postgresql://me:***@127.0.0.1:" in ended.err
        monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "none.crt"))
        monkeypatch.setenv(
            "HOOKWRIGHT_DATABASE_URL", f"postgresql://me:x@127.0.0.1:{server.port}/h?sslmode=verify-full"
        )
        ended = configured("migrate")
        assert ended.code == 1
        assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", ["up", "web", "worker", "migrate", "check"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://me:hunter2@db:port/h"),
        ("REDIS_URL", "redis://:hunter2@cache:port"),
        ("EGRESS_ALLOW", "::ffff:127.0.0.0/104"),
    ],
)
def test_what_would_stop_a_process_later_stops_it_at_the_start(
    configured: Cli, monkeypatch: pytest.MonkeyPatch, command: str, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HOOKWRIGHT_{name}", value)
    started = configured(command)
    assert (started.code, started.out) == (2, "")
    assert started.err.startswith(f"HOOKWRIGHT_{name}: ")
    assert "hunter2" not in started.err


# --- through the API -----------------------------------------------------------------------------------------------


def test_without_a_key_it_says_how_to_make_one(cli: Cli) -> None:
    sent = cli("event", "send", "order.paid", "--data", "{}")
    assert sent.code == 2
    assert "HOOKWRIGHT_API_KEY: is required; `hookwright key create" in sent.err


def test_a_platform_that_does_not_answer_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKWRIGHT_API_KEY", "sk_live_x")
    monkeypatch.setenv("HOOKWRIGHT_URL", "http://127.0.0.1:1/")
    listed = cli("delivery", "list")
    assert (listed.code, listed.out) == (1, "")
    assert "No answer from http://127.0.0.1:1 (" in listed.err
    assert "HOOKWRIGHT_URL" in listed.err
    assert listed.err.count("\n") == 1


def test_another_program_at_the_url_is_noticed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKWRIGHT_API_KEY", "sk_live_x")
    with Receiver() as receiver:
        monkeypatch.setenv("HOOKWRIGHT_URL", receiver.url(""))
        for path in ("/v1/deliveries", "/v1/events"):
            receiver.set(path, 200)
        for command in (("delivery", "list"), ("event", "send", "a", "--data", "1")):
            listed = cli(*command)
            assert listed.code == 1
            assert "answers 200, and not as Hookwright does" in listed.err


@pytest.mark.parametrize(
    ("data", "said"),
    [("{", "not JSON"), ("NaN", "NaN is not JSON"), ("", "not JSON"), ("@/nowhere/data.json", "can't be read")],
)
def test_data_that_is_not_json_is_refused_before_it_is_sent(cli: Cli, data: str, said: str) -> None:
    sent = cli("event", "send", "order.paid", "--data", data)
    assert sent.code == 2
    assert said in sent.err


def test_data_may_come_from_a_file_or_from_stdin(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"from": "a file"}')
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"from": "stdin"}'))
    monkeypatch.setenv("HOOKWRIGHT_API_KEY", "sk_live_x")
    with Receiver() as receiver:
        monkeypatch.setenv("HOOKWRIGHT_URL", receiver.url(""))
        cli(
            "event", "send", "order.paid", "--data", f"@{tmp_path / 'data.json'}", "--event-id", "mine", "--branch", "b"
        )
        cli("event", "send", "order.paid", "--data", "-", "--org", "org_1")
        first, second = receiver.requests
    assert json.loads(first.body) == {
        "event_type": "order.paid",
        "event_id": "mine",
        "branch_id": "b",
        "data": {"from": "a file"},
    }
    assert json.loads(second.body) == {"event_type": "order.paid", "data": {"from": "stdin"}}
    assert (second.header("X-API-Key"), second.header("X-Organization-ID")) == ("sk_live_x", "org_1")


def test_a_signing_secret_need_not_stand_in_the_command(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("HOOKWRIGHT_API_KEY", "sk_live_x")
    with Receiver() as receiver:
        monkeypatch.setenv("HOOKWRIGHT_URL", receiver.url(""))
        for given in (SECRET, f"@{tmp_path / 'secret'}", "-"):
            monkeypatch.setattr(sys, "stdin", io.StringIO(f"{SECRET}\n"))
            cli("subscription", "create", "https://example.com/hook", "--events", "*", "--secret", given)
        sent = [json.loads(request.body)["authentication"] for request in receiver.requests]
    assert sent == [{"secret": SECRET}] * 3


@pytest.mark.parametrize(("given", "said"), [("@/nowhere/secret", "can't be read"), ("-", "there is nothing in '-'")])
def test_a_signing_secret_that_cant_be_read_is_told(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, given: str, said: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    for command in (("subscription", "create", "https://example.com", "--events", "*"), ("receive",)):
        ended = cli(*command, "--secret", given)
        assert ended.code == 2
        assert said in ended.err


def test_data_is_sent_as_it_was_written() -> None:
    assert _body({"event_type": "a", "event_id": None}, ' {"n": 1.10, "n": 2}\n') == (
        b'{"event_type": "a", "data": {"n": 1.10, "n": 2}}'
    )


# --- a receiver to try things with ---------------------------------------------------------------------------------


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, body.decode()),
    }


def test_the_receiver_tells_what_arrives_and_whether_it_verifies() -> None:
    body = b'{"event_type": "order.paid",\n "data": {}}'
    other = "whsec_" + "B" * 32
    told = {
        "verified": line(SECRET, signed(body), body),
        "forged": line(SECRET, signed(body, other), body),
        "changed": line(SECRET, signed(body), body + b" "),
        "unsigned": line(SECRET, {}, body),
        "unknown": line(None, signed(body), body),
    }
    assert told["verified"].endswith('  order.paid  evt_1  verified ✓  {"event_type": "order.paid", "data": {}}')
    for case in ("forged", "changed", "unsigned"):
        assert "  NOT verified ✗  " in told[case]
    assert "  no webhook-id  " in told["unsigned"]
    assert "  no secret given  " in told["unknown"]


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b'{"type": "order.paid"}', '  order.paid  no webhook-id  no secret given  {"type": "order.paid"}'),
        (b"", "  -  no webhook-id  no secret given  "),
        (b"\xff[1]", "  -  no webhook-id  no secret given  \ufffd[1]"),
        (b"[" * 100_000, "  -  no webhook-id  no secret given  " + "[" * 99 + "…"),
        (b'{"type": 7}', '  -  no webhook-id  no secret given  {"type": 7}'),
    ],
)
def test_whatever_arrives_is_one_line(body: bytes, shown: str) -> None:
    told = line(None, {}, body)
    assert told[8:] == shown
    assert "\n" not in told


@pytest.mark.parametrize("secret", [SECRET, "a plain string of 24 bytes or more"])
def test_the_receiver_serves_until_it_is_asked_to_stop(tmp_path: Path, secret: str) -> None:
    (tmp_path / "secret").write_text(secret)
    body = b'{"event_type": "order.paid"}'
    with Running("receive", "--port", "0", "--secret", f"@{tmp_path / 'secret'}") as receiver:
        url = receiver.wait_for("ready http://127.0.0.1:").removeprefix("ready ")
        assert httpx.post(url, content=body, headers=signed(body, normalize_secret(secret))).status_code == 200
        assert "  order.paid  evt_1  verified ✓  " in receiver.wait_for("evt_1")
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as broken:
            broken.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf")
        taken = hookwright("receive", "--port", url.rpartition(":")[2], code=1)
        assert "is taken by another program" in taken
        receiver._process.send_signal(signal.SIGINT)
        assert receiver._process.wait(10) == 0
        assert len(receiver.lines) == 2, "the ready line and one whole request"


def test_the_receiver_refuses_a_secret_that_is_none(cli: Cli) -> None:
    for secret in ("short", "whsec_§"):
        ended = cli("receive", "--port", "0", "--secret", secret)
        assert ended.code == 2
        assert "--secret" in ended.err


# --- make ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (("run",), ["up"]),
        (("demo",), ["demo"]),
        (
            ("run", "PORT=9001", "DATA_DIR=my brother's var", "WORKERS=2"),
            ["up", "--port", "9001", "--data-dir", "my brother's var", "--workers", "2"],
        ),
        (("demo", "PORT=9002", "DATA_DIR=my var"), ["demo", "--port", "9002", "--data-dir", "my var"]),
    ],
)
def test_make_passes_on_what_it_is_given(given: tuple[str, ...], command: list[str]) -> None:
    # What a `make test` around us was given must not reach the make that is tried.
    ours = {"PORT", "DATA_DIR", "WORKERS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES"}
    env = {name: value for name, value in clean_env().items() if name not in ours}
    root = Path(__file__).parents[2]
    shown = subprocess.run(["make", "-n", *given], cwd=root, env=env, capture_output=True, text=True, check=True).stdout
    assert shlex.split(shown.splitlines()[-1]) == [".venv/bin/python", "-m", "cli", *command]


# --- what is printed -----------------------------------------------------------------------------------------------


def test_nothing_that_others_wrote_steers_the_terminal() -> None:
    assert clean("a\x1b[2Jb\x9bc\rd\u202e\nZoë ✓") == "a�[2Jb�c�d�\nZoë ✓"


def test_a_table_has_a_line_an_item() -> None:
    assert table(("A", "LONG"), [("wide value", None), ("x\ny", ["p", "q"])]) == (
        "A           LONG\nwide value  -\nx y         p,q"
    )


def test_users_are_invited_let_in_and_disabled(configured: Cli, database_url: str, redis_url: str) -> None:
    def link(*arguments: str) -> str:
        """The path of the link that a command prints alone on standard output."""
        printed = configured("user", *arguments).out.strip()
        assert printed.startswith("http://127.0.0.1:8000/set-up/")
        return printed.removeprefix("http://127.0.0.1:8000")

    ended = [link("setup-link"), link("setup-link"), link("invite", "Ada@example.com", "--role", "admin")]
    for wrong, said in (
        (("invite", "a@b", "--role", "owner"), "Must be one of: viewer, operator, admin"),
        (("invite", "ada@example.com"), "There is a user ada@example.com already"),
        (("setup-link",), "There are users already"),
        (("reset", "nobody@example.com"), "There is no user nobody@example.com"),
        (("disable", "nobody@example.com"), "There is no user nobody@example.com"),
        (("disable", "ada@example.com"), "last admin"),
    ):
        refused = configured("user", *wrong)
        assert (refused.code, refused.out) == (1, "")
        assert said in refused.err
    holds = json.loads(configured("user", "reset", "ada@example.com", "--json").out)["link"]

    async def check(p: Platform) -> None:
        for path in ended:
            assert (await Visitor(p.app).get(path)).status_code == 404
        assert "ada@example.com" in (await Visitor(p.app).get(holds.removeprefix("http://127.0.0.1:8000"))).text
        entries = await audited(p, "user.created", "user.link_created")
        assert [entry[:2] for entry in entries] == [
            ("user.created", "command line"),
            ("user.link_created", "command line"),
        ]

    run(database_url, redis_url, check)
    link("invite", "grace@example.com", "--name", "Grace")
    assert "is disabled since" in configured("user", "disable", "grace@example.com").err
    assert "grace@example.com" in configured("user", "list").out
    [ada, grace] = json.loads(configured("user", "list", "--json").out)
    assert (ada["role"], ada["disabled_at"], grace["role"], grace["name"]) == ("admin", None, "viewer", "Grace")
    assert grace["disabled_at"] is not None
