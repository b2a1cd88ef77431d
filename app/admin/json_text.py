"""JSON for people: laid out over lines and coloured, from its text and not from its values, so that no digit and no
key is lost on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup

from app.admin import shown
from core import jsontext
from core.errors import ValidationFailed

MAX_COLOURED = 60_000  # characters, laid out; a page with more of them in pieces is slow to make and to draw
MAX_PIECES = 100_000  # strings, words and marks that are laid out: a third of a second, in which nobody else is served
_INDENT = "  "
_TOKEN = re.compile(r'(?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+")|(?P<word>[^\s"\[\]{},:]++)|(?P<mark>[\[\]{},:])|\s++')


def is_json(text: str) -> bool:
    """Whether it is JSON that our own reader takes, which bounds its depth."""
    try:
        jsontext.loads(text.encode())
    except (ValidationFailed, UnicodeError):
        return False
    return True


def pretty(text: str, most: int) -> str | None:
    """The JSON in `text` over lines; None where that takes more than `most` characters, or `MAX_PIECES` and what stands
    between them."""
    out: list[str] = []
    size = 0
    for piece in _laid_out(text):
        size += len(piece)
        if size > most or len(out) >= 2 * MAX_PIECES:
            return None
        out.append(piece)
    return "".join(out)


def _laid_out(text: str) -> Iterator[str]:
    depth, after = 0, ""  # `after`: the mark that came last
    for match in _TOKEN.finditer(text):
        if match.lastgroup is None:
            continue  # white space
        piece = match[0]
        if piece in "]}" and match.lastgroup == "mark":
            depth -= 1
            if after not in ("[", "{"):
                yield "\n" + _INDENT * depth
        elif after in ("[", "{", ","):
            yield "\n" + _INDENT * depth
        yield piece
        if match.lastgroup == "mark":
            after = piece
            if piece in "[{":
                depth += 1
            elif piece == ":":
                yield " "
        else:
            after = ""


def typeable(text: str) -> str:
    """The same JSON, where what can't be seen is its escape: so that it can be edited."""
    return shown.UNSEEN.sub(lambda match: shown.json_escape(match[0]), text)


def coloured(text: str) -> Markup:
    """JSON with its strings, names and other values in classes; what can't be seen is written as its escape."""
    out: list[str] = []
    done = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind in ("string", "word"):
            out.append(shown.in_json(text[done : match.start()]))
            if kind == "string" and text[match.end() : match.end() + 1] == ":":
                kind = "name"
            out.append(f'<span class="json-{kind}">{shown.in_json(match[0])}</span>')
            done = match.end()
    out.append(shown.in_json(text[done:]))
    return Markup("".join(out))  # nosec B704 # noqa: S704 - each part is escaped above
