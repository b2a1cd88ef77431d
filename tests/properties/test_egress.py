"""The URL and header validators on any input: whatever passes is read alike by every parser that could come after."""

from __future__ import annotations

from ipaddress import ip_address
from string import ascii_letters, digits
from urllib.parse import urlsplit

import httptools
import httpx
import yarl
from hypothesis import event, given, settings
from hypothesis import strategies as st

from core.egress import EgressPolicy, Target, validate_headers
from core.errors import ForbiddenUrl, ValidationFailed
from tests import hostile
from worker.transport import header_lines

HTTP = EgressPolicy(allow_http=True)
LOCAL = EgressPolicy(allow=["127.0.0.0/8", "::1/128"], allow_http=True)
DEFAULT_PORT = {"https": 443, "http": 80}

# --- URLs: any text, mutations of the corpus, mixtures of what parsers stumble over, and well-formed ones ---

CORPUS = st.sampled_from([url for _, url, _ in hostile.urls() if len(url) < 200])
ODD = st.sampled_from(
    [
        *"/\\@#?:%[].。．\x00\r\n\t &=;,+",
        "127.0.0.1",
        "localhost",
        "%2f",
        "::1",
        "0x7f",
        "\u200b",
        "ⓐ",
        "xn--",
        "ß",
        "ſ",
        "K",
    ]
)
MIXED = st.lists(ODD | st.sampled_from(["a", "example.com", "https://", "443"]), max_size=12).map("".join)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """One of the corpus with some places cut out, doubled or replaced."""
    url = draw(CORPUS)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(url)))
        end = min(len(url), start + draw(st.integers(0, 6)))
        url = url[:start] + draw(ODD | st.just(url[start:end] * 2) | st.just("")) + url[end:]
    return url


WORD = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
LETTERS = st.text(st.characters(categories=["Ll", "Lo"]), min_size=1, max_size=4)
KNOWN = st.sampled_from(["bücher", "日本語", "xn--bcher-kva", "straße", "example", "ελλάδα", "0x7f", "127"])
HOST = st.one_of(
    st.tuples(WORD | LETTERS | KNOWN, WORD | KNOWN, st.sampled_from(["com", "de", "example", "COM", "рф"])).map(
        ".".join
    ),
    st.ip_addresses(v=4).map(str),
    st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(lambda it: f"[{ip_address(it).exploded.upper()}]"),
    st.ip_addresses(v=6).map(lambda it: f"[{it}]"),
)
PORT = st.sampled_from(["", ":443", ":80", ":8443", ":65535"]) | st.integers(1024, 65_535).map(lambda it: f":{it}")
REST = st.text(ascii_letters + digits + "-._~!$&'()*+,;=:@/?", max_size=20).map(lambda it: "/" + it)
SCHEME = st.sampled_from(["https", "http", "HTTPS", "Http"])
SOUND = st.builds(
    lambda scheme, host, port, rest: f"{scheme}://{host}{port}{rest}",
    *(SCHEME, HOST, PORT, REST | st.sampled_from(["", "?x=1", "/%2e%2E/%00", "//a"])),
)
UNSOUND = st.one_of(
    mutated(), MIXED.map(lambda it: "http://" + it), MIXED, st.text(max_size=60).map(lambda it: "https://" + it)
)


@settings(max_examples=600)
@given(SOUND)
def test_what_passes_is_read_alike_by_every_parser(url: str) -> None:
    _same_for_all(url)


@settings(max_examples=1000)
@given(UNSOUND)
def test_so_is_what_passes_of_hostile_text(url: str) -> None:
    _same_for_all(url)


def _checked(url: str) -> Target | ForbiddenUrl:
    try:
        return LOCAL.check_url(url)
    except ForbiddenUrl as error:
        return error


def _same_for_all(url: str) -> None:
    target = _checked(url)
    if isinstance(target, ForbiddenUrl):
        event("refused")
        assert target.details == {"url": [target.fault]}
        assert target.fault
        return
    event("passes, as an address" if target.is_ip else "passes, as a name")
    assert LOCAL.check_url(target.url) == target  # the canonical spelling is its own
    assert target.url.isascii()
    assert target.url.isprintable()
    assert not set(target.url) & set(" \\#")
    assert "@" not in target.origin
    for text in (url, target.url):
        assert _by_httpx(text) == _by_yarl(text) == _wanted(target)
        if text.isascii():  # else it would leave the host as it is
            assert _by_urllib(text) == _wanted(target)
    assert target.url == f"{target.origin}{target.raw_path}"
    assert urlsplit(target.url).netloc == target.host_header


def _wanted(target: Target) -> tuple[str, str, int]:
    return target.scheme, target.host, target.port


def _by_urllib(text: str) -> tuple[str, str, int]:
    parts = urlsplit(text)
    return parts.scheme, _one_spelling(parts.hostname or ""), parts.port or DEFAULT_PORT[parts.scheme]


def _by_httpx(text: str) -> tuple[str, str, int]:
    url = httpx.URL(text)
    return url.scheme, _one_spelling(url.raw_host.decode()), url.port or DEFAULT_PORT[url.scheme]


def _by_yarl(text: str) -> tuple[str, str, int]:
    url = yarl.URL(text)
    return url.scheme, _one_spelling(url.raw_host or ""), url.port or 0


def _one_spelling(host: str) -> str:
    """Not every parser shortens an IPv6 address."""
    return str(ip_address(host)) if ":" in host else host


@settings(max_examples=500)
@given(MIXED | mutated().map(lambda it: it.partition("://")[2]) | HOST)
def test_no_mixture_reaches_an_internal_host(rest: str) -> None:
    try:
        target = HTTP.check_url("http://" + rest)
    except ForbiddenUrl:
        return
    event("passes")
    if target.is_ip:
        HTTP.check_address(target.host)
    else:
        assert "." in target.host
        assert not target.host.endswith((".localhost", ".local", ".internal"))
        assert not target.host.rpartition(".")[2].isdigit()
    assert all(label.isascii() and label for label in target.host.split("."))


# --- headers ---

NAME = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}", fullmatch=True)
VALUE = st.from_regex(r"([\x21-\x7e]([\x20-\x7e\t]{0,20}[\x21-\x7e])?)?", fullmatch=True)
ODD_TEXT = st.text(max_size=8) | st.lists(
    st.sampled_from(["a", "\r", "\n", "\r\n", "\t", " ", "\0", "\x0b", "\x85", ":", "é", "\u2028", "webhook-", "te"])
).map("".join)
HEADERS = st.dictionaries(NAME, VALUE, max_size=5) | st.dictionaries(NAME | ODD_TEXT, VALUE | ODD_TEXT, max_size=3)


@settings(max_examples=600)
@given(HEADERS)
def test_headers_that_pass_are_written_and_read_one_line_each(headers: dict[str, str]) -> None:
    try:
        passed = validate_headers(headers)
    except ValidationFailed:
        event("refused")
        return
    event(f"passes: {len(passed)}")
    lines = header_lines(passed.items())
    assert lines.count(b"\n") == lines.count(b"\r") == len(passed)
    read = _Read()
    httptools.HttpRequestParser(read).feed_data(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n" % lines)
    assert read.headers[1:] == [(name.encode(), value.encode()) for name, value in passed.items()]


class _Read:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
