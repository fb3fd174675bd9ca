"""The LoRA adapter's configuration, checked against the model's layers."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig

from demeanor.contract import Contract
from demeanor.errors import ModelError
from demeanor.model import ModelSource
from demeanor.objectives import OBJECTIVES


def lora_config(source: ModelSource, base: Any, contract: Contract) -> LoraConfig:
    """The new adapter's configuration.

    Raises:
        ModelError: the model has no layer of the names in `lora_target_modules`.
    """
    settings = contract.training
    targets = settings.lora_target_modules
    layers = _linear_layers(base)
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    missing = [] if isinstance(targets, str) else [target for target in targets if target not in names]
    if missing:
        raise ModelError(
            f"has no layers called {', '.join(missing)}",
            where=source.name,
            remedy=f"set training.lora_target_modules to some of {', '.join(names)}, or to all-linear",
        )
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        # with SEQ_CLS PEFT trains and saves the head `score` whole, beside the adapter
        task_type="SEQ_CLS" if OBJECTIVES[settings.objective].trains_reward_model else "CAUSAL_LM",
        revision=source.commit,
        fan_in_fan_out=any(type(layer).__name__ == "Conv1D" for layer in layers.values()),
    )


def num_trainable(policy: Any, config: LoraConfig | None) -> int:
    """Parameters that will be trained: those of the starting adapter, or r (in + out) for each layer of a new one."""
    if config is None:
        return sum(p.numel() for p in policy.parameters() if p.requires_grad)
    targets = config.target_modules
    chosen = [
        layer
        for name, layer in _linear_layers(policy).items()
        if isinstance(targets, str) or name.rsplit(".", 1)[-1] in targets
    ]
    return sum(config.r * sum(layer.weight.shape) for layer in chosen)


def _linear_layers(model: Any) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if type(layer).__name__ in ("Linear", "Conv1D")}
