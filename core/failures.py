"""The kinds of failure that one attempt to deliver can end in.

An attempt that brought a 2xx has none; every other has exactly one. The value is what the database, the API
and the pages hold, so a kind is never renamed.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorKind(StrEnum):
    """Why an attempt failed. The first group never reached the receiver's application."""

    DNS = "dns"  # the name has no address
    REFUSED = "refused"  # no connection: refused, unreachable
    BLOCKED_ADDRESS = "blocked_address"  # egress policy does not call this address or URL
    TLS = "tls"  # no trusted, sufficiently new TLS with this host name

    TIMEOUT = "timeout"  # the attempt's one deadline passed, in whatever phase
    RESET = "reset"  # the connection broke before the head of an answer was complete
    PROTOCOL = "protocol"  # what came back is no HTTP/1.1 answer
    STATUS = "status"  # an answer, and its status is not 2xx
    TOO_LARGE_HEADER = "too_large_header"  # the head of the answer exceeds its bounds


# No answer was heard. Of one receiver that is its own affair; of most at once, of the network on our side.
UNREACHED = frozenset({ErrorKind.DNS, ErrorKind.REFUSED, ErrorKind.TLS, ErrorKind.TIMEOUT, ErrorKind.RESET})
