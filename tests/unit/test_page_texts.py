"""What pages make of payloads, headers and answers: every byte accounted for, whatever stands in them."""

from __future__ import annotations

import html
import json
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admin import contents, curl, differences, json_text, shown
from core import ids, jsontext
from core.payloads import FORMATS, StoredEvent, render
from core.secrets.signing import Signer
from core.sent_bodies import find
from tests.receiver import Receiver

HOSTILE = "</pre><script>alert(1)</script>'\"\\ $(id) `id` $HOME !! \u202eevil\u202c \u200b\x7f\x9b \U000e0041 é 🐴"


def plain(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_what_cannot_be_seen_is_written_out_and_nothing_is_markup() -> None:
    assert shown.visible("a<b>\u202eb\r\n\x00") == (
        'a&lt;b&gt;<span class="odd">U+202E</span>b<span class="odd">U+000D</span>\n<span class="odd">U+0000</span>'
    )
    assert shown.in_json('"\u202e\U000e0041"') == (
        '&#34;<span class="odd">\\u202e</span><span class="odd">\\udb40\\udc41</span>&#34;'
    )
    assert "<" not in re.sub(r'<span class="odd">[^<]*</span>', "", shown.visible(HOSTILE))


def test_bytes_are_text_where_they_are_and_else_a_dump() -> None:
    whole = "ab\N{HORSE}".encode()
    assert [shown.text_of(whole[:n], cut=True) for n in range(3, 7)] == ["ab", "ab", "ab", "ab\N{HORSE}"]
    assert shown.text_of(whole[:4], cut=False) is None
    assert shown.text_of(b"\xffabc", cut=True) is None
    assert shown.hex_dump(b"\x00A<" + b"\xff" * 14) == (
        "0000  00 41 3c ff ff ff ff ff ff ff ff ff ff ff ff ff  .A<.............\n"
        "0010  ff                                               ."
    )
    assert len(shown.hex_dump(b"x" * 5_000).split("\n")) == shown.HEX_SHOWN // 16
    assert contents.of(b"").kind == "empty"
    binary = contents.of(b"\xff" * 600)
    assert (binary.kind, binary.left_out, binary.size) == ("binary", 600 - shown.HEX_SHOWN, 600)
    long = contents.of(b"x" * 70_000)
    assert (long.kind, long.left_out, len(long.text)) == ("text", 70_000 - contents.MAX_SHOWN, contents.MAX_SHOWN)
    deep = contents.of(b"[" * 4_096)
    assert deep.kind == "text", "so deep that laying it out would make megabytes of white space"
    short = contents.of(b'{"a": [1.10, 12345678901234567890123]}')
    assert (short.kind, plain(short.text)) == (
        "json",
        '{\n  "a": [\n    1.10,\n    12345678901234567890123\n  ]\n}',
    )
    assert short.raw == "{&#34;a&#34;: [1.10, 12345678901234567890123]}"
    exact = (b'{"a": "b"}', b'{"a": "\xe2\x80\xae"}', b"a\tb\n", b"a\r\n", b"\xff")
    assert [contents.of(one).is_exact for one in exact] == [True, False, True, False, False]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)


@given(VALUES)
def test_json_laid_out_is_the_same_json_on_lines(value: object) -> None:
    text = jsontext.dumps(value).decode()
    laid_out = json_text.pretty(text, 1_000_000)
    assert laid_out is not None
    assert re.sub(r"\n *", "", laid_out).replace('": ', '":') == text or '": ' in text
    assert json.loads(laid_out) == json.loads(text)
    assert json.loads(json_text.typeable(laid_out)) == json.loads(text)
    assert not shown.UNSEEN.search(json_text.typeable(laid_out))
    assert plain(json_text.coloured(laid_out)) == json_text.typeable(laid_out)


def test_json_in_colours() -> None:
    assert json_text.coloured('{"a": ["<b>", 1, true]}') == (
        '{<span class="json-name">&#34;a&#34;</span>: [<span class="json-string">&#34;&lt;b&gt;&#34;</span>, '
        '<span class="json-word">1</span>, <span class="json-word">true</span>]}'
    )
    assert json_text.pretty('{"a":{},"b":[]}', 100) == '{\n  "a": {},\n  "b": []\n}'
    assert json_text.pretty("[1,2,3]", 5) is None
    assert [json_text.is_json(text) for text in ("{}", "1", "{", "", "[" * 70 + "]" * 70, "\ud800")] == [
        *(True, True, False, False, False, False)
    ]


def test_differences_say_in_words_what_became_of_each_line() -> None:
    before = "\n".join(f"line {n}" for n in range(20))
    after = before.replace("line 10", "line ten").replace("\nline 19", "")
    found = differences.lines(before, after)
    assert found is not None
    assert [(one.kind, one.text) for one in found if one.kind != "same"] == [
        ("skipped", "7"),
        ("removed", "line 10"),
        ("added", "line ten"),
        ("skipped", "2"),
        ("removed", "line 19"),
    ]
    assert differences.lines(before, before) == []
    assert differences.lines("\n" * differences.MAX_LINES, "") is None


def test_lines_that_are_chosen_to_take_long_are_not_compared() -> None:
    """Each pair of lines that match stands alone, so that the rest is looked at anew two thousand times."""
    few = [f"line {n % 49}" for n in range(2_000)]
    before = [*few, *(f"old {n}" for n in range(2_000))]
    after = [one for n, line in enumerate(few) for one in (line, f"new {n}")]
    began = time.process_time()
    assert differences.lines("\n".join(before), "\n".join(after)) is None
    assert time.process_time() - began < 5, "it took half a minute"
    many = [f'"name {n % 200}": 1,' for n in range(4_000)]
    changed = [f"{line} " if n % 400 == 0 else line for n, line in enumerate(many)]
    found = differences.lines("\n".join(many), "\n".join(changed))
    assert found is not None
    assert [one.kind for one in found].count("added") == 10


def test_what_is_slow_to_draw_keeps_nobody_waiting() -> None:
    """Producers and receivers choose what pages show, and while one is made nobody else is served."""
    unseen = "\u200b" * contents.MAX_SHOWN
    a_list = f"[{','.join('1' * 300_000)}]"
    began = time.process_time()
    shown_text = contents.of(unseen.encode())
    assert shown_text.text.count("U+200B") == contents.MAX_SHOWN
    assert json_text.typeable(unseen) == "\\u200b" * contents.MAX_SHOWN
    assert json_text.pretty(a_list, 10_000_000) is None
    assert time.process_time() - began < 2, "it took six seconds"


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_a_word_of_the_shell_is_one_word(text: str) -> None:
    quoted = curl.quote(text)
    assert not shown.UNSEEN.search(quoted)
    assert "\n" not in quoted
    if not quoted.startswith("$'"):
        run = subprocess.run(["/bin/sh", "-c", f"printf %s {quoted}"], capture_output=True, check=True)
        assert run.stdout == text.encode()


def test_the_command_sends_the_same_request_byte_for_byte(tmp_path: Path) -> None:
    headers = [
        *[("content-type", "application/json"), ("user-agent", "Hookwright/0.1 (webhook delivery)")],
        *[("X-Hostile", "'\"\\ $(id) `id` !! ${HOME} @x ; & | > y"), ("X-Empty", ""), ("X-Masked", "••••")],
        *[("webhook-id", "evt_1"), ("webhook-signature", "v1,abc/+= v1,def")],
    ]
    with Receiver() as receiver:
        for body in (
            jsontext.dumps({"a": HOSTILE, "b": "@file", "c": "%41\\n\\u0041"}),
            b"@{}",
            jsontext.dumps({"long": "x" * curl.MAX_INLINE_BYTES + HOSTILE}),
            jsontext.dumps({"longer": "x" * 1_100_000}),
        ):
            (tmp_path / "body.json").write_bytes(body)
            url = receiver.url("/status/200?x=%41&y=[a,b]{c}&z='*~")
            command = curl.command(url.replace("/status", "/a/../status"), headers, body, "body.json")
            assert not shown.UNSEEN.search(command)
            run = subprocess.run(
                ["/bin/bash", "-c", f"{command} --silent --show-error --noproxy '*'"],
                cwd=tmp_path,
                capture_output=True,
                timeout=20,
                check=False,
            )
            assert run.returncode == 0, run.stderr
            [request] = receiver.requests[-1:]
            assert request.body == body
            assert request.path == "/a/../status/200?x=%41&y=[a,b]{c}&z='*~"
            sent = [(name.lower(), value) for name, value in request.headers]
            assert [one for one in sent if one[0] not in ("host", "content-length")] == [
                *((name.lower(), value.encode().decode("latin-1")) for name, value in headers),
                ("accept-encoding", "identity"),
            ]


EVENT = StoredEvent(
    ids.new_id(), ids.new_id(), "order.paid", datetime.now(UTC), b'{"event_id":"evt_x","data":{"total":1}}', 26
)


@pytest.mark.parametrize("sent_as", FORMATS)
@pytest.mark.parametrize("now", FORMATS)
def test_the_signature_tells_which_bytes_were_sent(sent_as: str, now: str) -> None:
    old, current = "whsec_" + "A" * 32, "a plain secret of 24 bytes or so"
    _, body = render(sent_as, EVENT)
    headers = dict(Signer("github", [old]).headers(EVENT.shown_id, 1_700_000_000, body))
    assert find(EVENT, headers, [current, old], now) == (body, sent_as, True)
    assert find(EVENT, headers, [current], now) == (render(now, EVENT)[1], now, False), "the secret is gone"
    assert find(EVENT, {}, [current, old], now).is_proven is False, "nothing was signed"
    assert find(EVENT, headers | {"webhook-timestamp": "soon"}, [old], now).is_proven is False
