"""Recovery pairs: the losing reply has begun already, and the winning one turns back from there.

A model whose refusal is learned as the first words of a reply goes on with a violation once those words are someone
else's. So some pairs are trained on a second time with the losing reply's first n tokens in the prompt: the winning
reply is learned from there, and what would have followed is what loses. Qi et al. (2024, "Safety alignment should be
made more than just a few tokens deep", section 3) fine-tune on such safety recovery examples; here they are pairs, so
that every paired objective takes them, and what was forced is no part of either reply: neither loss teaches it.
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
    """The twins of a share `training.recovery[behaviour]` of each behaviour's pairs, drawn by `training.seed`.

    The losing reply keeps at least one token besides its end of turn. A pair of a ranked list has none: its weight is
    a share of its list's.

    Args:
        say: called with the line that says how many were made, and how many could not be.
    """
    settings = contract.training
    twins: list[TokenizedPair] = []
    refused = 0
    for name, share in settings.recovery.items():
        own = [pair for pair in pairs if pair.behaviour == name and pair.list_id is None]
        own.sort(key=lambda pair: content_id(settings.seed, "recovery", pair.id))  # no matter in which order they came
        for pair in own[: round(share * len(own))]:
            twin = _twin(pair, tokenizer, contract)
            if twin is None:
                refused += 1
            else:
                twins.append(twin)
    left_out = f"; {refused:,} could not be: the losing reply is too short, or it does not fit" if refused else ""
    tokens = f"1 to {settings.recovery_tokens} tokens" if settings.recovery_tokens > 1 else "1 token"
    say(f"recovery: {len(twins):,} pairs are trained on once more with {tokens} of the losing reply begun{left_out}")
    return twins


def _twin(pair: PreferencePair, tokenizer: Tokenizer, contract: Contract) -> TokenizedPair | None:
    settings, system = contract.training, contract.system_text(pair.id)
    plain = tokenizer.pair(pair, system, settings.max_length)
    longest = min(settings.recovery_tokens, len(plain.rejected_ids) - 2)
    if longest < 1:
        return None
    num_forced = random.Random(f"{settings.seed} {pair.id}").randint(1, longest)
    forced = plain.rejected_ids[:num_forced]
    messages, _ = tokenizer.fit(pair.prompt, [pair.chosen, pair.rejected], system, settings.max_length)
    begun = tokenizer.inner.decode(forced, skip_special_tokens=True)
    try:
        chosen = tokenizer.reply(messages, f"{begun} {pair.chosen}", system)
    except Refused:
        return None
    fits = len(plain.prompt_ids) + len(chosen) <= settings.max_length
    if chosen[:num_forced] != forced or not fits:
        return None
    return TokenizedPair(
        f"{pair.id}+{num_forced}",
        plain.prompt_ids + forced,
        chosen[num_forced:],
        plain.rejected_ids[num_forced:],
        plain.turns_cut,
    )
