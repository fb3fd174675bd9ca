"""Exact log-probabilities of replies and openings, each prompt computed once.

A probe's prompt, its replies and all openings form one prefix tree (`train/tree.py`), probes under one system prompt
too; several trees fill a row. The log-softmax is taken in float32, over reply tokens only, the end-of-turn token
included for whole replies.

    log p(y|x)              sum over the reply's tokens, nats
    choice probability      sum of exp(log p) over the violating replies / the same over all the probe's replies
    opening mass            sum of p(opening|x) over a prefix-free set of openings, each over the token sequences that
                            spell it (`openings.py`), with a bound on what is left out
    divergence              KL(p || q) = sum over the vocabulary of p (log p - log q) at each place of a reply, nats, p
                            the model's next-token distribution there and q another's
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from demeanor.errors import StageError
from demeanor.measure.kept import Found, KeptLikelihoods
from demeanor.measure.openings import Ids, Mass, Opening, Search, Spellings
from demeanor.train.attention import NAME, TreeAttention, register
from demeanor.train.kernels import KINDS, fuse, unfuse
from demeanor.train.tree import Row, plan_rows

Likelihoods = tuple[list[list[float]], list[Mass]]  # of a prompt: each reply's log-probabilities, each opening's mass

ROW_TOKENS = 1024  # on a CPU; attention in a row grows with its square
MOST_ROW_TOKENS = 8192  # on an accelerator
SPOT_CHECKED = 4  # prompts
ALL_BUT_THE_LAST = tuple(kind for kind in KINDS if kind != "last layers")
TRIED = 2  # paths of the first prompt, when trees are tried
TOLERANCE_NATS = {torch.float32: 1e-3}  # mean difference of a token's log-probability, tree against plain
LOWER_PRECISION_NATS = 0.1
KL_CHUNK = 1 << 22  # logits of each model in float32 at a time


@dataclass(frozen=True, slots=True)
class Path:
    """A continuation of a prompt, and what is asked along it: after `tokens[: first + k]` the log-probabilities of the
    tokens `wanted[k]`. All of `tokens` are given to the model, and no more."""

    tokens: Sequence[int]
    wanted: Sequence[Sequence[int] | Ids]
    first: int = 0


@dataclass
class Scorer:
    """Scores continuations of prompts under one model.

    Whether the model takes trees is found out by trying: a small one is scored both ways, on a CPU with the training's
    attention for trees, else with a mask; a model that gives other numbers (a sliding window shorter than the text,
    linear attention) is scored sequence by sequence.

    Args:
        model: a causal language model, or a PEFT model around one.
        spellings: to count every way of spelling an opening; None: only the tokenizer's own.
        kept: likelihoods of the same model from earlier runs; new ones are added.
        row_tokens: tokens given to the model at a time; by default what the device has room for. Halved when memory
            does not suffice.
        say: called with one line when kept likelihoods are not used.
    """

    model: Any
    spellings: Spellings | None = None
    kept: KeptLikelihoods | None = None
    row_tokens: int | None = None
    say: Callable[[str], None] = lambda line: None
    uses_trees: bool | None = field(default=None, init=False)  # not known before the first tree
    padded_because: str = field(default="", init=False)
    attends: str = field(default="mask", init=False)  # how in trees: by a mask, or NAME
    _prunes: bool = field(default=False, init=False)  # its last layer computes the places alone that are asked for

    def __post_init__(self) -> None:
        self.model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.device = next(self.model.parameters()).device
        self.dtype = next(self.model.parameters()).dtype

    def logps(
        self, prompts: Sequence[list[int]], continuations: Sequence[Sequence[list[int]]]
    ) -> list[list[list[float]]]:
        """Per-token log-probabilities (nats) of each continuation of each prompt, in the order given.

        Raises:
            ValueError: a prompt or a continuation is empty.
        """
        return [logps for logps, _ in self.measure(prompts, continuations, [[] for _ in prompts])]

    def measure(
        self,
        prompts: Sequence[list[int]],
        replies: Sequence[Sequence[list[int]]],
        openings: Sequence[Sequence[Opening]],
    ) -> list[Likelihoods]:
        """Of each prompt the per-token log-probabilities (nats) of its replies, and the masses of its openings.

        Raises:
            ValueError: a prompt, a reply or an opening is empty.
        """
        asked = list(zip(prompts, replies, openings, strict=True))
        if not all(prompt and all(own) and all(o.tokens for o in begun) for prompt, own, begun in asked):
            raise ValueError("a prompt and each continuation need at least one token")
        known = [self._known(*one) for one in asked]
        if all(None not in [*logps, *masses] for logps, masses in known):
            return known
        # all of them, whatever is known: in rows of other company a sum is rounded differently, and a run that was
        # killed and goes on must give the same numbers to the last bit
        computed = self._compute(asked)
        if self.kept is None:
            return computed
        computed = [(logps, list(map(self.kept.rounded, masses))) for logps, masses in computed]
        self._keep(
            [
                (prompt, _new(own, old[0], logps), _new(begun, old[1], masses))
                for (prompt, own, begun), old, (logps, masses) in zip(asked, known, computed, strict=True)
            ]
        )
        # what was kept stays, and is what this run says too: the next one finds it
        return [
            (_first(old[0], logps), _first(old[1], masses))
            for old, (logps, masses) in zip(known, computed, strict=True)
        ]

    def _known(
        self, prompt: list[int], replies: Sequence[list[int]], openings: Sequence[Opening]
    ) -> tuple[list[Any], list[Any]]:
        """What is kept of them, None in the place of what is not."""
        if self.kept is None:
            return [None] * len(replies), [None] * len(openings)
        return self.kept.replies(prompt, replies), self.kept.masses(prompt, openings)

    def _keep(self, found: Sequence[Found]) -> None:
        assert self.kept is not None
        try:
            self.kept.keep(found)
        except StageError as error:
            self.say(f"likelihoods: not kept for later runs; {error}")
            self.kept = None

    def check_kept(
        self,
        prompts: Sequence[list[int]],
        replies: Sequence[Sequence[list[int]]],
        openings: Sequence[Sequence[Opening]],
    ) -> None:
        """Compute a few of the prompts that are known once more; when they disagree, forget all that is kept."""
        if self.kept is None:
            return
        asked = list(zip(prompts, replies, openings, strict=True))
        found = [self._known(*one) for one in asked]
        held = [n for n, parts in enumerate(found) if None not in parts[0] + parts[1] and any(parts)]
        chosen = held[:: max(1, len(held) // SPOT_CHECKED)][:SPOT_CHECKED]
        again = self._compute([asked[number] for number in chosen])
        tolerance = TOLERANCE_NATS.get(self.dtype, LOWER_PRECISION_NATS)
        if not all(_agree(found[number], new, tolerance) for number, new in zip(chosen, again, strict=True)):
            self.say(f"likelihoods: {self.kept.path} disagrees with the model: computed anew")
            self.kept.forget()
        self.kept.num_found = 0

    def _compute(self, asked: Sequence[tuple[list[int], Sequence[list[int]], Sequence[Opening]]]) -> list[Likelihoods]:
        """`measure`, without what is kept: the replies and the openings' own tokenizations in one pass, then whatever
        else spells the openings."""
        searches = [[Search(opening, self.spellings) for opening in openings] for _, _, openings in asked]
        prompts = [prompt for prompt, _, _ in asked]
        paths = [
            [Path(reply[:-1], [[token] for token in reply]) for reply in replies]
            + [Path(search.opening.tokens[:-1], search.first()) for search in own]
            for (_, replies, _), own in zip(asked, searches, strict=True)
        ]
        result: list[Likelihoods] = []
        for (_, replies, _), own, answers in zip(asked, searches, self.ask(prompts, paths), strict=True):
            result.append(([[float(answer[0]) for answer in path] for path in answers[: len(replies)]], []))
            for search, answer in zip(own, answers[len(replies) :], strict=True):
                search.learn_first(answer)
        while True:
            further = [[(s, beginning) for s in own for beginning in s.questions()] for own in searches]
            waiting = [number for number, some in enumerate(further) if some]
            if not waiting:
                break
            asking = [[Path(b, [s.wanted(b)], len(b)) for s, b in further[number]] for number in waiting]
            for number, found in zip(waiting, self.ask([prompts[n] for n in waiting], asking), strict=True):
                for (search, beginning), (values,) in zip(further[number], found, strict=True):
                    search.learn(beginning, values)
        for (_, masses), own in zip(result, searches, strict=True):
            masses += [search.mass() for search in own]
        return result

    @torch.inference_mode()
    def ask(self, prompts: Sequence[list[int]], paths: Sequence[Sequence[Path]]) -> list[list[list[np.ndarray]]]:
        """For each path of each prompt, and each of its `wanted`, the log-probabilities of those tokens (nats)."""
        asked = list(zip(prompts, paths, strict=True))
        in_trees = self._in_trees(asked)
        chosen = [number for number, in_tree in enumerate(in_trees) if in_tree]
        with self._attention():
            found = dict(zip(chosen, self._trees([asked[number] for number in chosen]), strict=True))
        return [found[n] if n in found else self._plain(*one) for n, one in enumerate(asked)]

    def _in_trees(self, asked: Sequence[tuple[list[int], Sequence[Path]]]) -> list[bool]:
        """Of each prompt: does it go through the model as a tree? One that is asked nothing does not."""
        self.model.eval()
        if self.uses_trees is None and any(own for _, own in asked):
            self._try_trees(*next((prompt, own) for prompt, own in asked if own))
        limit = self._longest_exact() if self.uses_trees else 0
        return [bool(own) and len(prompt) + max(len(path.tokens) for path in own) <= limit for prompt, own in asked]

    def _trees(self, asked: Sequence[tuple[list[int], Sequence[Path]]]) -> list[list[list[np.ndarray]]]:
        result: list[list[list[np.ndarray]]] = [[[] for _ in paths] for _, paths in asked]
        groups = [[[*prompt, *path.tokens] for path in paths] for prompt, paths in asked]
        budget = self._budget()
        rows = plan_rows(groups, budget, min_shared=1)
        for row in rows:
            try:
                answers = self._row(row, asked)
            except torch.OutOfMemoryError:
                smaller = min(budget, len(row)) // 2
                if smaller < ROW_TOKENS // 8:
                    raise
                self.row_tokens = smaller
                return self._trees(asked)
            for (group, item), values in zip(row.members, answers, strict=True):
                result[group][item] = values
        return result

    def _budget(self) -> int:
        if self.row_tokens is None:
            free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else None
            self.row_tokens = row_tokens(self.model.config.get_text_config(), self.dtype.itemsize, free)
        return self.row_tokens

    def _row(self, row: Row, asked: Sequence[tuple[list[int], Sequence[Path]]]) -> list[list[np.ndarray]]:
        """The answers for each of the row's members."""
        members = [(len(asked[group][0]), asked[group][1][item]) for group, item in row.members]
        places = [  # of the token before each question
            own[size - 1 + path.first : size + path.first + len(path.wanted) - 1]
            for own, (size, path) in zip(row.paths, members, strict=True)
        ]
        keep = np.unique(np.concatenate(places))
        logits = self._logits(row, keep)
        values = _chosen(
            logits,
            [int(place) for own in places for place in np.searchsorted(keep, own)],
            [tokens for _, path in members for tokens in path.wanted],
        )
        ends = np.cumsum([len(path.wanted) for _, path in members])
        return [values[end - len(path.wanted) : end] for (_, path), end in zip(members, ends.tolist(), strict=True)]

    def _logits(self, row: Row, keep: np.ndarray) -> torch.Tensor:
        """Logits [K, V] at the places `keep` of the row."""
        read = torch.as_tensor(keep, device=self.device)
        options: dict[str, Any] = {"attention_mask": None, "logits_to_keep": read}
        if self.attends == NAME:
            tree = TreeAttention(row, self.device, keep=read)
            options["attention_mask"] = tree.mask(self.dtype) if tree.kind == "dense" else tree.no_mask
            options |= {"tree": tree, "logits_to_keep": 0 if self._prunes else read}
        else:
            options["attention_mask"] = row.mask(self.dtype, self.device)
        logits: torch.Tensor = self.model(
            input_ids=torch.as_tensor(row.tokens, device=self.device)[None],
            position_ids=torch.as_tensor(row.positions, device=self.device)[None],
            use_cache=False,
            **options,
        ).logits[0]
        # a model that ignores logits_to_keep returns all
        return logits if logits.shape[0] == len(keep) else logits[keep]

    def _plain(self, prompt: list[int], paths: Sequence[Path]) -> list[list[np.ndarray]]:
        """The same numbers from one plain sequence a path."""
        result = []
        for path in paths:
            logits = self._plain_logits(prompt, path.tokens)[path.first :]
            result.append(_chosen(logits, list(range(len(path.wanted))), path.wanted))
        return result

    def _plain_logits(self, prompt: list[int], tokens: Sequence[int]) -> torch.Tensor:
        """Logits [T + 1, V] before and after each of the T tokens, from one plain sequence."""
        input_ids = torch.tensor([[*prompt, *tokens]], device=self.device)
        logits: torch.Tensor = self.model(input_ids=input_ids, use_cache=False).logits[0, len(prompt) - 1 :]
        return logits

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
        asked = list(zip(prompts, continuations, strict=True))
        if not all(prompt and all(own) for prompt, own in asked):
            raise ValueError("a prompt and each continuation need at least one token")
        paths = [[Path(reply[:-1], [[token] for token in reply]) for reply in own] for _, own in asked]
        in_trees = self._in_trees(list(zip(prompts, paths, strict=True)))
        result: list[list[list[float]]] = [[[] for _ in own] for own in continuations]
        chosen = [number for number, in_tree in enumerate(in_trees) if in_tree]
        groups = [[[*prompts[n], *path.tokens] for path in paths[n]] for n in chosen]
        with self._attention():
            for row in plan_rows(groups, self._budget(), min_shared=1):
                sizes = [len(prompts[chosen[group]]) for group, _ in row.members]
                places = [own[size - 1 :] for own, size in zip(row.paths, sizes, strict=True)]
                keep = np.unique(np.concatenate(places))
                ours = self._logits(row, keep)
                with other():
                    found = np.array(kl_nats(ours, self._logits(row, keep)))
                for (group, item), own in zip(row.members, places, strict=True):
                    result[chosen[group]][item] = found[np.searchsorted(keep, own)].tolist()
        for number in (n for n, in_tree in enumerate(in_trees) if not in_tree):
            for item, path in enumerate(paths[number]):
                ours = self._plain_logits(prompts[number], path.tokens)
                with other():
                    result[number][item] = kl_nats(ours, self._plain_logits(prompts[number], path.tokens))
        return result

    def _try_trees(self, prompt: list[int], paths: Sequence[Path]) -> None:
        paths = sorted(paths, key=lambda path: len(path.tokens))[:TRIED]
        plain = self._plain(prompt, paths)
        if any(not np.isfinite(values).all() for path in plain for values in path):
            raise StageError("the model gives log-probabilities that are not finite: its weights are damaged")
        for attends in (NAME, "mask") if self.device.type == "cpu" else ("mask",):
            self.attends = attends
            try:
                with self._attention():
                    (tried,) = self._trees([(prompt, paths)])
                mean = _mean_difference([v for path in tried for v in path], [v for path in plain for v in path])
                self.uses_trees = mean <= TOLERANCE_NATS.get(self.dtype, LOWER_PRECISION_NATS)
                reason = f"difference {mean:.2g} nats a token"
            except torch.OutOfMemoryError:
                raise
            except (TypeError, ValueError, RuntimeError, LookupError, NotImplementedError, AttributeError) as error:
                self.uses_trees, reason = False, type(error).__name__
            if self.uses_trees:
                return
        self.padded_because = f"its attention does not take a tree mask ({reason})"

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Within it the model has the attention that `attends` names; afterwards it is as it was."""
        if self.attends != NAME:
            yield
            return
        register()
        before = self.model.config._attn_implementation
        try:
            self.model.set_attn_implementation(NAME)
            self._prunes = bool(fuse(self.model, self.dtype, without=ALL_BUT_THE_LAST)["last layers"])
            yield
        finally:
            unfuse(self.model)
            self.model.set_attn_implementation(before)

    def _longest_exact(self) -> int:
        """Paths longer than a sliding window would see more in a tree than alone."""
        config = self.model.config.get_text_config()
        window = getattr(config, "sliding_window", None)
        kinds = getattr(config, "layer_types", None)
        if window is None or (kinds is not None and "sliding_attention" not in kinds):
            return 1 << 30
        return int(window)


def row_tokens(config: Any, itemsize: int, free: int | None) -> int:
    """Tokens a row for a device with `free` bytes; None: a CPU, whose attention is slow in long rows.

    A row of L tokens holds an L x L mask twice (as given, and expanded), float32 and original logits of at most L
    tokens, and some activations; a quarter of the free memory is for it.
    """
    if free is None:
        return ROW_TOKENS
    budget = MOST_ROW_TOKENS
    while budget > ROW_TOKENS:
        logits = budget * config.vocab_size * (4 + itemsize)
        activations = 20 * budget * config.hidden_size * itemsize
        if 2 * budget * budget * itemsize + logits + activations <= free // 4:
            break
        budget //= 2
    return budget


def _chosen(logits: torch.Tensor, places: list[int], wanted: Sequence[Sequence[int] | Ids]) -> list[np.ndarray]:
    """The log-probabilities of the tokens wanted at each place of `logits` [L, vocabulary]."""
    sizes = [len(tokens) for tokens in wanted]
    which = torch.as_tensor(np.repeat(places, sizes), device=logits.device)
    tokens = torch.as_tensor(np.concatenate([np.asarray(t, dtype=np.int64) for t in wanted]), device=logits.device)
    log_normalisers = torch.logsumexp(logits.float(), dim=-1)
    values = (logits[which, tokens].float() - log_normalisers[which]).cpu().numpy()
    return np.split(values, np.cumsum(sizes)[:-1])


def _new(asked: Sequence[Any], known: Sequence[Any], computed: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(one, new) for one, old, new in zip(asked, known, computed, strict=True) if old is None]


def _first(known: Sequence[Any], computed: Sequence[Any]) -> list[Any]:
    return [new if old is None else old for old, new in zip(known, computed, strict=True)]


def _mean_difference(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(one) - np.concatenate(two)).mean())


def _agree(one: Likelihoods, two: Likelihoods, tolerance: float) -> bool:
    """Do kept likelihoods agree with computed ones? Replies by the mean over their tokens, openings by the share that
    ten tokens' difference would make."""
    logps = [[np.array(path) for path in side[0]] for side in (one, two)]
    if logps[0] and not _mean_difference(*logps) <= tolerance:
        return False
    return all(
        abs(old.found - new.found) <= 1e-9 + 10 * tolerance * new.found for old, new in zip(one[1], two[1], strict=True)
    )


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
