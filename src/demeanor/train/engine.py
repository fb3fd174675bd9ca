"""The engine: token log-probabilities, or rewards, of a padded batch, computed on prefix trees.

A batch comes in as TRL lays it out (input_ids [N, L]; of B pairs N = 2B, the chosen replies first) and goes out as TRL
wants it (one value for each next token, [N, L - 1]). In between, the sequences become trees (`tree.py`), the trees fill
rows, and each row goes through the model once; only the places before a reply's tokens go through the language-model
head (`head.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from demeanor.train.attention import NAME, TreeAttention, register
from demeanor.train.head import TokenScores, score_tokens
from demeanor.train.tree import Row, pad_row, plan_rows

ROW_BUDGET = 2048  # tokens a row


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch as rows. `groups[r]` are the numbers of the pairs (or single sequences) that lie in row r."""

    rows: list[Row]
    groups: list[list[int]]
    starts: np.ndarray  # [N], where each sequence begins: its padding may lie on both sides


class TreeEngine:
    """Scores padded batches of pairs with one model.

    Args:
        model: a causal language model of transformers, or one with a head `score` for the sequence, without its PEFT
            wrapper; its attention is switched to the tree attention, which is "sdpa" for everybody else.
        row_budget: tokens a row.
        paired: sequences i and i + B of a batch [2B, L] end up in one row; else each stands for itself.
    """

    def __init__(self, model: Any, row_budget: int = ROW_BUDGET, *, paired: bool = True) -> None:
        register()
        model.set_attn_implementation(NAME)
        self.model = model
        self.row_budget, self.paired = row_budget, paired
        self.kind: str | None = None  # of attention, instead of what suits the row
        self.temperature = 1.0  # that the logits are divided by; the head must have no bias
        self.figures = True  # that are logged beside the log-probabilities
        self.last_calls = 0  # layers that asked for the last row's tree
        self._last: tuple[torch.Tensor, Batch] | None = None

    def plan(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Batch:
        """The rows of a padded batch [N, L]."""
        if self._last is not None and self._last[0] is input_ids:
            return self._last[1]
        lengths = attention_mask.sum(dim=1).tolist()
        starts = attention_mask.int().argmax(dim=1).cpu().numpy()
        ids = input_ids.cpu().numpy()
        sequences = [
            ids[i, start : start + length].tolist()
            for i, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]
        half = self._num_groups(len(sequences))
        rows = plan_rows([sequences[i::half] for i in range(half)], self.row_budget)
        batch = Batch(rows, [sorted({group for group, _ in row.members}) for row in rows], starts)
        self._last = (input_ids, batch)
        return batch

    def _num_groups(self, num_sequences: int) -> int:
        return num_sequences // 2 if self.paired else num_sequences

    @contextmanager
    def only_log_probs(self) -> Iterator[None]:
        """Scores in this context need not have the figures that are only shown."""
        self.figures = False
        try:
            yield
        finally:
            self.figures = True

    def score(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> TokenScores:
        """Scores of each label at its place, [N, L - 1]; 0 where the label is -100."""
        batch = self.plan(input_ids, attention_mask)
        half = self._num_groups(len(input_ids))
        wanted = labels[:, 1:] != -100
        found, where = [], []
        for row in batch.rows:
            places, targets, cells = [], [], []
            for (group, item), path in zip(row.members, row.paths, strict=True):
                number = group + item * half
                at = wanted[number].nonzero()[:, 0].cpu().numpy()
                own = at - batch.starts[number]
                places.append(path[own])
                targets.append(row.tokens[path[own + 1]])
                cells.append(number * wanted.shape[1] + at)
            found.append(self._score_row(row, np.concatenate(places), np.concatenate(targets)))
            where.append(np.concatenate(cells))
        index = torch.as_tensor(np.concatenate(where), device=input_ids.device)

        def spread(name: str) -> torch.Tensor:
            values = torch.cat([getattr(scores, name) for scores in found])
            flat = values.new_zeros(wanted.numel())
            return flat.index_put((index,), values).view(wanted.shape)

        return TokenScores(**{field.name: spread(field.name) for field in fields(TokenScores)})

    def rewards(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[N, 1], by the model's head `score` at each sequence's last token that is no padding, where transformers'
        models for sequence classification read it."""
        batch = self.plan(input_ids, attention_mask)
        half = self._num_groups(len(input_ids))
        is_text = input_ids != self.model.config.get_text_config().pad_token_id
        last = (is_text * torch.arange(input_ids.shape[1], device=input_ids.device)).argmax(dim=1).cpu().numpy()
        found, numbers = [], []
        for row in batch.rows:
            own = [group + item * half for group, item in row.members]
            places = [path[last[n] - batch.starts[n]] for n, path in zip(own, row.paths, strict=True)]
            found.append(self._hidden(row, np.array(places))[: len(own)])
            numbers += own
        hidden = torch.cat(found)[torch.as_tensor(np.argsort(numbers), device=input_ids.device)]
        with torch.autocast(hidden.device.type, enabled=False):  # a reward in bfloat16 has two or three digits
            rewards: torch.Tensor = self.model.score(hidden.float())
        return rewards

    def _score_row(self, row: Row, places: np.ndarray, targets: np.ndarray) -> TokenScores:
        places, targets, copies = _each_once(places, targets)
        read, head = self._hidden(row, places), self.model.get_output_embeddings()
        if self.temperature != 1.0:
            read = read / self.temperature
        scores = score_tokens(read, head, torch.as_tensor(_fill(targets), device=read.device), figures=self.figures)
        found = {field.name: getattr(scores, field.name)[: len(places)] for field in fields(TokenScores)}
        if len(copies) > len(places):
            again = torch.as_tensor(copies, device=read.device)
            found = {name: values.index_select(0, again) for name, values in found.items()}
        return TokenScores(**found)

    def _hidden(self, row: Row, places: np.ndarray) -> torch.Tensor:
        """[P, H], the last hidden states at the places of the row, the last of them again up to a rounded number P."""
        device = self.model.get_input_embeddings().weight.device
        row = pad_row(row, _rounded(len(row)))
        kept, which = np.unique(_fill(places), return_inverse=True)
        keep, index = torch.as_tensor(_fill(kept), device=device), torch.as_tensor(which, device=device)
        tree = TreeAttention(row, device, self.kind, keep)
        hidden = self.model.base_model(
            input_ids=torch.as_tensor(row.tokens, device=device)[None],
            position_ids=torch.as_tensor(row.positions, device=device)[None],
            attention_mask=tree.no_mask if tree.kind != "dense" else tree.mask(torch.float32),
            use_cache=False,
            tree=tree,
        ).last_hidden_state[0]
        self.last_calls = tree.calls
        if not tree.pruned:
            hidden = hidden.index_select(0, keep)
        read: torch.Tensor = hidden.index_select(0, index)
        return read


def _each_once(places: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different (place, target), in their order, and for each that was given its number among them: a reply of
    several pairs goes through the language-model head once."""
    keys = places.astype(np.int64) * (int(targets.max()) + 1) + targets
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return places[first[order]], targets[first[order]], np.argsort(order)[which]


def _fill(values: np.ndarray) -> np.ndarray:
    """The values and their last one again, up to a rounded number."""
    return np.pad(values, (0, _rounded(len(values)) - len(values)), mode="edge")


def _rounded(number: int) -> int:
    """A multiple of 64, beyond 512 of 128: few shapes, because a kernel is made and kept for each."""
    step = 64 if number <= 512 else 128
    return -(-number // step) * step
