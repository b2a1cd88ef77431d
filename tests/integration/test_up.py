"""`hookwright up` as a person uses it: real processes, the real command line, a receiver of our own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from cli.embedded.paths import SOCKET_BASE, folder_id
from tests.commands import Running, clean_env, data_folder, hookwright
from tests.platform import HANGS_S
from tests.receiver import Receiver

README = Path(__file__).parents[2] / "README.md"
EGRESS = {"HOOKWRIGHT_EGRESS_ALLOW": "127.0.0.0/8", "HOOKWRIGHT_EGRESS_ALLOW_HTTP": "true"}


@pytest.fixture
def data_dir() -> Iterator[Path]:
    with data_folder() as folder:
        yield folder


@dataclass(frozen=True)
class Up:
    """`hookwright up` on a folder of its own."""

    platform: Running
    url: str
    data_dir: Path

    def client(self, *whose: str) -> dict[str, str]:
        """Settings for commands that call it, with a new key."""
        key = hookwright("key", "create", *whose, "--data-dir", self.data_dir).strip()
        return {"HOOKWRIGHT_URL": self.url, "HOOKWRIGHT_API_KEY": key}

    def organization(self, name: str) -> str:
        """A new one's id."""
        return hookwright("org", "create", name, "--data-dir", self.data_dir).strip()


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """One for all tests that need neither its start nor its end: these take ten seconds of CPU."""
    with data_folder() as folder, Running("up", "--port", "0", "--data-dir", folder, env=EGRESS) as platform:
        yield Up(platform, ready_url(platform), folder)
        assert platform.stop() == 0


def ready_url(platform: Running) -> str:
    line = platform.wait_for("ready")
    assert line.startswith("ready http://127.0.0.1:")
    assert platform.lines[0] == line, "it is the first line on standard output"
    return line.removeprefix("ready ")


def test_from_nothing_to_a_delivered_webhook_and_back_to_nothing(data_dir: Path) -> None:
    def left() -> list[Path]:
        return list(SOCKET_BASE.glob(f"hookwright-*-{folder_id(data_dir)}"))

    start = ("up", "--port", "0", "--data-dir", data_dir)
    with Receiver() as receiver, Running(*start, env=EGRESS) as platform:
        up = Up(platform, ready_url(platform), data_dir)
        platform.wait_for_error("org create")  # it says what to do next
        [link] = re.findall(rf"{up.url}/set-up/[\w-]{{43}}", platform.errors)
        assert "Set up Hookwright" in httpx.get(link).text
        hookwright("user", "invite", "ada@example.com", "--role", "admin", "--data-dir", data_dir)
        organization = up.organization("Åkerlund & Co")
        assert organization in hookwright("org", "list", "--data-dir", data_dir)
        is_delivered(up.client("--org", organization), receiver)

        refused = hookwright(*start, code=1)
        assert "in use by another hookwright" in refused
        assert left(), "one that was refused takes nothing from the one that runs"
        assert platform.stop() == 0
        assert platform.lines == [f"ready {up.url}"], "nothing else is on standard output"
        assert not left()

    with Running(*start) as platform:
        ready_url(platform)
        assert organization in hookwright("org", "list", "--data-dir", data_dir)  # by then it would have said it
        assert platform.stop(signal.SIGTERM) == 0
        assert "org create" not in platform.errors
        assert "/set-up/" not in platform.errors


def is_delivered(client: dict[str, str], receiver: Receiver) -> None:
    made = json.loads(
        hookwright("subscription", "create", receiver.url("/ok"), "--events", "order.*", "--json", env=client)
    )
    assert made["subscription_id"] in hookwright("subscription", "list", env=client)
    data = '{"total": 12345678901234567890123}'
    event_id = hookwright("event", "send", "order.paid", "--data", data, env=client).strip()

    [request] = receiver.wait_for(1)
    headers = {name.lower(): value for name, value in request.headers}
    assert headers["webhook-id"] == event_id
    body = Webhook(made["secret_key"]).verify(request.body, headers)
    assert body["data"] == {"total": 12345678901234567890123}


def test_a_dead_letter_is_found_and_replayed_from_the_command_line(up: Up) -> None:
    with Receiver() as receiver:
        act_for = ("--org", up.organization("Acme"))
        client = up.client("--platform")
        receiver.set("/hook", 500)
        target = receiver.url("/hook")
        hookwright("subscription", "create", target, "--events", "*", "--max-attempts", "1", *act_for, env=client)
        hookwright("event", "send", "order.paid", "--data", "{}", *act_for, env=client)
        receiver.wait_for(1)
        dead = wait_for_delivery("dead", client, act_for)
        shown = hookwright("delivery", "show", dead, *act_for, env=client)
        assert "exhausted" in shown
        assert "500" in shown
        receiver.set("/hook", 200)
        assert hookwright("delivery", "replay", dead, *act_for, env=client).strip() == dead
        receiver.wait_for(2)
        assert wait_for_delivery("delivered", client, act_for) == dead


def wait_for_delivery(status: str, client: dict[str, str], act_for: tuple[str, ...]) -> str:
    """The id of the one delivery in this state, as soon as there is one."""
    deadline = time.monotonic() + HANGS_S
    while time.monotonic() < deadline:
        found = json.loads(hookwright("delivery", "list", "--status", status, "--json", *act_for, env=client))
        if found:
            [delivery] = found
            return str(delivery["delivery_id"])
    raise AssertionError(f"no delivery is {status}")


def test_two_platforms_side_by_side(up: Up, data_dir: Path) -> None:
    with Running("up", "--port", "0", "--data-dir", data_dir) as other:
        assert ready_url(other) != up.url
        organization = up.organization("Only here")
        assert organization not in hookwright("org", "list", "--data-dir", data_dir)
        port = up.url.rpartition(":")[2]
        with data_folder() as third_dir:
            said = hookwright("up", "--port", port, "--data-dir", third_dir, code=1)
        assert f"port {port} on 127.0.0.1 is taken" in said
        assert other.stop() == 0
        assert "ok     schema" in hookwright("check", "--data-dir", up.data_dir), "the first one still runs"


def curl(url: str, key: str, body: object) -> Any:
    """Posts as an application in any language would; returns the answer's data."""
    done = subprocess.run(
        ["curl", "-sS", url, "-H", f"X-API-Key: {key}", "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return json.loads(done.stdout)["data"]


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="posts with curl")


@needs_curl
def test_posted_with_curl_it_verifies_at_a_receiver_of_your_own_before_and_through_a_rotation(up: Up) -> None:
    with Receiver() as receiver:
        url, key = up.url, up.client("--org", up.organization("Acme"))["HOOKWRIGHT_API_KEY"]
        subscriptions = f"{url}/v1/webhooks/subscriptions"
        made = curl(subscriptions, key, {"url": receiver.url("/ok"), "events": ["order.*"]})
        rotate = f"{subscriptions}/{made['subscription_id']}/secret/rotate"

        def post(number: int) -> tuple[bytes, dict[str, str]]:
            """The request that an event comes to."""
            sent = curl(f"{url}/v1/events", key, {"event_type": "order.paid", "data": {"number": number}})
            request = receiver.wait_for(number)[-1]
            headers = {name.lower(): value for name, value in request.headers}
            assert headers["webhook-id"] == sent["event_id"]
            return request.body, headers

        old = made["secret_key"]
        body, headers = post(1)
        assert Webhook(old).verify(body, headers)["data"] == {"number": 1}

        new = curl(rotate, key, {"grace_period_s": 3600})["secret_key"]
        assert new != old
        body, headers = post(2)
        for secret in (old, new):
            assert Webhook(secret).verify(body, headers)["data"] == {"number": 2}

        newest = curl(rotate, key, {"grace_period_s": 0})["secret_key"]
        body, headers = post(3)
        assert Webhook(newest).verify(body, headers)["data"] == {"number": 3}
        with pytest.raises(WebhookVerificationError):
            Webhook(new).verify(body, headers)


@needs_curl
@pytest.mark.parametrize("shell", [shell for shell in ("bash", "zsh") if shutil.which(shell)])
def test_what_the_readme_says_to_type_shows_a_verified_webhook(data_dir: Path, shell: str) -> None:
    section = README.read_text("utf-8").split("## By hand")[1].split("\n## ")[0]
    platform_block, receiver_block, sender_block, curl_block = re.findall(r"```sh\n(.*?)```", section, re.S)
    env = dict(re.findall(r"(HOOKWRIGHT_\w+)=(\S+)", platform_block))
    assert platform_block.endswith("\nhookwright up\n")
    *preparation, receive = in_folder(receiver_block, data_dir)

    with Running("up", "--port", "0", "--data-dir", data_dir, env=env, as_users_start_it=True) as platform:
        url = ready_url(platform)
        typed(shell, "\n".join(preparation))
        with Running(*shlex.split(receive)[1:], "--port", "0") as receiver:
            hook = receiver.wait_for("ready").removeprefix("ready ")
            blocks = "\n".join((*in_folder(sender_block, data_dir), *in_folder(curl_block, data_dir)))
            assert "http://127.0.0.1:9000" in blocks
            blocks = blocks.replace("http://127.0.0.1:9000", hook).replace("http://127.0.0.1:8000", url)
            typed(shell, blocks, HOOKWRIGHT_URL=url, HOOKWRIGHT_DATA_DIR=str(data_dir))
            assert "order.paid" in receiver.wait_for("verified ✓")
            assert "order.paid" in receiver.wait_for("verified ✓", after=2)
            assert not [line for line in receiver.lines if "NOT" in line]
        assert platform.stop() == 0


def in_folder(block: str, data_dir: Path) -> list[str]:
    """A block's lines for this data folder, without the one that finds the command."""
    text = block.replace("var/receiver.secret", shlex.quote(str(data_dir / "receiver.secret")))
    return [line for line in text.strip().split("\n") if not line.startswith("export PATH=")]


def typed(shell: str, text: str, **env: str) -> None:
    """As if it were typed. `hookwright` is this Python's: the folder that its script is in may have spaces."""
    command = f'hookwright() {{ {shlex.quote(sys.executable)} -P -m cli "$@"; }}\n'
    done = subprocess.run(
        [shell, "-ec", command + text], env=clean_env(env), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
