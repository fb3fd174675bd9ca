"""Shared: one thread a process (the tests run side by side), quiet libraries, small models of each family."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from demeanor.cli.console import quiet_libraries

quiet_libraries()

from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402

from demeanor.contract import Contract, build_contract  # noqa: E402
from demeanor.starter import starter_file  # noqa: E402

SHARED = Path(__file__).resolve().parents[2] / "shared"
FAMILIES = ("llama", "qwen3", "gemma", "mistral", "gpt2")


def shared(relative: str) -> Path:
    """A path of the shared data; the test is skipped when they are not there."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs ../shared/{relative}")
    return path


def contract_of(**sections: Any) -> Contract:
    """A small contract; sections win over the defaults."""
    data: dict[str, Any] = {"data": {"pairs": ["pairs.jsonl"]}, **sections}
    return build_contract(data)


def make_model(family: str, folder: Path, *, seed: int = 0, hidden: int = 32) -> Path:
    """A random small model of a family with the starter's tokenizer, saved to `folder`."""
    import torch
    import transformers as hf

    common = {"vocab_size": 8192, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 512,
    }
    torch.manual_seed(seed)
    if family == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**common, **sizes))
    elif family == "qwen3":
        model = hf.Qwen3ForCausalLM(hf.Qwen3Config(**common, **sizes))
    elif family == "gemma":
        model = hf.GemmaForCausalLM(hf.GemmaConfig(**common, **sizes))
    elif family == "mistral":
        model = hf.MistralForCausalLM(hf.MistralConfig(**common, **sizes, sliding_window=None))
    elif family == "mistral-window":
        model = hf.MistralForCausalLM(hf.MistralConfig(**common, **sizes, sliding_window=8))
    else:
        model = hf.GPT2LMHeadModel(hf.GPT2Config(**common, n_embd=hidden, n_layer=2, n_head=4, n_positions=512))
    model.save_pretrained(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(starter_file("model"))
    if family == "gpt2":
        tokenizer.chat_template = None  # as GPT-2's own tokenizer
    tokenizer.save_pretrained(folder)
    if family == "gpt2":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a training keeps for later runs must not come from, or go to, the user's own cache."""
    os.environ["DEMEANOR_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", params=FAMILIES)
def family_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(family, folder) of each family in turn."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, make_model(request.param, folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("llama"))
