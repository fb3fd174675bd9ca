"""The names of the columns: one spelling for what people write in many ways.

    prompt        question, query, input (an `instruction` belongs to the Alpaca shape, where `input` goes with it)
    chosen        winner, preferred, accepted
    rejected      loser, dispreferred
    system        system_prompt
    behaviour     behavior, category
    confidence
    attack        the family of the attack that the prompt is
    annotator     annotator_id, worker_id, rater, labeler
    cluster       of probes: those of one cluster (wrappers around one question) count as one draw

Capitals and surrounding blanks do not matter. A column that has the name itself wins over its aliases. Two aliases of
prompt, chosen or rejected side by side are ambiguous, and are left as they are; `behavior` wins over `category`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from demeanor.pairs.reasons import BAD_CONFIDENCE, NOT_UNICODE, Unusable

ALIASES = {
    "prompt": ("question", "query", "input"),
    "chosen": ("winner", "preferred", "accepted"),
    "rejected": ("loser", "dispreferred"),
    "system": ("system_prompt",),
    "behaviour": ("behavior", "category"),
    "annotator": ("annotator_id", "worker_id", "rater", "labeler"),
}
_NEEDED = ("prompt", "chosen", "rejected")
OTHER_PROMPTS = ("instruction", "conversations", "messages")  # of shapes that have their own
PROMPT_COLUMNS = ("prompt", *ALIASES["prompt"], *OTHER_PROMPTS)


def canonical(row: Mapping[Any, Any]) -> dict[str, Any]:
    """The row under the names that the readers know; columns that mean nothing to them stay."""
    plain: dict[str, Any] = {}
    for key, value in row.items():
        name = str(key).strip().lower()
        if name not in plain or name == key:
            plain[name] = value
    for name, aliases in ALIASES.items():
        found = [alias for alias in aliases if plain.get(alias) is not None]
        if plain.get(name) is not None or (name == "prompt" and _has(plain, OTHER_PROMPTS)):
            continue
        if len(found) == 1 or (found and name not in _NEEDED):
            plain[name] = plain.pop(found[0])
    return plain


def ambiguity(row: Mapping[Any, Any]) -> str | None:
    """Two columns that could be the same thing, in words."""
    plain = canonical(row)
    for name in _NEEDED:
        found = [alias for alias in ALIASES[name] if plain.get(alias) is not None]
        if plain.get(name) is None and not _has(plain, OTHER_PROMPTS) and len(found) > 1:
            return f"the columns {' and '.join(found)} could each be the {name}"
    return None


def read_label(row: Mapping[str, Any], name: str) -> str | None:
    """The behaviour, attack, annotator or cluster that a canonical row names; a list or a table of flags names none.

    Raises:
        Unusable: it holds half of a surrogate pair, which no file of ours can.
    """
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip()
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Unusable(NOT_UNICODE) from None
    return text or None


def read_confidence(row: Mapping[str, Any]) -> float | None:
    """How sure the label of a canonical row is, in [0, 1]; None when it does not say.

    Raises:
        Unusable: it says something else.
    """
    value = row.get("confidence")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Unusable(BAD_CONFIDENCE) from None
    if math.isnan(number) and isinstance(value, float):  # how a table writes a missing number
        return None
    if not 0 <= number <= 1:
        raise Unusable(BAD_CONFIDENCE)
    return number


def first_text(row: Mapping[Any, Any], columns: Sequence[str]) -> str | None:
    """The first of the columns that holds a text which is not blank; their capitals do not matter."""
    plain = {str(key).strip().casefold(): value for key, value in row.items()}
    return next((plain[name] for name in columns if isinstance(plain.get(name), str) and plain[name].strip()), None)


class Watched(dict[str, Any]):
    """A canonical row that notes which of its columns are read."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.read: set[Any] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def unread(self) -> list[str]:
        """The columns that hold something and that no one read; not those that a curated pair has anyhow."""
        ours = self.keys() >= _OWN and self.items() >= {("list_id", None), ("weight", 1.0)}
        return [
            name
            for name, value in self.items()
            if name not in self.read and value not in (None, "", [], {}) and not (ours and name in _OWN)
        ]


_OWN = {"id", "source", "row", "list_id", "weight"}  # of a pair that was read and written (`PreferencePair`)


def _has(row: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    return any(row.get(name) is not None for name in names)
