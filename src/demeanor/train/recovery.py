"""Recovery pairs: the losing reply has begun already, and the winning one turns back from there.

A model whose refusal is learned as the first words of a reply goes on with a violation once those words are someone
else's. So some pairs are trained on a second time with the losing reply's first n tokens in the prompt: the winning
reply is learned from there, and what would have followed is what loses. Qi et al. (2024, "Safety alignment should be
made more than just a few tokens deep", section 3) fine-tune on such safety recovery examples; here they are pairs, so
that every paired objective takes them, and what was forced is no part of either reply: neither loss teaches it. Both
replies end soon after the turn (`recovery_reply_tokens`): what follows the pair itself teaches, and where a margin can
grow in the rest of whole replies, it is wide long before the turn is likely.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from demeanor.contract import Contract
from demeanor.records import PreferencePair, content_id
from demeanor.tokens import Refused, TokenizedPair, Tokenizer


def recovery_pairs(
    pairs: Sequence[PreferencePair], tokenizer: Tokenizer, contract: Contract, *, say: Callable[[str], None]
) -> list[TokenizedPair]:
    """`training.recovery[behaviour]` for each of the behaviour's pairs.

    The pairs are drawn by `training.seed`: with 1.5 each has one, and half of them a second, begun to another length.
    The losing reply keeps at least one token besides its end of turn, so a short one may have fewer, or none; a pair of
    a ranked list has none: its weight is a share of its list's.

    Args:
        say: called with the line that says how many were made, and how many pairs have none.
    """
    settings = contract.training
    made: list[TokenizedPair] = []
    without = 0
    for name, many in settings.recovery.items():
        own = [pair for pair in pairs if pair.behaviour == name and pair.list_id is None]
        own.sort(key=lambda pair: content_id(settings.seed, "recovery", pair.id))  # no matter in which order they came
        for place, pair in enumerate(own):
            wanted = int(many) + (place < round((many - int(many)) * len(own)))
            found = _recovery_pairs(pair, wanted, tokenizer, contract)
            without += wanted > 0 and not found
            made += found
    has = "1 pair has" if without == 1 else f"{without:,} pairs have"
    left_out = f"; {has} none: the losing reply is too short, or it does not fit" if without else ""
    begun = f"1 to {settings.recovery_tokens} tokens" if settings.recovery_tokens > 1 else "1 token"
    say(f"recovery: {len(made):,} more pairs, with {begun} of the losing reply begun{left_out}")
    return made


def _recovery_pairs(pair: PreferencePair, wanted: int, tokenizer: Tokenizer, contract: Contract) -> list[TokenizedPair]:
    settings, system = contract.training, contract.system_text(pair.id)
    plain = tokenizer.pair(pair, system, settings.max_length)
    longest = min(settings.recovery_tokens, len(plain.rejected_ids) - 2)
    if wanted < 1 or longest < 1:
        return []
    messages, _ = tokenizer.fit(pair.prompt, [pair.chosen, pair.rejected], system, settings.max_length)
    lengths = random.Random(f"{settings.seed} {pair.id}").sample(range(1, longest + 1), min(wanted, longest))
    found: list[TokenizedPair] = []
    for num_forced in lengths:
        forced = plain.rejected_ids[:num_forced]
        begun = tokenizer.inner.decode(forced, skip_special_tokens=True)
        try:
            chosen = tokenizer.reply(messages, f"{begun} {pair.chosen}", system)
        except Refused:
            continue
        if chosen[:num_forced] != forced:
            continue  # the tokenizer merges what was forced with what follows
        turn, goes_on = (ids[num_forced:][: settings.recovery_reply_tokens] for ids in (chosen, plain.rejected_ids))
        if turn == goes_on or len(plain.prompt_ids) + num_forced + len(turn) > settings.max_length:
            continue
        prompt = plain.prompt_ids + forced
        found.append(TokenizedPair(f"{pair.id}+{num_forced}", prompt, turn, goes_on, plain.turns_cut))
    return found
