"""Are the rows pairs at all, and are their texts whole?

Rows that are no pairs were dropped when they were read; here they are counted. Then the texts: `damage` and `language`
say what is wrong with one, this check how many pairs hold such, on which side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.audit.damage import has_broken_encoding, has_control, has_invisible, has_markers, is_cut, is_unended
from demeanor.audit.language import LANGUAGES, NAMES, is_mixed, language_of
from demeanor.pairs.reasons import REASONS, REMEDIES
from demeanor.records import Message, PreferencePair
from demeanor.statistics import estimate_share

SIDES = ("prompt", "chosen reply", "rejected reply")
_OF_ALL = {  # kind -> test of any text, what such a pair holds, remedy
    "control_characters": (has_control, "control characters", "strip them: no user types them"),
    "invisible_characters": (
        has_invisible,
        "invisible characters or changes of direction",
        "strip them: they may hide an instruction, and split words into other tokens",
    ),
    "broken_encoding": (
        has_broken_encoding,
        "broken encoding (UTF-8 read as another, or U+FFFD)",
        "make the file again from its origin, read as UTF-8",
    ),
}
_OF_REPLIES = {
    "markers": (
        has_markers,
        "a special token or the header of another turn in a reply",
        "cut the reply there: a model that learns it speaks for the user",
    ),
    "cut_off": (
        is_cut,
        "a reply that stops in the middle",
        "take the whole reply, or take out the pair: the model learns when to stop",
    ),
}
_TESTS = {**_OF_ALL, **_OF_REPLIES}
_BITS = {kind: 1 << place for place, kind in enumerate((*_TESTS, "alternation", "mixed_language", "unended"))}
_CODES = {code: number for number, code in enumerate(LANGUAGES)}
_UNENDED = 0.1  # where so few replies end without punctuation, those that do were cut
_MAIN = 0.9  # share of the known replies that makes a language the set's


def _look(pairs: Sequence[PreferencePair], scope: Scope) -> dict[str, np.ndarray]:
    """marks [pairs, sides] uint8, a bit a kind; languages [pairs, sides] uint8; asks [pairs] bool: for a language."""
    marks = np.zeros((len(pairs), len(SIDES)), np.uint8)
    languages = np.zeros((len(pairs), len(SIDES)), np.uint8)
    asks = np.zeros(len(pairs), bool)
    for number, pair in enumerate(pairs):
        prompt = "\n".join(turn.content for turn in pair.prompt)
        for side, text in enumerate((prompt, pair.chosen, pair.rejected)):
            for kind, (test, _, _) in (_TESTS if side else _OF_ALL).items():
                marks[number, side] |= _BITS[kind] * test(text)
            if side:
                marks[number, side] |= _BITS["mixed_language"] * is_mixed(text, prompt)
                marks[number, side] |= _BITS["unended"] * is_unended(text)
            languages[number, side] = _CODES[language_of(text if side else pair.prompt[-1].content)]
        marks[number, 0] |= _BITS["alternation"] * (not alternates(pair.prompt))
        asks[number] = NAMES.search(prompt[-4000:]) is not None or NAMES.search(prompt[:4000]) is not None
    return {"marks": marks, "languages": languages, "asks": asks}


def alternates(prompt: Sequence[Message]) -> bool:
    """A system turn at most first, then user and assistant in turn, the user first and last."""
    roles = [turn.role for turn in prompt]
    roles = roles[1:] if roles[0] == "system" else roles
    return len(roles) % 2 == 1 and roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def _find(context: Context) -> Iterable[Found]:
    yield from _unusable(context)
    marks = context.column(_look, "marks").reshape(-1, len(SIDES)).astype(np.uint8)
    unended = (marks & _BITS["unended"]) != 0
    if unended[:, 1:].mean() <= _UNENDED:
        marks[unended] |= _BITS["cut_off"]
    for kind, (_, words, remedy) in _TESTS.items():
        yield from _damaged(context, kind, (marks & _BITS[kind]) != 0, f"hold {words}", remedy)
    remedy = "merge turns of one role, and put the system turn first: chat templates refuse or garble others"
    yield from _damaged(
        context, "alternation", (marks & _BITS["alternation"]) != 0, "have turns whose roles do not alternate", remedy
    )
    wrong = _other_language(context) | ((marks & _BITS["mixed_language"]) != 0)
    remedy = "drop them, unless the prompt asks for it: the model learns to change the language"
    yield from _damaged(context, "language", wrong, "have a reply in another language than asked, or in two", remedy)


def _unusable(context: Context) -> Iterable[Found]:
    store, num_rows = context.store, sum(context.store.sources.values())
    for reason, count in store.dropped.most_common():
        share = count / num_rows
        rows = store.examples[reason]
        first = ", ".join(f"row {row.row} of {row.source}" for row in rows)
        if len(store.sources) == 1:
            first = f"row{'s' * (len(rows) > 1)} {', '.join(str(row.row) for row in rows)}"
        yield Found(
            kind=reason.replace(" ", "_"),
            severity="blocks" if share > context.limits["max_unusable"] else "warns",
            what=f"{count:,} of {num_rows:,} rows are no pair: {reason} ({first}{', ...' if count > 5 else ''})",
            measure="share of the rows",
            estimate=estimate_share(count, num_rows, context.scope.confidence),
            remedy=REMEDIES[reason],
            num_pairs=count,
        )


def _damaged(context: Context, kind: str, there: np.ndarray, words: str, remedy: str) -> Iterable[Found]:
    """One finding of a kind; `there` is [pairs, sides] bool."""
    places = np.flatnonzero(there.any(1))
    if not len(places):
        return
    counts = {side: int(there[:, number].sum()) for number, side in enumerate(SIDES)}
    where = ", ".join(f"{count:,} in the {side}" for side, count in counts.items() if count)
    share = len(places) / len(there)
    yield Found(
        kind=kind,
        severity="blocks" if share > context.limits["max_damaged"] else "warns",
        what=f"{len(places):,} of {len(there):,} pairs {words}: {where}",
        measure="share of the pairs",
        estimate=estimate_share(len(places), len(there), context.scope.confidence),
        remedy=remedy,
        pairs=places,
        notes={int(place): _note(context.store[int(place)], there[place]) for place in places[:5]},
        details=counts,
    )


def _note(pair: PreferencePair, there: np.ndarray) -> str:
    """Which side, and how it begins and ends, with what cannot be seen written out."""
    texts = "\n".join(turn.content for turn in pair.prompt), pair.chosen, pair.rejected
    side = int(np.argmax(there))
    text = texts[side]
    shown = text if len(text) <= 110 else f"{text[:50]} ... {text[-50:]}"
    return f"{SIDES[side]}: {shown.encode('unicode_escape').decode() if not text.isascii() else shown}"


def _other_language(context: Context) -> np.ndarray:
    """[pairs, sides] bool: a reply that is surely in another language than its prompt or, where that is unsure, than
    the set. A prompt that names a language may ask for it."""
    languages, asks = context.column(_look, "languages").reshape(-1, len(SIDES)), context.column(_look, "asks")
    known = Counter(languages[:, 1:][languages[:, 1:] > 0].tolist())
    main, count = known.most_common(1)[0] if known else (0, 0)
    main = main if count >= _MAIN * known.total() else 0
    prompt = np.where(languages[:, 0] > 0, languages[:, 0], main)[:, None]
    wrong: np.ndarray = (languages > 0) & (prompt > 0) & (languages != prompt) & ~asks.astype(bool)[:, None]
    wrong[:, 0] = False
    return wrong


CHECK = Check(
    name="shape",
    about="rows that cannot be used, and texts that are damaged",
    kinds=(*(reason.replace(" ", "_") for reason in REASONS), *_TESTS, "alternation", "language"),
    find=_find,
    looks=(_look,),
    limits={
        "max_unusable": (0.2, "share of the rows that may be unusable for one reason"),
        "max_damaged": (0.2, "share of the pairs whose texts may be damaged in one way"),
    },
)
