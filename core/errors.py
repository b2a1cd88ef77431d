"""Every error that a caller may see, as a tree.

```
HookwrightError
├── ValidationFailed         the request's content is wrong; `details` says where and what would be right
│   ├── InvalidId            not an id, or an id of another kind
│   ├── InvalidFilter        a subscription's filter or event pattern can't be understood
│   └── ForbiddenUrl         a URL that egress policy will never call
├── AuthenticationFailed     no credential, or none that holds
├── PermissionDenied         the credential lacks a scope
├── NotFound                 no such thing, or another tenant's
├── MethodNotAllowed         the path exists, with other methods
├── Conflict                 the state, or the version, does not allow it
├── PayloadTooLarge          the body exceeds its limit
├── UnsupportedMediaType     not JSON
├── IdempotencyKeyReused     the same key came with another body
├── RateLimitExceeded        the API key has used up its requests
├── Unavailable              a part that is needed does not answer; try again later
│   └── CircuitBreakerOpen   the receiver fails, so nothing is sent to it for now
├── SealError                a stored secret can't be opened (core.secrets.sealing); an operator's business, 500
├── BlockedAddress           egress policy forbids an address (core.egress); becomes an attempt's error kind
└── WrongSettings            a setting is missing, unknown or wrong (core.settings); stops the start
```

The error code and HTTP status beside each class are those of the HTTP contract (docs/api.md). `app` renders them;
nothing below it knows about HTTP beyond these two attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

MAX_QUOTED: Final = 16  # characters; the shortest secret of ours has 24


def quoted(text: str) -> str:
    """What somebody gave, as a message may repeat it: not what may be a secret in the wrong place."""
    return repr(text) if len(text) <= MAX_QUOTED else f"(a text of {len(text)} characters)"


class HookwrightError(Exception):
    """Something went wrong that we foresaw. The message says what is wrong and what would be right."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None, *, details: Mapping[str, Any] | None = None) -> None:
        self.message = message or (type(self).__doc__ or "").strip().split("\n")[0]
        self.details: dict[str, Any] = dict(details or {})
        super().__init__(self.message)


class ValidationFailed(HookwrightError):
    """Request validation failed"""

    code = "VALIDATION_FAILED"
    status = 400

    @classmethod
    def of(cls, field: str, message: str) -> ValidationFailed:
        """One fault in one field; `field` is a dotted path from the top of the request."""
        return cls(details={field: [message]})


class InvalidId(ValidationFailed):
    """Not an id of this kind"""


class InvalidFilter(ValidationFailed):
    """The filter can't be understood"""

    def __init__(self, path: str, fault: str) -> None:
        self.path = path
        self.fault = fault
        super().__init__("Request validation failed", details={path: [fault]})


class ForbiddenUrl(ValidationFailed):
    """The URL can't be called"""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        super().__init__("Request validation failed", details={"url": [fault]})


class AuthenticationFailed(HookwrightError):
    """Send a valid API key as X-API-Key or as Authorization: Bearer"""

    code = "AUTHENTICATION_FAILED"
    status = 401


class PermissionDenied(HookwrightError):
    """This credential does not allow it"""

    code = "PERMISSION_DENIED"
    status = 403


class NotFound(HookwrightError):
    """There is no such resource"""

    code = "NOT_FOUND"
    status = 404


class MethodNotAllowed(HookwrightError):
    """This path does not answer this method"""

    code = "METHOD_NOT_ALLOWED"
    status = 405


class Conflict(HookwrightError):
    """The current state does not allow it"""

    code = "CONFLICT"
    status = 409


class PayloadTooLarge(HookwrightError):
    """The body is larger than allowed"""

    code = "PAYLOAD_TOO_LARGE"
    status = 413


class UnsupportedMediaType(HookwrightError):
    """Send JSON with Content-Type: application/json"""

    code = "UNSUPPORTED_MEDIA_TYPE"
    status = 415


class IdempotencyKeyReused(HookwrightError):
    """This Idempotency-Key came before with another body; use a new key for a new request"""

    code = "IDEMPOTENCY_KEY_REUSED"
    status = 422


class RateLimitExceeded(HookwrightError):
    """This API key has used up its requests; wait before the next"""

    code = "RATE_LIMIT_EXCEEDED"
    status = 429

    def __init__(self, limit: int = 0, window_s: int = 60, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(
            f"This API key may make {limit} requests in {window_s} s and has used them up; try again in"
            f" {retry_after_s} s",
            details={"limit": limit, "window": window_s, "retry_after": retry_after_s},
        )


class Unavailable(HookwrightError):
    """A part that is needed does not answer; try again"""

    code = "UNAVAILABLE"
    status = 503

    def __init__(self, message: str | None = None, *, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class CircuitBreakerOpen(Unavailable):
    """The subscription's circuit breaker is open; wait until it tries again, or reset it"""

    code = "CIRCUIT_BREAKER_OPEN"
