"""Hostile text, shown: what would hide, reorder or command (a page, a plot, a terminal) is spelled out."""

from __future__ import annotations

import re

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufff9-\uffff"
    "\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """`text` with control, direction-changing and tag characters and lone surrogates spelled as ⟨U+202E⟩.

    They could hide or reorder what a page shows, and some stop the plots' renderer. ufffd is kept: it is visible.
    """
    return _INVISIBLE.sub(lambda found: found[0] if found[0] == "\ufffd" else _spelled(found[0]), text)


def on_terminal(text: str) -> str:
    """`visible`, also of a carriage return, which would let a line be written over, and of letters of no width."""
    plain = visible(text.replace("\r\n", "\n"))
    return re.sub("[\r\u200b-\u200d\u2060-\u2064]", lambda found: _spelled(found[0]), plain)


def _spelled(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"
