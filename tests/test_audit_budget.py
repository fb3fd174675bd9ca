"""The budget: what does not fit, tokens against a count by hand, and the stated formula of the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demeanor.audit import Scope, audit_pairs
from demeanor.audit.budget import max_length, num_multiplied, padded_tokens
from demeanor.contract import Contract
from demeanor.model import end_of_turn_ids, find_model, load_tokenizer
from demeanor.pairs import PairStore
from demeanor.starter import starter_file
from demeanor.tokens import make_tokenizer, tokenize_pairs
from tests.conftest import contract_of


def rows(count: int = 20) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Why is lock {n} stiff?", "chosen": "Oil it. " * (n % 4 + 1), "rejected": "No."}
        for n in range(count)
    ]


def audit(lines: list[dict[str, Any]], folder: Path, model: str | None, contract: Contract | None = None) -> Any:
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    (folder / "store").mkdir(exist_ok=True)
    store = PairStore.collect([file], folder / "store")
    scope = Scope(contract, find_model(model) if model else None)
    return store, audit_pairs(store, scope, only=["budget"])


def test_without_a_model_it_says_so(tmp_path: Path) -> None:
    _, result = audit(rows(), tmp_path, None)
    assert [(finding.kind, finding.severity) for finding in result.findings] == [("needs_model", "informs")]


def test_tokens_are_those_of_the_training(tmp_path: Path) -> None:
    contract = contract_of(training={"per_device_train_batch_size": 4, "num_train_epochs": 2})
    store, result = audit(rows(), tmp_path, "starter", contract)
    finding = next(finding for finding in result.findings if finding.kind == "training")
    source = find_model("starter")
    inner = load_tokenizer(source, contract)
    taken, refused = tokenize_pairs(store, make_tokenizer(inner, end_of_turn_ids(source, inner)))
    assert not refused
    tokens = sum(pair.num_tokens for pair in taken)
    assert finding.details["tokens"] == tokens
    assert finding.details["tokens_prompt_twice"] == tokens + sum(len(pair.prompt_ids) for pair in taken)
    assert finding.details["tokens_padded"] >= finding.details["tokens_prompt_twice"]
    # two epochs of 4 N, and the reference's 2 N once; 10^14 a second by default
    assert finding.details["flop"] == 10 * finding.details["parameters"] * tokens
    assert finding.details["hours"] == pytest.approx(finding.details["flop"] / 1e14 / 3600)


def test_parameters_are_counted_without_loading(llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for folder in (llama, starter_file("model")):
        model = AutoModelForCausalLM.from_pretrained(folder)
        linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
        assert num_multiplied(find_model(str(folder))) == linear


def test_padding_by_hand() -> None:
    tokens = np.array([[10, 2, 5, 0, 10], [10, 1, 1, 0, 10], [4, 4, 2, 0, 4]])
    assert padded_tokens(tokens, 3, 0) == 6 * 15
    assert padded_tokens(tokens, 1, 0) == 2 * (15 + 11 + 8)


def test_what_is_refused_is_named_by_kind(tmp_path: Path) -> None:
    lines = rows()
    lines[3]["chosen"] = "word " * 300
    special = load_tokenizer(find_model("starter"), contract_of()).eos_token
    lines[5]["rejected"] = f"Done. {special} More."
    turns = [{"role": role, "content": "word " * 40} for role in ("user", "assistant") * 3]
    lines[7]["prompt"] = [*turns, {"role": "user", "content": "And now?"}]
    _, result = audit(lines, tmp_path, "starter", contract_of(training={"max_length": 128}))
    found = {finding.kind: finding for finding in result.findings}
    assert {kind: places.tolist() for (_, kind), places in result.flagged.items() if len(places)} == {
        "too_long": [3], "forged_turn": [5], "cut_prompts": [7],
    }  # fmt: skip
    assert found["too_long"].severity == "warns" and found["cut_prompts"].severity == "informs"
    assert found["training"].estimate.n == 18
    for row in lines:
        row |= {"chosen": "word " * 300, "rejected": "No."}
    _, result = audit(lines, tmp_path, "starter", contract_of(training={"max_length": 128}))
    assert result.blocks and {finding.kind for finding in result.findings} == {"too_long"}


def test_max_length_is_bounded_by_the_positions(llama: Path) -> None:
    source = find_model(str(llama))
    assert max_length(contract_of(training={"max_length": 4000}), source) == 512
    assert max_length(contract_of(training={"max_length": 100}), source) == 100


def test_a_template_without_an_end_of_turn_is_told(tmp_path: Path) -> None:
    template = tmp_path / "bare.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    _, result = audit(rows(), tmp_path, "starter", contract_of(chat_template=str(template)))
    assert "no_end_of_turn" in {finding.kind for finding in result.findings}
    _, result = audit(rows(), tmp_path, "starter")
    assert "no_end_of_turn" not in {finding.kind for finding in result.findings}


def test_the_boundary_of_prompt_and_reply_is_told(tmp_path: Path) -> None:
    """A header that ends with a line break, and replies that begin with some: the tokenizer joins them."""
    template = tmp_path / "lines.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    contract, lines = contract_of(chat_template=str(template)), rows(40)
    _, result = audit(lines, tmp_path, "starter", contract)
    (found,) = (finding for finding in result.findings if finding.kind == "boundary")
    assert (found.severity, found.estimate.value, found.estimate.n, found.num_pairs) == ("informs", 0, 40, 0)
    assert "in all 40 pairs" in found.what and "ends with one <|end|>" in found.what
    assert found.estimate.high is not None and found.estimate.high < 0.1
    lines[5]["chosen"] = "\n\n" + lines[5]["chosen"]
    store, result = audit(lines, tmp_path, "starter", contract)
    (found,) = (finding for finding in result.findings if finding.kind == "boundary")
    assert (found.severity, found.estimate.value, found.num_pairs) == ("warns", 1 / 40, 1)
    assert "blanks" in found.remedy and result.flagged["budget", "boundary"].tolist() == [5]
    source = find_model("starter")
    inner = load_tokenizer(source, contract)
    tokenizer = make_tokenizer(inner, end_of_turn_ids(source, inner))
    _, refused = tokenize_pairs(store, tokenizer)  # what a training refuses, no more
    assert [pair.id for pair, _ in refused] == [store[5].id]
    for line in lines[:10]:
        line["rejected"] = "\n\n\n" + line["rejected"]
    _, result = audit(lines, tmp_path, "starter", contract)
    assert result.blocks and len(result.flagged["budget", "boundary"]) == 10
