"""A local Hugging Face classifier or guard model, by folder or Hub id, as a judge.

A sequence classifier reads the reply alone, or the last user turn and the reply as its tokenizer joins two texts. The
label of highest score is the answer, as `labels` of the contract translates it. A text that is longer than the model's
positions is cut: of a pair the prompt first.

A guard model that generates (Llama Guard and its like) reads the conversation with the reply through its own chat
template. `labels` are then the beginnings of its answers, as it writes them (say two line breaks and "safe", two and
"unsafe"): the most probable one is the answer. A conversation that is longer than its positions is unscored.

A text that spells one of the judge's special tokens is broken there by a space, lest it ends its turn, or begins the
judge's own.

Only safetensors are loaded, and no code of the model's is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from demeanor.errors import ModelError, one_line
from demeanor.judge_settings import JudgeSettings
from demeanor.judges.answer import Answer
from demeanor.model import ModelSource, best_device, find_model
from demeanor.records import Message

_BATCH = 16
_POSITIONS = 512  # of a model that does not say


def find_classifier(settings: JudgeSettings) -> ModelSource:
    """Where it lies on this disk; a Hub model is downloaded to the usual cache.

    Raises:
        ModelError: there is no such model, or it is of no such kind, or without safetensors.
    """
    name = settings.model or ""
    source = _found(name, settings.revision, _stamp(name))
    kinds = _config(source).get("architectures") or []
    if not any("SequenceClassification" in kind or "ForCausalLM" in kind for kind in kinds):
        raise ModelError(
            f"neither classifies sequences nor generates text: {', '.join(kinds) or 'it does not say what it is'}",
            where=str(source.base),
        )
    return source


def _generates(source: ModelSource) -> bool:
    return any("ForCausalLM" in kind for kind in _config(source)["architectures"])


@cache
def _found(name: str, revision: str | None, stamp: tuple[Any, ...]) -> ModelSource:
    """`find_model`, which reads all the weights for their fingerprint, once for files of one `stamp`."""
    return find_model(name, revision=revision)


def _stamp(name: str) -> tuple[Any, ...]:
    folder = Path(name).expanduser()
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def check_labels(source: ModelSource, settings: JudgeSettings) -> None:
    """Raises:
    ModelError: the labels of the settings are not those of the model, or one begins another."""
    if _generates(source):
        given = list(settings.labels)
        for label in given:
            if len(given) < 2 or not label or any(other != label and other.startswith(label) for other in given):
                raise ModelError(
                    "generates: `labels` must be two or more beginnings of its answers, none of which begins another",
                    where=str(source.base),
                )
        return
    own = set(_labels(source))
    if own != set(settings.labels):
        raise ModelError(
            f"has the labels {', '.join(sorted(own))}, not {', '.join(sorted(settings.labels))}",
            where=str(source.base),
            remedy="say of each in `labels` what it means: violating, safe, other or invalid",
        )


def _config(source: ModelSource) -> dict[str, Any]:
    return json.loads((source.base / "config.json").read_text("utf-8"))  # type: ignore[no-any-return]


def _labels(source: ModelSource) -> list[str]:
    """By class id; without names those that transformers gives, LABEL_0 and so on."""
    named = _config(source).get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [named[key] for key in sorted(named, key=int)]


class LocalJudge:
    """Loads the classifier when the first reply is judged.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self.model: Any = None

    def __call__(self, items: Sequence[tuple[tuple[Message, ...], str]]) -> list[Answer]:
        import torch

        if self.model is None:
            self._load()
        items = [
            (tuple(replace(turn, content=self._harmless(turn.content)) for turn in prompt), self._harmless(reply))
            for prompt, reply in items
        ]
        if self.generates:
            return [self._answer(prompt, reply) for prompt, reply in items]
        found: list[Answer] = []
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            replies = [reply for _, reply in batch]
            both = self.settings.reads == "both"
            texts = [[prompt[-1].content for prompt, _ in batch], replies] if both else [replies]
            inputs = self.tokenizer(
                *texts,
                truncation="only_first" if both and self._prompts_can_be_cut(batch) else True,
                max_length=self.positions,
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                logits = self.model(**inputs).logits.float()  # (batch, labels)
            for row in logits:
                if not torch.isfinite(row).all():
                    found.append(Answer(None, {"failed": "scores that are not finite"}))
                    continue
                shares = {n: round(p, 6) for n, p in zip(self.names, row.softmax(-1).tolist(), strict=True)}
                found.append(Answer(self.settings.labels[self.names[int(row.argmax())]], {"probabilities": shares}))
        return found

    def _harmless(self, text: str) -> str:
        """`text` with a space in whatever spells a special token."""
        while broken := next((token for token in self.special if token in text), None):
            text = text.replace(broken, f"{broken[0]} {broken[1:]}")
        return text

    def _answer(self, prompt: tuple[Message, ...], reply: str) -> Answer:
        """The label whose text is the most probable beginning of the guard's answer."""
        import torch

        turns = [turn.to_json() for turn in prompt] + [{"role": "assistant", "content": reply}]
        asked = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        logps: dict[str, float] = {}
        for label in self.settings.labels:
            said = self.tokenizer(label, add_special_tokens=False)["input_ids"]
            if len(asked) + len(said) > self.positions:
                return Answer(None, {"failed": f"longer than its {self.positions} positions"})
            ids = torch.tensor([asked + said], device=self.model.device)
            with torch.inference_mode():
                logits = self.model(ids).logits[0, len(asked) - 1 : -1].float()  # (tokens of the label, vocabulary)
            total = float(logits.log_softmax(-1).gather(1, ids[0, len(asked) :, None]).sum())
            if not math.isfinite(total):
                return Answer(None, {"failed": "log-probabilities that are not finite"})
            logps[label] = total
        return Answer(self.settings.labels[max(logps, key=lambda label: logps[label])], {"logps": logps})

    def _prompts_can_be_cut(self, batch: Sequence[tuple[tuple[Message, ...], str]]) -> bool:
        """Does each reply leave room, so that cutting the prompt alone is enough?"""
        lengths = [len(ids) for ids in self.tokenizer([reply for _, reply in batch])["input_ids"]]
        return bool(
            max(lengths) + 8 <= self.positions
        )  # 8: what tokenizers put around two texts, and a token of the prompt

    def _load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

        source = find_classifier(self.settings)
        check_labels(source, self.settings)
        self.generates = _generates(source)
        loader = AutoModelForCausalLM if self.generates else AutoModelForSequenceClassification
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(source.base, trust_remote_code=False)
            model = loader.from_pretrained(source.base, trust_remote_code=False, use_safetensors=True)
        except Exception as error:
            raise ModelError(f"the judge cannot be loaded: {one_line(error, 200)}", where=str(source.base)) from None
        if self.generates and not self.tokenizer.chat_template:
            raise ModelError("the judge's tokenizer has no chat template", where=str(source.base))
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if model.config.pad_token_id is None:  # by which a decoder's head finds the last token
            model.config.pad_token_id = self.tokenizer.pad_token_id
        added = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        named = dict.fromkeys([*self.tokenizer.all_special_tokens, *added])
        self.special = [token for token in named if len(token.strip()) > 1]
        self.names = [] if self.generates else _labels(source)
        positions = getattr(model.config, "max_position_embeddings", None) or _POSITIONS
        self.positions = min(positions - 2, self.tokenizer.model_max_length)  # RoBERTa's positions begin at 2
        self.model = model.to(best_device()).eval()
