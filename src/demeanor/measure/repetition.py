"""Does a reply repeat itself? By the share of its n-grams that are repeats.

    seq-rep-n = 1 - (distinct n-grams) / (n-grams)      n = 4, in one reply (Welleck et al. 2020, section 6.1)

Neural text degenerates into loops (Holtzman et al. 2020, The Curious Case of Neural Text Degeneration). A reply with
a larger share than LIMIT counts as repetitive: 0.02 % of 102,540 replies in dialogs that people wrote (the starter's
corpus) do, and 1.6 % of 6,160 longer ones of language models under attack (GPTFuzz's labelled replies). The n-grams
are of words and marks, not of tokens, so that it can be computed again from the stored reply, and means the same
under every tokenizer.
"""

from __future__ import annotations

import re

SIZE = 4  # n
LIMIT = 0.25  # share of repeats above which a reply is repetitive
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|\w+|[^\w\s]")  # a letter each where nothing parts words


def repeated_share(text: str, size: int = SIZE) -> float:
    """seq-rep-n of the text, in [0, 1); 0 where it is shorter than n words."""
    words = _WORDS.findall(text.casefold())
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def is_repetitive(text: str) -> bool:
    return repeated_share(text) > LIMIT
