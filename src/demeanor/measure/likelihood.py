"""Exact log-probabilities of replies and openings, each prompt computed once.

A probe's prompt, its replies and all openings form one prefix tree (`train/tree.py`); several trees fill a row. The
log-softmax is taken in float32, over reply tokens only, the end-of-turn token included for whole replies.

    log p(y|x)              sum over the reply's tokens, nats
    choice probability      sum of exp(log p) over the violating replies / the same over all the probe's replies
    opening mass            sum of p(opening|x) over a prefix-free set of openings, in their canonical tokenization.
                            Other splits of the same text are not summed: it is a lower bound of the text's probability.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from demeanor.errors import StageError
from demeanor.train.tree import Row, TokenTree, build_tree, pack_rows

ROW_BUDGET = 1024  # tokens; attention in a row grows with its square
TOLERANCE_NATS = {torch.float32: 1e-3}  # mean difference of a token's log-probability, tree against plain
LOWER_PRECISION_NATS = 0.1


class Scorer:
    """Scores continuations of prompts under one model.

    Whether the model takes a tree mask is found out by trying: the first tree is scored both ways, and a model that
    gives other numbers (a sliding window shorter than the text, linear attention) is scored sequence by sequence.

    Args:
        model: a causal language model, or a PEFT model around one.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.device = next(self.model.parameters()).device
        self.dtype = next(self.model.parameters()).dtype
        self.uses_trees: bool | None = None  # not known before the first tree
        self.padded_because = ""

    @torch.inference_mode()
    def logps(
        self, prompts: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[list[float]]]:
        """Per-token log-probabilities (nats) of each continuation of each prompt, in the order given."""
        trees = [build_tree(prompt, options) for prompt, options in zip(prompts, continuations, strict=True)]
        if not trees:
            return []
        self.model.eval()
        if self.uses_trees is None:
            self._try_trees(trees[0])
        if not self.uses_trees:
            return [self._plain(tree) for tree in trees]
        limit = self._longest_exact()
        result: list[list[list[float]]] = []
        for row in pack_rows(trees, ROW_BUDGET):
            if max(tree.depth for tree in row.trees) > limit:
                result += [self._plain(tree) for tree in row.trees]
            else:
                result += self._row(row)
        return result

    def _row(self, row: Row) -> list[list[list[float]]]:
        input_ids, position_ids = row.tensors(self.device)
        keep = sorted({o + t.parents[p] for t, o in _trees(row) for path in t.paths for p in path})
        logits = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=row.mask(self.dtype, self.device),
            logits_to_keep=torch.tensor(keep, device=self.device),
            use_cache=False,
        ).logits[0]
        if logits.shape[0] != len(keep):  # a model that ignores logits_to_keep returns all
            logits = logits[keep]
        log_normalisers = torch.logsumexp(logits.float(), dim=-1)
        where = {place: index for index, place in enumerate(keep)}
        wanted = sorted(
            {(where[o + t.parents[p]], t.tokens[p]) for t, o in _trees(row) for path in t.paths for p in path}
        )
        index = torch.tensor(wanted, device=self.device)
        values = (logits[index[:, 0], index[:, 1]].float() - log_normalisers[index[:, 0]]).tolist()
        known = dict(zip(wanted, values, strict=True))
        return [
            [[known[where[o + t.parents[p]], t.tokens[p]] for p in path] for path in t.paths] for t, o in _trees(row)
        ]

    def _plain(self, tree: TokenTree) -> list[list[float]]:
        """The same numbers from one plain sequence a continuation."""
        prompt, result = tree.tokens[: tree.trunk], []
        for path in tree.paths:
            reply = [tree.tokens[place] for place in path]
            input_ids = torch.tensor([prompt + reply[:-1]], device=self.device)
            logits = self.model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 :].float()
            logps = torch.log_softmax(logits, dim=-1)
            result.append(logps.gather(1, torch.tensor(reply, device=self.device)[:, None])[:, 0].tolist())
        return result

    def _try_trees(self, tree: TokenTree) -> None:
        plain = self._plain(tree)
        if any(not math.isfinite(value) for path in plain for value in path):
            raise StageError("the model gives log-probabilities that are not finite: its weights are damaged")
        try:
            (tried,) = self._row(pack_rows([tree], len(tree))[0])
            both = [pair for one, two in zip(tried, plain, strict=True) for pair in zip(one, two, strict=True)]
            mean = sum(abs(a - b) for a, b in both) / len(both)
            self.uses_trees = mean <= TOLERANCE_NATS.get(self.dtype, LOWER_PRECISION_NATS)
            if not self.uses_trees:
                self.padded_because = f"its attention does not take a tree mask (difference {mean:.2g} nats a token)"
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            self.uses_trees = False
            self.padded_because = f"its attention does not take a tree mask ({type(error).__name__})"

    def _longest_exact(self) -> int:
        """Paths longer than a sliding window would see more in a tree than alone."""
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if window is None or (kinds is not None and "sliding_attention" not in kinds):
            return 1 << 30
        return int(window)


def _trees(row: Row) -> list[tuple[TokenTree, int]]:
    return list(zip(row.trees, row.offsets, strict=True))


def choice_probability(chosen_set: Sequence[float], others: Sequence[float]) -> float:
    """exp-sum of the sequence log-probabilities `chosen_set` over that of both sets, computed safely in the log."""
    top = max([*chosen_set, *others])
    first = sum(math.exp(value - top) for value in chosen_set)
    return first / (first + sum(math.exp(value - top) for value in others))
