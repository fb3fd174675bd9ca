"""A pair as a text to edit, and back: its last question and its two replies, each under a mark of its own.

=== prompt
How do I reset it?
=== chosen
Hold the button for ten seconds.
=== rejected
No idea.
"""

from __future__ import annotations

import re

from demeanor.curate.decisions import EDITED
from demeanor.records import PreferencePair

_ABOUT = "Save and close; leave it as it is to change nothing. Lines above the first mark are not read.\n"


def to_text(pair: PreferencePair) -> str:
    texts = _texts(pair)
    bar = _bar(texts)
    return _ABOUT + "".join(f"{bar} {name}\n{text}\n" for name, text in texts.items())


def from_text(text: str, pair: PreferencePair) -> dict[str, str]:
    """The texts that differ from the pair's.

    Raises:
        ValueError: a mark is missing, or stands there twice.
    """
    texts = _texts(pair)
    parts = re.split(rf"^{_bar(texts)} ({'|'.join(EDITED)})\r?\n", text, flags=re.MULTILINE)
    names, values = parts[1::2], parts[2::2]
    if tuple(names) != EDITED:
        raise ValueError(f"the marks must stand in the order {', '.join(EDITED)}, each once")
    found = {name: value.removesuffix("\n") for name, value in zip(names, values, strict=True)}
    return {name: value for name, value in found.items() if value != texts[name]}


def _texts(pair: PreferencePair) -> dict[str, str]:
    return {"prompt": pair.prompt[-1].content, "chosen": pair.chosen, "rejected": pair.rejected}


def _bar(texts: dict[str, str]) -> str:
    """A run of = that no text has."""
    runs = re.findall("=+", "\n".join(texts.values()))
    return "=" * max(3, 1 + max(map(len, runs), default=0))
