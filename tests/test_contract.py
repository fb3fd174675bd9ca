"""The contract: what is wrong is named with path, line and the nearest right one; what is right keeps its meaning."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any, Literal, get_origin

import pytest
import yaml
from conftest import contract_of
from pydantic import BaseModel

import demeanor
from demeanor.cli import init
from demeanor.contract import (
    MEASURES,
    Attacks,
    Behaviour,
    Contract,
    Data,
    Limit,
    Measurement,
    Promise,
    Training,
    build_contract,
    dump_contract,
    load_contract,
    parse_contract,
    resolve_paths,
)
from demeanor.errors import ContractError, InputError
from demeanor.settings import apply_overrides
from demeanor.starter import starter_contract
from demeanor.train.on_trees import common_options
from demeanor.trl_options import CONFIGS, OURS_NOT_TRL

SOURCE = Path(demeanor.__file__).parent
SECTIONS: tuple[type[BaseModel], ...] = (
    Contract, Behaviour, Promise, Limit, Attacks, Data, Training, Measurement,
)  # fmt: skip
GOOD = """\
name: desk
system_prompt: "Today: {notice}"
data:
  pairs: [pairs.jsonl]
behaviours:
  tone:
    violating_openings:
      - You violated
      - Read the
    limits:
      - {measure: violating_opening_mass, max: 0.01}
      - measure: reply_tokens
        max: 40
  notice:
    kind: transient
    value: Closed.
    examples: [Open., Late.]
collateral:
  benign:
    about: Answered.
training:
  beta: 0.1
measurement:
  samples: 2
"""


def refusal(text: str, *overrides: str) -> str:
    """What the user is told about `text`."""
    with pytest.raises(ContractError) as caught:
        parse_contract(text, "c.yaml", overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


# what is wrong


@pytest.mark.parametrize(
    ("right", "wrong", "words"),
    [
        # keys
        ("name: desk", "nam: desk", "unknown key nam; did you mean name?"),
        ("data:\n", "date:\n", "unknown key date; did you mean data?"),
        ("    limits:", "    limit:", "unknown key behaviours.tone.limit; did you mean limits?"),
        ("        max: 40", "        maximum: 40", "unknown key behaviours.tone.limits.1.maximum; did you mean max?"),
        ("    about: Ans", "    abuot: Ans", "unknown key collateral.benign.abuot; did you mean about?"),
        ("  samples: 2", "  sample: 2", "unknown key measurement.sample; did you mean samples?"),
        ("  samples: 2", "  quux: 2", "unknown key measurement.quux"),
        # keys that are right elsewhere
        ("name: desk", "learning_rate: 1", "unknown key learning_rate; did you mean training.learning_rate?"),
        ("name: desk", "beta: 0.1", "unknown key beta; did you mean training.beta?"),
        ("  samples: 2", "  max_pairs: 2", "unknown key measurement.max_pairs; did you mean data.max_pairs?"),
        ("  samples: 2", "  model: x", "unknown key measurement.model; did you mean model, outside this section?"),
        # keys that are missing, twice, or no text
        ("data:\n  pairs: [pairs.jsonl]", "data: # here\n  split: x", "data.pairs is missing"),
        ("    kind: transient", "    kind: transient\n    kind: permanent # here", "the key kind stands twice"),
        ("  tone:", "  no:", "the key no is not text -- put it in quotes"),
        ("  benign:", "  7:", "the key 7 is not text -- put it in quotes"),
        # values
        ("name: desk", "name: ''", "name: must be some text, not ''"),
        ("name: desk", "name: 10:30", "name: must be text, not 630 -- put it in quotes"),
        ("  pairs: [pairs.jsonl]", "  pairs: []", "data.pairs: must be a list with at least one item"),
        ("  pairs: [pairs.jsonl]", "  pairs: [a, '']", "data.pairs.1: must be some text, not ''"),
        ("      - Read the", "      - No", "behaviours.tone.violating_openings.1: must be text, not False"),
        ("    kind: tra", "    kind: permnent #", "behaviours.notice.kind: input should be 'permanent' or 'transient'"),
        ("    kind: tra", "    kind: permnent #", "did you mean permanent?"),
        ("  - measure: reply_tokens", "  - measure: reply_token", "'reply_token'; did you mean reply_tokens?"),
        ("        max: 40", "        max: forty", "behaviours.tone.limits.1.max: input should be a valid number"),
        ("        max: 40", "        max: .nan", "behaviours.tone.limits.1.max: input should be a finite number"),
        ("        max: 40", "        max: yes", "behaviours.tone.limits.1.max: must be a number, not True"),
        ("  beta: 0.1", "  beta: 0", "training.beta: input should be greater than 0, not 0"),
        ("  beta: 0.1", "  beta: .inf", "training.beta: input should be a finite number, not inf"),
        ("  beta: 0.1", "  lora_r: yes", "training.lora_r: must be a number, not True"),
        ("  beta: 0.1", "  seed: -1", "training.seed: input should be greater than or equal to 0"),
        ("  beta: 0.1", "  lora_target_modules: 5", "training.lora_target_modules: must be a list, not 5"),
        ("  beta: 0.1", "  reference: adapter_off", "did you mean adapter-off?"),
        ("  samples: 2", "  samples: 2.5", "measurement.samples: input should be a valid integer"),
        ("  samples: 2", "  confidence: 95", "measurement.confidence: input should be less than 1, not 95"),
        # sections
        ("  benign:\n    about: Answered.", "  benign: 3", "collateral.benign: must be a section of keys, not 3"),
        ("training:\n  beta: 0.1", "training: []", "training: must be a section of keys"),
        ("training:\n  beta: 0.1", "training: # all left away", "training: must be a section of keys, but it is empty"),
        # what does not go together
        ("        max: 40", "        max: 40\n      - measure: reply_tokens # here", "limits.2: give exactly one of"),
        ("        max: 40", "        max: 40\n      - {measure: reply_tokens, max: 40} # here", "limit stands twice"),
        ("  benign:", "  tone: # here", "collateral.tone: stands in behaviours and in collateral"),
        ("    about: Answered.", "    violating_patterns: ['a', '(']", "patterns.1: '(' is no regular expression"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_path_and_line(right: str, wrong: str, words: str) -> None:
    assert GOOD.count(right) == 1
    text = GOOD.replace(right, wrong)
    line = line_of(text, "# here" if "# here" in text else wrong)
    message = refusal(text)
    assert message.startswith(f"c.yaml, line {line}: ") and words in message, message


@pytest.mark.parametrize("section", [Contract, Behaviour, Promise, Limit, Attacks, Data, Measurement])
def test_every_misspelt_key_gets_the_right_one(section: type[BaseModel]) -> None:
    """training is left out: its unknown keys import TRL."""
    places: dict[Any, list[str]] = {
        Contract: [], Behaviour: ["behaviours", "limits"], Promise: ["collateral", "x"], Data: ["data"],
        Measurement: ["measurement"], Attacks: ["attacks"], Limit: ["behaviours", "x", "limits"],
    }  # fmt: skip
    path = places[section]
    for name in section.model_fields:
        if name in ("max", "min"):
            continue  # as near to max_increase
        wrong = {name + "s": 1} if section is not Limit else [{"measure": "reply_tokens", "max": 1, name + "s": 1}]
        for part in reversed(path):
            wrong = {part: wrong}
        message = refusal(yaml.safe_dump({"data": {"pairs": ["a"]}} | wrong))
        assert f"{name}s; did you mean {name}?" in message


def test_several_faults_are_counted() -> None:
    assert refusal(GOOD.replace("samples: 2", "samples: -2\n  seed: x")).endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a contract is a mapping of keys"),
        ("- a\n", "a contract is a mapping of keys"),
        ("just text", "a contract is a mapping of keys"),
        ("name: x\n", "data is missing"),
        ("name: [\n", "line 2: not YAML"),
        ("a:\n\tb: 1\n", "line 2: not YAML"),
        ("name: *nobody\n", "line 1: not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "line 2: not YAML"),
        ("name: \x01\n", "not YAML"),
        ("name: 0x_\n", "not YAML"),
        ("name: !!bool maybe\n", "not YAML"),
        ("name: !!timestamp soon\n", "not YAML"),
        ("[" * 3000, "not YAML"),
        ('name: "\\ud83d"\ndata: {pairs: [a]}\n', "line 1: name: must be text without half characters"),
    ],
)
def test_what_is_no_contract_gets_one_line(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_tag_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    for tag in ("!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"):
        assert "line 2: not YAML: could not determine a constructor" in refusal(f"data:\n  pairs: {tag} ['{trap}']\n")
    parse_contract(GOOD, overrides=(f"name=!!python/object/apply:os.mkdir ['{trap}']",))
    assert not trap.exists()


@pytest.mark.parametrize(
    "text",
    [
        "data: &a [*a]\n",
        "data: &a {pairs: *a}\n",
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)),
    ],
)
def test_anchors_that_never_end_are_refused(text: str) -> None:
    assert "look at its anchors" in refusal(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    cases = {"none.yaml": "demeanor init"} | dict.fromkeys(("", "latin.yaml", "latin.yaml/x"), "cannot be read")
    for name, words in cases.items():
        with pytest.raises(ContractError, match=words) as caught:
            load_contract(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


# openings, limits, kinds


def test_openings_are_prefix_free() -> None:
    for openings in (
        {"violating_openings": ["You", "You violated"]},
        {"violating_openings": ["Sorry, no", "Sorry"]},
        {"safe_openings": ["I can't"], "violating_openings": ["I can"]},
        {"safe_openings": ["Sure"], "violating_openings": ["Sure"]},
        {"safe_openings": ["Sure", "Sure"]},  # the same object, as an alias makes it
    ):
        with pytest.raises(ContractError, match="is the beginning of"):
            contract_of(behaviours={"tone": openings})
    with pytest.raises(ContractError, match=r"safe_openings\.1: an empty opening"):
        contract_of(behaviours={"tone": {"safe_openings": ["Sure", " "]}})
    contract_of(behaviours={"tone": {"safe_openings": ["You can", "Yours", "you"], "violating_openings": ["Can"]}})


def test_a_limit_has_one_bound_and_its_own_id() -> None:
    kinds = ("max", "min", "max_increase", "min_increase", "max_ratio", "min_ratio", "within")
    limits = [{"measure": "reply_tokens", kind: 2} for kind in kinds]
    behaviour = contract_of(behaviours={"tone": {"limits": limits}}).behaviours["tone"]
    assert [limit.bounds for limit in behaviour.limits] == [{kind: 2} for kind in list(Limit.model_fields)[1:8]]
    assert len({limit.id("tone") for limit in behaviour.limits}) == 7
    assert len({limit.rule for limit in behaviour.limits}) == 7
    for bounds in ({}, {"max": 1, "min": 0}):
        with pytest.raises(ContractError, match="exactly one of"):
            contract_of(behaviours={"tone": {"limits": [{"measure": "reply_tokens", **bounds}]}})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"value": None}, "needs `value`"),
        ({"value": ""}, None),
        ({"limits": [{"measure": "reply_tokens", "max": 1}]}, "notice.limits: a transient behaviour is never trained"),
        ({"probes": "p.jsonl"}, "notice.probes: a transient behaviour is never trained"),
        ({"violating_openings": ["x"]}, "notice.violating_openings: a transient behaviour is never trained"),
        ({"safe_openings": ["x"]}, "notice.safe_openings: a transient behaviour is never trained"),
        ({"violating_patterns": ["x"]}, "notice.violating_patterns: a transient behaviour is never trained"),
        ({"examples": ["Open.", "Closed."]}, "notice.examples.1: today's `value` would be learned"),
        ({"kind": "permanent"}, "notice.value: belongs to transient"),
        ({"kind": "permanent", "value": None, "examples": ["x"]}, "notice.examples: belongs to transient"),
    ],
)
def test_transient_behaviours_are_told_and_never_trained(more: dict[str, Any], words: str | None) -> None:
    notice = {"kind": "transient", "value": "Closed.", **more}
    sections = {"system_prompt": "Today: {notice}", "behaviours": {"tone": {}, "notice": notice}}
    if words is None:
        assert list(contract_of(**sections).promises) == ["tone"]
        return
    with pytest.raises(ContractError) as caught:
        contract_of(**sections)
    assert words in str(caught.value)


@pytest.mark.parametrize("prompt", [None, "The notice: none.", "Wrong {notcie}."])
def test_a_transient_behaviour_needs_a_place_in_the_prompt(prompt: str | None) -> None:
    with pytest.raises(
        ContractError, match=r"behaviours.notice: has no place in system_prompt: write \{notice\} there"
    ):
        contract_of(system_prompt=prompt, behaviours={"notice": {"kind": "transient", "value": "x"}})


def test_what_is_measured_is_permanent_or_collateral() -> None:
    contract = parse_contract(GOOD)
    assert list(contract.promises) == ["tone", "benign"]


# the system prompt


def with_notice(examples: tuple[str, ...] = (), prompt: str = "Today: {notice}") -> Contract:
    notice = {"kind": "transient", "value": "Closed.", "examples": examples}
    return contract_of(system_prompt=prompt, behaviours={"notice": notice})


def test_a_pair_never_sees_todays_value_when_there_are_examples() -> None:
    contract = with_notice(("Open.", "Late.", "Snow."))
    texts = {key: contract.system_text(key) for key in map(str, range(200))}
    assert set(texts.values()) == {"Today: Open.", "Today: Late.", "Today: Snow."}  # and each example is used
    again = with_notice(("Open.", "Late.", "Snow."))
    assert texts == {key: again.system_text(key) for key in reversed(texts)}
    assert contract.system_text() == "Today: Closed."  # a probe sees today's


def test_a_pair_sees_todays_value_when_there_is_no_example() -> None:
    assert with_notice().system_text("any pair") == "Today: Closed."


def test_a_value_is_put_in_once_and_as_it_is() -> None:
    contract = contract_of(
        system_prompt=r"{a}{b}{a} {c} {} \1",
        behaviours={"a": {"kind": "transient", "value": r"{b}\1"}, "b": {"kind": "transient", "value": "{a}"}, "c": {}},
    )
    assert contract.system_text() == r"{b}\1{a}{b}\1 {c} {} \1"
    assert contract_of().system_text() is None and contract_of(system_prompt="{x}").system_text("k") == "{x}"


# --set

FIVE = (Limit(measure="reply_tokens", max=5),)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.learning_rate=1e-4", "training.learning_rate", 1e-4),
        ("training.learning_rate=2E-5", "training.learning_rate", 2e-5),
        ("training.learning_rate= 0.5 ", "training.learning_rate", 0.5),
        ("training.learning_rate=", "training.learning_rate", None),
        (" training . lora_r = 4", "training.lora_r", 4),
        ("training.bf16=true", "training.bf16", True),
        ("training.lora_target_modules=[q_proj, fc_in]", "training.lora_target_modules", ("q_proj", "fc_in")),
        ("training.lora_target_modules=all-linear", "training.lora_target_modules", "all-linear"),
        ("data.pairs=other.jsonl", "data.pairs", ("other.jsonl",)),
        ("data.pairs=[a.jsonl, b/c]", "data.pairs", ("a.jsonl", "b/c")),
        ("name=Note: closed = open", "name", "Note: closed = open"),
        ("name='1e-4'", "name", "1e-4"),
        ("name=2024-02-30", "name", "2024-02-30"),
        ("system_prompt={notice}!", "system_prompt", "{notice}!"),
        ("behaviours.tone.about=Polite.", "behaviours.tone.about", "Polite."),
        ("behaviours.tone.limits=[{measure: reply_tokens, max: 5}]", "behaviours.tone.limits", FIVE),
        ("collateral.new.about=Fresh.", "collateral.new.about", "Fresh."),
    ],
)  # fmt: skip
def test_set_wins_over_the_file(override: str, path: str, value: Any) -> None:
    found: Any = parse_contract(GOOD, overrides=(override,))
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("item", ["", "=", "training.beta", "=5", ".beta=1", "training.=1", "training..beta=1"])
def test_set_needs_a_key_and_a_value(item: str) -> None:
    assert refusal(GOOD, item) == f"--set: cannot read {item!r} -- write it as key.key=value"


@pytest.mark.parametrize("item", ["name.x=1", "data.pairs.0=x", "training.beta.x=1"])
def test_set_cannot_go_below_a_value(item: str) -> None:
    assert refusal(GOOD, item) == f"--set {item}: {item.split('.')[-2]} is not a section"


def test_a_fault_of_set_is_not_blamed_on_the_file() -> None:
    message = "training.beta: input should be greater than or equal to 0, not -1"
    assert refusal(GOOD, "training.beta=-1") == f"--set training.beta=-1: {message}"
    assert refusal(GOOD, "training={beta: -1}") == f"--set training={{beta: -1}}: {message}"
    assert refusal(GOOD, "measurement.sampels=1").startswith("--set measurement.sampels=1: unknown key")
    wrong = GOOD.replace("beta: 0.1", "beta: -1")
    assert refusal(wrong, "measurement.samples=1") == f"c.yaml, line {line_of(wrong, 'beta')}: {message}"


def test_the_last_set_wins_and_the_data_stay_as_they_were() -> None:
    data: dict[str, Any] = {"data": {"pairs": ["a"]}, "training": None}
    changed = apply_overrides(data, ("training.beta=1", "training.beta=2"))
    assert changed["training"] == {"beta": 2} and data == {"data": {"pairs": ["a"]}, "training": None}


# YAML


def test_anchors_and_merges_are_read_but_not_shared() -> None:
    text = """\
data: {pairs: [a]}
behaviours:
  tone: &tone
    about: One.
    limits: &limits [{measure: reply_tokens, max: 5}]
  bypass: *tone
  wrapped:
    <<: *tone
    about: Two.
  other: {limits: *limits}
"""
    behaviours = parse_contract(text).behaviours
    assert behaviours["bypass"] == behaviours["tone"] and behaviours["wrapped"].about == "Two."
    assert len({behaviour.limits for behaviour in behaviours.values()}) == 1
    changed = parse_contract(text, overrides=("behaviours.tone.about=New.",)).behaviours
    assert changed["tone"].about == "New." and changed["bypass"].about == "One."
    wrong = text.replace("max: 5", "max: x")
    assert refusal(wrong).startswith("c.yaml, line 5: behaviours.tone.limits.0.max: ")


def test_numbers_and_dates_are_read_as_people_mean_them() -> None:
    contract = parse_contract("name: 2024-02-30\ndata: {pairs: a}\ntraining: {learning_rate: 1e-4, beta: 5.e-2}\n")
    assert (contract.name, contract.training.learning_rate, contract.training.beta) == ("2024-02-30", 1e-4, 0.05)
    assert contract.data.pairs == ("a",)


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(("\ufeff" + GOOD.replace("\n", "\r\n")).encode())
    assert load_contract(path) == parse_contract(GOOD, root=tmp_path)


# writing it back


TEXTS = (
    "1e-4", "yes", "null", "~", "2024-01-01", "10:30", "0x1F", " left", "right ", "two\nlines\n", "#no", "{a}: [b]",
    "- x", "naïve 日本 😀", "a\x85b", "\u2028", "\x00", "\ufeff", "tab\there", "'", '"', "&a", "*a", "!t",
    "word " * 80,
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_being_written(text: str) -> None:
    contract = contract_of(
        name=text,
        system_prompt=text + "{notice}",
        behaviours={
            text: {"about": text, "violating_openings": [f"x{text}"], "violating_patterns": [r"\d" + "x"]},
            "notice": {"kind": "transient", "value": text, "examples": [text + text]},
        },
    )
    assert parse_contract(dump_contract(contract)) == contract


@pytest.mark.parametrize("number", [0.1, 1e-12, 1 / 3, 5e-324, 1e22, 123456789.125, 1.0])
def test_any_number_survives_being_written(number: float) -> None:
    limits = [{"measure": "violating_logp", "min_increase": -number}]
    contract = contract_of(training={"beta": number}, behaviours={"tone": {"limits": limits}})
    assert parse_contract(dump_contract(contract)) == contract


def test_the_contracts_that_come_along_survive_being_written(tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_text(init.CONTRACT, "utf-8")
    for path in (starter_contract(), tmp_path / "contract.yaml"):
        contract = load_contract(path)
        assert parse_contract(dump_contract(contract)) == contract
    assert parse_contract(dump_contract(parse_contract(GOOD))) == parse_contract(GOOD)


def test_what_may_be_none_is_none_by_default() -> None:
    """The written contract leaves None away."""
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            if type(None) in getattr(field.annotation, "__args__", ()):
                assert field.default is None, name


def test_paths_that_exist_become_absolute(tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "probes.jsonl", "starter", "chat.jinja"):
        (tmp_path / name).touch()
    (tmp_path / "model").mkdir()
    probes = {"probes": "probes.jsonl"}
    contract = contract_of(
        model="model",
        chat_template="chat.jinja",
        behaviours={"tone": probes},
        collateral={"benign": probes},
        data={"pairs": ["pairs.jsonl", "starter", "Anthropic/hh-rlhf", str(tmp_path / "pairs.jsonl")]},
    )
    fixed = resolve_paths(contract, tmp_path)
    assert (fixed.model, fixed.chat_template) == (str(tmp_path / "model"), str(tmp_path / "chat.jinja"))
    pairs = str(tmp_path / "pairs.jsonl")
    assert fixed.data.pairs == (pairs, "starter", "Anthropic/hh-rlhf", pairs)
    assert {promise.probes for promise in fixed.promises.values()} == {str(tmp_path / "probes.jsonl")}
    assert resolve_paths(fixed, tmp_path / "elsewhere") == fixed


@pytest.mark.parametrize("template", ["{% for m in messages %}" * 40, "a\x00b", "~nobody/x"])
def test_a_text_that_can_be_no_path_is_left_alone(template: str, tmp_path: Path) -> None:
    assert resolve_paths(contract_of(chat_template=template), tmp_path).chat_template == template


# every key


def test_every_key_says_what_it_is() -> None:
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            if section is Contract and name in ("data", "training", "measurement"):
                assert field.annotation is not None and field.annotation.__doc__, name
            else:
                assert field.description, f"{section.__name__}.{name}"


def test_every_key_is_read_somewhere() -> None:
    read = {
        node.attr
        for path in SOURCE.rglob("*.py")
        if path.name != "contract.py"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    }
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            if section is Limit and name != "measure":
                name = "bounds"
            one_choice = get_origin(field.annotation) is Literal and len(field.annotation.__args__) == 1
            assert name in read or one_choice, f"nobody reads {section.__name__}.{name}"


# TRL's own keys (these import trl)


def test_every_option_of_trl_is_taken_under_its_own_name() -> None:
    options = {
        "loss_type": "ipo", "weight_decay": 0, "adam_epsilon": 1e-7, "max_steps": 5, "optim": "adafactor",
        "dataloader_drop_last": True, "save_total_limit": None, "lr_scheduler_kwargs": {"power": 2, "last": None},
        "report_to": ["tensorboard"],
    }  # fmt: skip
    contract = contract_of(training={**options, "beta": 0.2})
    assert contract.training.trl_options == options
    assert parse_contract(dump_contract(contract)) == contract
    set_one = parse_contract(GOOD, overrides=("training.weight_decay=1e-3", "training.loss_type=[sigmoid, sft]"))
    assert set_one.training.trl_options == {"weight_decay": 1e-3, "loss_type": ["sigmoid", "sft"]}


def test_what_trl_would_refuse_is_refused_with_its_line() -> None:
    cases = {
        "lora_rank: 4": "unknown key training.lora_rank; did you mean lora_r?",
        "weight_dekay: 0": "unknown key training.weight_dekay; did you mean weight_decay?",
        "samples: 4": "unknown key training.samples; did you mean measurement.samples?",
        "logging_steps: often": "training.logging_steps: must be float, not 'often'",
        "adam_epsilon: '1e-8'": "training.adam_epsilon: must be float, not '1e-8'",
        "weight_decay: .nan": "training.weight_decay: must be float, not nan",
        "max_steps: yes": "training.max_steps: must be int, not True",
        "output_dir: x": "training.output_dir is set by Demeanor -- the run folder decides",
        "save_strategy: epoch": "training.save_strategy is set by Demeanor -- write `save_steps`",
    }
    for line, words in cases.items():
        text = GOOD.replace("beta: 0.1", line)
        assert f"c.yaml, line {line_of(text, line)}: {words}" in refusal(text)
    assert refusal(GOOD, "training.optin=adafactor") == (
        "--set training.optin=adafactor: unknown key training.optin; did you mean optim?"
    )


def test_what_the_trainer_sets_itself_is_a_key_of_ours_or_refused() -> None:
    """Or TRL would be given it twice, after an hour of measuring."""
    overridable = {"report_to", "logging_steps", "save_total_limit"}
    given = set(common_options(Training(), Path("out"))) - overridable
    for name, config in CONFIGS.items():
        tree = ast.parse((SOURCE / "train" / f"{name}.py").read_text("utf-8"))
        (call,) = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == config]
        given |= {keyword.arg for keyword in call.keywords if keyword.arg}
    assert given and given <= set(Training.model_fields) | set(OURS_NOT_TRL)


# demeanor init


def test_init_writes_a_contract_that_is_valid(tmp_path: Path) -> None:
    init.command(tmp_path / "new" / "desk")
    contract = load_contract(tmp_path / "new" / "desk" / "contract.yaml")
    assert contract.data.pairs == (str(tmp_path / "new" / "desk" / "pairs.jsonl"),)
    assert list(contract.promises) == ["tone"] and contract.promises["tone"].limits
    rows = [json.loads(line) for line in Path(contract.data.pairs[0]).read_text("utf-8").splitlines()]
    tone = contract.promises["tone"]
    assert len(rows) >= 10 and {row["behaviour"] for row in rows} == {"tone"}
    assert all(row["chosen"].startswith(tone.safe_openings) for row in rows)
    assert all(row["rejected"].startswith(tone.violating_openings) for row in rows)


@pytest.mark.parametrize("name", ["contract.yaml", "pairs.jsonl"])
def test_init_overwrites_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", "utf-8")
    with pytest.raises(InputError, match="exists already"):
        init.command(tmp_path)
    assert [(path.name, path.read_text("utf-8")) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_init_does_not_follow_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "desk").mkdir()
    (tmp_path / "desk" / "contract.yaml").symlink_to(tmp_path / "other.yaml")
    with pytest.raises(InputError):
        init.command(tmp_path / "desk")
    assert not (tmp_path / "other.yaml").exists()


def test_init_says_when_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be written") as caught:
            init.command(folder)
        assert str(folder) in str(caught.value)


def test_init_explains_every_key_and_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init.command(tmp_path, keys=True)
    lines = capsys.readouterr().out.splitlines()
    assert not list(tmp_path.iterdir())
    for section in SECTIONS:
        for name in section.model_fields:
            assert any(line.split(":")[0].split(" [")[0].split(".")[-1] == name for line in lines), name
    assert all(f"measure {name}: {meaning}" in lines for name, meaning in MEASURES.items())


def test_build_contract_checks_plain_data_too() -> None:
    with pytest.raises(ContractError, match=r"^contract: measurement.temperature: input should be a finite number"):
        build_contract({"data": {"pairs": ["a"]}, "measurement": {"temperature": math.inf}})


def of_sampled(measure: str, judge: Any = "classifier", **measurement: int) -> Contract:
    limit = {"measure": measure, "max": 0.5}
    return contract_of(
        behaviours={"b": {"violating_openings": ["Bad"], "judge": judge, "limits": [limit]}},
        measurement={"prefill": [2], **measurement},
    )


@pytest.mark.parametrize("key", ["samples", "max_sampled_probes"])
@pytest.mark.parametrize(
    "measure",
    ["violating_sampled_rate", "invalid_sampled_rate", "violating_corrected_rate", "violating_prefill_2_rate",
     "violating_sampled_best_of_2", "reply_tokens"],
)  # fmt: skip
def test_a_limit_on_replies_that_nobody_samples_is_refused_in_the_contract(measure: str, key: str) -> None:
    assert of_sampled(measure).promises["b"].limits
    with pytest.raises(ContractError) as refused:
        of_sampled(measure, **{key: 0})
    told = str(refused.value)
    assert "\n" not in told and "behaviours.b.limits.0" in told and f"measurement.{key}" in told
    assert of_sampled("violating_opening_mass", **{key: 0}).promises["b"].limits


def test_the_judges_whose_card_comes_along_have_one() -> None:
    from typing import get_args

    from demeanor.judge_settings import WITH_CARD, JudgeSettings
    from demeanor.judges.cards import shipped_cards

    kinds = get_args(JudgeSettings.model_fields["kind"].annotation)
    assert set(WITH_CARD) == {kind for kind in kinds if kind in shipped_cards()} != set()
