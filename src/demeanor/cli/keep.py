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
        list[str] | None, typer.Option(help="A system prompt under which each is answered too; may be repeated.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Replies for each prompt and system prompt.")] = 2,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longer replies are left out.")] = 64,
    behaviour: Annotated[str | None, typer.Option(help="The behaviour that the pairs name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the replies.")] = 0,
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
    taken = [*promised.data.pairs, prompts, *(p.probes for p in promised.promises.values() if p.probes)]
    if out.exists() and any(Path(name).exists() and out.samefile(name) for name in taken):
        raise InputError("is read by this very command", where=str(out), remedy="write to another file")
    rows, left_out = keep_pairs(
        promised, prompts, systems=tuple(system or ()), samples=samples, max_new_tokens=max_new_tokens,
        behaviour=behaviour, seed=seed, progress=progress,
    )  # fmt: skip
    common.write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if as_json:
        print_json({"pairs": len(rows), "left_out": dict(left_out)})
        return
    told = "".join(f", {count:,} {reason}" for reason, count in left_out.most_common())
    print(f"{len(rows):,} pairs in {out}" + (f"; replies left out{told}" if told else ""))
