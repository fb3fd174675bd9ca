"""A model and its tokenizer: found, fingerprinted, loaded the same way by every stage.

A model is named by a local folder, a Hub id, or `starter`. A folder that holds a PEFT adapter is a model that was
already tuned: its base is loaded and the adapter put on it. Only safetensors are loaded, and `trust_remote_code` is
off unless the contract says otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demeanor.contract import STARTER, Contract
from demeanor.errors import ModelError, one_line
from demeanor.workspace import file_sha256

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Templates that a user may choose for a tokenizer that has none. A reply ends with exactly one end-of-turn token.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token + '\\n' }}"
    "{% else %}{{ m['role'] | capitalize + ': ' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '<|im_end|>' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"plain": PLAIN_TEMPLATE, "chatml": CHATML_TEMPLATE}
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")  # of a Hub model: never pickles
_HASHED = (".safetensors", ".json", ".jinja", ".model", ".txt", ".py")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model lies on this disk. `adapter` is the folder of a starting adapter on top of `base`, or None."""

    name: str
    base: Path
    adapter: Path | None
    fingerprint: str  # changes with the weights, the configuration or the tokenizer
    commit: str | None = None  # of a Hub model

    @property
    def tokenizer_folder(self) -> Path:
        has_own = self.adapter is not None and (self.adapter / "tokenizer_config.json").exists()
        return self.adapter if has_own and self.adapter is not None else self.base


def find_model(name: str, *, revision: str | None = None) -> ModelSource:
    """Find a model by folder, Hub id or `starter`; a Hub model is downloaded to the usual cache.

    Raises:
        ModelError: there is no such model, or its weights are no safetensors.
    """
    folder = _folder(name, revision)
    adapter, commit = None, folder.name if folder.parent.name == "snapshots" else None
    if (folder / "adapter_config.json").exists():
        adapter = folder
        try:
            config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
            folder = _folder(config["base_model_name_or_path"], config.get("revision"))
        except (ValueError, KeyError, TypeError):
            raise ModelError("adapter_config.json names no base model", where=str(folder)) from None
    if not (folder / "config.json").exists():
        raise ModelError(
            "not a model folder (no config.json)", where=str(folder), remedy="give a Hugging Face model's folder"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            "has no safetensors weights",
            where=str(folder),
            remedy="save it with save_pretrained; pickles are never loaded",
        )
    parts = [_fingerprint(place) for place in (folder, adapter) if place is not None]
    return ModelSource(name, folder, adapter, hashlib.sha256("".join(parts).encode()).hexdigest()[:16], commit)


def load_tokenizer(source: ModelSource, contract: Contract) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a chat template, a pad and an end-of-turn token.

    Raises:
        ModelError: it cannot be loaded, or has no chat template and the contract names none.
    """
    from transformers import AutoTokenizer

    folder = source.tokenizer_folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=contract.trust_remote_code)
    except Exception as error:
        raise ModelError(f"its tokenizer cannot be loaded: {one_line(error, 160)}", where=str(folder)) from None
    if tokenizer.eos_token_id is None:
        raise ModelError("its tokenizer has no end-of-turn token (eos_token)", where=str(folder))
    if contract.chat_template is not None:
        tokenizer.chat_template = _template(contract.chat_template)
    elif not tokenizer.chat_template:
        raise ModelError(
            "its tokenizer has no chat template",
            where=str(folder),
            remedy="set chat_template to plain (User: ... Assistant: ...), chatml, or the path of a jinja file",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: ModelSource, contract: Contract, *, tuned: bool = True, trees: bool = False) -> PreTrainedModel:
    """The model in evaluation mode on the best device, a starting adapter merged into it when `tuned`.

    `trees` asks for an attention that takes a tree mask, which FlashAttention does not.

    Weights are kept in float32 on a CPU (the log-probabilities' precision); on an accelerator in the precision they
    were saved in.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(source.base, **_how_to_load(contract, trees))
        if source.adapter is not None and tuned:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source.adapter).merge_and_unload()
    except Exception as error:
        raise ModelError(f"cannot be loaded: {one_line(error, 200)}", where=str(source.base)) from None
    return _named(model, source).to(best_device()).eval()


def load_reward_model(source: ModelSource, contract: Contract, pad_token_id: int) -> PreTrainedModel:
    """The model in evaluation mode with a linear head of one output, the reward, in place of the language-model head.

    The head is random, drawn with `training.seed`, unless the model has one. The reward is read at the last token that
    is no `pad_token_id`.

    Raises:
        ModelError: it cannot be loaded, or transformers has no such head for it.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    try:
        with torch.random.fork_rng(), suppress_seqcls_warning():
            torch.manual_seed(contract.training.seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                source.base, num_labels=1, **_how_to_load(contract)
            )
    except Exception as error:
        raise ModelError(f"cannot be loaded: {one_line(error, 200)}", where=str(source.base)) from None
    model.config.get_text_config().pad_token_id = pad_token_id
    # a reward in bfloat16 has two or three digits
    model.score.float().register_forward_pre_hook(lambda head, given: (given[0].to(head.weight.dtype),))
    return _named(model, source).to(best_device()).eval()


def _how_to_load(contract: Contract, trees: bool = False) -> dict[str, Any]:
    """Options of `from_pretrained`."""
    import torch

    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()
    return {
        "dtype": torch.float32 if device.type == "cpu" else "auto",
        "attn_implementation": "sdpa" if trees else attention(contract, device),
        "trust_remote_code": contract.trust_remote_code,
        "use_safetensors": True,
    }


def _named(model: Any, source: ModelSource) -> Any:
    """An adapter names its base by this: the Hub id, not this machine's cache."""
    if source.commit is not None and source.adapter is None:
        model.name_or_path = source.name
    return model


def config_of(source: ModelSource) -> dict[str, Any]:
    """The model's configuration as its file states it; of a model with several parts that of its text."""
    config = json.loads((source.base / "config.json").read_text("utf-8"))
    return {**config, **config.get("text_config", {})}


def positions_of(source: ModelSource) -> int | None:
    """How many positions the model has, None where its configuration names no number."""
    config = config_of(source)
    found: int | None = config.get("max_position_embeddings") or config.get("n_positions")
    return found


def end_of_turn_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids that end a reply: the tokenizer's, then those that the model's generation settings name."""
    try:
        settings = json.loads((source.base / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError):
        settings = {}
    named = settings.get("eos_token_id")
    named = [] if named is None else named if isinstance(named, list) else [named]
    return list(dict.fromkeys([tokenizer.eos_token_id, *named]))


def best_device() -> torch.device:
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def attention(contract: Contract, device: torch.device) -> str:
    """FlashAttention where it is installed and the device has it, else PyTorch's SDPA."""
    if contract.training.attn_implementation:
        return contract.training.attn_implementation
    if device.type == "cuda":
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"


def keep_freed_memory() -> None:
    """Let the C library keep large freed blocks: PyTorch frees and asks for the same tensors at every step, and a CPU
    training spent a third of its time on getting the pages back from the kernel. Does nothing without glibc."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(-3, 64 << 20)  # M_MMAP_THRESHOLD: larger blocks are given back at once, lest the heap grows
        library.mallopt(-1, 512 << 20)  # M_TRIM_THRESHOLD: so much of the heap's free end is kept


def _folder(name: str, revision: str | None) -> Path:
    if name == STARTER:
        return Path(str(files("demeanor.starter") / "model"))
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ModelError("is a file, not a model's folder", where=name)
    if path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")) or (os.sep != "/" and os.sep in name):
        raise ModelError("no such folder", where=name, remedy="give a model's folder or a Hub id such as org/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_WANTED)))
    except HFValidationError:
        raise ModelError("neither a folder nor a Hub id", where=name, remedy="give org/name or a folder") from None
    except HfHubHTTPError as error:
        raise ModelError(
            f"the Hub refused it: {one_line(error, 160)}", where=name, remedy="check the id; gated: log in"
        ) from None
    except Exception as error:
        raise ModelError(
            f"no such folder, and the Hub cannot be reached: {one_line(error, 120)}",
            where=name,
            remedy="check the name",
        ) from None


def _fingerprint(folder: Path) -> str:
    listing = [
        (file.name, file_sha256(file))
        for file in sorted(folder.iterdir())
        if file.suffix in _HASHED and file.is_file() and not file.name.startswith(".")
    ]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def _template(choice: str) -> str:
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    try:
        return Path(choice).read_text("utf-8")
    except OSError:
        raise ModelError(
            "no such chat template", where=choice, remedy=f"one of {', '.join(TEMPLATES)}, or a jinja file"
        ) from None
