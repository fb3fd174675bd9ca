"""The model's own margins of pairs: which reply it already prefers, length taken out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from demeanor.contract import Contract, build_contract
from demeanor.errors import ModelError
from demeanor.model import ModelSource, end_of_turn_ids, load_model, load_tokenizer
from demeanor.records import PreferencePair
from demeanor.tokens import make_tokenizer, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pair_margins(
    source: ModelSource, contract: Contract | None, pairs: Sequence[PreferencePair], *, at_a_time: int = 32
) -> list[float | None]:
    """log p(y_w|x) / |y_w| - log p(y_l|x) / |y_l| of each pair under the model as it is, nats a token.

    The end-of-turn token is a token of its reply. None where a pair cannot be tokenized (see `tokens.py`), or is longer
    than the contract's max_length. Without a contract the defaults hold, and `plain` where there is no chat template.

    Raises:
        ModelError: the model or its tokenizer cannot be loaded, or it has no chat template and the contract names none.
    """
    from demeanor.measure.likelihood import Scorer

    inner, contract = _tokenizer(source, contract)
    tokenizer = make_tokenizer(inner, end_of_turn_ids(source, inner))
    system = contract.system_text()
    taken, _ = tokenize_pairs(pairs, tokenizer, system=lambda key: system, max_length=contract.training.max_length)
    scorer = Scorer(load_model(source, contract, trees=True))
    found: dict[str, float] = {}
    for start in range(0, len(taken), at_a_time):
        chunk = taken[start : start + at_a_time]
        replies = [[pair.chosen_ids, pair.rejected_ids] for pair in chunk]
        for pair, (chosen, rejected) in zip(
            chunk, scorer.logps([pair.prompt_ids for pair in chunk], replies), strict=True
        ):
            found[pair.id] = sum(chosen) / len(chosen) - sum(rejected) / len(rejected)
    return [found.get(pair.id) for pair in pairs]


def _tokenizer(source: ModelSource, contract: Contract | None) -> tuple[PreTrainedTokenizerBase, Contract]:
    if contract is not None:
        return load_tokenizer(source, contract), contract
    data = {"pairs": ["pairs"]}
    with contextlib.suppress(ModelError):
        contract = build_contract({"data": data})
        return load_tokenizer(source, contract), contract
    contract = build_contract({"data": data, "chat_template": "plain"})
    return load_tokenizer(source, contract), contract
