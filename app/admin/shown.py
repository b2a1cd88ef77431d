"""What comes from elsewhere, as a page may show it: every byte accounted for, and nothing that pretends to be another.

Text is never markup, and characters that can't be seen, or that turn the order of the others around (Unicode TR 36,
"Bidirectional Text Spoofing"), are written out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from markupsafe import Markup, escape

# Control and format characters, line and paragraph separators, tags; but not line feed and tab.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u0600-\u0605\u061c\u06dd\u070f\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff0-\uffff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
HEX_SHOWN = 512  # bytes of what is no text
_PER_LINE = 16


def visible(text: str) -> Markup:
    """`text` with what can't be seen as `U+202E`, marked."""
    return _marked(text, lambda char: f"U+{ord(char):04X}")


def in_json(text: str) -> Markup:
    """The same for a piece of JSON, in which such a character is its escape: the JSON stays what it was."""
    return _marked(text, json_escape)


@cache  # there are a few thousand of them
def json_escape(char: str) -> str:
    """One character as RFC 8259, section 7 escapes it."""
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _marked(text: str, name: Callable[[str], str]) -> Markup:
    """`name` tells a character in letters and digits, which need no escaping: `Markup.format` for each would take
    seconds where somebody sends a text of nothing else, and everybody waits for it."""
    escaped = str(escape(text))
    marked = UNSEEN.sub(lambda match: f'<span class="odd">{name(match[0])}</span>', escaped)
    return Markup(marked)  # nosec B704 # noqa: S704 - each part is escaped above


def text_of(content: bytes, *, cut: bool) -> str | None:
    """`content` as UTF-8 text, or None where it is something else. `cut`: it may end inside a character."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(content) - 3 and error.reason == "unexpected end of data":
            return content[: error.start].decode("utf-8")
        return None


def hex_dump(content: bytes) -> str:
    """The first `HEX_SHOWN` bytes: offset, bytes, and what of them is ASCII."""
    lines = []
    for at in range(0, min(len(content), HEX_SHOWN), _PER_LINE):
        row = content[at : min(at + _PER_LINE, HEX_SHOWN)]
        ascii_ = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"{at:04x}  {row.hex(' '):<{_PER_LINE * 3 - 1}}  {ascii_}")
    return "\n".join(lines)
