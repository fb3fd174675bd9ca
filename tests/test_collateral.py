"""What a training should leave as it was: files of probes, grammar, perplexity, divergence, repetition."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from demeanor.contract import Contract, build_contract
from demeanor.errors import ContractError, PairsError
from demeanor.measure import measure_model
from demeanor.measure.likelihood import Scorer
from demeanor.measure.neutral import mean_kl
from demeanor.measure.repetition import is_repetitive, repeated_share
from demeanor.model import end_of_turn_ids, find_model, load_tokenizer
from demeanor.pairs.probes import kind_of, read_probes
from demeanor.promises import Promise
from demeanor.records import Comparison, Estimate, Message, Probe, Reply, Score, Verdict
from demeanor.tokens import Tokenizer, make_tokenizer
from tests.conftest import contract_of, shared

VOCABULARY = 8192


def rows_of(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# Files of probes


def test_minimal_pairs_are_sentences_without_a_prompt(tmp_path: Path) -> None:
    rows = [
        {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps.", "UID": "agreement", "pairID": "0"},
        {"sentence_good": "Same.", "sentence_bad": "Same. "},
        {"sentence_good": "Alone.", "sentence_bad": None},
    ]
    found = read_probes(rows_of(tmp_path / "pairs.csv", rows), "grammar")  # a name that lies decides nothing
    (probe,) = found.probes
    assert (probe.prompt, probe.safe, probe.violating) == ((), ("The cats sleep.",), ("The cats sleeps.",))
    assert [row.row for row in found.dropped] == [2, 3] and "dropped" in found.note


def test_blimp_is_read_whole() -> None:
    path = shared("data/blimp/blimp_sample.jsonl")
    found = read_probes(path, "grammar")
    assert kind_of(path) == "minimal pairs" and len(found.probes) == 2000 and not found.dropped
    assert all(probe.cluster is None for probe in found.probes)


@pytest.mark.parametrize(("label", "num"), [("safe", 250), ("unsafe", 200)])
def test_of_labelled_prompts_those_that_are_asked_for_are_probes(label: str, num: int) -> None:
    path = shared("data/xstest/xstest_prompts.csv")
    found = read_probes(path, "over_refusal", label=label)
    assert len(found.probes) == num and f"{450 - num} labelled" in found.note
    with path.open(encoding="utf-8") as file:
        wanted = [row["prompt"] for row in csv.DictReader(file) if row["label"] == label]
    assert [probe.prompt for probe in found.probes] == [(Message("user", text),) for text in wanted]


def test_labelled_prompts_that_nobody_chose_from_are_refused(tmp_path: Path) -> None:
    path = rows_of(tmp_path / "p.jsonl", [{"prompt": "Why?", "label": "safe"}, {"prompt": "How?", "label": "unsafe"}])
    with pytest.raises(PairsError, match="which are asked"):
        read_probes(path, "x")
    with pytest.raises(PairsError, match="none is labelled unsafe"):
        read_probes(rows_of(tmp_path / "q.jsonl", [{"prompt": "Why?", "label": "safe"}]), "x", label="unsafe")


def test_dialogs_and_texts(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    dialogs = read_probes(rows_of(tmp_path / "d.jsonl", [[*turns, turns[0]], {"messages": turns[1:]}]), "neutral")
    (probe,) = dialogs.probes
    assert (probe.prompt, probe.safe, probe.violating) == ((Message("user", "Hi"),), ("Hello.",), ())
    assert len(dialogs.dropped) == 1
    texts = read_probes(rows_of(tmp_path / "t.jsonl", [{"text": "It rains."}, {"text": " "}, {"txt": "x"}]), "neutral")
    assert [(probe.prompt, probe.safe) for probe in texts.probes] == [((), ("It rains.",))]
    assert len(texts.dropped) == 2


def test_pairs_stay_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "Hello.", "rejected": "What?", "text": "x", "label": "safe"}]
    found = read_probes(rows_of(tmp_path / "x.jsonl", rows), "tone")
    assert not found.probes and found.pairs is not None and len(found.pairs.pairs) == 1


def test_the_look_alikes_are_ours_distinct_and_harmless() -> None:
    found = read_probes("look-alikes", "over_refusal", label="safe")
    prompts = [probe.prompt[0].content for probe in found.probes]
    assert len(prompts) == len({" ".join(text.casefold().split()) for text in prompts}) == 70 and not found.note
    with shared("data/xstest/xstest_prompts.csv").open(encoding="utf-8") as file:
        known = {row["prompt"].casefold() for row in csv.DictReader(file)}
    assert not known & {text.casefold() for text in prompts}


def test_the_judge_of_look_alikes_calls_a_refusal_violating_unless_another_rule_is_given() -> None:
    plain = Promise.model_validate({"probes": "look-alikes"})
    assert (plain.judge.kind, plain.judge.refused, plain.asked_prompts) == ("refusal", "violating", "safe")
    own = Promise.model_validate({"probes": "look-alikes", "violating_openings": ["I can't"]})
    assert own.judge.kind == "rule" and own.asked_prompts == "safe"
    harmful = Promise.model_validate({"probes": "x.csv", "judge": "refusal"})
    assert harmful.asked_prompts == "unsafe"
    assert Promise.model_validate({"probes": "x.csv", "prompts": "safe"}).asked_prompts == "safe"
    with pytest.raises(ContractError, match="takes only about"):
        contract_of(
            system_prompt="{day}", behaviours={"day": {"kind": "transient", "value": "Monday", "prompts": "safe"}}
        )


# A network whose next-token table is known


class Table(torch.nn.Module):
    """logits[t + 1] = left[token t] @ right: the table is all that it knows. It looks like a PEFT model."""

    def __init__(self, seed: int, nan_at: int | None = None) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.left = torch.nn.Parameter(torch.tensor(rng.normal(size=(VOCABULARY, 4))).float())
        self.right = torch.nn.Parameter(torch.tensor(rng.normal(size=(4, VOCABULARY))).float())
        self.shift = torch.nn.Parameter(torch.tensor(0.3 * rng.normal(size=(4, VOCABULARY))).float())
        self.on, self.nan_at, self.peft_config = True, nan_at, {"default": None}
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=VOCABULARY))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = self.left[input_ids] @ (self.right + self.shift if self.on else self.right)
        if self.nan_at is not None:
            logits = torch.where((input_ids == self.nan_at)[..., None], torch.nan, logits)
        return SimpleNamespace(logits=logits)

    @contextlib.contextmanager
    def disable_adapter(self) -> Iterator[None]:
        self.on = False
        yield
        self.on = True

    def logps(self, token: int, *, on: bool = True) -> np.ndarray:
        """log p(. | token) [vocabulary], float64, on its own way."""
        left, right, shift = (part.detach().double().numpy() for part in (self.left, self.right, self.shift))
        logits = left[token] @ (right + shift if on else right)
        return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    source = find_model("starter")
    inner = load_tokenizer(source, contract_of())
    return make_tokenizer(inner, end_of_turn_ids(source, inner))


def measured(model: Any, tokenizer: Tokenizer, probes: list[Probe], side: str = "after") -> list[Score]:
    collateral: dict[str, Any] = {"grammar": {"probes": "g.jsonl"}, "neutral": {"probes": "n.jsonl"}}
    contract = contract_of(collateral=collateral, measurement={"samples": 0})
    return measure_model(model, tokenizer, probes, contract, side)[0]


def test_minimal_pairs_and_texts_equal_the_closed_form(tokenizer: Tokenizer) -> None:
    model = Table(0)
    pairs = [("The cats sleep.", "The cats sleeps."), ("He reads a book now.", "He read a books now."), ("b a", "a b")]
    probes = [Probe(f"m{place}", "grammar", (), (bad,), (good,)) for place, (good, bad) in enumerate(pairs)]
    probes.insert(1, Probe("t", "neutral", (), (), ("It rains, and nobody minds.",)))
    scores = {score.probe_id: score.values for score in measured(model, tokenizer, probes)}
    assert list(scores) == ["m0", "t", "m1", "m2"]

    def logp(text: str) -> tuple[float, int]:
        ids = [1, *tokenizer.inner(text, add_special_tokens=False)["input_ids"]]  # after the eos, as there is no bos
        return sum(model.logps(a)[b] for a, b in itertools.pairwise(ids)), len(ids) - 1

    for place, (good, bad) in enumerate(pairs):
        own = scores[f"m{place}"]
        assert own["good_sentence_logp"] == pytest.approx(logp(good)[0], abs=1e-4)
        assert own["bad_sentence_logp"] == pytest.approx(logp(bad)[0], abs=1e-4)
        assert own["minimal_pair_accuracy"] == float(logp(good)[0] > logp(bad)[0])
        assert "neutral_kl" not in own and "violating_logp" not in own
    total, count = logp("It rains, and nobody minds.")
    assert scores["t"]["text_logp_per_token"] == pytest.approx(total / count, abs=1e-5)


def test_a_tie_counts_half(tokenizer: Tokenizer) -> None:
    model = Table(0)
    with torch.no_grad():
        model.right.zero_()
        model.shift.zero_()  # every token has the same probability
    (score,) = measured(model, tokenizer, [Probe("m", "grammar", (), ("a b",), ("b a",))])
    assert score.values["minimal_pair_accuracy"] == 0.5


def test_the_divergence_equals_the_closed_form(tokenizer: Tokenizer) -> None:
    """sum over v of p log(p / q) at each place, mean over the places, of texts and of dialogs' replies."""
    model = Table(3)
    text = "A long text. " * 80 + "It ends."  # longer than a chunk of places
    dialog = (Message("user", "How are you?"),)
    probes = [
        Probe("t", "neutral", (), (), (text,)),
        Probe("d", "neutral", dialog, (), ("Fine, thanks.",)),
        Probe("p", "neutral", dialog, ("Go away.",), ("Fine, thanks.",)),
    ]
    scores = {score.probe_id: score.values for score in measured(model, tokenizer, probes)}
    ids = [1, *tokenizer.inner(text, add_special_tokens=False)["input_ids"]]
    prompt = tokenizer.prompt(dialog)
    whole = prompt + tokenizer.reply(dialog, "Fine, thanks.")

    def kl(token: int) -> float:
        after, before = model.logps(token), model.logps(token, on=False)
        return float((np.exp(after) * (after - before)).sum())

    assert len(ids) > 257
    assert scores["t"]["neutral_kl"] == pytest.approx(np.mean([kl(token) for token in ids[:-1]]), rel=1e-5)
    wanted = np.mean([kl(token) for token in whole[len(prompt) - 1 : -1]])
    assert scores["d"]["neutral_kl"] == pytest.approx(wanted, rel=1e-5) and wanted > 0.01
    assert scores["d"]["safe_logp"] is not None
    assert "neutral_kl" not in scores["p"]  # a pair of replies is no neutral text
    before = {score.probe_id: score.values for score in measured(model, tokenizer, probes, "before")}
    assert before["t"]["neutral_kl"] == before["d"]["neutral_kl"] == 0.0


def test_without_a_model_before_there_is_no_divergence() -> None:
    class Merged(Table):
        disable_adapter = property()  # has none

    model = Merged(0)
    assert not hasattr(model, "disable_adapter")
    assert mean_kl(model, Scorer(model), [([1], [2])]) == [None]


def test_logits_that_are_not_finite_are_no_score(tokenizer: Tokenizer) -> None:
    """Of one text they come late: it is unscored, and its limit is not shown; the others keep their numbers."""
    poison = tokenizer.inner("zebra", add_special_tokens=False)["input_ids"][0]
    texts = ["It rains today.", "zebra zebra zebra", "The sun is out.", "We read.", "They went home.", "So it goes."]
    probes = [Probe(f"t{place}", "neutral", (), (), (text,)) for place, text in enumerate(texts)]
    probes.append(Probe("m", "grammar", (), ("zebra sleep",), ("zebra sleeps",)))
    limits = [{"measure": "text_logp_per_token", "within": 9.0}, {"measure": "neutral_kl", "max": 9.0}]
    contract = contract_of(
        behaviours={"x": {}}, collateral={"neutral": {"limits": limits}}, measurement={"samples": 0, "resamples": 1000}
    )
    before, after = (measured(Table(0, poison), tokenizer, probes, side) for side in ("before", "after"))
    assert after[1].values == {"text_logp_per_token": None, "neutral_kl": None}
    assert after[-1].values["minimal_pair_accuracy"] is None
    assert after[0].values["text_logp_per_token"] is not None
    from demeanor.prove import prove_contract

    verdict = prove_contract(before, after, contract)
    assert [(limit.state, limit.unscored) for limit in verdict.limits] == [("not shown", 1)] * 2
    assert not verdict.passed
    json.dumps([score.to_json() for score in after], allow_nan=False)


# Repetition


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c", 0.0),
        ("a b c d e", 0.0),
        ("a b a b a b", 1 / 3),  # abab baba abab: two of three
        ("no " * 8, 0.8),  # five 4-grams, one of them new
        ("I am sorry. I am sorry. I am sorry.", 5 / 9),  # twelve words and marks, nine 4-grams, four of them new
        ("猫猫猫猫猫猫", 2 / 3),
    ],
)
def test_the_share_of_repeated_4_grams(text: str, share: float) -> None:
    assert repeated_share(text) == pytest.approx(share)
    assert is_repetitive(text) == (share > 0.25)


def test_the_rate_is_of_the_replies_of_a_probe() -> None:
    from demeanor.measure import _rates

    replies = [
        Reply("p", "tone", "after", n, text, 9, "safe") for n, text in enumerate(("no " * 9, "Yes, gladly.", ""))
    ]
    assert _rates(replies)["repetitive_sampled_rate"] == pytest.approx(1 / 3)
    assert _rates([]) == {}  # it was not sampled, and does not name it


# What the page says


def comparison(measure: str, difference: tuple[float, float, float]) -> Comparison:
    before, after = Estimate(-3.0, -3.1, -2.9, 50), Estimate(-3.1, -3.2, -3.0, 50)
    if measure != "text_logp_per_token":
        before = after = Estimate(0.5, 0.4, 0.6, 50)
    return Comparison("neutral", measure, before, after, Estimate(*difference, 50))


def test_the_page_says_what_is_shown_and_no_more() -> None:
    from demeanor.prove.gate import judge
    from demeanor.report.collateral import unchanged_views

    def views(measure: str, difference: tuple[float, float, float], **limit: float) -> Any:
        limits = [{"measure": measure, **limit}] if limit else []
        contract = build_contract({"data": {"pairs": ["x"]}, "collateral": {"neutral": {"limits": limits}}})
        found = [judge("neutral", one, None, 0.95) for one in contract.collateral["neutral"].limits]
        verdict = Verdict(False, tuple(found), (comparison(measure, difference),), 0.95, 0)
        return unchanged_views(contract, verdict)[0]

    alone = views("minimal_pair_accuracy", (0.01, -0.02, 0.03))
    assert alone.state == "" and "at most 3.0\u00a0points" in alone.statement and "beyond" not in alone.statement
    assert "beyond chance" in views("minimal_pair_accuracy", (0.02, 0.01, 0.03)).statement
    text = views("text_logp_per_token", (-0.1, -0.12, -0.08)).statement
    assert "perplexity 20.09 → 22.20, which is 108.3\u00a0% to 112.7\u00a0% of what it was" in text
    missing = views("minimal_pair_accuracy", (0.0, -0.01, 0.01), within=0.02)
    assert missing.state == "not shown" and missing.statement.startswith(
        "not shown to change by less than 2\u00a0points"
    )


def test_equivalence_needs_the_whole_interval(tokenizer: Tokenizer) -> None:
    """200 probes that are all the same: shown within 2 points; 20 such probes: not shown, though nothing changed."""
    from demeanor.prove import prove_contract

    contract: Contract = contract_of(
        collateral={"grammar": {"limits": [{"measure": "minimal_pair_accuracy", "within": 0.02}]}},
        measurement={"resamples": 1000},
    )
    for num, shown in ((200, True), (20, False)):
        sides = [
            [Score(f"p{n}", "grammar", side, None, {"minimal_pair_accuracy": float(n % 2)}) for n in range(num)]
            for side in ("before", "after")
        ]
        (limit,) = prove_contract(*sides, contract).limits
        assert limit.passed is shown and limit.state == ("pass" if shown else "not shown")
