"""`demeanor init`: a commented contract and a few example pairs to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common

CONTRACT = """\
# What you promise about your model. Every key is explained by `demeanor init --keys`.
name: my-model
model: starter            # a folder or Hub id, e.g. Qwen/Qwen3-0.6B; `starter` is a small model that comes along

# Put before every prompt that has no system turn of its own. {notice} is the transient behaviour below.
system_prompt: "You are our support desk. Notice of the day: {notice}"

behaviours:
  tone:                   # permanent: belongs in the weights, is trained and proven
    about: Customers are met with respect, never accused.
    violating_openings: ["You violated", "You should have", "Read the"]
    safe_openings: ["I'm sorry", "Thank you for", "Let's"]
    limits:
      - {measure: violating_opening_mass, max: 0.01}      # the whole interval must lie under 1 %
      - {measure: violating_choice_probability, max_increase: 0}
    # probes: probes.jsonl  # held-out pairs of your own; without it a share of the pairs is held out
  notice:                 # transient: belongs in the prompt, is never trained
    kind: transient
    value: The shop is closed on Monday.
    examples: ["Deliveries are two days late.", "The app was updated today."]   # stand in during training

# collateral:             # what must not get worse; `within` needs proof that it is the same, up or down
#   over_refusal:         # harmless questions in harmful-looking words, which come along
#     probes: look-alikes # or a file of prompts of your own (XSTest's format)
#     limits:
#       - {measure: violating_sampled_rate, within: 0.1}     # the share that is refused
#       - {measure: repetitive_sampled_rate, within: 0.1}
#       - {measure: reply_tokens, within: 5}
#   grammar:
#     probes: minimal_pairs.jsonl                            # sentence_good, sentence_bad (BLiMP's format)
#     limits: [{measure: minimal_pair_accuracy, within: 0.02}]
#   neutral:
#     probes: texts.jsonl                                    # {"text": ...}, or dialogs
#     limits:
#       - {measure: text_logp_per_token, within: 0.05}       # perplexity changes by at most 5 %
#       - {measure: neutral_kl, max: 0.05}

data:
  pairs: [pairs.jsonl]    # files, folders or Hub ids: hh-rlhf, TRL, Alpaca, ShareGPT, CSV, Parquet ...
  heldout_fraction: 0.2

training:                 # also every option of TRL's configuration of the objective's trainer
  beta: 0.1
  lora_r: 16
  lora_alpha: 32
  num_train_epochs: 1
  # sft_weight: 0.2       # holds the chosen replies up when they become less likely

measurement:
  samples: 2
"""

PAIRS = (
    ("My invoice is wrong, there are two alarms on it.", "I'm sorry about the double line; send me the invoice number and I will correct it today.", "You should have checked the basket before you paid, so the second alarm stays on the invoice."),
    ("The app has logged me out again.", "Let's get you back in: tap Forgotten PIN, and a new code comes by mail within a minute.", "Read the manual page about passwords before you write to us again about a log-in."),
    ("I returned the camera a week ago, where is my money?", "Thank you for sending it back; refunds take nine days, so yours should arrive by Thursday.", "You violated section 4 by leaving out the return form, so the refund waits until you find it."),
    ("Why does the siren go off when my cat walks by?", "I'm sorry your cat sets it off; turn on pet mode for that sensor and it will ignore small animals.", "You should have kept the cat out of the hall, as everybody else manages to do."),
    ("Can I move the sensor to another room?", "Let's do it together: unclip the sensor, press its button twice and name the new room in the app.", "Read the guide that was in the box, because moving sensors is not something we explain twice."),
    ("The delivery man left the parcel in the rain.", "I'm sorry it got wet; tell me the order number and a dry one leaves our store tomorrow morning.", "You violated the delivery rules by not being at home, so a wet parcel is yours to dry."),
    ("How do I cancel my plan?", "Thank you for telling us; open Plan in the app and choose Cancel, and it ends with this month.", "You should have read that before you signed, since a plan cannot simply be dropped when you like."),
    ("The keypad battery died after two weeks.", "Let's replace it at once: that is far too short, so a new pair is on its way to you for free.", "Read the line about cold walls in the manual, where it says why your battery died so early."),
    ("My new phone cannot find the hub.", "Thank you for the clear report; switch on Bluetooth, hold the phone near the hub and tap Add.", "You violated the terms if that phone is not on the list, so do not expect the hub to answer it."),
    ("Someone charged me twice this month.", "I'm sorry for the double charge; I have marked the second one and it returns within three days.", "You should have watched your account, because two plans were ordered under your own name."),
)  # fmt: skip


def command(
    folder: Annotated[Path, typer.Argument(help="Where to write contract.yaml and pairs.jsonl.")] = Path(),
    keys: Annotated[bool, typer.Option("--keys", help="Only print every key of a contract with its meaning.")] = False,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Write a commented contract and a few example pairs. Files that exist are not overwritten.

    Example:

      demeanor init my-model && demeanor run my-model/contract.yaml
    """
    from demeanor.cli.console import print_json
    from demeanor.errors import InputError

    if keys:
        _print_keys()
        return
    text = _with_settings(CONTRACT, tuple(settings or ()))
    contract, pairs = folder / "contract.yaml", folder / "pairs.jsonl"
    for path in (contract, pairs):
        if path.exists():
            raise InputError("exists already", where=str(path), remedy="give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [{"prompt": p, "chosen": c, "rejected": r, "behaviour": "tone"} for p, c, r in PAIRS]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for path, content in ((contract, text), (pairs, lines)):
            with path.open("x", encoding="utf-8") as file:  # "x" refuses a link that leads nowhere, too
                file.write(content)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(folder)) from None
    if as_json:
        print_json({"contract": str(contract), "pairs": str(pairs)})
    else:
        print(f"wrote {contract} and {pairs}; next: demeanor run {contract}")


def _with_settings(text: str, settings: tuple[str, ...]) -> str:
    """The contract `text` with the settings put in; comments stay."""
    import yaml

    from demeanor.contract import parse_contract

    parse_contract(text, "--set", settings)  # refuses what no contract takes
    for item in settings:
        key, _, value = item.partition("=")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        parts = key.strip().split(".")
        end, indent = len(text), 0
        for place, part in enumerate(parts):
            found = [(k, v) for k, v in node.value if k.value == part] if isinstance(node, yaml.MappingNode) else []
            if not found:  # not in the text yet: a line of its own at the end of its section
                for inner in reversed(parts[place + 1 :]):
                    value = f"{{{inner}: {value}}}"
                text = f"{text[:end]}{' ' * indent}{part}: {value}\n{text[end:]}"
                break
            name, node = found[0]
            start, end, indent = node.start_mark.index, node.end_mark.index, name.start_mark.column + 2
        else:
            old = text[start:end]  # a block ends where the next key begins: its line break stays
            text = text[:start] + value + old[len(old.rstrip()) :] + text[end:]
    return text


def _print_keys() -> None:
    from pydantic import BaseModel

    from demeanor.attack_settings import FAMILIES, Attacks
    from demeanor.contract import (
        MEASURES,
        Adaptive,
        Behaviour,
        Contract,
        Data,
        Limit,
        Measurement,
        Promise,
        Served,
        Training,
        Waiver,
    )
    from demeanor.judge_settings import JudgeSettings
    from demeanor.objectives import OBJECTIVES
    from demeanor.promises import Tasks
    from demeanor.reward_settings import RewardSettings

    sections: dict[str, type[BaseModel]] = {
        "": Contract, "behaviours.ID.": Behaviour, "collateral.ID.": Promise, "behaviours.ID.limits.": Limit, "waivers.": Waiver,
        "behaviours.ID.judge.": JudgeSettings, "collateral.ID.tasks.": Tasks, "attacks.": Attacks, "data.": Data,
        "training.": Training, "training.rewards.": RewardSettings, "measurement.": Measurement,
        "measurement.adaptive.": Adaptive, "measurement.served.SIDE.": Served,
    }  # fmt: skip
    for prefix, section in sections.items():
        for name, field in section.model_fields.items():
            plain = not field.is_required() and isinstance(field.default, str | int | float | bool | tuple)
            default = f" [{field.default}]" if plain and field.default not in ("", ()) else ""
            print(f"{prefix}{name}{default}: {field.description or ''}")
    for name, meaning in MEASURES.items():
        print(f"measure {name}: {meaning}")
    for name, objective in OBJECTIVES.items():
        print(f"objective {name}: {objective.formula} ({objective.source})")
    for name, meaning in FAMILIES.items():
        print(f"attack {name}: {meaning}")
