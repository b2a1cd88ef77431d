"""The address policy, the URL rules and the custom headers, against a corpus of hostile input by class."""

from __future__ import annotations

import ipaddress
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.egress import (
    DENIED_IPV4,
    DENIED_IPV6,
    INTERNAL_PORTS,
    MAX_CUSTOM_HEADERS,
    MAX_HEADER_VALUE_BYTES,
    BlockedAddress,
    EgressPolicy,
    validate_headers,
)
from core.errors import ForbiddenUrl, ValidationFailed
from tests import hostile

POLICY = EgressPolicy()
HTTP = EgressPolicy(allow_http=True)
LOCAL = EgressPolicy(allow=["127.0.0.0/8", "::1/128"], allow_http=True)

ALLOWED_ADDRESSES = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15",
    "168.63.129.17", "2000::", "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", "2606:4700::1111",
    "2620:4f:8001::1", "3ffe:ffff::1", "3fff:1000::1", "::ffff:8.8.8.8",
]  # fmt: skip


@pytest.mark.parametrize("kind", [*hostile.ADDRESSES, *hostile.NO_ADDRESSES])
def test_blocks(kind: str) -> None:
    for address in (hostile.ADDRESSES | hostile.NO_ADDRESSES)[kind]:
        with pytest.raises(BlockedAddress) as caught:
            POLICY.check_address(address)
        assert address.split("%")[0][:10].strip() in caught.value.message or ":" in address


@pytest.mark.parametrize("address", ALLOWED_ADDRESSES)
def test_allows(address: str) -> None:
    POLICY.check_address(address)
    POLICY.check_address(ipaddress.ip_address(address))


@pytest.mark.parametrize("cidr", [*DENIED_IPV4, *DENIED_IPV6])
def test_blocks_both_ends_of_each_network(cidr: str) -> None:
    network = ipaddress.ip_network(cidr)
    for address in (network[0], network[-1]):
        with pytest.raises(BlockedAddress):
            POLICY.check_address(address)


def test_the_tables_are_those_that_were_asked_for() -> None:
    asked = (
        "0/8 10/8 100.64/10 127/8 169.254/16 172.16/12 192.0.0/24 192.0.2/24 192.31.196/24 192.52.193/24 192.88.99/24"
        " 192.168/16 192.175.48/24 198.18/15 198.51.100/24 203.0.113/24 224/4 240/4 168.63.129.16/32"
    )

    def padded(short: str) -> str:
        address, _, bits = short.partition("/")
        return ".".join((address.split(".") + ["0"] * 3)[:4]) + "/" + bits

    assert set(DENIED_IPV4) == {padded(it) for it in asked.split()}
    assert set(DENIED_IPV6) == {"2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20"}


def _denied_by_definition(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv4Address):
        return any(address in ipaddress.ip_network(it) for it in DENIED_IPV4)
    outside = address not in ipaddress.ip_network("2000::/3")
    return outside or any(address in ipaddress.ip_network(it) for it in DENIED_IPV6)


ANY_ADDRESS = st.one_of(
    st.ip_addresses(v=4),
    st.ip_addresses(v=6),
    st.integers(0, 2**32 - 1).map(lambda it: ipaddress.IPv6Address((0xFFFF << 32) | it)),
    st.integers(0x2000 << 112, (0x4000 << 112) - 1).map(ipaddress.IPv6Address),
)


@given(ANY_ADDRESS)
def test_every_address_is_judged_as_the_tables_read(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    for form in (address, str(address), address.exploded):
        try:
            POLICY.check_address(form)
            blocked = False
        except BlockedAddress:
            blocked = True
        assert blocked == _denied_by_definition(address)


def test_operator_deny_beats_allow_beats_the_table() -> None:
    policy = EgressPolicy(allow=["10.0.0.0/8", "fd00::/8"], deny=["10.1.0.0/16", "8.8.8.0/24", "2606:4700::/32"])
    for allowed in ("10.0.0.1", "10.2.0.1", "::ffff:10.2.0.1", "fd00::1", "8.8.4.4"):
        policy.check_address(allowed)
    for denied in ("10.1.0.1", "::ffff:10.1.0.1", "8.8.8.8", "2606:4700::1111", "127.0.0.1", "192.168.0.1"):
        with pytest.raises(BlockedAddress):
            policy.check_address(denied)


def test_a_translating_prefix_that_is_allowed_leads_nowhere_that_ipv4_would_not() -> None:
    policy = EgressPolicy(allow=["64:ff9b::/96", "10.1.0.0/16"], deny=["9.9.9.9/32"])
    for allowed in ("64:ff9b::8.8.8.8", "64:ff9b::10.1.2.3"):
        policy.check_address(allowed)
    for denied in (
        "64:ff9b::169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::10.2.0.1",
        "64:ff9b::9.9.9.9",
        "64:ff9b:1::1",
    ):
        with pytest.raises(BlockedAddress):
            policy.check_address(denied)


def test_overlapping_settings_join() -> None:
    policy = EgressPolicy(allow=["10.1.0.0/16", "10.0.0.0/8", "10.255.0.0/16", "10.0.0.0/8"])
    for allowed in ("10.0.0.0", "10.1.2.3", "10.200.0.1", "10.255.255.255"):
        policy.check_address(allowed)
    with pytest.raises(BlockedAddress):
        policy.check_address("127.0.0.1")


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "10/8/8", "localhost", "", "::ffff:10.0.0.0/104"])
def test_a_cidr_that_is_none_is_named(cidr: str) -> None:
    for setting in ("allow", "deny"):
        with pytest.raises(ValueError, match="egress " + setting):
            EgressPolicy(**{setting: [cidr]})


# --- URLs ---


@pytest.mark.parametrize("kind", hostile.URLS)
def test_refuses(kind: str) -> None:
    for url, fault in [(url, fault) for of, url, fault in hostile.urls() if of == kind]:
        with pytest.raises(ForbiddenUrl) as caught:
            POLICY.check_url(url)
        assert fault in caught.value.fault, ascii(url)
        assert caught.value.details == {"url": [caught.value.fault]}
        if kind != "schemes" and len(url) < 2048:
            with pytest.raises(ForbiddenUrl) as caught:
                HTTP.check_url(url.replace("https:", "http:"))
            assert fault in caught.value.fault, ascii(url)


def test_the_corpus_is_no_smaller_than_it_was() -> None:
    urls = [url for _, url, _ in hostile.urls()]
    assert len(urls) == len(set(urls)) >= 440
    assert min(Counter(kind for kind, _, _ in hostile.urls()).values()) >= 10
    assert sum(map(len, hostile.ADDRESSES.values())) >= 70


def test_names_of_inner_hosts_are_nothing_that_a_url_could_be_refused_for() -> None:
    """So their addresses must be: tests/integration/test_resolving.py."""
    for name, address in hostile.INNER_NAMES.items():
        assert POLICY.check_url(f"https://{name}/").host == name
        with pytest.raises(BlockedAddress):
            POLICY.check_address(address)


ALLOWED_URLS = {
    # as given: host, port, raw_path, Host header
    "https://example.com": ("example.com", 443, "/", "example.com"),
    "https://example.com/": ("example.com", 443, "/", "example.com"),
    "HTTPS://Example.COM/Path": ("example.com", 443, "/Path", "example.com"),
    "https://example.com:443/a": ("example.com", 443, "/a", "example.com"),
    "https://example.com:80/": ("example.com", 80, "/", "example.com:80"),
    "https://example.com:8443/a/b?c=d&e": ("example.com", 8443, "/a/b?c=d&e", "example.com:8443"),
    "https://example.com?x=1": ("example.com", 443, "/?x=1", "example.com"),
    "https://example.com/?": ("example.com", 443, "/?", "example.com"),
    "https://example.com/a//b/../c;d=e:f@g": ("example.com", 443, "/a//b/../c;d=e:f@g", "example.com"),
    "https://example.com/%2e%2E/%00?u=http://10.0.0.1/": (
        "example.com", 443, "/%2e%2E/%00?u=http://10.0.0.1/", "example.com",
    ),
    "https://bücher.example.com/": ("xn--bcher-kva.example.com", 443, "/", "xn--bcher-kva.example.com"),
    "https://Bücher.Example.com/": ("xn--bcher-kva.example.com", 443, "/", "xn--bcher-kva.example.com"),
    "https://straße.example.com/": ("xn--strae-oqa.example.com", 443, "/", "xn--strae-oqa.example.com"),
    "https://xn--bcher-kva.example.com/": ("xn--bcher-kva.example.com", 443, "/", "xn--bcher-kva.example.com"),
    "https://日本語.jp/": ("xn--wgv71a119e.jp", 443, "/", "xn--wgv71a119e.jp"),
    "https://r3---sn-4g5e.example.com/": ("r3---sn-4g5e.example.com", 443, "/", "r3---sn-4g5e.example.com"),
    "https://1.2.3.example.com/": ("1.2.3.example.com", 443, "/", "1.2.3.example.com"),
    "https://8.8.8.8/": ("8.8.8.8", 443, "/", "8.8.8.8"),
    "https://8.8.8.8:9443/": ("8.8.8.8", 9443, "/", "8.8.8.8:9443"),
    "https://[2606:4700::1111]/": ("2606:4700::1111", 443, "/", "[2606:4700::1111]"),
    "https://[2606:4700:0:0::1111]:8443/": ("2606:4700::1111", 8443, "/", "[2606:4700::1111]:8443"),
    "https://localhost.example.com/": ("localhost.example.com", 443, "/", "localhost.example.com"),
    "https://internal.example.com/": ("internal.example.com", 443, "/", "internal.example.com"),
    "https://notlocal.example.mylocal/": ("notlocal.example.mylocal", 443, "/", "notlocal.example.mylocal"),
}  # fmt: skip


@pytest.mark.parametrize("url", ALLOWED_URLS)
def test_accepts(url: str) -> None:
    target = POLICY.check_url(url)
    host, port, raw_path, header = ALLOWED_URLS[url]
    assert (target.host, target.port, target.raw_path, target.host_header) == (host, port, raw_path, header)
    assert target.scheme == "https"
    assert target.origin == "https://" + header
    assert POLICY.check_url(target.url) == target  # its canonical spelling is read the same


def test_http_only_where_the_operator_says_so() -> None:
    target = HTTP.check_url("http://example.com/x")
    assert (target.scheme, target.port, target.host_header) == ("http", 80, "example.com")
    assert HTTP.check_url("http://example.com:443/x").host_header == "example.com:443"
    with pytest.raises(ForbiddenUrl, match="Request validation failed"):
        HTTP.check_url("ftp://example.com/")


def test_loopback_where_the_operator_allows_it() -> None:
    assert LOCAL.check_url("http://127.0.0.1:8080/x").origin == "http://127.0.0.1:8080"
    assert LOCAL.check_url("http://[::1]:8080/x").host == "::1"
    for still in ("http://127.1:8080/", "http://localhost:8080/", "http://10.0.0.1/", "http://2130706433/"):
        with pytest.raises(ForbiddenUrl):
            LOCAL.check_url(still)


def test_ports() -> None:
    for port in (80, 443, 1024, 8080, 8443, 65535):
        assert POLICY.check_url(f"https://example.com:{port}/").port == port
    for port in (*INTERNAL_PORTS, 1, 79, 81, 442, 444, 1023):
        with pytest.raises(ForbiddenUrl):
            POLICY.check_url(f"https://example.com:{port}/")
    assert max(INTERNAL_PORTS) < 32768  # ephemeral ports of test receivers start there


def test_every_port_that_browsers_block_is_refused() -> None:
    # WHATWG Fetch, section 2.9, those from 1024 up; the others are refused for being below it.
    bad = {
        1719,
        1720,
        1723,
        2049,
        3659,
        4045,
        4190,
        5060,
        5061,
        6000,
        6566,
        6665,
        6666,
        6667,
        6668,
        6669,
        6679,
        6697,
        10080,
    }
    assert bad <= INTERNAL_PORTS


# --- headers ---


def test_custom_headers_pass_as_given() -> None:
    given_ = {"Authorization": "Bearer abc", "X-Api-Key": "k", "x-empty": "", "X-Tabs": "a\tb c"}
    assert validate_headers(given_) == given_
    assert list(validate_headers(given_)) == list(given_)
    assert validate_headers({}) == {}


@pytest.mark.parametrize(
    "name",
    [
        "Host", "host", "Content-Length", "Transfer-Encoding", "Connection", "Upgrade", "Expect", "TE", "Trailer",
        "Cookie", "Keep-Alive", "Proxy-Authorization", "proxy-connection", "Proxy-Anything", "webhook-id",
        "Webhook-Signature", "webhook-anything", "X-Webhook-Signature", "X-Hub-Signature-256", "Stripe-Signature",
        "X-Shopify-Hmac-Sha256", "X-Slack-Signature", "X-Slack-Request-Timestamp", "Signature", "Signature-Input",
        "Content-Digest", "Content-Type", "User-Agent", "Accept-Encoding", "Content-Encoding",
        "", "a b", "a:b", "a\r\nb", "a\n", "é", "a\0", "(a)", '"a"', "a" * 129, "X-Å",
    ],
)  # fmt: skip
def test_refuses_the_header_name(name: str) -> None:
    with pytest.raises(ValidationFailed) as caught:
        validate_headers({name: "v", "X-Fine": "v"})
    assert list(caught.value.details) == [f"headers.{name[:128]}"]


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nX: y", "a\nb", "a\rb", "a\0b", "é", "a\x7fb", " a", "a ", "\ta", "\x1b[0m", 5, None,
        "a" * (MAX_HEADER_VALUE_BYTES + 1),
    ],
)  # fmt: skip
def test_refuses_the_header_value(value: object) -> None:
    with pytest.raises(ValidationFailed) as caught:
        validate_headers({"X-A": value})  # type: ignore[dict-item]
    assert list(caught.value.details) == ["headers.X-A"]


def test_refuses_twice_the_same_name_too_many_and_too_much() -> None:
    with pytest.raises(ValidationFailed) as caught:
        validate_headers({"X-A": "1", "x-a": "2"})
    assert "headers.x-a" in caught.value.details
    with pytest.raises(ValidationFailed) as caught:
        validate_headers({f"X-{n}": "" for n in range(MAX_CUSTOM_HEADERS + 1)})
    assert "headers" in caught.value.details
    with pytest.raises(ValidationFailed) as caught:
        validate_headers({"X-A": "a" * 4000, "X-B": "b" * 4000})
    assert "headers" in caught.value.details
    assert len(validate_headers({f"X-{n}": "" for n in range(MAX_CUSTOM_HEADERS)})) == MAX_CUSTOM_HEADERS
