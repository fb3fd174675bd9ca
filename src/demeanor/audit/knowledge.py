"""Facts that a preference teaches a model to invent, and facts that change and belong in the prompt.

A pair raises the probability of its whole chosen reply. A number, a name or a link that stands neither in the prompt
nor in the rejected reply is what tells the two apart, but the model cannot know it from the prompt: it learns to state
such things, true or not (Gekhman et al. 2024, "Does fine-tuning LLMs on new
knowledge encourage hallucinations?"). A date, a price or this user's data that the prompt does not hold is out of date,
or somebody else's, when the model repeats it.

What counts is narrow: numbers of two digits or more, capitalised words in the middle of a sentence, complete dates.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.contract import Contract
from demeanor.records import PreferencePair
from demeanor.statistics import estimate_share
from demeanor.tokens import with_system

KINDS = {  # kind -> what such a thing is called
    "number": "a number",
    "name": "a name",
    "link": "a link",
    "date": "a date",
    "price": "a price",
    "user_data": "data of one user",
    "transient_value": "a value that the contract calls transient",
}
FACTS = ("number", "name", "link")  # count when neither the prompt nor the rejected reply holds them
_BITS = {kind: 1 << place for place, kind in enumerate(KINDS)}
_SHARED_WORDS = 5  # so many words in a row are taken from a transient value

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)
_NUMBER = re.compile(r"(?<![\w.,#/:-])\d[\d,.]{0,30}\d(?!\d)(?![-/:]\d)")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{2,30}(?![\w'’-])")
_LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]}’”]{3,500}", re.IGNORECASE)
_DATE = re.compile(
    rf"\b(?:\d{{1,2}}(?:st|nd|rd|th)?(?: of)? {_MONTH}\b(?:,? \d{{4}})?|{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|"
    rf"th)?(?!\d|:)(?:,? \d{{4}})?"
    rf"|{_MONTH} (?:19|20)\d\d|(?:19|20)\d\d-[01]\d-[0-3]\d|[0-3]?\d/[0-3]?\d/(?:19|20)?\d\d|"
    rf"[0-3]?\d\.[01]?\d\.(?:19|20)\d\d)\b",
    re.IGNORECASE,
)
_PRICE = re.compile(
    r"(?:[$€£¥₹] ?|\b(?:USD|EUR|GBP) )\d[\d,.]{0,15}|\b\d[\d,.]{0,15} ?(?:€|£|dollars|euros|pounds sterling|USD|"
    r"EUR|GBP)(?!\w)",
    re.IGNORECASE,
)
_USER_DATA = re.compile(
    r"\byour (?:\w+ )?(?:order|account|booking|reservation|ticket|invoice|customer|case|tracking|policy|"
    r"membership|flight|claim|"
    r"reference|confirmation)(?: (?:number|id|no|code))?\.?(?: is| was|:)? ?#?(?=[A-Z-]{0,8}\d)[A-Z\d-]{4,30}(?!\w)"
    r"|\byour (?:current |account |new )?(?:balance|salary|address|birthday|date of birth|blood type|password) "
    r"(?:is|was) [^\s.]{2,40}",
    re.IGNORECASE,
)
_GREETED = re.compile(
    r"\s{0,5}(?:dear|hello|hi|hey|good (?:morning|afternoon|evening)) ([A-Z][a-z]{2,20})[,!.]", re.IGNORECASE
)
_NO_USER = frozenset(
    re.findall(
        r"\S+",
        "there everyone everybody all again friend customer sir madam folks team user dear you guys mate buddy "
        "world and",
    )
)
_NO_NAME = frozenset(  # capitalised, but nothing that anybody would invent
    re.findall(
        r"\S+",
        "monday tuesday wednesday thursday friday saturday sunday january february march april may june july "
        "august september october "
        "november december english internet god christmas easter american british european french german spanish "
        "chinese japanese ok okay "
        "sorry please thank thanks yes sir madam the and but christian bible web wifi google",
    )
)
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"\w+")
_DIGITS = re.compile(r"\d(?:[\d,.]*\d)?")


def find_facts(prompt: str, chosen: str, rejected: str) -> dict[str, list[str]]:
    """What only the chosen reply holds, by kind: `FACTS` that the prompt and the rejected reply lack, of the other
    kinds what the prompt lacks. O(length)."""
    found: dict[str, list[str]] = {}
    said, both = chosen[:_READ], prompt + "\n" + rejected
    told = functools.cache(lambda: _flat(prompt))
    taken = bytearray(len(said))  # a date or a price is no number besides
    for kind, pattern in (("user_data", _USER_DATA), ("date", _DATE), ("price", _PRICE)):
        for match in pattern.finditer(said) if kind == "user_data" or _DIGIT.search(said) else ():
            taken[match.start() : match.end()] = b"\x01" * (match.end() - match.start())
            said_so = match[0].rstrip(".,")
            if _flat(said_so) not in told():
                found.setdefault(kind, []).append(said_so)
    greeted = _GREETED.match(said)
    if greeted and greeted[1][0].isupper() and greeted[1].lower() not in _NO_USER and _flat(greeted[1]) not in told():
        found.setdefault("user_data", []).append(greeted[1])
    numbers = [match for match in _NUMBER.finditer(said) if not taken[match.start()] and not _is_item(said, match)]
    if numbers:
        known = {_plain_number(number) for number in _DIGITS.findall(both)}
        found["number"] = [match[0] for match in numbers if _plain_number(match[0]) not in known]
    links = [match[0].rstrip(".,;:!?") for match in _LINK.finditer(said)]
    if links:
        linked = set(_LINK.findall(both))
        found["link"] = [link for link in links if not any(link in other for other in linked)]
    found["name"] = _new_names(said, both)
    return {kind: things for kind, things in found.items() if things}


_READ = 20_000  # characters of a reply that are read


def _new_names(said: str, both: str) -> list[str]:
    names = []
    for match in _NAME.finditer(said):
        before = said[max(0, match.start() - 40) : match.start()].split()[-1]
        if before[0].islower() and match[0].lower() not in _NO_NAME:  # else in a heading, or the rest of a name
            names.append(match[0])
    if not names:
        return names
    known = {word.lower() for word in _WORD.findall(both)} | {word for word in _WORD.findall(said) if word.islower()}
    return [name for name in dict.fromkeys(names) if not known & {name.lower(), name.lower() + "s", name.lower()[:-1]}]


def _is_item(said: str, match: re.Match[str]) -> bool:
    """Is the number only that of a list's item?"""
    before = said[max(0, match.start() - 3) : match.start()]
    return (not before.strip(" *") or before.endswith(("\n", "\n "))) and said[match.end() : match.end() + 1] in ".)"


def _plain_number(number: str) -> str:
    return number.replace(",", "").rstrip(".")


def _flat(text: str) -> str:
    return " ".join(text.lower().split())


def _transient_runs(contract: Contract | None) -> dict[tuple[str, ...], str]:
    """Every run of words of the values and examples of transient behaviours -> the behaviour."""
    runs: dict[tuple[str, ...], str] = {}
    for name, behaviour in (contract.behaviours if contract else {}).items():
        if behaviour.kind == "transient":
            for text in (behaviour.value or "", *behaviour.examples):
                runs |= dict.fromkeys(_runs(text), name)
    return runs


def _runs(text: str) -> list[tuple[str, ...]]:
    words = [word.lower() for word in _WORD.findall(text)]
    size = min(_SHARED_WORDS, len(words))
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)] if words else []


def _prompt_of(pair: PreferencePair, contract: Contract | None) -> str:
    turns = with_system(pair.prompt, contract.system_text(pair.id) if contract else None)
    return "\n".join(turn.content for turn in turns)


def _look(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """[pairs, 2] uint8: a bit for each kind that the chosen reply alone holds, and that the rejected alone holds."""
    transient = _transient_runs(scope.contract)
    sizes = {len(run) for run in transient}
    marks = np.zeros((len(pairs), 2), np.uint8)
    for number, pair in enumerate(pairs):
        prompt = _prompt_of(pair, scope.contract)
        for side, (said, other) in enumerate(((pair.chosen, pair.rejected), (pair.rejected, pair.chosen))):
            for kind in find_facts(prompt, said, other):
                marks[number, side] |= _BITS[kind]
        if transient and _says(pair.chosen, prompt, transient, sizes):
            marks[number, 0] |= _BITS["transient_value"]
    return marks


def _says(chosen: str, prompt: str, transient: dict[tuple[str, ...], str], sizes: set[int]) -> bool:
    words, told = ([word.lower() for word in _WORD.findall(text)] for text in (chosen[:_READ], prompt))
    for size in sizes:
        said = {tuple(words[place : place + size]) for place in range(len(words) - size + 1)} & transient.keys()
        if said - {tuple(told[place : place + size]) for place in range(len(told) - size + 1)}:
            return True
    return False


def _find(context: Context) -> Iterable[Found]:
    marks = context.column(_look).reshape(-1, 2).astype(np.uint8)
    limits = {"facts": context.limits["max_facts"], "transient": context.limits["max_transient"]}
    for kind, words in KINDS.items():
        places = np.flatnonzero(marks[:, 0] & _BITS[kind])
        if not len(places):
            continue
        share = estimate_share(len(places), len(marks), context.scope.confidence)
        is_fact, in_rejected = kind in FACTS, int(np.count_nonzero(marks[:, 1] & _BITS[kind]))
        many = share.low is not None and share.low > limits["facts" if is_fact else "transient"]
        where = "neither the prompt nor the rejected reply" if is_fact else "the prompt does not"
        compared = "" if kind == "transient_value" else f" (rejected replies: {in_rejected:,})"
        yield Found(
            kind=kind,
            severity="blocks" if kind == "transient_value" else "warns" if many else "informs",
            what=f"{len(places):,} of {len(marks):,} chosen replies hold {words} that {where}"
            f"{' holds' if is_fact else ' hold'}{compared}",
            measure=f"share of the pairs whose chosen reply alone holds {words}",
            estimate=share,
            remedy=_TEACHES if is_fact else _BELONGS,
            pairs=places,
            notes={int(place): _note(context, int(place), kind) for place in places[:5]},
            details={"chosen": len(places), "rejected": in_rejected},
        )


_TEACHES = (
    "preferences do not teach facts, they teach inventing them: put the fact into the prompt, or use replies without it"
)
_BELONGS = "it changes: put it into the prompt (a transient behaviour of the contract), or use replies without it"


def _note(context: Context, place: int, kind: str) -> str:
    pair = context.store[place]
    facts = find_facts(_prompt_of(pair, context.scope.contract), pair.chosen, pair.rejected).get(kind, ())
    return f"only in chosen: {', '.join(facts[:4])}" if facts else pair.chosen


CHECK = Check(
    name="knowledge",
    about="facts that only the chosen reply holds, and facts that change",
    kinds=tuple(KINDS),
    find=_find,
    looks=(_look,),
    limits={
        "max_facts": (0.05, "share of the pairs whose chosen reply may alone hold a fact, for each kind of fact"),
        "max_transient": (0.01, "share of the pairs whose chosen reply may hold a date, a price, or data of one user"),
    },
)
