"""What a kind of error means to the person who is called at night: what happened, whose fault it is, what to do.

Only what one attempt tells. Whether a hundred receivers fail at once, which is then our fault whatever each attempt
says, is for `app.admin.overview` to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from core.failures import ErrorKind


class Fault(StrEnum):
    """Whose it is, most likely."""

    THEIRS = "theirs"  # the receiver's: only they can mend it
    OURS = "ours"  # of this installation or of what was configured here
    EITHER = "either"  # it takes a look at both sides


FAULT_WORDS: Final = {
    Fault.THEIRS: "the receiver's side",
    Fault.OURS: "our side",
    Fault.EITHER: "either side",
}


@dataclass(frozen=True, slots=True)
class Explanation:
    says: str  # one sentence without a full stop, as it stands in a list: "Their server answered 500"
    fault: Fault
    advice: str  # what to do, in one or two sentences

    @property
    def whose(self) -> str:
        return FAULT_WORDS[self.fault]


EXPLANATIONS: Final[dict[ErrorKind, Explanation]] = {
    ErrorKind.DNS: Explanation(
        "Our name look-up found no address for their host",
        Fault.EITHER,
        "Is the host name in the URL right, and does it resolve elsewhere? If many subscriptions fail so at once, our"
        " resolver does.",
    ),
    ErrorKind.REFUSED: Explanation(
        "No connection to their server could be made",
        Fault.THEIRS,
        "Their server is down, or a firewall refuses us. If many subscriptions fail so at once, our network or our"
        " proxy does.",
    ),
    ErrorKind.BLOCKED_ADDRESS: Explanation(
        "We do not call this address: our egress policy forbids it",
        Fault.OURS,
        "Their host leads to an address that deliveries may not go to, such as a private one. They need a public one,"
        " or HOOKWRIGHT_EGRESS_ALLOW must name it. Such deliveries are not tried again by themselves: replay them.",
    ),
    ErrorKind.TLS: Explanation(
        "No secure connection (TLS) with their server",
        Fault.THEIRS,
        "Mostly their certificate: expired, for another name, or without its chain; the message says which. If it is"
        " of a private authority, HOOKWRIGHT_EGRESS_CA_FILE must hold that.",
    ),
    ErrorKind.TIMEOUT: Explanation(
        "Their server did not answer in time",
        Fault.THEIRS,
        "They should answer first and work afterwards. The subscription's timeout may be raised, up to 30 s.",
    ),
    ErrorKind.RESET: Explanation(
        "Their server closed the connection before it had answered",
        Fault.THEIRS,
        "Mostly a crash, a restart or a proxy before their server. Their log of that moment tells.",
    ),
    ErrorKind.PROTOCOL: Explanation(
        "What came back is not an HTTP answer",
        Fault.THEIRS,
        "Something else listens there: the wrong port, or plain HTTP where https is said.",
    ),
    ErrorKind.STATUS: Explanation(
        "Their server answered, but not with success",
        Fault.THEIRS,
        "Only a status from 200 to 299 says that it took the event. What it answered stands at each attempt.",
    ),
    ErrorKind.TOO_LARGE_HEADER: Explanation(
        "The head of their answer is too large",
        Fault.THEIRS,
        "Their server, or a proxy before it, sends more headers than any client takes: too many cookies, for instance.",
    ),
}

_BY_STATUS: Final[dict[int, tuple[str, Fault, str]]] = {
    400: ("it could not read what we sent", Fault.EITHER, "Compare the body as sent with what they expect."),
    401: (
        "it does not accept how we authenticate",
        Fault.EITHER,
        "Do they have the subscription's current secret, and are its custom headers right?",
    ),
    403: (
        "it does not let us in",
        Fault.EITHER,
        "Do they have the subscription's current secret, are its custom headers right, does their firewall know our"
        " addresses?",
    ),
    404: ("there is nothing at this URL", Fault.EITHER, "Ask them for the right URL, or whether they have moved it."),
    405: ("this URL takes no POST", Fault.EITHER, "It is hardly a webhook's URL: ask them for the right one."),
    408: ("it waited too long for the request", Fault.EITHER, "A slow network between us, or a server under load."),
    410: (
        "it wants no more webhooks",
        Fault.THEIRS,
        "So the subscription was disabled. Once they want them again, resume it and replay.",
    ),
    413: ("the event is too large for it", Fault.THEIRS, "They must accept larger bodies, or you send smaller ones."),
    422: ("it does not accept what we sent", Fault.EITHER, "Compare the body as sent with what they expect."),
    429: (
        "we send more than it takes",
        Fault.EITHER,
        "Lower the subscription's limits: what comes in faster waits here, and nothing is lost.",
    ),
}


def explain(kind: ErrorKind | str, status_code: int | None = None) -> Explanation:
    """What `kind` means, with what the status adds. Raises ValueError for a kind that is none."""
    known = EXPLANATIONS[ErrorKind(kind)]
    return _of_status(status_code) if kind == ErrorKind.STATUS and status_code is not None else known


def _of_status(status_code: int) -> Explanation:
    answered = f"Their server answered {status_code}"
    if status_code in _BY_STATUS:
        means, fault, advice = _BY_STATUS[status_code]
        return Explanation(f"{answered}: {means}", fault, advice)
    if 300 <= status_code < 400:
        return Explanation(
            f"{answered}, a redirect, which is not followed",
            Fault.EITHER,
            "Set the subscription's URL to the one that it leads to.",
        )
    if 400 <= status_code < 500:
        return Explanation(f"{answered}: it refuses the request", Fault.EITHER, "Their answer's body may say why.")
    if status_code >= 500:
        return Explanation(answered, Fault.THEIRS, "It failed on their side; their log of that moment tells.")
    return Explanation(answered, Fault.THEIRS, EXPLANATIONS[ErrorKind.STATUS].advice)
