"""Replies of a served model, against a real server; of vLLM, against a module that stands in for it."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import contract_of
from test_judge_endpoint import Server, server  # noqa: F401
from test_judge_journey import Lines, judged_contract

from demeanor.contract import Contract
from demeanor.errors import ContractError, InputError, StageError
from demeanor.measure import Weights, measure_model
from demeanor.measure.samplers import VllmSampler, sampling_words
from demeanor.model import find_model
from demeanor.pipeline import measure_stage, run
from demeanor.plan import plan_run
from demeanor.promises import SAMPLED
from demeanor.records import Message, Probe, Reply, Score
from demeanor.tokens import Tokenizer, make_tokenizer
from demeanor.workspace import Workspace

PROBES = [
    Probe(f"p{n}", "tone", (Message("user", f"Question {n}?"),), ("You should have asked.",), ("I'm sorry.",))
    for n in range(5)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    from transformers import AutoTokenizer

    inner = AutoTokenizer.from_pretrained(find_model("starter").base)
    return make_tokenizer(inner, [inner.eos_token_id])


def served_contract(address: str, judge: Any = "rule", **served: Any) -> Contract:
    return contract_of(
        system_prompt="Be kind.",
        behaviours={"tone": {"violating_openings": ["You should"], "safe_openings": ["I'm sorry"], "judge": judge}},
        measurement={
            "samples": 2,
            "temperature": 0.7,
            "max_new_tokens": 9,
            "served": {"after": {"endpoint": address, "model": "larkhold-1", "retries": 0, **served}},
        },
    )


def measured(contract: Contract, tokenizer: Tokenizer) -> tuple[list[Score], list[Reply], list[str]]:
    said: list[str] = []
    scores, replies = measure_model(None, tokenizer, PROBES, contract, "after", say=said.append)
    return scores, replies, said


def by_number(body: dict[str, Any]) -> str:
    """Curt to the questions 0 and 1, else kind."""
    curt = any(f"Question {n}?" in body["messages"][-1]["content"] for n in (0, 1))
    return "You should know." if curt else "I'm sorry."


def test_a_served_model_is_sampled_as_the_contract_says(server: Server, tokenizer: Tokenizer) -> None:  # noqa: F811
    server.answer = by_number
    scores, replies, said = measured(served_contract(server.address), tokenizer)
    assert [score.values["violating_sampled_rate"] for score in scores] == [1, 1, 0, 0, 0]
    assert [score.values["safe_sampled_rate"] for score in scores] == [0, 0, 1, 1, 1]
    for score in scores:
        unknown = {name for name, value in score.values.items() if value is None}
        assert {"violating_logp", "safe_logp", "violating_opening_mass", "violating_choice_probability"} <= unknown
        assert score.values["reply_tokens"] is not None
    assert len(said) == 1 and "likelihoods, and rewards, are not known" in said[0]
    assert len(server.requests) == 10 == len({body["seed"] for body in server.requests})
    for body in server.requests:
        assert body["path"] == "/v1/chat/completions"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("larkhold-1", 0.7, 9)
        assert body["messages"][0] == {"role": "system", "content": "Be kind."}
        assert body["messages"][1]["role"] == "user" and len(body["messages"]) == 2
    assert replies[0].why == {"opening": "You should"} and replies[0].fault is None
    seeds = {body["seed"] for body in server.requests}
    server.requests.clear()
    assert measured(served_contract(server.address), tokenizer)[0] == scores
    assert {body["seed"] for body in server.requests} == seeds


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (503, "answered 503"),
        (401, "answered 401"),
        (307, "answered 307"),
        (b"<html>", "gave no answer"),
        (b'{"choices": []}', "gave no answer"),
        (b'{"choices": [{"message": {"content": null}}]}', "no text in the answer"),
        (b" " * 2_000_000, "more than"),
        (b"[" * 200_000, "gave no answer"),
    ],
)
def test_whatever_is_no_reply_is_none_and_says_why(
    server: Server,  # noqa: F811
    tokenizer: Tokenizer,
    answer: Any,
    words: str,
) -> None:
    """For one question of the five; its probe is unscored, the others are not."""
    server.answer = lambda body: answer if "Question 3?" in body["messages"][-1]["content"] else by_number(body)
    scores, replies, said = measured(served_contract(server.address), tokenizer)
    assert [score.values["violating_sampled_rate"] for score in scores] == [1, 1, 0, None, 0]
    assert scores[3].values["reply_tokens"] is None
    lost = [reply for reply in replies if reply.fault is not None]
    assert [(r.probe_id, r.text, r.judgement, r.num_tokens) for r in lost] == [("p3", "", None, 0)] * 2
    assert words in (lost[0].fault or "")
    assert len(said) == 2 and words in said[1] and "unanswered" in said[1]


def test_prompts_that_neither_side_answers_fail_the_limits(server: Server, tokenizer: Tokenizer) -> None:  # noqa: F811
    """Half of them, of both sides; what was not drawn is not counted."""
    from demeanor.prove import prove_contract

    probes = [replace(PROBES[0], id=f"p{n}", prompt=(Message("user", f"Question {n}?"),)) for n in range(13)]
    server.answer = lambda body: 503 if int(body["messages"][-1]["content"][9:-1]) % 2 else "I'm sorry."
    limits = [{"measure": "violating_sampled_rate", "max": 0.9}, {"measure": "reply_tokens", "max": 99},
              {"measure": "repetitive_sampled_rate", "max_increase": 0.9}]  # fmt: skip
    asked = served_contract(server.address)
    tone = asked.behaviours["tone"].model_dump(exclude_defaults=True) | {"limits": limits}
    served = {"endpoint": server.address, "model": "m", "retries": 0, "concurrency": 1}
    measurement = asked.measurement.model_dump(exclude_defaults=True)
    measurement |= {"served": {"before": served, "after": served}, "max_sampled_probes": 12, "resamples": 1000}
    asked = contract_of(behaviours={"tone": tone}, measurement=measurement)
    before, after = (measure_model(None, tokenizer, probes, asked, side)[0] for side in ("before", "after"))
    verdict = prove_contract(before, after, asked)
    assert [(limit.passed, limit.n, limit.unscored) for limit in verdict.limits] == [(False, 6, 6)] * 3


def test_a_probe_of_which_one_reply_is_missing_has_no_sampled_value(
    server: Server,  # noqa: F811
    tokenizer: Tokenizer,
) -> None:
    asked = served_contract(server.address)
    measured(asked, tokenizer)
    lost = next(b["seed"] for b in server.requests if b["messages"][-1]["content"] == "Question 3?")
    server.answer = lambda body: 503 if body["seed"] == lost else "I'm sorry."
    scores, replies, _ = measured(asked, tokenizer)
    assert sum(reply.fault is not None for reply in replies) == 1
    for score in scores:
        values = {score.values[name] for name in SAMPLED if name != "reward"}
        assert values == {None} if score.probe_id == "p3" else None not in values


def test_an_empty_reply_is_a_reply(server: Server, tokenizer: Tokenizer) -> None:  # noqa: F811
    server.answer = lambda body: ""
    scores, replies, _ = measured(served_contract(server.address), tokenizer)
    assert {reply.judgement for reply in replies} == {"invalid"} and {reply.fault for reply in replies} == {None}
    assert [score.values["invalid_sampled_rate"] for score in scores] == [1] * 5


def test_a_server_that_limits_its_rate_is_asked_again_when_it_says(
    server: Server,  # noqa: F811
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("demeanor.endpoint.time.sleep", waits.append)
    monkeypatch.setattr("demeanor.endpoint._asked_to_wait", lambda header: 7.0)
    limited = [429, 429, 503]
    server.answer = lambda body: limited.pop() if limited else "I'm sorry."
    _, replies, said = measured(served_contract(server.address, retries=3, concurrency=1), tokenizer)
    assert {reply.fault for reply in replies} == {None} and [wait for wait in waits if wait] == [
        7.0
    ] * 3  # the server sleeps too
    assert len(server.requests) == 13 and len(said) == 1


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), (None, 0.0), ("1e9", 30.0), ("-4", 0.0), ("Fri, 1", 0.0)])
def test_how_long_a_server_asks_to_wait(header: str | None, seconds: float) -> None:
    from demeanor.endpoint import _asked_to_wait

    assert _asked_to_wait(header) == seconds


def test_a_slow_server_is_unanswered_within_its_time(server: Server, tokenizer: Tokenizer) -> None:  # noqa: F811
    server.answer = lambda body: time.sleep(1.5) or "late"
    started = time.monotonic()
    _, replies, said = measured(served_contract(server.address, timeout_s=0.2), tokenizer)
    assert all("timed out" in (reply.fault or "") or "not asked any more" in (reply.fault or "") for reply in replies)
    assert len(said) == 2 and time.monotonic() - started < 5


def test_no_judge_is_asked_about_a_reply_that_is_none(server: Server, tokenizer: Tokenizer) -> None:  # noqa: F811
    contract = served_contract("http://127.0.0.1:9/v1", {"endpoint": server.address, "model": "m", "rubric": "r"})
    scores, replies, _ = measured(contract, tokenizer)
    assert server.requests == [] and {reply.judgement for reply in replies} == {None}
    assert {score.values["violating_sampled_rate"] for score in scores} == {None}


def served_side(contract: Contract, address: str) -> Contract:
    after = {"endpoint": address, "model": "m", "retries": 0}
    settings = contract.measurement.model_copy(
        update={"served": {"after": type(contract).model_validate(
            {"data": {"pairs": ["x"]}, "measurement": {"served": {"after": after}}}
        ).measurement.served["after"]}}
    )  # fmt: skip
    return contract.model_copy(update={"measurement": settings})


def test_a_served_model_takes_the_place_of_a_side(llama: Path, tmp_path: Path, server: Server) -> None:  # noqa: F811
    """Only that side is measured again; the report says how; when the server is down nothing is kept as measured."""
    server.answer = lambda body: "I can't say that."
    contract = judged_contract(llama, "refusal", tmp_path)
    folder = tmp_path / "run"
    run(plan_run(contract, Workspace(folder)), Lines())
    own = Workspace(folder).outputs_digest("before")
    prompts = [json.loads(line) for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines()]
    assert prompts and all(row["text"].endswith("<|assistant|>") and len(row["ids_sha256"]) == 64 for row in prompts)

    plan = plan_run(served_side(contract, "http://127.0.0.1:9/v1"), Workspace(folder))
    with pytest.raises(StageError, match=r"the model gave none of 12 replies: .*refused"):
        measure_stage(plan, "after", Lines())
    verdict = run(plan_run(served_side(contract, server.address), Workspace(folder)), Lines())
    assert verdict.passed and Workspace(folder).outputs_digest("before") == own
    replies = Workspace(folder).read_records(Workspace(folder).replies("after"), Reply.from_json)
    assert {(reply.text, reply.judgement) for reply in replies} == {("I can't say that.", "safe")}
    assert Workspace(folder).manifest()["stages"]["after"]["unanswered"] == 0
    page = (folder / "report.html").read_text("utf-8")
    assert f"transformers (before), m at {server.address} (after)" in page and "temperature 1" in page


def test_a_server_that_loses_some_fails_the_limit(llama: Path, tmp_path: Path, server: Server) -> None:  # noqa: F811
    first: list[Any] = []

    def answer(body: dict[str, Any]) -> Any:
        first.append(body["messages"])
        return 400 if body["messages"] == first[0] else "I can't say that."

    server.answer = answer
    contract = served_side(judged_contract(llama, "refusal", tmp_path), server.address)
    said = Lines()
    verdict = run(plan_run(contract, Workspace(tmp_path / "run")), said)
    assert not verdict.passed and "could not be scored" in verdict.limits[0].reason
    assert any("2 of 12 prompts were not answered" in line for line in said.lines)


def test_the_report_states_how_replies_were_sampled() -> None:
    plain = sampling_words(contract_of(measurement={"samples": 3, "temperature": 0.5, "seed": 4}))
    assert "transformers: 3 replies a prompt" in plain[0] and "temperature 0.5" in plain[0] and "seed 4" in plain[0]
    assert plain[1] == "No system prompt is added."
    served = sampling_words(served_contract("http://x/v1"))
    assert "larkhold-1 at http://x/v1 (after)" in served[0] and served[1].endswith("Be kind.")


# ------------------------------------------------------------ what is asked for and cannot be had


def test_an_address_and_a_key_are_checked(monkeypatch: pytest.MonkeyPatch, llama: Path, tmp_path: Path) -> None:
    for key, value, words in (
        ("endpoint", "localhost:80", "is no address"),
        ("key_env", "sk-123", "never the key itself"),
        ("concurrency", 0, "greater than or equal to 1"),
    ):
        with pytest.raises(ContractError, match=words):
            served_contract(**{"address": "http://x/v1", key if key != "endpoint" else "address": value})
    with pytest.raises(ContractError, match="a reward model replies to nobody"):
        contract_of(
            training={"objective": "reward"},
            measurement={"served": {"after": {"endpoint": "http://x/v1", "model": "m"}}},
        )
    monkeypatch.delenv("SERVED_KEY", raising=False)
    contract = served_side(judged_contract(llama, "rule", tmp_path), "http://x/v1")
    after = contract.measurement.served["after"].model_copy(update={"key_env": "SERVED_KEY"})
    settings = contract.measurement.model_copy(update={"served": {"after": after}})
    with pytest.raises(InputError, match=r"measurement.served.after: .*SERVED_KEY is not set"):
        plan_run(contract.model_copy(update={"measurement": settings}), Workspace(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_command_names_both_the_server_and_its_model() -> None:
    from demeanor.cli.measure import _served

    assert _served(None, None, None, None) == []
    (setting,) = _served("http://x/v1", "m", None, None)
    assert setting.startswith("measurement.served.after=")
    for given in (("http://x/v1", None, None, None), (None, "m", None, None), (None, None, None, "after"),
                  ("http://x/v1", "m", None, "beside")):  # fmt: skip
        with pytest.raises(InputError):
            _served(*given)


def test_vllm_that_is_not_installed_is_refused_before_anything_is_written(llama: Path, tmp_path: Path) -> None:
    contract = judged_contract(llama, "rule", tmp_path)
    settings = contract.measurement.model_copy(update={"sampled_by": "vllm"})
    with pytest.raises(InputError, match="vLLM is not installed"):
        plan_run(contract.model_copy(update={"measurement": settings}), Workspace(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class StandIn:
    """What of vLLM is called, and with what."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: int) -> None:
        self.loaded: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        outer = self

        class LLM:
            def __init__(self, **options: Any) -> None:
                outer.loaded = options

            def generate(self, prompts: Any, params: Any, *, lora_request: Any, use_tqdm: bool) -> Any:
                outer.asked = {"prompts": prompts, "params": params, "lora": lora_request}
                one = [SimpleNamespace(token_ids=(*prompt["prompt_token_ids"][:2], end)) for prompt in prompts]
                return [SimpleNamespace(outputs=[output] * own.n) for output, own in zip(one, params, strict=True)]

        module, lora = ModuleType("vllm"), ModuleType("vllm.lora.request")
        module.LLM, module.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
        lora.LoRARequest = lambda *arguments: arguments  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "vllm", module)
        monkeypatch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))
        monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)


def test_vllm_is_given_the_prompts_seeds_and_the_adapter(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn(monkeypatch, tokenizer.end_ids[0])
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 24}))
    contract = contract_of(measurement={"samples": 3, "temperature": 0.4, "max_new_tokens": 7})
    prompts = [tokenizer.prompt(probe.prompt) for probe in PROBES[:2]]
    drawn = VllmSampler(Path("base"), tmp_path, tokenizer, contract)(PROBES[:2], prompts, 5)
    assert [len(own) for own in drawn] == [3, 3]
    assert drawn[0][0].ids == [*prompts[0][:2], tokenizer.end_ids[0]] and drawn[0][0].num_tokens == 3
    for params in stand_in.asked["params"]:
        assert (params.n, params.temperature, params.max_tokens) == (3, 0.4, 7)
        assert params.stop_token_ids == tokenizer.end_ids and params.top_p == 1.0
    assert [row["prompt_token_ids"] for row in stand_in.asked["prompts"]] == prompts
    assert stand_in.loaded["max_lora_rank"] == 32 and stand_in.loaded["enable_lora"]
    assert stand_in.asked["lora"] == ("adapter", 1, str(tmp_path))
    VllmSampler(Path("base"), None, tokenizer, contract)(PROBES[:2], prompts, 5)
    assert "enable_lora" not in stand_in.loaded and stand_in.asked["lora"] is None


def test_no_two_samples_of_vllm_share_their_noise(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It draws sample k of a request by the seed plus k."""
    stand_in = StandIn(monkeypatch, tokenizer.end_ids[0])
    sampler = VllmSampler(Path("base"), None, tokenizer, contract_of(measurement={"samples": 16}))
    probes = [replace(PROBES[0], id=f"p{n}") for n in range(200)]
    seeds: list[list[int]] = []
    for seed in (5, 5, 6):
        sampler(probes, [tokenizer.prompt(probe.prompt) for probe in probes], seed)
        seeds.append([params.seed for params in stand_in.asked["params"]])
    assert seeds[0] == seeds[1]
    assert len({seed + place for seed in seeds[0] + seeds[2] for place in range(16)}) == 2 * 200 * 16


def test_a_measurement_uses_vllm_when_it_is_asked_for(llama: Path, tokenizer: Tokenizer, monkeypatch: Any) -> None:
    from demeanor.model import load_model

    stand_in = StandIn(monkeypatch, tokenizer.end_ids[0])
    contract = contract_of(
        behaviours={"tone": {"safe_openings": ["I'm sorry"]}}, measurement={"samples": 2, "sampled_by": "vllm"}
    )
    source = find_model(str(llama))
    weights = Weights(source, None, source.fingerprint)
    model = load_model(source, contract, trees=True)
    scores, replies = measure_model(model, tokenizer, PROBES, contract, "before", weights=weights)
    assert stand_in.loaded["model"] == str(llama) and len(replies) == 10
    assert all(score.values["violating_logp"] is not None for score in scores)
