"""Bodies, as pages show them: laid out and coloured where they are JSON, else as text, else byte by byte."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from app.admin import json_text, shown

MAX_SHOWN = 64_000  # characters of text; the whole can be downloaded


@dataclass(frozen=True, slots=True)
class Content:
    kind: str  # json, text, binary or empty
    text: Markup  # the best way to read it
    raw: Markup | None  # the same as it came, where `text` is laid out
    size: int  # bytes, of all of it
    left_out: int  # characters, or bytes of what is binary, that are not shown
    is_exact: bool = False  # what is shown is what came, character by character: nothing in it had to be written out


def of(content: bytes, *, cut: bool = False) -> Content:
    """`cut`: it is only the beginning of what came, and may end inside a character."""
    text = shown.text_of(content, cut=cut)
    if not content:
        return Content("empty", Markup(), None, 0, 0)
    if text is None:
        left_out = max(len(content) - shown.HEX_SHOWN, 0)
        return Content("binary", Markup.escape(shown.hex_dump(content)), None, len(content), left_out)
    left_out = max(len(text) - MAX_SHOWN, 0)
    raw = shown.visible(text[:MAX_SHOWN])
    is_exact = shown.UNSEEN.search(text) is None
    if json_text.is_json(text):
        laid_out = json_text.pretty(text, json_text.MAX_COLOURED)
        if laid_out is not None:
            return Content("json", json_text.coloured(laid_out), raw, len(content), 0, is_exact)
    return Content("text", raw, None, len(content), left_out, is_exact)
