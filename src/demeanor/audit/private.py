"""Private data and secrets: a model that is trained on them may say them to anybody.

What has a check digit is checked: cards by Luhn (ISO/IEC 7812-1), IBAN by mod 97 and the country's length (ISO 13616).
Keys are known by their makers' prefixes, by what they are assigned to, or by their entropy; a password of letters only
where it is written as code writes one. Every pattern reads a text in linear time. Persons' names need a language model:
Presidio (`pip install demeanor[privacy]`) with spaCy's `PRESIDIO_MODEL`, where it is asked for.
"""

from __future__ import annotations

import functools
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from demeanor.audit.check import Check, Context, Found, Scope
from demeanor.errors import InputError, one_line
from demeanor.records import Estimate, PreferencePair
from demeanor.statistics import estimate_share

SIDES = ("prompt", "chosen", "rejected")
KINDS = {  # the kinds of private data, the gravest first: where two overlap, the first one counts
    "private_key": "private keys",
    "key": "keys, tokens or passwords",
    "card": "card numbers",
    "iban": "bank accounts (IBAN)",
    "ssn": "US social security numbers",
    "email": "e-mail addresses",
    "ip": "IP addresses",
    "link": "links",
    "phone": "phone numbers",
    "person": "persons (Presidio)",
}
SECRETS = ("private_key", "key", "card", "iban", "ssn")
Span = tuple[str, int, int]  # kind, start, end
Finder = Callable[[str], Iterator[tuple[int, int]]]
PRESIDIO_MODEL = "en_core_web_lg"  # the one that its analyzer for English takes when it is told nothing

_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_LINK = re.compile(r"(?:https?://|www\.)[^\s<>\"')\]}’”]{3,2000}", re.IGNORECASE)
_CARD = re.compile(
    r"(?<![\d.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -])\d{6}\2\d{5})(?![\d-]|[.,]\d)"
)
_CARD_LENGTHS = (  # (prefix, lengths) of the issuers
    (re.compile("4"), (13, 16, 19)),
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile("3[47]"), (15,)),
    (re.compile("6011|64[4-9]|65|62|35"), (16, 17, 18, 19)),
    (re.compile("30[0-5]|36|38|39"), (14, 16)),
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])([A-Z]{2})[0-9]{2}(?: ?[A-Z0-9]){11,28}")
_IBAN_LENGTHS = {  # the country's letters and the length of its accounts
    entry[:2]: int(entry[2:])
    for entry in re.findall(
        r"\w+",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 "
        "SI19 SK24 SM27 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_PHONE = re.compile(
    r"(?<![\w+.,/-])(?:"
    r"\+[1-9](?:[ ().-]{0,2}\d){7,14}"  # +44 20 7946 0958
    r"|(?:1[ .-])?\(?[2-9]\d\d\)?[ .-]{1,2}\d{3}[ .-]\d{4}"  # (212) 555-0123
    r"|1?\([2-9]\d\d\)\d{3}[ .-]?\d{4}"
    r"|(?:1-)?8(?:00|88|77|66|55|44|33)-[A-Z0-9]{3,4}-?[A-Z0-9]{3,4}"  # 1-800-FLOWERS
    r"|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,4}"  # 020 7946 0958, 07700 900123
    r"|07[1-9]\d{8}"  # 07700900123
    r")(?![\w]|[-.,/]\d)"
)
_CALLED = (
    r"\b(?:phone|call|telephone|tel|mobile|cell|fax|whatsapp|hotline)(?: (?:number|me|us|them|him|her))?"
    r"(?: is| at|:|\.)?:? ?"
)
_SAID_PHONE = re.compile(  # a number that is called one
    _CALLED + r"(\(?\d(?:[ ().-]{0,2}\d){6,14})(?![\w]|[.,]\d)", re.IGNORECASE
)
_BEFORE_PHONE = re.compile(rf"(?:\+|{_CALLED})$", re.IGNORECASE)
_LONGEST_PHONE = 15  # digits (ITU-T E.164)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{1,4}(?![\w:]|\.\w)")
_VERSION = re.compile(r"(?:version|firmware|release|build|section|v|§)\.? ?$", re.IGNORECASE)
_BEGIN_KEY = re.compile(r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----")
_END_KEY = re.compile(r"-----END [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----")
_PREFIXED_KEY = re.compile(
    r"(?<![\w-])(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opusr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}"
    r"|sk-(?:ant-|proj-|or-)?(?:(?=[\w-]{0,40}\d)[A-Za-z0-9_-]{20,255}|[A-Za-z]{20,255}(?!-))|(?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,255}"
    r"|xox[abeprs]-[0-9A-Za-z-]{10,255}|AIza[0-9A-Za-z_-]{35}|ya29\.[\w-]{20,255}|glpat-[\w-]{20,64}|hf_[A-Za-z0-9]{30,64}"
    r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{40,255}|SG\.[\w-]{16,64}\.[\w-]{16,64}|dop_v1_[a-f0-9]{64}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,2000}\.[\w-]{5,2000})(?![\w])"
)
_ASSIGNED = re.compile(
    r"(?:api[ _-]?key|access[ _-]?key|secret(?:[ _-]?key)?|auth[ _-]?token|access[ _-]?token|passw(?:or)?d|pwd)"
    r"\"?'?(?: ?[:=] ?| is )[\"'`]?([^\s\"'`,;<>]{8,200})",
    re.IGNORECASE,
)
_PASSWORD = re.compile(  # of letters only: "pwd": "letmein", password=letmein
    r"(?:passw(?:or)?d|pwd)(?:[\"']? ?(?:=>|[:=]) ?([\"'])(?P<quoted>[^\s\"'`]{6,64})\1"
    r"|=(?P<bare>[^\s\"'`,;:&()\[\].!?]{6,64})(?=[.!?]?(?:[\s;&]|$)))",
    re.IGNORECASE,
)
_LISTED_PASSWORD = re.compile(  # alone on its line, beneath another key: `user: bob`, `password: letmein`
    r"^[ \t]{0,20}[\w.-]{1,40} ?[:=] ?[^\s:=]{1,100}\n[ \t]{0,20}[\w.-]{0,30}(?:passw(?:or)?d|pwd) ?[:=] ?"
    r"([^\s\"'`]{6,64})$",
    re.IGNORECASE | re.MULTILINE,
)
_NO_PASSWORD = re.compile(  # what stands for one in examples, forms and code
    r"passw|pwd|your|user|input|value|field|example|placeholder|redacted|hidden|required|invalid|incorrect|optional|string"
    r"|varchar|config|crypt|hash|token|null|none|true|false|undefined|changeme|^secret|^(.)\1*$|\*\*|\.\.|[{}$%<>()\[\]]|[?!:,;]$",
    re.IGNORECASE,
)
_IN_LINK = re.compile(r"(?<=://)[^\s/:@]{1,64}:[^\s/:@]{3,64}(?=@)")  # user:password@
_DENSE = re.compile(r"(?<![\w+/=.-])[A-Za-z0-9+/_=-]{32,200}(?![\w+/=-])")
_MIN_ENTROPY = 4.2  # bits a character; English words run together have less


def find_private(text: str, persons: Finder | None = None) -> list[Span]:
    """Private data in a text as (kind, start, end), in order, none overlapping; the kinds are `KINDS`. O(len(text)).

    Persons are found by `persons` alone (`persons_finder`).
    """
    found: list[Span] = []
    taken = bytearray(len(text))
    for kind, finder in (*_FINDERS, *([("person", persons)] if persons else [])):
        for start, end in finder(text):
            if not any(taken[start:end]):
                taken[start:end] = b"\x01" * (end - start)
                found.append((kind, start, end))
    return sorted(found, key=lambda span: span[1])


def _emails(text: str) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _EMAIL.finditer(text)) if "@" in text else iter(())


def _links(text: str) -> Iterator[tuple[int, int]]:
    for match in _LINK.finditer(text):
        link = match[0].rstrip(".,;:!?*_~`…")
        if "." in link[4:] or "localhost" not in link:
            yield match.start(), match.start() + len(link)


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        known = any(prefix.match(digits) and len(digits) in lengths for prefix, lengths in _CARD_LENGTHS)
        if digits == match[0] and len(digits) <= _LONGEST_PHONE:  # one in ten of all numbers passes Luhn's test
            known &= not _BEFORE_PHONE.search(text, max(0, match.start() - 40), match.start())
        if known and len(set(digits)) > 1 and _luhn(digits):
            yield match.span()


def _luhn(digits: str) -> bool:
    doubled = (int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        length, seen = _IBAN_LENGTHS.get(match[1], 0), 0
        for place in range(match.start(), len(text)):
            seen += text[place] != " "
            if seen == length or place == match.end():
                break
        code = text[match.start() : place + 1].replace(" ", "")
        ends = not text[place + 1 : place + 2].isalnum()
        if len(code) == length and ends and int("".join(str(int(c, 36)) for c in code[4:] + code[:4])) % 97 == 1:
            yield match.start(), place + 1


def _phones(text: str) -> Iterator[tuple[int, int]]:
    for pattern, group in ((_PHONE, 0), (_SAID_PHONE, 1)):
        for match in pattern.finditer(text):
            start, end = match.span(group)
            yield start + (text[start] == "(" and ")" not in match[group]), end


def _ips(text: str) -> Iterator[tuple[int, int]]:
    """Addresses of the internet; those that every home network has (192.168.1.1) are nobody's."""
    for match in _IPV4.finditer(text):
        parts = [int(part) for part in match[0].split(".")]
        usable = max(parts) < 256 and 0 < parts[0] < 224 and parts[0] not in (10, 127) and parts[0:2] != [192, 168]
        numbered = max(parts) < 10 or _VERSION.search(text, max(0, match.start() - 10), match.start())
        if usable and not (parts[0] == 172 and 16 <= parts[1] < 32) and not numbered:
            yield match.span()
    for match in _IPV6.finditer(text):
        try:
            ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        yield match.span()


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    place = 0
    while begin := _BEGIN_KEY.search(text, place):
        end = _END_KEY.search(text, begin.end())
        place = end.end() if end else len(text)  # cut off: the rest is the key
        yield begin.start(), place


def _keys(text: str) -> Iterator[tuple[int, int]]:
    yield from (match.span() for match in _PREFIXED_KEY.finditer(text))
    yield from (match.span() for match in _IN_LINK.finditer(text))
    for match in _ASSIGNED.finditer(text):
        value = match[1].rstrip(".!?)")
        if _has(value, str.isdigit) and _has(value, str.isalpha) and _entropy(value) >= 2.5:
            yield match.start(1), match.start(1) + len(value)
    for pattern in (_PASSWORD, _LISTED_PASSWORD):
        for match in pattern.finditer(text):
            group = match.lastgroup or 1
            if not _NO_PASSWORD.search(match[group]):
                yield match.span(group)
    for match in _DENSE.finditer(text):
        value = match[0]
        mixed = all(_has(value, of_kind) for of_kind in (str.isdigit, str.islower, str.isupper))
        if mixed and value.count("/") < 3 and _entropy(value) >= _MIN_ENTROPY:
            yield match.span()


def _has(text: str, of_kind: Callable[[str], bool]) -> bool:
    return any(map(of_kind, text))


def _entropy(text: str) -> float:
    """Shannon's, of the text's own letters, bits a letter."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _with_digits(finder: Finder) -> Finder:
    return lambda text: finder(text) if _DIGITS.search(text) else iter(())


_DIGITS = re.compile(r"\d\D{0,3}\d\D{0,3}\d")
_FINDERS: tuple[tuple[str, Finder], ...] = (
    ("private_key", _private_keys),
    ("key", _keys),
    ("card", _with_digits(_cards)),
    ("iban", _with_digits(_ibans)),
    ("ssn", _with_digits(lambda text: (match.span() for match in _SSN.finditer(text)))),
    ("email", _emails),
    ("ip", _with_digits(_ips)),
    ("link", _links),
    ("phone", _with_digits(_phones)),
)
_BITS = {kind: 1 << place for place, kind in enumerate(KINDS)}


def sides_of(pair: PreferencePair) -> tuple[str, str, str]:
    """The texts of `SIDES`."""
    return "\n".join(turn.content for turn in pair.prompt), pair.chosen, pair.rejected


def _look(pairs: Sequence[PreferencePair], scope: Scope) -> np.ndarray:
    """[pairs, sides] uint16: a bit for each kind that is there."""
    persons = _presidio() if scope.limits["private"]["presidio"] else None
    marks = np.zeros((len(pairs), len(SIDES)), np.uint16)
    for number, pair in enumerate(pairs):
        for side, text in enumerate(sides_of(pair)):
            for kind, _, _ in find_private(text, persons):
                marks[number, side] |= _BITS[kind]
    return marks


def persons_finder() -> Finder:
    """Where a text names persons.

    Raises:
        InputError: Presidio or its language model is not installed, or does not start.
    """
    finder = _presidio()
    if finder is None:
        remedy = f"{_INSTALL} && {_DOWNLOAD}, or leave out the kind `person`"
        raise InputError("is not installed, and persons' names are looked for by it", where="Presidio", remedy=remedy)
    return finder


@functools.cache
def _presidio() -> Finder | None:
    """Persons' names by Presidio's analyzer for English. None where it is not installed.

    Raises:
        InputError: its language model is not installed, or it does not start.
    """
    if find_spec("presidio_analyzer") is None:
        return None
    if find_spec(PRESIDIO_MODEL) is None:  # spaCy would download it now, or end the process
        raise InputError(f"its language model {PRESIDIO_MODEL} is not installed", where="Presidio", remedy=_DOWNLOAD)
    try:
        from presidio_analyzer import AnalyzerEngine

        engine: Any = AnalyzerEngine()
    except (Exception, SystemExit) as error:  # spaCy's commands end the process where they fail
        what = f"does not start: {type(error).__name__}: {one_line(error, 160)}"
        raise InputError(what, where="Presidio", remedy=f"{_INSTALL} && {_DOWNLOAD}") from None

    def find(text: str) -> Iterator[tuple[int, int]]:
        for begin in range(0, len(text), _MAX_READ):
            piece = text[begin : begin + _MAX_READ]
            for result in engine.analyze(text=piece, language="en", entities=["PERSON"], score_threshold=0.6):
                yield begin + result.start, begin + result.end

    return find


_INSTALL, _DOWNLOAD = "pip install 'demeanor[privacy]'", f"python -m spacy download {PRESIDIO_MODEL}"
_MAX_READ = 500_000  # characters; spaCy refuses texts of a million


def _ready(scope: Scope) -> None:
    if scope.limits["private"]["presidio"]:
        _presidio()


def _find(context: Context) -> Iterable[Found]:
    marks, confidence = context.column(_look), context.scope.confidence
    persons = _presidio() if context.limits["presidio"] else None
    for kind, words in KINDS.items():
        there = (marks & _BITS[kind]) != 0 if len(marks) else np.zeros((0, len(SIDES)), bool)
        places = np.flatnonzero(there.any(1))
        if not len(places):
            continue
        counts = {side: int(there[:, number].sum()) for number, side in enumerate(SIDES)}
        where = ", ".join(f"{count:,} in the {_WHERE[side]}" for side, count in counts.items() if count)
        yield Found(
            kind=kind,
            severity=_severity(kind, counts["chosen"]),
            what=f"{len(places):,} of {len(marks):,} pairs hold {words}: {where}",
            measure="share of the pairs",
            estimate=estimate_share(len(places), len(marks), confidence),
            remedy=_REMEDIES.get(kind, "replace them by a placeholder (demeanor curate does), or take out the pairs"),
            pairs=places,
            blocking=np.flatnonzero(there[:, SIDES.index("chosen")]),
            notes={int(place): _note(context.store[int(place)], kind, there[place], persons) for place in places[:5]},
            details=counts,
        )
    if context.limits["presidio"] and persons is None:
        yield Found(
            kind="presidio_missing",
            severity="informs",
            what="persons' names were not looked for: Presidio is not installed",
            measure="pairs that Presidio read",
            estimate=Estimate(None, None, None, 0, len(marks)),
            remedy=f"{_INSTALL} && {_DOWNLOAD}, or leave audit.private.presidio at 0",
        )


_WHERE = {"prompt": "prompt", "chosen": "chosen reply", "rejected": "rejected reply"}
_REMEDIES = {
    "link": "a link goes stale, and a model invents others like it: keep links in the prompt, or take out the pairs",
    "person": "replace the names of persons who are nobody's business, or take out the pairs",
}


def _severity(kind: str, num_chosen: int) -> str:
    if kind in SECRETS:
        return "blocks" if num_chosen else "warns"
    return "informs" if kind in ("link", "person") else "warns"


def _note(pair: PreferencePair, kind: str, there: np.ndarray, persons: Finder | None) -> str:
    """Where it stands, and how it begins: enough to find it, too little to use it."""
    parts = []
    for side, text, is_there in zip(SIDES, sides_of(pair), there, strict=True):
        if is_there:
            begins = [text[start : start + 3] for found, start, _ in find_private(text, persons) if found == kind]
            parts.append(f"{side}: " + ", ".join(f"{begin}..." for begin in begins[:3]))
    return "; ".join(parts)


CHECK = Check(
    name="private",
    about="private data and secrets: addresses, numbers, keys, links",
    kinds=(*KINDS, "presidio_missing"),
    find=_find,
    looks=(_look,),
    ready=_ready,
    limits={"presidio": (0, f"1: also look for persons' names with Presidio ({_INSTALL} && {_DOWNLOAD})")},
)
