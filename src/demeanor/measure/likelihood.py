"""Exact log-probabilities of replies and openings, each prompt computed once.

A probe's prompt, its replies and all openings form one prefix tree (`train/tree.py`), probes under one system prompt
too; several trees fill a row. The log-softmax is taken in float32, over reply tokens only, the end-of-turn token
included for whole replies.

    log p(y|x)              sum over the reply's tokens, nats
    choice probability      sum of exp(log p) over the violating replies / the same over all the probe's replies
    opening mass            sum of p(opening|x) over a prefix-free set of openings, in their canonical tokenization.
                            Other splits of the same text are not summed: it is a lower bound of the text's probability.
    divergence              KL(p || q) = sum over the vocabulary of p (log p - log q) at each place of a reply, nats, p
                            the model's next-token distribution there and q another's
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from demeanor.errors import StageError
from demeanor.train.tree import Row, plan_rows

Probe = tuple[list[int], Sequence[list[int]]]  # a prompt and its continuations, token ids

ROW_BUDGET = 1024  # tokens; attention in a row grows with its square
TOLERANCE_NATS = {torch.float32: 1e-3}  # mean difference of a token's log-probability, tree against plain
LOWER_PRECISION_NATS = 0.1
KL_CHUNK = 1 << 22  # logits of each model in float32 at a time


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
        """Per-token log-probabilities (nats) of each continuation of each prompt, in the order given.

        Raises:
            ValueError: a prompt or a continuation is empty.
        """
        probes = _checked(prompts, continuations)
        if not probes:
            return []
        in_trees = self._in_trees(probes)
        result = [[] if in_tree else self._plain(*probe) for in_tree, probe in zip(in_trees, probes, strict=True)]
        chosen = [number for number, in_tree in enumerate(in_trees) if in_tree]
        for number, logps in zip(chosen, self._trees([probes[number] for number in chosen]), strict=True):
            result[number] = logps
        return result

    @torch.inference_mode()
    def divergences(
        self,
        prompts: Sequence[list[int]],
        continuations: Sequence[Sequence[list[int]]],
        other: Callable[[], AbstractContextManager[Any]],
    ) -> list[list[list[float]]]:
        """KL(this model || the other one) before each token of each continuation, nats, over the whole vocabulary.

        Never more than one row's logits of each model are held, and float32 copies of KL_CHUNK of them.

        Args:
            other: a context in which this very model is the other one (a PEFT model's `disable_adapter`, say).

        Raises:
            ValueError: a prompt or a continuation is empty.
        """
        probes = _checked(prompts, continuations)
        if not probes:
            return []
        in_trees = self._in_trees(probes)
        result: list[list[list[float]]] = [[[] for _ in options] for _, options in probes]
        chosen = [number for number, in_tree in enumerate(in_trees) if in_tree]
        groups = [[probes[n][0] + option for option in probes[n][1]] for n in chosen]
        for row in plan_rows(groups, ROW_BUDGET, min_shared=1):
            starts = [len(probes[chosen[group]][0]) for group, _ in row.members]
            befores = [path[start - 1 : -1] for path, start in zip(row.paths, starts, strict=True)]
            keep = np.unique(np.concatenate(befores))
            ours = self._forward(row, keep)
            with other():
                theirs = self._forward(row, keep)
            found = np.array(kl_nats(ours, theirs))
            for (group, item), before in zip(row.members, befores, strict=True):
                result[chosen[group]][item] = found[np.searchsorted(keep, before)].tolist()
        for number in (n for n, in_tree in enumerate(in_trees) if not in_tree):
            prompt, options = probes[number]
            for item, reply in enumerate(options):
                ours = self._logits_of(prompt, reply)
                with other():
                    result[number][item] = kl_nats(ours, self._logits_of(prompt, reply))
        return result

    def _in_trees(self, probes: Sequence[Probe]) -> list[bool]:
        """Of each probe: does it go through the model as a tree?"""
        self.model.eval()
        if self.uses_trees is None:
            self._try_trees(probes[0])
        limit = self._longest_exact() if self.uses_trees else 0
        return [len(prompt) + max(map(len, options), default=0) <= limit for prompt, options in probes]

    def _trees(self, probes: Sequence[Probe]) -> list[list[list[float]]]:
        result: list[list[list[float]]] = [[[] for _ in options] for _, options in probes]
        groups = [[prompt + option for option in options] for prompt, options in probes]
        for row in plan_rows(groups, ROW_BUDGET, min_shared=1):
            logps = self._row(row, [len(probes[group][0]) for group, _ in row.members])
            for (group, item), values in zip(row.members, logps, strict=True):
                result[group][item] = values
        return result

    def _row(self, row: Row, starts: list[int]) -> list[list[float]]:
        """For each sequence of the row, the log-probabilities of its tokens from its start on."""
        befores = [path[start - 1 : -1] for path, start in zip(row.paths, starts, strict=True)]
        targets = [row.tokens[path[start:]] for path, start in zip(row.paths, starts, strict=True)]
        keep = np.unique(np.concatenate(befores))
        logits = self._forward(row, keep)
        log_normalisers = torch.logsumexp(logits.float(), dim=-1)
        which = torch.as_tensor(np.searchsorted(keep, np.concatenate(befores)), device=self.device)
        wanted = torch.as_tensor(np.concatenate(targets), device=self.device)
        values = (logits[which, wanted].float() - log_normalisers[which]).tolist()
        ends = np.cumsum([len(target) for target in targets])
        return [values[end - len(target) : end] for target, end in zip(targets, ends.tolist(), strict=True)]

    def _forward(self, row: Row, keep: np.ndarray) -> torch.Tensor:
        """Logits [K, V] at the places `keep` of the row."""
        logits: torch.Tensor = self.model(
            input_ids=torch.as_tensor(row.tokens, device=self.device)[None],
            position_ids=torch.as_tensor(row.positions, device=self.device)[None],
            attention_mask=row.mask(self.dtype, self.device),
            logits_to_keep=torch.as_tensor(keep, device=self.device),
            use_cache=False,
        ).logits[0]
        # a model that ignores logits_to_keep returns all
        return logits if logits.shape[0] == len(keep) else logits[keep]

    def _logits_of(self, prompt: list[int], reply: list[int]) -> torch.Tensor:
        """Logits [T, V] before each of the reply's T tokens, from one plain sequence."""
        input_ids = torch.tensor([prompt + reply[:-1]], device=self.device)
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 :]
        return logits

    def _plain(self, prompt: list[int], options: Sequence[list[int]]) -> list[list[float]]:
        """The same numbers from one plain sequence a continuation."""
        result = []
        for reply in options:
            logps = torch.log_softmax(self._logits_of(prompt, reply).float(), dim=-1)
            result.append(logps.gather(1, torch.tensor(reply, device=self.device)[:, None])[:, 0].tolist())
        return result

    def _try_trees(self, probe: Probe) -> None:
        plain = self._plain(*probe)
        if any(not math.isfinite(value) for path in plain for value in path):
            raise StageError("the model gives log-probabilities that are not finite: its weights are damaged")
        try:
            (tried,) = self._trees([probe])
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


def _checked(prompts: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]) -> list[Probe]:
    probes = list(zip(prompts, continuations, strict=True))
    if not all(prompt and all(options) for prompt, options in probes):
        raise ValueError("a prompt and each continuation need at least one token")
    return probes


def kl_nats(ours: torch.Tensor, theirs: torch.Tensor) -> list[float]:
    """KL(p || q) of the softmax of each row of the logits [K, V], in float32; what rounding makes negative is 0."""
    found: list[float] = []
    size = max(1, KL_CHUNK // ours.shape[-1])
    for start in range(0, len(ours), size):
        p, q = (torch.log_softmax(logits[start : start + size].float(), dim=-1) for logits in (ours, theirs))
        terms = p.exp().mul_(p - q)
        terms[p == -math.inf] = 0.0  # 0 log 0
        found += terms.sum(dim=-1).clamp_(min=0.0).tolist()
    return found


def choice_probability(chosen_set: Sequence[float], others: Sequence[float]) -> float:
    """exp-sum of the sequence log-probabilities `chosen_set` over that of both sets, computed safely in the log."""
    top = max([*chosen_set, *others])
    first = sum(math.exp(value - top) for value in chosen_set)
    return first / (first + sum(math.exp(value - top) for value in others))
