"""What can go wrong while sending, as one tree with one leaf: `SendError`, which holds the kind.

```
httpx.TransportError
└── SendError(kind, message, status)
```

`send_error_from` turns whatever aiohttp, ssl, the resolver or the system raised into a `SendError`, by the
tables below and never by the text of a message. A message is read by the tenant: it is short, and names
nothing of ours.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl

import aiohttp
import httpx
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EofStream

from core.egress import BlockedAddress
from core.errors import ForbiddenUrl
from core.failures import ErrorKind


class SendError(httpx.TransportError):
    """An attempt that brought no usable answer.

    `status` is set where the answer's head had come in before the attempt failed (a body that outlasts the
    deadline): it is in the message for people, and never taken for success.
    """

    def __init__(self, kind: ErrorKind, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.status = status


class HeadTooLarge(Exception):
    """The head of an answer passed its bounds."""


class NotHttp(Exception):
    """What came back is framed as HTTP, yet no answer."""


class DeniedSocket(PermissionError):
    """An address reached the making of a socket although egress policy denies it."""


class ProxyFailed(OSError):
    """The operator's egress proxy made no connection. The message says what happened and is safe to show."""


_Finding = tuple[ErrorKind, str]

_DNS: _Finding = (ErrorKind.DNS, "The host name could not be resolved")
_REFUSED: _Finding = (ErrorKind.REFUSED, "The connection was refused")
_UNREACHABLE: _Finding = (ErrorKind.REFUSED, "The address could not be reached")
_NO_CONNECTION: _Finding = (ErrorKind.REFUSED, "No connection could be made")
_EXHAUSTED: _Finding = (ErrorKind.REFUSED, "The sender had no free connection; not the receiver's fault")
_PROXY: _Finding = (ErrorKind.REFUSED, "The sender's proxy made no connection")
_BLOCKED: _Finding = (ErrorKind.BLOCKED_ADDRESS, "The address is not called")
_TLS: _Finding = (ErrorKind.TLS, "No secure connection could be made")
_TLS_CUT: _Finding = (ErrorKind.TLS, "The connection was closed during the TLS handshake")
_TIMEOUT: _Finding = (ErrorKind.TIMEOUT, "No complete answer in time")
_RESET: _Finding = (ErrorKind.RESET, "The connection was closed before an answer was complete")
_PROTOCOL: _Finding = (ErrorKind.PROTOCOL, "The answer is not valid HTTP/1.1")
_TOO_LARGE: _Finding = (ErrorKind.TOO_LARGE_HEADER, "The answer's headers are too large")

# Read from the top: the first class that an exception is an instance of decides. Several classes inherit from
# two sides (a timeout is an OSError, a certificate error is also a connector error), so order matters.
_BY_CLASS: tuple[tuple[type[BaseException], _Finding], ...] = (
    (BlockedAddress, _BLOCKED),
    (ForbiddenUrl, _BLOCKED),
    (DeniedSocket, _BLOCKED),
    (ProxyFailed, _PROXY),
    (HeadTooLarge, _TOO_LARGE),
    (LineTooLong, _TOO_LARGE),
    (NotHttp, _PROTOCOL),
    (HttpProcessingError, _PROTOCOL),
    (aiohttp.ClientConnectorDNSError, _DNS),
    (socket.gaierror, _DNS),
    (socket.herror, _DNS),
    (UnicodeError, _DNS),  # a name that the resolver's codec refuses
    (aiohttp.ClientSSLError, _TLS),
    (aiohttp.ServerFingerprintMismatch, _TLS),
    (ssl.SSLError, _TLS),
    (TimeoutError, _TIMEOUT),  # also asyncio's, and aiohttp's ServerTimeoutError
    (ConnectionRefusedError, _REFUSED),
    (ConnectionError, _RESET),  # reset, aborted, broken pipe
    (aiohttp.ServerConnectionError, _RESET),
    (aiohttp.ClientPayloadError, _RESET),
    (aiohttp.UploadAbortedError, _RESET),
    (aiohttp.ClientResponseError, _PROTOCOL),
    (aiohttp.InvalidURL, _BLOCKED),
    (aiohttp.RedirectClientError, _PROTOCOL),
    (aiohttp.NonHttpUrlClientError, _BLOCKED),
    (aiohttp.ClientConnectorError, _NO_CONNECTION),
    (aiohttp.ClientOSError, _RESET),
    (aiohttp.ClientConnectionError, _RESET),
    (EofStream, _RESET),
    (OSError, _NO_CONNECTION),
)

# For an OSError the number says more than the class.
_BY_ERRNO: dict[int, _Finding] = {
    errno.ECONNREFUSED: _REFUSED,
    errno.ECONNRESET: _RESET,
    errno.ECONNABORTED: _RESET,
    errno.EPIPE: _RESET,
    errno.ESHUTDOWN: _RESET,
    errno.ENOTCONN: _RESET,
    errno.ETIMEDOUT: _TIMEOUT,
    errno.EHOSTUNREACH: _UNREACHABLE,
    errno.EHOSTDOWN: _UNREACHABLE,
    errno.ENETUNREACH: _UNREACHABLE,
    errno.ENETDOWN: _UNREACHABLE,
    errno.ENETRESET: _RESET,
    errno.EACCES: _UNREACHABLE,  # a firewall of ours, by rejecting
    errno.EPERM: _UNREACHABLE,
    errno.EADDRNOTAVAIL: _EXHAUSTED,  # no local port left; also an IPv6 address where there is no IPv6
    errno.EMFILE: _EXHAUSTED,
    errno.ENFILE: _EXHAUSTED,
    errno.ENOBUFS: _EXHAUSTED,
    errno.ENOMEM: _EXHAUSTED,
}


def send_error_from(error: BaseException, *, dialling_tls: bool = False) -> SendError | None:
    """The `SendError` that `error` stands for, or None where `error` is a bug of ours, to be seen as such.

    Many servers refuse a TLS version or name by just closing: with `dialling_tls`, a break is a fault of TLS.
    """
    if isinstance(error, SendError):
        return error
    finding = _finding(error)
    if finding is None:
        return None
    if dialling_tls and finding is _RESET:
        finding = _TLS_CUT
    kind, message = finding
    if isinstance(error, BlockedAddress):
        message = error.message  # names the address, and why
    elif isinstance(error, ForbiddenUrl):
        message = error.fault
    elif finding is _PROXY:
        message = str(error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error)
    elif finding is _TLS:
        message = _tls_message(error)
    return SendError(kind, message)


def _finding(error: BaseException) -> _Finding | None:
    by_class = next((finding for cls, finding in _BY_CLASS if isinstance(error, cls)), None)
    if by_class not in (_NO_CONNECTION, _RESET):
        return by_class
    # Classes that only say "some OSError": the wrapped error, then its number, may say which.
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    if inner is not None and inner is not error and (known := _finding(inner)) is not None:
        return known
    return _BY_ERRNO.get(error.errno or 0, by_class) if isinstance(error, OSError) else by_class


def _tls_message(error: BaseException) -> str:
    """What is wrong with the certificate, where that is what is wrong: it is the receiver's and public."""
    cause: BaseException | None = error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    elif isinstance(error, aiohttp.ClientSSLError):
        cause = error.os_error
    # Both attributes exist only on errors that OpenSSL itself reported.
    if fault := getattr(cause, "verify_message", None):
        return f"The certificate is not accepted: {fault}"[:300]
    if reason := getattr(cause, "reason", None):
        return f"{_TLS[1]}: {str(reason).replace('_', ' ').lower()}"[:300]
    return _TLS[1]


def timed_out(phase: str, deadline_s: float, status: int | None = None) -> SendError:
    """The one deadline passed; `phase` says what was being waited for."""
    if status is not None:  # people wonder why a 200 is a failure
        phase = f"The answer began with status {status} and was not complete"
    return SendError(ErrorKind.TIMEOUT, f"{phase} within {deadline_s:g} s", status=status)


# Everything that `send_error_from` is asked about. Other exceptions are bugs and pass through.
FORESEEN: tuple[type[BaseException], ...] = tuple({cls for cls, _ in _BY_CLASS} | {asyncio.TimeoutError})
