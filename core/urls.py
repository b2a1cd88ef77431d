"""The URLs of databases, a proxy and identity providers, as operators write them, checked and put as our drivers want.

All raise ValueError that says what would be right and repeats nothing of the URL but the names of its parameters:
a URL holds a password, and one that can't be parsed may hold it anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

# Nothing in them to judge. Among them is what stands in for an embedded database: the supervisor judges that, and
# SQLAlchemy, which is not needed then, is the better part of its memory and of its start.
_PLAIN = re.compile(r"[A-Za-z0-9.-]+(/[A-Za-z0-9_-]*)?")

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SESSION_ATTRIBUTES = ("any", "primary", "read-write")
# What asyncpg takes as it stands. Of a service file or a password file, libpq's own variables may speak.
_KEPT = frozenset({"host", "port", "ssl", "target_session_attrs", "krbsrvname"})
_OURS = "leave it out, Hookwright sets its own"
_NOT_SPOKEN = "leave it out, the driver has no such option"
_INSTEAD: Mapping[str, str] = {
    **{name: f"set the variable PG{name.replace('_', '').upper()} instead" for name in (
        "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslnegotiation", "ssl_min_protocol_version",
        "ssl_max_protocol_version", "passfile", "service", "gsslib",
    )},
    **dict.fromkeys(("user", "username", "password"), "write it before the host, as user:password@host"),
    **dict.fromkeys(("dbname", "database"), "write it after the host, as host/name"),
    **dict.fromkeys(("connect_timeout", "application_name", "options", "timeout", "command_timeout"), _OURS),
    **dict.fromkeys(("channel_binding", "gssencmode", "pgbouncer", "sslpassword", "sslcompression"), _NOT_SPOKEN),
}  # fmt: skip

_PORT_WRONG = "the port must be a number from 1 to 65535; @ : / ? # and % in a password are written as %40 and so on"
_MANY_HOSTS = "several hosts are written ?host=one:5432&host=two:5432, with none before the name"


def postgresql(text: str) -> str:
    """The URL for SQLAlchemy's asyncpg dialect."""
    scheme, sep, rest = text.partition("://")
    if not sep or scheme not in {"postgresql", "postgres", "postgresql+asyncpg"}:
        raise ValueError("must be a PostgreSQL URL, as postgresql://user:password@host:port/name")
    if _PLAIN.fullmatch(rest):
        return f"postgresql+asyncpg://{rest}"

    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(f"postgresql+asyncpg://{rest}")
    except ArgumentError:
        raise ValueError("must be a PostgreSQL URL, as postgresql://user:password@host:port/name") from None
    except ValueError:
        raise ValueError(_PORT_WRONG) from None
    if url.port is not None:
        _check_port(str(url.port))
    if url.host is not None and ("," in url.host or "@" in url.host):
        raise ValueError(_MANY_HOSTS if "," in url.host else _PORT_WRONG)
    url = url.set(query=_query(url.query))
    try:
        url.get_dialect()().create_connect_args(url)  # its hosts and ports, several of which may be in the query
    except (ArgumentError, ValueError):
        raise ValueError(f"host or port in the query is not understood; {_MANY_HOSTS}") from None
    return url.render_as_string(hide_password=False)


def _query(given: Mapping[str, str | tuple[str, ...]]) -> dict[str, str | tuple[str, ...]]:
    """The parameters as asyncpg's `connect` takes them."""
    query: dict[str, str | tuple[str, ...]] = {}
    for written, value in given.items():
        name = "ssl" if written == "sslmode" else written
        if name not in _KEPT:
            right = _INSTEAD.get(name, f"it may have {', '.join(sorted(_KEPT - {'ssl'} | {'sslmode'}))}")
            raise ValueError(f"parameter {written!r} can't be used: {right}")
        if name in query or (isinstance(value, tuple) and name != "host"):
            raise ValueError(f"parameter {written!r} is given twice; write one")
        query[name] = value
    if query.get("ssl", "disable") not in SSL_MODES:
        raise ValueError(f"sslmode must be one of: {', '.join(SSL_MODES)}")
    if query.get("target_session_attrs", "any") not in SESSION_ATTRIBUTES:
        raise ValueError(f"target_session_attrs must be one of: {', '.join(SESSION_ATTRIBUTES)}")
    for port in str(query.get("port", "5432")).split(","):
        _check_port(port)
    return query


def redis(text: str) -> str:
    """The URL as it is."""
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("must start with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(_PORT_WRONG) from None
    if port is not None:
        _check_port(str(port))
    if "@" in parts.query or "@" in parts.fragment:
        raise ValueError(_PORT_WRONG)
    query = parse_qsl(parts.query, keep_blank_values=True)
    for name, _ in query:
        if name != "db":
            raise ValueError(f"parameter {name!r} can't be used: it may have db alone")
    number = next((value for _, value in query), None)
    if parts.scheme == "unix":
        if parts.path in {"", "/"}:
            raise ValueError("must name a socket, as unix:///path")
    elif number is None:
        number = parts.path.lstrip("/") or None
    if number is not None and not (number.isascii() and number.isdecimal()):
        raise ValueError("the database must be a number, as redis://host:6379/0")
    if parts.fragment:
        raise ValueError("must not have a #; in a password it is written as %23")
    return text


def proxy(text: str) -> str:
    """The URL as it is."""
    wrong = "must be the URL of an HTTP proxy, as http://user:password@host:3128, with its port and no path"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(_PORT_WRONG) from None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise ValueError(wrong)
    _check_port(str(port))
    # What passed for a path, a query or a fragment may be the rest of a password.
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in (parts.password or ""):
        raise ValueError(f"{wrong}; @ : / ? # and % in a password are written as %40 and so on")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(wrong)
    return text


def identity_provider(text: str) -> str:
    """A URL of an OpenID Connect provider, as it is: https, or on loopback http."""
    parts = urlsplit(text)
    on_loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and on_loopback)):
        raise ValueError("must be an https:// URL")
    if parts.username is not None or parts.fragment:
        raise ValueError("must have neither a user nor a #")
    return text


def without_secrets(text: str) -> str:
    """One of these URLs for people to read: without its password, or whatever stands in place of it."""
    scheme, _, rest = text.partition("://")
    scheme = scheme.removesuffix("+asyncpg")
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    credentials, at, hosts = rest[:end].rpartition("@")
    # A password may not have been written as it must be: what follows the last @ of all is beyond it.
    if "@" in rest[end:]:
        return f"{scheme}://{HIDDEN}"
    user, colon, _ = credentials.partition(":")
    # A user of PostgreSQL is a role; elsewhere what stands there may be a token.
    shown = (f"{user}:{HIDDEN}" if colon else user) if scheme == "postgresql" else HIDDEN if credentials else ""
    path, mark, query = rest[end:].partition("?")
    kept = "&".join(pair for pair in query.split("&") if pair.partition("=")[0] in _HARMLESS)
    return f"{scheme}://{shown}{at}{hosts}{path}{mark if kept else ''}{kept}"


HIDDEN = "••••"
_HARMLESS = _KEPT | {"db"}


def _check_port(text: str) -> None:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65_535):
        raise ValueError(_PORT_WRONG)
