"""The address policy, the URL rules and the custom headers, against a corpus of hostile input by class."""

from __future__ import annotations

import ipaddress

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

POLICY = EgressPolicy()
HTTP = EgressPolicy(allow_http=True)
LOCAL = EgressPolicy(allow=["127.0.0.0/8", "::1/128"], allow_http=True)

BLOCKED_ADDRESSES = {
    "this network": ["0.0.0.0", "0.1.2.3", "0.255.255.255"],
    "private": ["10.0.0.0", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255"],
    "shared": ["100.64.0.0", "100.100.100.200", "100.127.255.255"],
    "loopback": ["127.0.0.1", "127.1.2.3", "127.255.255.255", "::1"],
    "link-local": ["169.254.0.1", "169.254.169.254", "169.254.170.2", "fe80::1", "febf::1"],
    "protocols": ["192.0.0.0", "192.0.0.8", "192.0.0.170", "192.0.0.255", "2001::1", "2001:1ff:ffff::1"],
    "documentation": ["192.0.2.1", "198.51.100.255", "203.0.113.1", "2001:db8::1", "3fff:fff::1"],
    "sinks and relays": ["192.31.196.1", "192.52.193.1", "192.175.48.1", "192.88.99.1", "2620:4f:8000::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255"],
    "cloud": ["168.63.129.16", "fd00:ec2::254"],
    "6to4": ["2002::1", "2002:7f00:1::", "2002:c0a8:101::1"],
    "unspecified": ["::"],
    "mapped": [
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::ffff:100.64.0.1",
        "::ffff:0:0",
        "0:0:0:0:0:ffff:c0a8:1",
    ],
    "compatible": ["::127.0.0.1", "::10.0.0.1", "::8.8.8.8"],
    "translated": ["64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::1", "::ffff:0:127.0.0.1"],
    "unique local": ["fc00::1", "fdff:ffff::1"],
    "site-local": ["fec0::1", "feff::1"],
    "not allocated": ["100::1", "4000::1", "5f00::1", "8000::1", "1fff:ffff::1"],
    "scoped": ["fe80::1%eth0", "2606:4700::1111%1", "::1%lo", "8.8.8.8%eth0"],
    "no address": ["", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "1.2.3.4.5", " 8.8.8.8"],
}  # fmt: skip

ALLOWED_ADDRESSES = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0", "192.0.3.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15",
    "168.63.129.17", "2000::", "2001:200::1", "2001:db7::1", "2001:db9::1", "2003::1", "2606:4700::1111",
    "2620:4f:8001::1", "3ffe:ffff::1", "3fff:1000::1", "::ffff:8.8.8.8",
]  # fmt: skip


def flat(corpus: dict[str, list[str]]) -> list[object]:
    return [pytest.param(it, id=f"{kind}: {it!r}") for kind, group in corpus.items() for it in group]


@pytest.mark.parametrize("address", flat(BLOCKED_ADDRESSES))
def test_blocks(address: str) -> None:
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

FORBIDDEN_URLS: dict[str, list[str]] = {
    "Must be https": [
        "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "ws://example.com/",
        "unix:///run/docker.sock", "HTTP://example.com", "httpss://example.com",
    ],
    "Must be a complete URL": [
        "", "example.com", "//example.com/", "/hooks", "https:example.com", "https:/example.com", "://example.com",
        "javascript:alert(1)", "data:text/plain,x", "https", "1https://example.com",
    ],
    "Must name a host": ["https://", "https:///x", "https://:443/", "https://?x"],
    "credentials": [
        "https://user@example.com/", "https://user:pass@example.com/", "https://@example.com/",
        "https://example.com@127.0.0.1/", "https://example.com:443@10.0.0.1/", "https://a@b@example.com/",
    ],
    "fragment": ["https://example.com/#x", "https://example.com#@127.0.0.1/", "https://example.com/a#"],
    "spaces, control": [
        " https://example.com/", "https://example.com/ ", "https://exam ple.com/", "https://example.com/a b",
        "https://example.com/\r\nHost: evil", "https://example.com/\x00", "https://exam\tple.com/",
        "https://example.com/\x7f", "https://example.com/\u00a0", "https://example.com/\u2028", "https://exa\u200bmple.com/",
        "\ufeffhttps://example.com/", "https://example.com/\u202egnp", "https://example.com\n", "https://\x0bexample.com",
    ],
    "backslash": ["https://example.com\\@127.0.0.1/", "https:\\\\example.com", "https://example.com/a\\b"],
    "percent-encode others": [
        "https://example.com/é", "https://example.com/%", "https://example.com/%zz", "https://example.com/%4",
        "https://example.com/<script>", 'https://example.com/"', "https://example.com/{id}", "https://example.com/?q=|",
        "https://example.com/^", "https://example.com/`", "https://example.com/[x]",
    ],
    "percent-encoded": ["https://%6cocalhost/", "https://127.0.0.1%2f.example.com/", "https://ex%61mple.com/",
                        "https://[fe80::1%25eth0]/", "https://[fe80::1%eth0]/", "https://example.com%00.evil.com/"],
    "one host and at most one port": [
        "https://::1/", "https://2606:4700::1111/", "https://[::1/", "https://::1]/", "https://[::1]x/",
        "https://x[::1]/", "https://[[::1]]/", "https://example.com:80:443/", "https://[::1][::2]/",
    ],
    "port must be": [
        "https://example.com:/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:-1/",
        "https://example.com:+443/", "https://example.com:0443/", "https://example.com:4_43/", "https://example.com:４４３/",
        "https://example.com:99999999999/", "https://example.com:x/", "https://[2606:4700::1]:/",
    ],
    "is not called: use 443": [
        "https://example.com:22/", "https://example.com:25/", "https://example.com:1/", "https://example.com:1023/",
        "https://example.com:8/", "https://example.com:81/",
    ],
    "internal service": ["https://example.com:6379/", "https://example.com:5432/", "https://example.com:2375/",
                         "https://example.com:9200/", "https://example.com:11211/", "https://example.com:10250/"],
    "A numeric host": [
        "https://127.1/", "https://127.0.1/", "https://0x7f.1/", "https://0x7f000001/", "https://2130706433/",
        "https://0177.0.0.1/", "https://127.0.0.01/", "https://127.0.0.256/", "https://1.2.3.4.5/", "https://0/",
        "https://127.0.0.1./", "https://127.0.0.0x1/", "https://0X7F.0.0.1/", "https://example.1/", "https://example.0x/",
        "https://4294967295/", "https://017700000001/", "https://00000010.0.0.1/", "https://1..1/", "https://.1/",
    ],
    "plain full stops": [
        "https://127。0。0。1/", "https://127．0．0．1/", "https://127｡0｡0｡1/", "https://example。com/", "https://localhost。/",
    ],
    "is not called": [
        "https://127.0.0.1/", "https://10.0.0.1/", "https://169.254.169.254/latest/meta-data/", "https://[::1]/",
        "https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[64:ff9b::7f00:1]/",
        "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[::127.0.0.1]/", "https://[2002:7f00:1::]/",
        "https://0.0.0.0/", "https://255.255.255.255/", "https://[0:0:0:0:0:ffff:0a00:0001]:8443/", "https://168.63.129.16/",
    ],
    "Write the IPv4 address": ["https://[::ffff:8.8.8.8]/"],
    "Brackets must hold": [
        "https://[]/", "https://[example.com]/", "https://[v1.x]/", "https://[1:2]/", "https://[::g]/",
        "https://[8.8.8.8]/", "https://[8.8.8.8]:443/",
    ],
    "internal name": [
        "https://localhost/", "https://LOCALHOST/", "https://a.localhost/", "https://printer.local/", "https://db.internal/",
        "https://metadata.google.internal/", "https://METADATA.google.INTERNAL/", "https://router.home.arpa/",
        "https://localhost.localdomain/", "https://x.LOCAL:8443/",
    ],
    "not a single word": ["https://redis/", "https://db/", "https://postgres:8443/", "https://xn--bcher-kva/"],
    "full stop; leave it out": ["https://example.com./", "https://localhost./", "https://example.com../"],
    "empty parts": ["https://example..com/", "https://.example.com/", "https://a...b.com/"],
    "no international name": [
        "https://ⓛocalhost/", "https://ⓔxample.com/", "https://ｅｘａｍｐｌｅ.com/", "https://１２７.com/", "https://☃.example.com/",
        "https://xn--/", "https://xn--a.example.com/", "https://xn--0.example.com/", "https://BÜCHER.example.com/",
        "https://\u0301a.example.com/", "https://exa\u00admple.com/",
        "https://xn--exmple-.com/", "https://\u2488.example.com/",
    ],
    "letters, digits and inner hyphens": [
        "https://-a.example.com/", "https://a-.example.com/", "https://a_b.example.com/", "https://a!b.example.com/",
        "https://" + "a" * 64 + ".example.com/", "https://a,b.example.com/", "https://*.example.com/", "https://a;b.com/",
        "https://$(id).example.com/", "https://a'b.example.com/",
    ],
    "at most 253": ["https://" + ".".join(["a" * 60] * 5) + "/"],
    "at most 2048": ["https://example.com/" + "a" * 2048],
}  # fmt: skip


@pytest.mark.parametrize(
    ("url", "fault"),
    [pytest.param(url, fault, id=ascii(url[:60])) for fault, urls in FORBIDDEN_URLS.items() for url in urls],
)
def test_refuses(url: str, fault: str) -> None:
    with pytest.raises(ForbiddenUrl) as caught:
        POLICY.check_url(url)
    assert fault in caught.value.fault
    assert caught.value.details == {"url": [caught.value.fault]}


def test_the_corpus_is_no_smaller_than_it_was() -> None:
    assert sum(map(len, FORBIDDEN_URLS.values())) >= 150
    assert sum(map(len, BLOCKED_ADDRESSES.values())) >= 70


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


@given(st.text(max_size=60).map(lambda it: "https://" + it) | st.text(max_size=60))
def test_any_text_is_refused_or_read_into_plain_parts(text: str) -> None:
    try:
        target = LOCAL.check_url(text)
    except ForbiddenUrl:
        return
    assert target.url.isascii()
    assert target.raw_path.startswith("/")
    assert not set(target.url) & set(" \t\r\n\\#@\0") - {"@"}
    assert "@" not in target.origin


HOSTILE = st.sampled_from(
    [*"/\\@#?:%[].。．\x00\r\n\t ", "127.0.0.1", "localhost", "%2f", "::1", "0x7f", "\u200b", "ⓐ"]
)


@given(st.lists(HOSTILE | st.sampled_from(["a", "example.com", "https://", "443"]), max_size=12).map("".join))
def test_no_mixture_of_separators_reaches_an_internal_host(rest: str) -> None:
    try:
        target = HTTP.check_url("http://" + rest)
    except ForbiddenUrl:
        return
    assert target.host not in ("localhost", "127.0.0.1", "::1")
    assert all(label.isascii() and label for label in target.host.split("."))


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


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=5))
def test_what_passes_can_be_written_on_one_line_each(headers: dict[str, str]) -> None:
    try:
        passed = validate_headers(headers)
    except ValidationFailed:
        return
    head = "".join(f"{name}: {value}\r\n" for name, value in passed.items())
    assert head.isascii()
    assert head.count("\n") == head.count("\r") == len(passed)
