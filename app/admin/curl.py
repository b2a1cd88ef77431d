"""A request as a command that makes it again, for bash and zsh: every byte of it, whatever stands in it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from app.admin.shown import UNSEEN

MAX_INLINE_BYTES = 64_000  # Linux takes no argument of 128 KiB or more (MAX_ARG_STRLEN), and nobody reads one
EXPECTS_BYTES = 1_000_000  # curl asks before it sends more than a megabyte, as we don't

# What curl would do to a URL by itself: expand [] and {}, and resolve dot segments.
_AS_IT_IS = "curl -i --globoff --path-as-is --http1.1"


def command(url: str, headers: Sequence[tuple[str, str]], body: bytes, file: str) -> str:
    """`headers` in order. `body` must be UTF-8, as all that we send is; one that is long is taken from `file`."""
    lines = [f"{_AS_IT_IS} {quote(url)}"]
    lines += [f"-H {quote(f'{name}: {value}' if value else f'{name};')}" for name, value in headers]
    lines.append("-H 'accept-encoding: identity'")
    lines += [f"-H {quote(f'{name}:')}" for name in _unwanted(headers, body)]
    lines.append(f"--data-raw {quote(body.decode())}" if len(body) <= MAX_INLINE_BYTES else f"--data-binary @{file}")
    return " \\\n  ".join(lines)


def _unwanted(headers: Sequence[tuple[str, str]], body: bytes) -> list[str]:
    """What curl adds, unless told not to by the bare name."""
    given = {name.lower() for name, _ in headers}
    added = ["accept", *(["expect"] if len(body) > EXPECTS_BYTES else [])]
    return [name for name in added if name not in given]


def quote(text: str) -> str:
    """One word of the shell. What can't be seen is written byte by byte: pasted as it is, it would be obeyed by the
    terminal, or hide what the command does."""
    if UNSEEN.search(text) is None and "\n" not in text and "\t" not in text:
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    if char in "\n\t" or UNSEEN.match(char):
        return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
    return char
