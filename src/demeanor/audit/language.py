"""Which language is a text in? By its script, and in Latin script by its most frequent words; "" when unsure.

Short function words make up a third or more of running text in these languages, and few are shared between them
(Grefenstette 1995, "Comparing two language identification schemes").
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter

_READ = 800  # characters
_MIN_WORDS, _MIN_LETTERS = 8, 16
_MIN_SHARE = 0.2  # of the words that are function words of the language
_MIN_LEAD = 1.5  # times as many as of the next language

_FUNCTION_WORDS = {
    "en": "the and is of to in that it you for are with on this be not i your have can or as if an was my what "
    "how do "
    "at by from they we he she would could should about there some like just it's i'm don't",
    "de": "der die das und ist nicht ich sie wir mit ein eine für auf dem den zu es von auch wie kann werden "
    "sind haben "
    "oder wenn bitte ihr ihre im man einen einer aber noch nur sich hat bei",
    "fr": "le la les des et est pas je vous nous un une pour dans que qui sur avec ce cette il elle sont au du "
    "être votre "
    "mais plus ne se en aux vos ou par ces son sa c'est l'on",
    "es": "el la los las y es no yo usted un una para en que con por su del se lo más pero como está este esta "
    "tu al muy "
    "sus hay ser son le si o cuando",
    "pt": "o a os as e é não um uma para em que com por seu da do dos na no se mais mas como você está ao sua "
    "isso ser ou "
    "foi são pode muito das",
    "it": "il lo la gli e è non un una per in che con di del della si più ma come sono questo nel alla le i dei "
    "delle da "
    "può anche o essere ho",
    "nl": "de het een en is niet ik je wij met voor op dat van zijn ook hoe kan worden of als maar dit deze te "
    "aan u uw er "
    "bij naar heeft wordt",
    "sv": "och är att det en ett inte jag du vi med för på som av till har kan om men den de här eller så man din",
    "da": "og er at det en et ikke jeg du vi med for på som af av til har kan om men den de her eller så man din hvad",
    "pl": "i nie jest się w na z do to że jak co ale czy może tak po dla od przez są lub o jego ten tej być oraz jeśli",
    "tr": "ve bir bu için ile de da ne mi çok daha gibi var ama olarak olan ya en kadar sonra her değil ben sen şey",
    "id": "dan yang di untuk dengan ini itu tidak ada dari akan pada anda saya adalah atau juga dalam ke bisa "
    "dapat oleh",
}
_WHOSE: dict[str, tuple[str, ...]] = {}  # function word -> languages
for _code, _words in _FUNCTION_WORDS.items():
    for _word in dict.fromkeys(_words.split()):
        _WHOSE[_word] = (*_WHOSE.get(_word, ()), _code)
_SCRIPTS = (  # (first code point, script); letters below the first are Latin
    (0x0000, "latin"), (0x0370, "el"), (0x0400, "cyrillic"), (0x0530, "hy"), (0x0590, "he"), (0x0600, "arabic"),
    (0x0900, "hi"), (0x0980, "bn"), (0x0A00, "indic"), (0x0E00, "th"), (0x0E80, "other"), (0x10A0, "ka"),
    (0x1100, "ko"), (0x1200, "other"), (0x1E00, "latin"), (0x1F00, "el"), (0x2000, "other"), (0x3040, "ja"),
    (0x3100, "zh"), (0x3130, "ko"), (0x3190, "zh"), (0xA000, "other"), (0xAC00, "ko"), (0xD7B0, "other"),
    (0xF900, "zh"), (0xFB00, "other"),
)  # fmt: skip
_BEYOND = re.compile("[\u0370-\u1dff\u1f00-\u1fff\u3040-\U0010ffff]")  # letters that are not Latin, among others
_STARTS = [start for start, _ in _SCRIPTS]
LANGUAGES = ("", *_FUNCTION_WORDS, *dict.fromkeys(name for _, name in _SCRIPTS if name not in ("latin", "other")))
NAMES = re.compile(  # a prompt that names a language may ask for it
    r"\b(?:translat\w*|languages?|english|german|french|spanish|portuguese|italian|dutch|swedish|danish|"
    r"norwegian|polish|turkish|"
    r"indonesian|russian|ukrainian|greek|arabic|hebrew|hindi|bengali|thai|korean|japanese|chinese|mandarin|kanji|"
    r"latin|vietnamese|"
    r"überset\w+|tradu\w+|auf deutsch|en español|en français)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```.{0,20000}?(?:```|\Z)|https?://\S{1,2000}|`[^`\n]{0,200}`", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def language_of(text: str) -> str:
    """The language's code (the script's, where several share it), or "". Code and links do not count."""
    text = text[: 2 * _READ]
    if "`" in text or "http" in text:
        text = _CODE.sub(" ", text)
    text = text[:_READ]
    if _BEYOND.search(text):
        counts = script_letters(text)
        total = sum(counts.values())
        if total < _MIN_LETTERS:
            return ""
        script = max(counts, key=lambda name: counts[name])
        if "ja" in counts and script == "zh":
            script, counts["ja"] = "ja", counts["ja"] + counts["zh"]
        if counts[script] < 0.7 * total or script == "other":
            return ""
        if script != "latin":
            return script
    words = _WORD.findall(text.lower().replace("’", "'"))
    if len(words) < _MIN_WORDS:
        return ""
    hits, different = dict.fromkeys(_FUNCTION_WORDS, 0), dict.fromkeys(_FUNCTION_WORDS, 0)
    for word, count in Counter(words).items():
        for code in _WHOSE.get(word, ()):
            hits[code] += count
            different[code] += 1
    first, second = sorted(hits, key=lambda code: -hits[code])[:2]
    share = hits[first] / len(words)
    return first if share >= _MIN_SHARE and hits[first] >= _MIN_LEAD * hits[second] and different[first] >= 3 else ""


def script_letters(text: str) -> dict[str, int]:
    """How many letters of each script."""
    counts: dict[str, int] = {}
    for letter in text:
        if letter.isalpha():
            script = _SCRIPTS[bisect_right(_STARTS, ord(letter)) - 1][1]
            counts[script] = counts.get(script, 0) + 1
    return counts


def is_mixed(text: str, beside: str) -> bool:
    """Do two scripts share the text, one of which `beside` does not hold? Both need a fifth of its letters and 12."""
    text, beside = text[:_READ], beside[: 4 * _READ]
    if not _BEYOND.search(text):
        return False
    counts = {name: n for name, n in script_letters(text).items() if name != "other"}
    if counts.get("ja"):
        counts["ja"] += counts.pop("zh", 0)
    least = max(12.0, 0.2 * sum(counts.values()))
    large = [name for name, n in counts.items() if n >= least]
    return len(large) > 1 and not set(large) <= script_letters(beside).keys()
