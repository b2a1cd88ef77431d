"""Which addresses and URLs may be called, and which headers may be sent along.

Pure: nothing is resolved or dialled here. A webhook's URL is chosen by a stranger. What protects is
`EgressPolicy.check_address`, which the transport calls on the very address it dials; `EgressPolicy.check_url`
runs earlier, for a clear message, and its `Target` is all that the transport ever sees of the URL, so what
was checked and what is dialled can't be read differently by two parsers.

Python's `ipaddress.is_global` is no guard (it passes multicast, 192.88.99.1, 64:ff9b::/96, ::127.0.0.1 and
more, differently by version), hence the tables below.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import idna

from core.errors import ForbiddenUrl, HookwrightError, ValidationFailed

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class BlockedAddress(HookwrightError):
    """This address is never called"""


# --- addresses ----------------------------------------------------------------------------------------------

DENIED_IPV4: Mapping[str, str] = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "a private network",
    "100.64.0.0/10": "shared address space",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "a private network",
    "192.0.0.0/24": "reserved for protocols",
    "192.0.2.0/24": "reserved for documentation",
    "192.31.196.0/24": "an AS112 sink",
    "192.52.193.0/24": "reserved for multicast relays",
    "192.88.99.0/24": "a retired 6to4 relay",
    "192.168.0.0/16": "a private network",
    "192.175.48.0/24": "an AS112 sink",
    "198.18.0.0/15": "reserved for benchmarks",
    "198.51.100.0/24": "reserved for documentation",
    "203.0.113.0/24": "reserved for documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "168.63.129.16/32": "a cloud provider's internal service",
}

ALLOWED_IPV6 = "2000::/3"
DENIED_IPV6: Mapping[str, str] = {
    "2001::/23": "reserved for protocols",
    "2001:db8::/32": "reserved for documentation",
    "2002::/16": "a 6to4 address",
    "2620:4f:8000::/48": "an AS112 sink",
    "3fff::/20": "reserved for documentation",
}


class _Ranges:
    """Disjoint ranges of addresses of one IP version, each with a reason. One bisection answers."""

    def __init__(self, networks: Iterable[tuple[Network, str]]) -> None:
        # Networks nest or are disjoint: with the wider first, one inside the last kept adds nothing.
        self._first: list[int] = []
        self._last: list[int] = []
        self._reason: list[str] = []
        for network, reason in sorted(networks, key=lambda it: (int(it[0][0]), it[0].prefixlen)):
            if self._last and int(network[-1]) <= self._last[-1]:
                continue
            self._first.append(int(network[0]))
            self._last.append(int(network[-1]))
            self._reason.append(reason)

    def reason(self, number: int) -> str | None:
        """The reason of the range that holds `number`, or None."""
        at = bisect_right(self._first, number) - 1
        return self._reason[at] if at >= 0 and number <= self._last[at] else None


def _ranges(table: Mapping[str, str]) -> _Ranges:
    return _Ranges((ip_network(cidr), reason) for cidr, reason in table.items())


_DENIED = {4: _ranges(DENIED_IPV4), 6: _ranges(DENIED_IPV6)}
_ALLOWED_IPV6 = _ranges({ALLOWED_IPV6: "global unicast"})
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


def _built_in_fault(address: Address) -> str | None:
    if address.version == 6 and not _ALLOWED_IPV6.reason(int(address)):
        return "not a global unicast address"
    return _DENIED[address.version].reason(int(address))


def _operator_ranges(setting: str, cidrs: Iterable[str]) -> Mapping[int, _Ranges]:
    """The operator's CIDRs by IP version. Raises ValueError, naming the entry, where one is no CIDR."""
    networks: list[Network] = []
    for cidr in cidrs:
        try:
            network = ip_network(cidr)
        except ValueError as error:
            raise ValueError(f"{setting}: {cidr!r} is no CIDR such as 10.0.0.0/8: {error}") from None
        if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
            raise ValueError(f"{setting}: write {cidr!r} as IPv4: mapped addresses are unwrapped before the check")
        networks.append(network)
    return {version: _Ranges((it, setting) for it in networks if it.version == version) for version in (4, 6)}


# --- URLs ---------------------------------------------------------------------------------------------------

MAX_URL_CHARS = 2048
MAX_HOST_CHARS = 253  # RFC 1035: 255 bytes on the wire

# Ports from 1024 up of services that nobody means to send a webhook to and that act on what they read; among them
# all that browsers block (WHATWG Fetch, section 2.9). None lies above 32767, where test receivers get their
# ephemeral ports.
INTERNAL_PORTS = frozenset(
    {
        1080, 1099, 1433, 1521, 1719, 1720, 1723, 1883, 2049, 2181, 2375, 2376, 2377, 2379, 2380, 3128,
        3306, 3389, 3659, 4045, 4190, 4222, 4369, 4646, 5060, 5061, 5432, 5433, 5671, 5672, 5900, 5901,
        5984, 5985, 5986, 6000, 6379, 6380, 6443, 6566, 6660, 6665, 6666, 6667, 6668, 6669, 6679, 6697,
        7000, 7001, 7199, 7473, 7474, 7687, 8086, 8125, 8200, 8300, 8500, 9042, 9092, 9093, 9100, 9160,
        9200, 9300, 9418, 10000, 10080, 10248, 10249, 10250, 10255, 10256, 10257, 10259, 11211, 11434,
        15672, 16379, 25672, 26257, 26379, 27017, 27018, 27019, 28015,
    }
)  # fmt: skip

INTERNAL_SUFFIXES = (".local", ".internal", ".localhost", ".localdomain", ".home.arpa")

_NOT_IN_A_URL = re.compile(
    r"[\x00-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\uffff]"
)
_SPLIT = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>[/?][^#]*)?")
_REST = re.compile(  # RFC 3986: path-abempty [ "?" query ]
    r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]@]*\]|[^\[\]@:]*)(?::(?P<port>[^\[\]:]*))?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_UNICODE_DOTS = re.compile("[\u3002\uff0e\uff61\u2024\ufe52]")


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that passed, in the parts that a request is made of. Nobody parses the URL a second time."""

    scheme: str  # "https" or "http"
    host: str  # ASCII, lower case, no brackets
    is_ip: bool
    port: int
    raw_path: str  # path and query, as written; at least "/"
    host_header: str  # host in brackets where needed, and the port unless it is the scheme's own
    origin: str  # scheme://host_header

    @property
    def url(self) -> str:
        """The URL in its one canonical spelling."""
        return self.origin + self.raw_path


@dataclass(frozen=True)
class EgressPolicy:
    """What may be called: the operator's deny list beats the operator's allow list beats the tables above."""

    allow: Sequence[str] = ()
    deny: Sequence[str] = ()
    allow_http: bool = False
    denied_ports: frozenset[int] = INTERNAL_PORTS
    _fault: Callable[[str], str | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        allowed = _operator_ranges("egress allow", self.allow)
        denied = _operator_ranges("egress deny", self.deny)

        def fault(text: str) -> str | None:
            return _address_fault(text, allowed, denied)

        object.__setattr__(self, "allow", tuple(self.allow))
        object.__setattr__(self, "deny", tuple(self.deny))
        object.__setattr__(self, "_fault", lru_cache(maxsize=4096)(fault))

    def check_address(self, ip: str | Address) -> None:
        """Raises `BlockedAddress` unless `ip` may be dialled. 0.2 µs for an address that was seen before."""
        fault = self._fault(ip if isinstance(ip, str) else str(ip))
        if fault is not None:
            raise BlockedAddress(fault)

    def check_url(self, url: str) -> Target:
        """The parts of `url`. Raises `ForbiddenUrl`, saying what is wrong and what would be right."""
        return _check_url(self, url)


def _address_fault(text: str, allowed: Mapping[int, _Ranges], denied: Mapping[int, _Ranges]) -> str | None:
    """Why the address in `text` is not called, or None."""
    if "%" in text:
        return f"{text[:64]} is not called: an address bound to one network interface"
    try:
        address = ip_address(text)
    except ValueError:
        return f"{text[:64]!r} is not an IP address"
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    number = int(address)
    if denied[address.version].reason(number):
        return f"{address} is not called: denied by this installation's settings"
    if allowed[address.version].reason(number):
        # Who has IPv6 only allows this prefix for the sake of the Internet behind it, not of what is inside.
        behind = isinstance(address, IPv6Address) and address in _NAT64
        return _address_fault(str(IPv4Address(number & 0xFFFFFFFF)), allowed, denied) if behind else None
    reason = _built_in_fault(address)
    return reason and f"{address} is not called: {reason}"


def _check_url(policy: EgressPolicy, url: str) -> Target:
    if len(url) > MAX_URL_CHARS:
        raise ForbiddenUrl(f"Must be at most {MAX_URL_CHARS} characters, not {len(url)}")
    if _NOT_IN_A_URL.search(url):
        raise ForbiddenUrl("Must not contain spaces, control or invisible characters; percent-encode them")
    if "\\" in url:
        raise ForbiddenUrl("Must not contain a backslash; use / in paths, or %5C")
    if "#" in url:
        raise ForbiddenUrl("Must not have a fragment (#…): it is never sent; leave it out")
    match = _SPLIT.fullmatch(url)
    if match is None:
        raise ForbiddenUrl("Must be a complete URL, such as https://example.com/webhooks")
    scheme = _check_scheme(policy, match["scheme"])
    rest = match["rest"] or ""
    if _REST.fullmatch(rest) is None:
        raise ForbiddenUrl("Path and query must be plain URL characters; percent-encode others, % itself too")
    host_text, port = _split_authority(policy, scheme, match["authority"])
    host, is_ip = _check_host(policy, host_text)
    shown = f"[{host}]" if ":" in host else host
    header = shown if port == _DEFAULT_PORT[scheme] else f"{shown}:{port}"
    raw_path = rest if rest.startswith("/") else "/" + rest
    return Target(scheme, host, is_ip, port, raw_path, header, f"{scheme}://{header}")


_DEFAULT_PORT = {"https": 443, "http": 80}
_BRACKETS = "Brackets must hold an IPv6 address, such as [2606:4700::1111]"
_NUMERIC_HOST = "A numeric host must be four decimal numbers, such as 1.2.3.4, or IPv6 in brackets"


def _check_scheme(policy: EgressPolicy, text: str) -> str:
    scheme = text.lower()
    if scheme == "https" or (scheme == "http" and policy.allow_http):
        return scheme
    raise ForbiddenUrl("Must be https" + (" or http" if policy.allow_http else ""))


def _split_authority(policy: EgressPolicy, scheme: str, authority: str) -> tuple[str, int]:
    """The host as written and the port of `authority`."""
    if "@" in authority:
        raise ForbiddenUrl("Must not contain credentials (user:password@); send them in a custom header")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ForbiddenUrl("Must name one host and at most one port; an IPv6 address goes in brackets")
    if match["port"] is None:
        return match["host"], _DEFAULT_PORT[scheme]
    if _PORT.fullmatch(match["port"]) is None or int(match["port"]) > 65535:
        raise ForbiddenUrl("The port must be a number from 1 to 65535, or left out together with its colon")
    port = int(match["port"])
    if port < 1024 and port not in (80, 443):
        raise ForbiddenUrl(f"Port {port} is not called: use 443, 80, or one from 1024 up")
    if port in policy.denied_ports:
        raise ForbiddenUrl(f"Port {port} belongs to an internal service and is not called: use 443")
    return match["host"], port


def _check_host(policy: EgressPolicy, text: str) -> tuple[str, bool]:
    """The host to dial, and whether it is an address."""
    if not text:
        raise ForbiddenUrl("Must name a host, such as example.com")
    if "%" in text:
        raise ForbiddenUrl("The host must not be percent-encoded, nor bound to a network interface")
    if text.startswith("["):
        if ":" not in text:
            raise ForbiddenUrl(_BRACKETS)
        return _check_literal(policy, text[1:-1]), True
    if _UNICODE_DOTS.search(text):
        raise ForbiddenUrl("The host must be separated by plain full stops (.)")
    if _NUMERIC_LABEL.fullmatch(text.rstrip(".").rpartition(".")[2]):
        if _IPV4.fullmatch(text) is None:
            raise ForbiddenUrl(_NUMERIC_HOST)
        return _check_literal(policy, text), True
    return _check_name(text), False


def _check_literal(policy: EgressPolicy, text: str) -> str:
    if _IPV6.fullmatch(text) is None:
        raise ForbiddenUrl(_BRACKETS)
    try:
        address = ip_address(text)
    except ValueError:
        raise ForbiddenUrl(_BRACKETS) from None
    try:
        policy.check_address(address)
    except BlockedAddress as blocked:
        raise ForbiddenUrl(f"{blocked.message}; use a public address or a host name") from None
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        raise ForbiddenUrl(f"Write the IPv4 address itself: {address.ipv4_mapped}")
    return str(address)


def _check_name(text: str) -> str:
    """The host name in lower-case ASCII."""
    # Only ASCII is lowered: other characters must come in the one form that IDNA 2008 permits, without any
    # mapping (UTS 46 would turn ⓛocalhost into localhost).
    lowered = re.sub("[A-Z]+", lambda it: it[0].lower(), text)
    if lowered.endswith("."):
        raise ForbiddenUrl("The host must not end in a full stop; leave it out")
    labels = [_check_label(label) for label in lowered.split(".")]
    name = ".".join(labels)
    if len(name) > MAX_HOST_CHARS:
        raise ForbiddenUrl(f"The host must be at most {MAX_HOST_CHARS} characters")
    if name == "localhost" or f".{name}".endswith(INTERNAL_SUFFIXES):
        raise ForbiddenUrl("The host is an internal name; use one that is in the public DNS")
    if len(labels) < 2:
        raise ForbiddenUrl("The host must be a full name, such as example.com, not a single word")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise ForbiddenUrl(_NUMERIC_HOST)
    return name


def _check_label(label: str) -> str:
    """One label in ASCII; an `xn--` label is decoded and must encode to itself again."""
    if not label:
        raise ForbiddenUrl("The host must not have empty parts (two full stops together, or one at an end)")
    if not label.isascii() or label.startswith("xn--"):
        try:
            encoded = idna.encode(label, strict=True, uts46=False, std3_rules=True).decode()
        except (idna.IDNAError, UnicodeError):
            raise ForbiddenUrl(
                f"The host's part {label[:63]!r} is no international name: write it in lower case"
            ) from None
        label = encoded
    if _LABEL.fullmatch(label) is None:
        raise ForbiddenUrl(f"The host's part {label[:63]!r} must be at most 63 letters, digits and inner hyphens")
    return label


# --- headers ------------------------------------------------------------------------------------------------

MAX_CUSTOM_HEADERS = 20
MAX_HEADER_NAME_CHARS = 128
MAX_HEADER_VALUE_BYTES = 4096  # bearer tokens (JWT) often pass 1 KiB
MAX_CUSTOM_HEADERS_BYTES = 6144  # all together: common servers refuse a head of more than 8 KiB

RESERVED_HEADERS = frozenset(
    {
        # how the message is framed and routed
        "host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "te", "trailer",
        "keep-alive", "http2-settings", "cookie", "cookie2", "set-cookie",
        # what we set ourselves
        "content-type", "content-encoding", "accept-encoding", "user-agent",
        # signatures, of every scheme
        "x-webhook-signature", "x-hub-signature", "x-hub-signature-256", "stripe-signature",
        "x-shopify-hmac-sha256", "x-slack-signature", "x-slack-request-timestamp",
        "signature", "signature-input", "content-digest",
    }
)  # fmt: skip
RESERVED_PREFIXES = ("proxy-", "webhook-")

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2
_VALUE = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")


def validate_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """A subscription's custom headers, as given. Raises `ValidationFailed` with every fault, by header."""
    if len(headers) > MAX_CUSTOM_HEADERS:
        raise ValidationFailed.of("headers", f"At most {MAX_CUSTOM_HEADERS} headers, not {len(headers)}")
    faults: dict[str, list[str]] = {}
    seen: set[str] = set()
    size = 0
    for name, value in headers.items():
        found = _header_faults(name, value)
        if name.lower() in seen:
            found.append("Is given twice; names do not differ by case")
        seen.add(name.lower())
        size += len(name) + len(value) if isinstance(value, str) else 0
        if found:
            faults.setdefault(f"headers.{name[:MAX_HEADER_NAME_CHARS]}", []).extend(found)
    if size > MAX_CUSTOM_HEADERS_BYTES:
        faults["headers"] = [f"Must be at most {MAX_CUSTOM_HEADERS_BYTES} bytes together, not {size}"]
    if faults:
        raise ValidationFailed(details=faults)
    return dict(headers)


def _header_faults(name: str, value: object) -> list[str]:
    faults = []
    if _TOKEN.fullmatch(name) is None or len(name) > MAX_HEADER_NAME_CHARS:
        faults.append(f"The name must be 1 to {MAX_HEADER_NAME_CHARS} letters, digits or hyphens, such as X-Api-Key")
    if name.lower() in RESERVED_HEADERS or name.lower().startswith(RESERVED_PREFIXES):
        faults.append("Is set by the sender and can't be chosen; use another name")
    if not isinstance(value, str):
        faults.append("The value must be a string")
    elif len(value) > MAX_HEADER_VALUE_BYTES:
        faults.append(f"The value must be at most {MAX_HEADER_VALUE_BYTES} bytes, not {len(value)}")
    elif _VALUE.fullmatch(value) is None:
        faults.append("The value must be printable ASCII, without line breaks or spaces at its ends")
    return faults
