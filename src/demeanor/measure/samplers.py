"""Who samples the replies: the model in this process, vLLM, or a server with an OpenAI-compatible endpoint.

All sample plainly (no top-k, no top-p, no penalty) at the contract's temperature, with seeds that follow from the
contract's; what a seed means differs between them, so that before and after are comparable only under the same one. A
served model is asked once a sample. A prompt that a server does not answer has a reply without a text that says why: it
is judged by nobody, and whatever is measured of its probe is None.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from demeanor.contract import Contract, Served
from demeanor.endpoint import GIVEN_UP, Endpoint, check_key, text_of
from demeanor.errors import InputError, ModelError, one_line
from demeanor.records import SIDES, Probe, content_id
from demeanor.tokens import Tokenizer, with_system

if TYPE_CHECKING:
    from demeanor.model import ModelSource

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of an adapter, that vLLM makes room for
_VLLM_SHARE = 0.4  # of the accelerator's memory; the model that gives the likelihoods lies beside it


@dataclass(frozen=True)
class Drawn:
    """A sampled reply: its text, its token ids with the end of turn (None from a server, which tells only how many),
    and why there is none."""

    text: str
    ids: list[int] | None
    num_tokens: int
    fault: str | None = None


Sampler = Callable[[Sequence[Probe], Sequence[list[int]], int], list[list[Drawn]]]  # probes, their prompts, a seed


def check_samplers(contract: Contract) -> None:
    """Raises:
    InputError: vLLM is asked for and not installed, or a server's key is not set."""
    settings = contract.measurement
    if settings.sampled_by == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "vLLM is not installed",
            where="measurement.sampled_by",
            remedy="pip install vllm, or sampled_by: transformers",
        )
    for side, served in settings.served.items():
        try:
            check_key(served.key_env)
        except InputError as error:
            raise InputError(error.what, where=f"measurement.served.{side}", remedy=error.remedy) from None


def make_sampler(
    model: Any,
    source: ModelSource | None,
    adapter: Path | None,
    tokenizer: Tokenizer,
    contract: Contract,
    side: str,
    say: Callable[[str], None],
) -> Sampler:
    """The sampler of a side, as the contract names it.

    Args:
        model: for transformers.
        source, adapter: for vLLM, which loads its own: the base, and the adapter that is on `model`, if any.
    """
    settings = contract.measurement
    served = settings.server(side)
    if served is not None:
        return ServedSampler(served, tokenizer, contract, say)
    if settings.sampled_by == "vllm" and source is not None:
        return VllmSampler(source.base, adapter, tokenizer, contract)
    return LocalSampler(model, tokenizer, contract)


class LocalSampler:
    """The model in this process, by transformers."""

    def __init__(self, model: Any, tokenizer: Tokenizer, contract: Contract) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, contract.measurement

    def __call__(self, probes: Sequence[Probe], prompts: Sequence[list[int]], seed: int) -> list[list[Drawn]]:
        from demeanor.measure.sample import sample_replies

        drawn = sample_replies(
            self.model,
            self.tokenizer,
            list(prompts),
            samples=self.settings.samples,
            temperature=self.settings.temperature,
            max_new_tokens=self.settings.max_new_tokens,
            seed=seed,
        )
        none = [Drawn("", [], 0, "the prompt leaves no room for a reply")] * self.settings.samples
        return [[Drawn(text, ids, len(ids)) for text, ids in own] or none for own in drawn]


class VllmSampler:
    """vLLM, loaded at the first prompt.

    Raises:
        ModelError: vLLM cannot load the model or the adapter.
    """

    def __init__(self, base: Path, adapter: Path | None, tokenizer: Tokenizer, contract: Contract) -> None:
        self.base, self.adapter, self.tokenizer, self.contract = base, adapter, tokenizer, contract
        self.engine: Any = None
        self.request: Any = None

    def __call__(self, probes: Sequence[Probe], prompts: Sequence[list[int]], seed: int) -> list[list[Drawn]]:
        from vllm import SamplingParams

        from demeanor.train.rewards import reply_of

        if not prompts:
            return []
        if self.engine is None:
            self._load()
        settings = self.contract.measurement
        # a request's n samples are drawn by the seeds seed, seed + 1 ...: prompts of one seed would share their noise,
        # and those of seeds that lie close together some of it
        params = [
            SamplingParams(
                n=settings.samples,
                temperature=settings.temperature,
                top_p=1.0,
                max_tokens=settings.max_new_tokens,
                seed=int(content_id(seed, probe.behaviour, probe.id), 16) % 2**48,
                stop_token_ids=self.tokenizer.end_ids,
                detokenize=False,
            )
            for probe in probes
        ]
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self.engine.generate(asked, params, lora_request=self.request, use_tqdm=False)
        result = []
        for output in outputs:
            replies = [
                reply_of(list(one.token_ids), self.tokenizer.inner, self.tokenizer.end_ids) for one in output.outputs
            ]
            result.append([Drawn(text, ids, len(ids)) for ids, text in replies])
        return result

    def _load(self) -> None:
        from vllm import LLM

        options: dict[str, Any] = {}
        try:
            if self.adapter is not None:
                from vllm.lora.request import LoRARequest

                rank = json.loads((self.adapter / "adapter_config.json").read_text("utf-8"))["r"]
                options = {"enable_lora": True, "max_lora_rank": min(size for size in _RANKS if size >= rank)}
                self.request = LoRARequest("adapter", 1, str(self.adapter))
            self.engine = LLM(
                model=str(self.base),
                trust_remote_code=self.contract.trust_remote_code,
                gpu_memory_utilization=_VLLM_SHARE,
                seed=self.contract.measurement.seed,
                **options,
            )
        except Exception as error:
            raise ModelError(f"vLLM cannot load it: {one_line(error, 200)}", where=str(self.base)) from None


class ServedSampler:
    """A model behind an endpoint, asked with several requests at once. It renders the conversation itself, by its own
    chat template. Its temperature, seed and length limit are the contract's."""

    def __init__(self, served: Served, tokenizer: Tokenizer, contract: Contract, say: Callable[[str], None]) -> None:
        self.served, self.tokenizer, self.say = served, tokenizer, say
        self.settings, self.system = contract.measurement, contract.system_text()
        self.endpoint = Endpoint(
            served.endpoint, key_env=served.key_env, timeout_s=served.timeout_s, retries=served.retries
        )
        self._lock = Lock()
        self._said: set[str] = set()

    def __call__(self, probes: Sequence[Probe], prompts: Sequence[list[int]], seed: int) -> list[list[Drawn]]:
        samples = range(self.settings.samples)
        asked = [(probe, sample, seed) for probe in probes for sample in samples]
        with ThreadPoolExecutor(self.served.concurrency) as pool:
            drawn = list(pool.map(lambda one: self._draw(*one), asked))
        return [drawn[place * len(samples) : (place + 1) * len(samples)] for place in range(len(probes))]

    def _draw(self, probe: Probe, sample: int, seed: int) -> Drawn:
        body = {
            "model": self.served.model,
            "messages": [turn.to_json() for turn in with_system(probe.prompt, self.system)],
            "temperature": self.settings.temperature,
            "top_p": 1.0,
            "max_tokens": self.settings.max_new_tokens,
            "seed": int(content_id(seed, probe.behaviour, probe.id, sample), 16) % 2**31,
        }
        found, wrong = self.endpoint.ask(body, lambda answer: (text_of(answer), answer["choices"][0]))
        if found is None:
            self._note(wrong)
            return Drawn("", None, 0, wrong)
        text, choice = found
        ids = self.tokenizer.inner(text, add_special_tokens=False)["input_ids"]
        return Drawn(text.strip(), None, len(ids) + (choice.get("finish_reason") == "stop"))

    def _note(self, what: str) -> None:
        """One line for each kind of fault, not for each reply."""
        if what == GIVEN_UP:  # the fault before it was said
            return
        with self._lock:
            kind = what.partition(":")[0]
            if kind in self._said:
                return
            self._said.add(kind)
        self.say(
            f"the model {self.served.model} at {self.served.endpoint} {what}; such prompts stay unanswered, and a "
            "limit on them fails"
        )


def sampling_words(contract: Contract) -> list[str]:
    """How the replies were sampled, a sentence a line, for the report."""
    settings = contract.measurement
    if not settings.samples:
        return ["No reply was sampled."]
    by = {}
    for side in SIDES:
        served = settings.server(side)
        by[side] = f"{served.model} at {served.endpoint}" if served is not None else settings.sampled_by
    who = by["before"] if len(set(by.values())) == 1 else f"{by['before']} (before), {by['after']} (after)"
    system = contract.system_text()
    return [
        f"Sampled by {who}: {settings.samples} replies a prompt, of at most {settings.max_sampled_probes} prompts a "
        f"behaviour; temperature {settings.temperature:g}, no top-k or top-p; at most {settings.max_new_tokens} "
        f"tokens; seed {settings.seed}.",
        f"System prompt, where a prompt has none: {system}" if system is not None else "No system prompt is added.",
    ]
