"""The split of a run's pairs by the prompt alone: fast, and a pair's side does not depend on the others.

`demeanor curate` splits with more care (`split.py`); its near-duplicates need all the pairs. Here new pairs must move
no old one between the sides, so that a run may go on with more of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.contract import Data
from demeanor.records import PreferencePair, content_id, flat_text


def split_pairs(pairs: Sequence[PreferencePair], data: Data) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Split by prompt, so that no held-out prompt was trained on; the order of the pairs is kept.

    A prompt's last user turn decides its side by a seeded hash of its text with case and spacing flattened; so prompts
    that differ only in these, or in the conversation before, stay together, and a pair's side does not depend on what
    else is in the file. Only where `max_heldout` binds, pairs that come new may send held-out prompts back to training.

    Args:
        pairs: any number.
        data: `heldout_fraction`, `max_heldout` and `seed` are read.

    Returns:
        The training pairs and the held-out ones. At most `max_heldout` are held out (a ranked list counts as one),
        whole prompts; a prompt that alone has more is trained on.
    """
    groups: dict[int, list[PreferencePair]] = {}
    for pair in pairs:
        groups.setdefault(_place(pair, data.seed), []).append(pair)
    heldout: set[int] = set()
    count = 0
    for place in sorted(groups):
        size = len({pair.list_id or id(pair) for pair in groups[place]})
        if size > data.max_heldout:
            continue
        if place >= data.heldout_fraction * 2**64 or count + size > data.max_heldout:
            break
        heldout.add(place)
        count += size
    sides: tuple[list[PreferencePair], list[PreferencePair]] = ([], [])
    for pair in pairs:
        sides[_place(pair, data.seed) in heldout].append(pair)
    return sides


def _place(pair: PreferencePair, seed: int) -> int:
    return int(content_id(seed, flat_text(pair.prompt[-1].content)), 16)
