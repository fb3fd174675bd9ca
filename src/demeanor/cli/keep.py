"""`demeanor keep`: pairs that hold the model where no behaviour is meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from demeanor.cli import common


def command(
    contract: Annotated[Path, typer.Argument(metavar="CONTRACT", help="The contract that names the model and pairs.")],
    prompts: Annotated[str, typer.Option(help="Prompts that no behaviour is about: a file, a folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="The file of pairs to write, for `data.pairs`.")],
    system: Annotated[
        list[str] | None,
        typer.Option(
            help="A system prompt that replaces the contract's for another round of answers; may be repeated."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Replies for each prompt and system prompt.")] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longer replies are left out.")] = 64,
    behaviour: Annotated[str, typer.Option(help="The behaviour that the pairs name; none of the contract's.")] = "kept",
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Of the replies.")] = 0,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """The model answers neutral prompts; each answer becomes a pair in which it wins over a reply to another prompt.

    What a training teaches spreads to prompts that it is not about (a model that learned to turn back turns in small
    talk, too). Trained on with the others, these pairs hold it in its place. Replies that a behaviour forbids are left
    out.

    Example:

      demeanor keep contract.yaml --prompts everyday.jsonl --out kept.jsonl
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.contract import load_contract
    from demeanor.errors import InputError
    from demeanor.keep import keep_pairs

    promised = load_contract(common.contract_file(contract), tuple(settings or ()))
    for option, texts in (("--system", system or ()), ("--behaviour", (behaviour,))):
        if not all(text.strip() and text.isprintable() for text in texts):
            raise InputError("input should be one line of text", where=option)
    if out.exists():
        raise InputError("stands there already", where=str(out), remedy="name another file")
    if not out.resolve().parent.is_dir():
        raise InputError("its folder does not exist", where=str(out), remedy="make it first")
    others = [name for name in promised.data.pairs if Path(name).expanduser().resolve() != out.resolve()]
    if others:  # the contract may name the file that this makes
        promised = promised.model_copy(update={"data": promised.data.model_copy(update={"pairs": others})})
    read = [Path(name).expanduser() for name in (*others, prompts)]
    if any(folder.is_dir() and out.resolve().is_relative_to(folder.resolve()) for folder in read):
        raise InputError("lies in a folder that is read", where=str(out), remedy="name a file elsewhere")
    rows, left_out = keep_pairs(
        promised, prompts, systems=tuple(system or ()), samples=samples, max_new_tokens=max_new_tokens,
        behaviour=behaviour, seed=seed, progress=progress,
    )  # fmt: skip
    common.write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if as_json:
        print_json({"pairs": len(rows), "left_out": dict(left_out)})
        return
    told = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
    print(f"{len(rows):,} pairs in {out}" + (f"; replies left out: {told}" if told else ""))
