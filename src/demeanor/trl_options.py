"""The keys of `training` that are not ours: options of TRL's configurations, checked as TRL declares them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from demeanor.errors import ContractError, one_line
from demeanor.faults import nearest, nearest_key
from demeanor.objectives import OBJECTIVES
from demeanor.settings import Source


def check_trl_options(training: BaseModel, source: Source, root: type[BaseModel]) -> None:
    """Refuse a training key that neither we nor TRL's trainer of the objective know, and a value of another type.

    TRL is imported only when there is such a key.

    Args:
        training: the section; what it holds beside its own fields is checked.
        root: the whole contract's model, for a key that is right in another section.
    """
    ours, extra = type(training).model_fields, training.model_extra
    if not extra:
        return
    import trl

    trainer = OBJECTIVES[training.objective].trainer  # type: ignore[attr-defined]
    types = {field.name: field.type for field in fields(getattr(trl, CONFIGS[trainer])) if field.init}
    losses = LOSSES[trainer]
    for name, value in extra.items():
        where = source.at(("training", name))
        if name in OURS_NOT_TRL:
            raise ContractError(f"training.{name} is set by Demeanor", where=where, remedy=OURS_NOT_TRL[name])
        if name not in types:
            hint = nearest(name, ours, 0.75) or nearest_key(name, [*ours, *types], root)
            raise ContractError(f"unknown key training.{name}{hint}", where=where)
        for word in ([value] if isinstance(value, str) else value or []) if name == "loss_type" else []:
            if word not in losses:
                raise ContractError(
                    f"training.loss_type: no loss is called {word!r}{nearest(str(word), losses)}", where=where
                )
        if not _fits(value, types[name]):
            kind = getattr(types[name], "__name__", None) or str(types[name])
            raise ContractError(f"training.{name}: must be {kind}, not {one_line(repr(value), 60)}", where=where)


CONFIGS = {
    "dpo": "DPOConfig",
    "kto": "KTOConfig",
    "grpo": "GRPOConfig",
    "rloo": "RLOOConfig",
    "reward_model": "RewardConfig",
}  # of TRL, by the file of `train/`
# TRL 1.16 names them only where it computes them
LOSSES = {
    "dpo": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "kto": ("kto", "apo_zero_unpaired"),
    "grpo": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
    "rloo": (),
    "reward_model": (),
}  # fmt: skip


def _fits(value: Any, kind: Any) -> bool:
    """Is `value` of the type `kind`, as TRL declares it? A single text stands for a list of one."""
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))
        adapter.validate_python([value] if kind == list[str] and isinstance(value, str) else value)
    except ValidationError:
        return False
    except PydanticSchemaGenerationError:
        pass  # a type that pydantic does not know; TRL checks it
    return True


OURS_NOT_TRL = {
    "output_dir": "the run folder decides; use --out",
    "resume_from_checkpoint": "a run resumes by itself",
    "use_cpu": "hide the accelerator instead, as with CUDA_VISIBLE_DEVICES=",
    "save_only_model": "a run must be able to resume",
    "ignore_data_skip": "a resumed run must see the pairs that an uninterrupted one sees",
    "save_strategy": "write `save_steps`; a run must be able to resume",
    "eval_strategy": "the probes are measured before and after training",
    "load_best_model_at_end": "the probes are measured before and after training",
    "disable_tqdm": "the progress is ours",
    "hub_token": "a contract holds no secrets; log in with `hf auth login`",
    "precompute_ref_log_probs": "write `reference: precomputed`",
    "truncation_mode": "replies are never cut; a prompt that is too long loses its oldest turns",
    "reward_weights": "each of `training.rewards` has its weight",
    "chat_template_kwargs": "prompts are rendered by the rules of the pairs",
    "num_generations_eval": "the probes are measured before and after training",
    "remove_unused_columns": "it would remove the pairs' tokens",
}
