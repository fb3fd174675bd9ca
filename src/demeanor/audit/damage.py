"""What is wrong with a single text: unseen characters, broken encoding, leftovers of a template, a cut end."""

from __future__ import annotations

import re
from itertools import islice

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
_INVISIBLE = re.compile(  # a joiner belongs to some scripts and emojis, not between Latin letters
    "[\u200b\u2060\ufeff\u180e\u202d\u202e]|(?<=[A-Za-z])[\u200c\u200d\u00ad](?=[A-Za-z])"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]"
)
_DIRECTION = re.compile("[\u200e\u200f\u202a-\u202c\u2066-\u2069]")
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_CONT = "[€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ\x80-\xbf]"  # bytes 80 to BF as Windows-1252 or Latin-1 shows them
_MOJIBAKE = re.compile(
    "\ufffd"
    "|â(?:€|\x80|‚¬|„¢|†[\x90-\x9f’‘“”]|ˆ|‰|œ[\x80-\xbf“”]|ž)"  # quotes, dashes, the euro in UTF-8
    "|Ã(?:[€‚ƒ„…†‡ˆ‰Š‹ŒŽ•–—˜™š›œžŸ\x80-\xba\xbc-\xbf])"  # é ü ñ
    "|Â[\xa0-\xbf]"
    f"|ðŸ{_CONT}|ð\x9f{_CONT}|ï»¿|ï¿½"  # emojis, byte order mark, U+FFFD
)
_TAIL = "[€‚ƒ„†‡ˆ‰Š‹ŒŽ‘•˜™š›œžŸ\x80-\xba\xbc-\xbf]"  # of these, what does not stand after a word
_SEQUENCE = re.compile(f"[\xc2-\xdf]{_TAIL}|[\xe0-\xef]{_CONT}{_TAIL}|[\xf0-\xf4]{_CONT}{{2}}{_TAIL}")  # one letter
_SUSPECT = re.compile("[\ufffd\xc2-\xf4]")  # what these begin with; a text without is not read again
_TOKEN = re.compile(
    r"<\|[A-Za-z_0-9]{2,30}\|>|\[/?INST\]|<</?SYS>>|</s>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"
    r"|<｜[^｜<>]{2,30}｜>"
    r"|\[(?:BOS|EOS|PAD|UNK|CLS|SEP|MASK)\]|<extra_id_\d{1,3}>|<\|?endoftext\|?>"
)
_ROLE = re.compile(
    r"(?:^|\n)[ \t>*]{0,4}(?:(?:Human|Assistant|User|HUMAN|ASSISTANT|USER|SYSTEM) ?(?:\*\*)?:"
    r"|#{2,4} ?(?:Instruction|Response|Input|Human|Assistant|User|System|Output|Question|Answer)\b ?:)"
    r"|(?<=[.!?] )(?:Human|Assistant): "
)
_DANGLING = re.compile(
    r"(?:[,(\[{&/=+]|\w(?: -|:)|\b(?:the|an|and|or|of|to|for|with|that|because|which|but|from|is|are|was|were|as|"
    r"if|your|"
    r"their|its|his|my|our|these|such|than|into|will|would|can|could|should|may|might|very|every|between|while|"
    r"whether|"
    r"including|the most|a lot|due|via|don't|doesn't|you're|we're|it's|i'm|i’m|don’t|it’s|be|been|have|has|had|"
    r"(?<!vitamin )(?<!plan )(?<!grade )a))\Z"
)
_EMPTY_ITEM = re.compile(r"\n[ \t]{0,8}(?:[-*•]|\d{1,2}[.)])\Z")
_ENDED = re.compile(r"(?:[.!?…\"'’”)\]}>*`。！？»:;~|^_=-]|[^\w\s,(\[{/&+])\Z")  # punctuation, a bracket, an emoji
_ITEM = re.compile(r"[ \t]*(?:[-*•#|]|\d{1,3}[.)]|\w+:)")
_MIN_CUT = 6  # words; a shorter reply may well end on such a word


def has_control(text: str) -> bool:
    return not text.isprintable() and _CONTROL.search(text) is not None


def has_invisible(text: str) -> bool:
    """Zero-width and tag characters, and changes of direction in a text that only runs from left to right."""
    if text.isascii():
        return False
    return _INVISIBLE.search(text) is not None or (
        _DIRECTION.search(text) is not None and _RIGHT_TO_LEFT.search(text) is None
    )


def has_broken_encoding(text: str) -> bool:
    """UTF-8 that was read as Windows-1252 or Latin-1 ("donâ€™t"), or U+FFFD where a byte could not be read."""
    if text.isascii() or _SUSPECT.search(text) is None:
        return False
    return _MOJIBAKE.search(text) is not None or sum(1 for _ in islice(_SEQUENCE.finditer(text), 2)) == 2


def has_markers(reply: str) -> bool:
    """A special token, or the header of another turn."""
    return _TOKEN.search(reply) is not None or _ROLE.search(reply) is not None


def is_cut(reply: str) -> bool:
    """Does it stop in the middle: at a comma, an open bracket, a word that needs another, an empty item, open code?"""
    end = reply[-200:].rstrip()
    if len(end.split()) < _MIN_CUT:
        return False
    if reply.count("```") % 2:
        return True
    return _DANGLING.search(end) is not None or _EMPTY_ITEM.search(end) is not None


def is_unended(reply: str) -> bool:
    """Is its last line running text without punctuation at its end? That tells something where others do end so."""
    end = reply.rstrip()[-400:]
    line = end[end.rfind("\n") + 1 :]
    return len(line.split()) >= _MIN_CUT and not (_ENDED.search(line) or _ITEM.match(line))
