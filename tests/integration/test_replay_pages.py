"""Dead letters and replays as pages: what they choose, what they ask before, and that nothing is done twice."""

from __future__ import annotations

import asyncio
import html
import re
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

import pytest

from app.admin import replay_forms
from core import ids, replay_preview, replays
from core.access.models import Role
from core.errors import ValidationFailed
from core.limiting.breaker import Breaker, BreakerState
from core.listing import dead_letters, labels
from core.models import ReplayAction, ReplayStatus
from core.states import State
from tests.api import make_organization, run, shown_organization
from tests.pages import Visitor, audited, signed_in
from tests.platform import Platform
from tests.seeds import Seeds


async def seeds_of(p: Platform, driver: Any, organization_id: UUID | None = None) -> Seeds:
    seeds = Seeds(p.database, driver)
    seeds.organization_id = organization_id or p.organization_id
    seeds.subscription_id = await seeds.subscription()
    return seeds


def field(page: str, name: str) -> str:
    """The value of a form's hidden field."""
    [found] = re.findall(rf'name="{name}" value="([^"]*)"', page)
    return html.unescape(found)


def text_of(page: str) -> str:
    """What people read, in one line."""
    body = re.sub(r"<[^>]*>", " ", page.partition("<main")[2].partition("</main>")[0])
    return re.sub(r"\s+", " ", html.unescape(body))


def form_of(page: str) -> dict[str, str]:
    names = ("replay_id", "organization", "selection", "action", "expected")
    return {name: field(page, name) for name in names} | {"rate_per_second": "10000"}


async def preview(visitor: Visitor, **chosen: str) -> str:
    """Of dead letters, unless another `status` is given."""
    page = await visitor.get(f"/replays/new?{urlencode({'status': 'dead', **chosen})}")
    assert page.status_code == 200, text_of(page.text)
    return page.text


async def jobs(p: Platform) -> list[Any]:
    return await p.sql("SELECT * FROM replays ORDER BY id")


def test_from_the_groups_to_a_job(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            assert "No dead letters" in (await ada.get("/dead-letters")).text
            seeds = await seeds_of(p, driver)
            other = await seeds_of(p, driver, await make_organization(p))
            disabled = await seeds.subscription("disabled")
            mine = [
                await seeds.delivery(State.DEAD, error_kind="status", status_code=503, error_message="It said 503")
                for _ in range(60)
            ]
            await seeds.delivery(State.DEAD, error_kind="timeout")
            await seeds.delivery(State.DEAD, subscription_id=disabled)
            for _ in range(2):
                await other.delivery(State.DEAD, error_kind="status")

            every = text_of((await ada.get("/dead-letters")).text)
            assert "64 dead letters in 4 groups" in every
            assert "Their server answered 503" in every
            assert "never tried" in every
            narrowed = text_of(
                (await ada.get(f"/dead-letters?organization={shown_organization(p.organization_id)}")).text
            )
            assert "62 dead letters in 3 groups" in narrowed
            assert "Nothing matches" in (await ada.get("/dead-letters?error=dns")).text
            assert (await ada.get("/dead-letters?error=boredom")).status_code == 400
            assert (await ada.get("/dead-letters?error=dns,timeout")).status_code == 400

            subscription = ids.show(ids.SUBSCRIPTION, seeds.subscription_id)
            path = f"/dead-letters/{subscription}/status"
            assert f'href="{path}"' in (await ada.get("/dead-letters")).text
            first = (await ada.get(path)).text
            assert "Replay all 60" in first
            [row] = await p.sql("SELECT url FROM subscriptions WHERE id = $1", seeds.subscription_id)
            label = labels.of_url(row["url"])
            assert "/" in label, "of several at one host, each is told apart"
            assert f"<title>Dead letters of {label} " in first
            assert f'<a href="{path}">{label}</a>' in (await ada.get("/dead-letters")).text
            assert first.count("data-row=") == 50
            [older] = re.findall(r'href="([^"]+)" rel="next"', first)
            assert (await ada.get(html.unescape(older))).text.count("data-row=") == 10
            assert "Nothing is left" in (await ada.get(f"/dead-letters/{subscription}/dns")).text
            for missing in (
                f"/dead-letters/{subscription}/boredom",
                f"/dead-letters/{ids.show('sub', ids.new_id())}/dns",
            ):
                assert (await ada.get(missing)).status_code == 404

            # All that match, not the visible page.
            [whole] = re.findall(r'href="(/replays/new\?[^"]+)">Replay all', first)
            page = await ada.get(html.unescape(whole))
            assert "Replay 60 deliveries?" in text_of(page.text)
            assert "60 will be sent again" in text_of(page.text)
            assert "confirm_count" not in page.text, "so few need not be typed"
            some = await preview(ada, select="1", status="dead", ids=",".join(ids.show("dlv", one) for one in mine[:3]))
            assert "Replay 3 deliveries?" in text_of(some)

            answer = await ada.post("/replays", **form_of(page.text))
            [job] = await jobs(p)
            assert answer.headers["location"] == f"/replays/{ids.show(ids.REPLAY, job['id'])}"
            assert (job["total"], job["action"], job["status"]) == (60, "replay", "queued")
            [user] = await p.sql("SELECT id FROM users WHERE email = 'ada@example.com'")
            who = ids.show(ids.USER, user["id"])
            assert [one[:3] for one in await audited(p, "replay.created")] == [
                ("replay.created", who, ids.show(ids.REPLAY, job["id"]))
            ]
            shown = text_of((await ada.get(answer.headers["location"])).text)
            assert "0 of 60 dealt with (0 %)" in shown
            assert "ada@example.com" in shown
            assert "Replay of 60" in text_of((await ada.get("/replays")).text)

    run(database_url, redis_url, check)


def test_a_form_that_is_sent_twice_makes_one_job(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with (
            p.database.driver() as driver,
            signed_in(p, "ada@example.com", Role.OPERATOR) as ada,
            signed_in(p, "eve@example.com", Role.OPERATOR) as eve,
        ):
            seeds = await seeds_of(p, driver)
            for _ in range(3):
                await seeds.delivery(State.DEAD)
            form = form_of(await preview(ada, organization=shown_organization(p.organization_id)))
            answers = await asyncio.gather(*(ada.post("/replays", **form) for _ in range(4)))
            assert {one.status_code for one in answers} == {303}
            assert len({one.headers["location"] for one in answers}) == 1
            await replays.tick(p.database)
            again = await ada.post("/replays", **form)  # a reload, when they are sent already
            assert again.headers["location"] == answers[0].headers["location"]
            assert len(await jobs(p)) == 1
            assert len(await audited(p, "replay.created")) == 1

            await eve.get("/account")
            stolen = await eve.post("/replays", **form)
            assert (stolen.status_code, "somebody else" in stolen.text) == (409, True)
            old = form | {
                "replay_id": ids.show(ids.REPLAY, ids.lowest_at(ids.time_of(ids.new_id()).replace(year=2020)))
            }
            late = await ada.post("/replays", **old)
            assert (late.status_code, "a day old" in late.text) == (409, True)
            assert len(await jobs(p)) == 1

    run(database_url, redis_url, check)


def test_many_are_typed_and_a_number_that_changed_stops_it(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            seeds = await seeds_of(p, driver)
            chosen = [await seeds.delivery(State.DEAD, error_kind="status") for _ in range(1_002)]
            whose = {"organization": shown_organization(p.organization_id), "action": "discard"}
            page = await preview(ada, **whose)
            assert "Discard 1,002 deliveries?" in text_of(page)
            form = form_of(page)
            for typed in ("", "1001", "a thousand"):
                answer = await ada.post("/replays", **form, confirm_count=typed)
                assert answer.status_code == 400
                assert "Type 1,002 to confirm" in text_of(answer.text)
            assert await jobs(p) == []

            await driver.execute(
                "UPDATE deliveries SET state = 'discarded', reason = 'requested' WHERE id = $1", chosen[0]
            )
            answer = await ada.post("/replays", **form, confirm_count="1,002")
            assert answer.status_code == 409
            assert "They were 1002 and are 1001 by now; nothing was done" in text_of(answer.text)
            assert "Discard 1,001 deliveries?" in text_of(answer.text)
            assert await jobs(p) == []
            answer = await ada.post("/replays", **form_of(answer.text), confirm_count="1001")
            assert answer.status_code == 303
            assert await replays.tick(p.database) == []
            [job] = await jobs(p)
            assert (job["action"], job["status"], job["succeeded"]) == ("discard", "completed", 1001)
            shown = await ada.get(answer.headers["location"])
            assert "Discarded 1,001" in text_of(shown.text)
            assert "data-live" not in shown.text, "it is over"
            assert "Nothing is chosen" in text_of(await preview(ada, **whose))

    run(database_url, redis_url, check)


def test_a_preview_says_what_will_not_happen(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            seeds = await seeds_of(p, driver)
            paused, disabled, deleted = [await seeds.subscription(one) for one in ("paused", "disabled", "deleted")]
            for subscription_id in (paused, disabled, deleted, seeds.subscription_id):
                await seeds.delivery(State.DEAD, subscription_id=subscription_id)
            await seeds.delivery(State.DEAD, redacted_at=ids.time_of(seeds.subscription_id))
            for state in (State.SENDING, State.DELIVERED, State.PENDING, State.DISCARDED):
                await seeds.delivery(state)
            now_ms = int(ids.time_of(ids.new_id()).timestamp() * 1000)
            opened = Breaker(BreakerState.OPEN, failures=5, opened_at_ms=now_ms, failed_at_ms=now_ms)
            await p.services.breakers.swap([(seeds.subscription_id, Breaker(), opened)])
            whose = shown_organization(p.organization_id)
            said = text_of(await preview(ada, organization=whose, status=""))
            for part in (
                "Replay 9 deliveries?",
                "5 will be sent again",
                "1 will be skipped: their subscription was deleted",
                "1 will be skipped: their subscription is disabled",
                "1 will be skipped: their event was redacted",
                "1 will be skipped: they are being sent at this moment",
                "1 of them still wait for an attempt. The replay takes its place",
                "1 of them were delivered already",
                "1 to example.com/hook will wait: the subscription is paused",
                "4 to example.com/hook will wait: its circuit breaker is open",
            ):
                assert part in said, part
            said = text_of(await preview(ada, organization=whose, status=",".join(State), action="discard"))
            assert "6 will be discarded" in said
            assert "1 will be skipped: they were delivered" in said
            assert "1 will be skipped: they are discarded already" in said

            # Another admin is at it.
            form = form_of(await preview(ada, organization=whose))
            answer = await ada.post("/replays", **form | {"rate_per_second": "1"})
            job = answer.headers["location"]
            said = await preview(ada, organization=whose)
            assert f'href="{job}"' in said
            assert "5 of these are already in the replay" in text_of(said)
            assert "that is about to start" in text_of(said)

            async def too_slow(*_: Any) -> None:
                raise ValidationFailed.of("filters", "They choose among more than can be looked at")

            monkeypatch.setattr(replay_preview, "_overlaps", too_slow)
            said = text_of(await preview(ada, organization=whose))
            assert "which of them another job holds already" in said
            assert "1 will be skipped: their event was redacted" in said

    run(database_url, redis_url, check)


def test_what_is_chosen_is_never_more_than_was_meant(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            seeds = await seeds_of(p, driver)
            mine = await seeds.delivery(State.DEAD)
            foreign = await (await seeds_of(p, driver, await make_organization(p))).delivery(State.DEAD)
            shown = [ids.show(ids.DELIVERY, one) for one in (mine, foreign)]
            whose = shown_organization(p.organization_id)
            for wrong, says in (
                ({"organization": whose, "colour": "red"}, "There is no filter colour here"),
                ({"organization": whose, "select": "1"}, "Nothing was selected"),
                ({"organization": whose, "status": "lost"}, "Must be among"),
                ({"organization": whose, "status_code": "20"}, "three digits"),
                ({"organization": whose, "ids": "dlv_1"}, "dlv"),
                ({"organization": whose, "outcome": "failed"}, "Belongs to replay_id"),
                ({"organization": "org_1"}, "org"),
                ({"status": "dead"}, "Choose whose deliveries"),
                ({}, "Choose whose deliveries"),
            ):
                page = await ada.get(f"/replays/new?{urlencode(wrong)}")
                assert page.status_code == 400, wrong
                assert says in text_of(page.text), wrong
                assert 'name="replay_id"' not in page.text, "no button"
            said = text_of(await preview(ada, ids=",".join(shown), select="1"))
            assert "Replay 1 delivery?" in said
            assert "1 of those you selected are left out" in said

            form = form_of(await preview(ada, organization=whose))
            for changed, status in (
                ({"selection": "[]"}, 400),
                ({"selection": "{"}, 400),
                ({"selection": '{"ids": 5}'}, 400),
                ({"selection": '{"colour": "red"}'}, 400),
                ({"organization": "org_1"}, 400),
                ({"expected": "many"}, 400),
                ({"expected": "7"}, 409),
                ({"replay_id": "rpl_1"}, 400),
                ({"rate_per_second": "0"}, 400),
                ({"rate_per_second": "quick"}, 400),
                ({"rate_per_second": "10001"}, 400),
            ):
                assert (await ada.post("/replays", **form | changed)).status_code == status, changed
            assert await jobs(p) == []

    run(database_url, redis_url, check)


def test_the_time_it_takes_follows_the_rate(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            seeds = await seeds_of(p, driver)
            for _ in range(101):
                await seeds.delivery(State.DEAD)
            page = await preview(ada, organization=shown_organization(p.organization_id))
            assert "That takes 3 s at least" in text_of(page)
            answer = await ada.post("/replays", **form_of(page) | {"rate_per_second": "1", "update": "1"})
            assert answer.status_code == 200
            assert "That takes 1 min 41 s at least" in text_of(answer.text)
            assert 'name="rate_per_second" value="1"' in answer.text
            assert await jobs(p) == []
            # Enter presses a form's first button: it is the one that somebody who typed the number means.
            first = re.findall(r"<button[^>]*>", page.partition('class="panel"')[2])[0]
            assert "update" not in first
            for rate, says in (("2", "51 s"), ("0", "from 1 to 10,000"), ("x", "from 1 to 10,000")):
                assert says in (await ada.get(f"/replays/time?total=101&rate_per_second={rate}")).text

    run(database_url, redis_url, check)


@pytest.mark.parametrize("status", ReplayStatus)
def test_a_job_is_steered_from_its_page(database_url: str, redis_url: str, status: ReplayStatus) -> None:
    async def check(p: Platform) -> None:
        async with (
            p.database.driver() as driver,
            signed_in(p, "ada@example.com", Role.OPERATOR) as ada,
            signed_in(p, "vera@example.com", Role.VIEWER) as vera,
        ):
            seeds = await seeds_of(p, driver)
            await seeds.delivery(State.DEAD)
            made = await ada.post(
                "/replays", **form_of(await preview(ada, organization=shown_organization(p.organization_id)))
            )
            path = made.headers["location"]
            for operation, (allowed, after) in replays.OPERATIONS.items():
                await p.sql("UPDATE replays SET status = $1", str(status))
                page = (await ada.get(path)).text
                assert (f'action="{path}/{operation}"' in page) == (status in allowed)
                assert (f'action="{path}/rate"' in page) == (status in replay_preview.UNFINISHED)
                answer = await ada.post(f"{path}/{operation}")
                [job] = await jobs(p)
                if status in allowed:
                    assert (answer.status_code, job["status"]) == (303, after)
                else:
                    assert (answer.status_code, job["status"]) == (409, status)
                    assert f"Can't {operation} a replay that is {status};" in text_of(answer.text)
            await p.sql("UPDATE replays SET status = $1", str(status))
            await ada.get(path)
            for rate in ("0", "x"):
                assert (await ada.post(f"{path}/rate", rate_per_second=rate)).status_code == 400
            answer = await ada.post(f"{path}/rate", rate_per_second="7")
            [job] = await jobs(p)
            if status in replay_preview.UNFINISHED:
                assert (answer.status_code, job["rate_per_second"]) == (303, 7)
                assert await audited(p, "replay.updated")
            else:
                assert (answer.status_code, job["rate_per_second"]) == (409, 10_000)
            seen = (await vera.get(path)).text
            assert "<form" not in seen.partition("<main")[2].partition("</main>")[0], (
                "a viewer is offered nothing that would be refused"
            )
            assert (await vera.post(f"{path}/pause")).status_code == 403

    run(database_url, redis_url, check)


def test_what_came_of_each_and_what_failed_again(database_url: str, redis_url: str) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            seeds = await seeds_of(p, driver)
            chosen = sorted([await seeds.delivery(State.DEAD, error_kind="status") for _ in range(120)])
            page = await preview(ada, organization=shown_organization(p.organization_id))
            made = await ada.post("/replays", **form_of(page), confirm_count="120")
            path = made.headers["location"]
            await replays.tick(p.database)
            for at, delivery_id in enumerate(chosen[:70]):
                outcome, state = ("failed", "dead") if at < 60 else ("succeeded", "delivered")
                await driver.execute(
                    "UPDATE replay_items SET outcome = $2 WHERE delivery_id = $1", delivery_id, outcome
                )
                await driver.execute(
                    "UPDATE deliveries SET state = $2, reason = $3, due_at = NULL WHERE id = $1",
                    delivery_id,
                    state,
                    "exhausted" if state == "dead" else None,
                )
            await driver.execute("UPDATE replays SET failed = 60, succeeded = 10, sent = 120")
            page = (await ada.get(path)).text
            assert "120 of 120 dealt with (100 %)" in text_of(page)
            assert "50 wait for their receivers" in text_of(page)
            assert page.count("data-row=") == 50
            failed = (await ada.get(f"{path}?outcome=failed")).text
            assert failed.count("data-row=") == 50
            [older] = re.findall(r'href="([^"]+)" rel="next"', failed)
            assert (await ada.get(html.unescape(older))).text.count("data-row=") == 10
            assert (await ada.get(f"{path}?outcome=lost")).status_code == 400
            [again] = re.findall(r'href="(/replays/new\?replay=[^"]+)"', page)
            said = await ada.get(html.unescape(again))
            assert "Replay 60 deliveries?" in text_of(said.text)
            second = await ada.post("/replays", **form_of(said.text))
            assert (await jobs(p))[1]["total"] == 60
            await replays.tick(p.database)
            assert "Nothing is chosen" in (await ada.get(html.unescape(again))).text, "they are sent by now"
            assert text_of((await ada.get("/replays")).text).count("Replay of") == 2
            assert "Nothing matches" in (await ada.get("/replays?action=discard")).text
            assert second.headers["location"] in (await ada.get("/replays?status=running")).text

            await driver.execute("DELETE FROM deliveries")  # as retention does
            assert "gone, with its day" in (await ada.get(path)).text

    run(database_url, redis_url, check)


def test_more_than_a_job_takes_go_in_steps(database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_preview, "MAX_SELECTION", 2)
    monkeypatch.setattr(replays, "MAX_SELECTION", 2)

    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.OPERATOR) as ada:
            seeds = await seeds_of(p, driver)
            for _ in range(5):
                await seeds.delivery(State.DEAD)
                await asyncio.sleep(0.002)  # so that each has a millisecond of its own
            page = await preview(ada, organization=shown_organization(p.organization_id))
            assert "One job takes 2 at most" in text_of(page)
            assert 'name="replay_id"' not in page
            [step] = re.findall(r'href="([^"]+)">begin with the oldest', page)
            answer = await ada.get(html.unescape(step))
            assert "Replay 2 deliveries?" in text_of(answer.text)

    run(database_url, redis_url, check)


def test_a_page_that_can_not_be_counted_says_so(
    database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(p: Platform) -> None:
        async with p.database.driver() as driver, signed_in(p, "ada@example.com", Role.VIEWER) as ada:
            seeds = await seeds_of(p, driver)
            for _ in range(3):
                await seeds.delivery(State.DEAD)
            monkeypatch.setattr(
                dead_letters, "_COUNTED", "SELECT pg_sleep(30), $1::uuid, $2::uuid, $3::text, $4::int, $5::int"
            )
            monkeypatch.setattr(dead_letters, "COUNT_TIMEOUT_MS", 20)
            monkeypatch.setattr(dead_letters, "MOST_COUNTED", 2)
            page = await ada.get("/dead-letters")
            assert page.status_code == 200
            assert "more dead letters than can be counted" in text_of(page.text)
            assert "more than 2" in text_of(page.text)

    run(database_url, redis_url, check)


def test_actions_have_their_words() -> None:
    assert set(replay_forms.WHY_SKIPPED) == set(replay_preview.SkipReason)
    assert set(replay_forms.STANDS) == set(replay_preview.UNFINISHED)
    assert set(ReplayAction) == {"replay", "discard"}
