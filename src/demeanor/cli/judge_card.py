"""`demeanor judge-card`: what a behaviour's judge is worth, on replies that you labelled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from demeanor.cli import common

if TYPE_CHECKING:
    from demeanor.records import Estimate


def command(
    contract: Annotated[Path, typer.Argument(metavar="CONTRACT", help="The contract that names the judge.")],
    behaviour: Annotated[str, typer.Option(help="The behaviour whose judge is measured.")],
    labelled: Annotated[
        Path | None, typer.Option(help="CSV with prompt, reply, label (violating or safe); else its card is shown.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the card is written, for `judge.card`.")] = None,
    settings: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Measure a judge's sensitivity and specificity on labelled replies, or show the card that it has.

    Example:

      demeanor judge-card contract.yaml --behaviour bypass --labelled labelled.csv --out card.json
    """
    progress = common.console()
    from demeanor.cli.console import print_json
    from demeanor.contract import load_contract
    from demeanor.errors import InputError
    from demeanor.judges import make_judge
    from demeanor.judges.cards import card_shares, elsewhere, measure_card, read_labelled
    from demeanor.statistics import estimate_share

    promised = load_contract(common.contract_file(contract), tuple(settings or ()))
    if behaviour not in promised.promises:
        raise InputError(
            f"no behaviour {behaviour}", where="--behaviour", remedy=f"one of {', '.join(promised.promises)}"
        )
    promise = promised.promises[behaviour]
    given = promise.judge if labelled is None else promise.judge.model_copy(update={"card": None})
    judge = make_judge(given, promise, max_new_tokens=promised.measurement.max_new_tokens, say=progress.say)
    card = judge.card if labelled is None else measure_card(judge, read_labelled(labelled), labelled.name)
    if card is None:
        raise InputError(
            f"the judge {given.title} of {behaviour} has no card", where=str(contract), remedy="give --labelled"
        )
    if out is not None:
        common.write_text(out, card.model_dump_json(indent=1) + "\n")
    confidence = promised.measurement.confidence
    shares = card_shares(card, confidence)
    if as_json:
        print_json({**card.model_dump(mode="json"), "shares": {name: s.to_json() for name, s in shares.items()}})
        return
    print(f"{given.title} on {card.data}" + (f", {card.unscored} unscored" if card.unscored else ""))
    for name, share in shares.items():
        print(f"{name} {share_words(share)}")
    for data, counts in elsewhere(given).items() if labelled is None and given.card is None else ():
        told = [f"{name} {share_words(estimate_share(hits, n, confidence))}" for name, (hits, n) in counts.items()]
        print(f"elsewhere, {data}: {', '.join(told)}")


def share_words(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}], n = {share.n}"
