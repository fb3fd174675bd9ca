"""Leaner modules: the numbers, the gradients and the behaviour of transformers' and PEFT's own, with less kept."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model

from demeanor.train.kernels import fuse, unfuse

COMMON = {"vocab_size": 97, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": lambda: hf.LlamaConfig(**COMMON, **SIZES),
    "llama-bias": lambda: hf.LlamaConfig(**COMMON, **SIZES, attention_bias=True),
    "qwen3": lambda: hf.Qwen3Config(**COMMON, **SIZES, head_dim=8),
    "gemma": lambda: hf.GemmaConfig(**COMMON, **SIZES, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**COMMON, **SIZES, head_dim=8, sliding_window=None),
    "phi3": lambda: hf.Phi3Config(**COMMON, **SIZES),
    "phi3-part": lambda: hf.Phi3Config(  # as Phi-4-mini: only half of each head is turned
        **COMMON,
        **SIZES,
        partial_rotary_factor=0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "helium": lambda: hf.HeliumConfig(**COMMON, **SIZES, head_dim=8),  # its rotary embedding is another
    "olmo": lambda: hf.OlmoConfig(**COMMON, **SIZES),  # its norms have no weight
    "gpt-neox": lambda: hf.GPTNeoXConfig(
        **COMMON, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    ),
    "gpt2": lambda: hf.GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1),
}
ATTENTION = {"phi3": ["qkv_proj"], "phi3-part": ["qkv_proj"], "gpt-neox": ["query_key_value"], "gpt2": ["c_attn"]}
KINDS = ("norms", "attention inputs", "gated MLPs")
COUNTS = {  # of each kind, in two layers
    "llama": (5, 2, 2),
    "llama-bias": (5, 2, 2),
    "qwen3": (9, 2, 2),  # queries and keys have norms of their own
    "gemma": (5, 2, 0),  # its gate is a gelu
    "mistral": (5, 2, 2),
    "phi3": (5, 0, 0),  # transformers fuses its products already
    "phi3-part": (5, 0, 0),
    "helium": (5, 2, 2),
    "olmo": (0, 2, 2),
    "gpt-neox": (0, 0, 0),
    "gpt2": (0, 0, 0),
}
IDS = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
Result = tuple[list[torch.Tensor], dict[str, torch.Tensor]]


def make_base(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2)
            if parameter.ndim == 1 and family != "gemma":
                parameter.add_(1.0)
    return model.eval()


def make_model(family: str, targets: list[str] | str | None = None, **options: Any) -> Any:
    """A PEFT model whose adapter matters."""
    targets = targets or ATTENTION.get(family, ["q_proj", "v_proj"])
    base = make_base(family, **options.pop("changes", {}))
    model = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM", **options)
    )
    randomise(model)
    return model.eval()


def randomise(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def run(model: Any) -> Result:
    """All hidden states and logits, and the gradients of everything that is trained."""
    model.zero_grad(set_to_none=True)
    output = model(IDS, output_hidden_states=True, use_cache=False)
    values = [*output.hidden_states, output.logits]
    generator = torch.Generator().manual_seed(2)
    if output.logits.requires_grad:
        sum((value.float() * torch.randn(value.shape, generator=generator)).sum() for value in values[-2:]).backward()
    return [value.detach() for value in values], {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def distance(one: torch.Tensor, two: torch.Tensor) -> float:
    assert one.shape == two.shape
    return float((one - two).norm() / two.norm())


def assert_same(found: Result, expected: Result, tolerance: float = 1e-5) -> None:
    for value, wanted in zip(found[0], expected[0], strict=True):
        assert distance(value, wanted) < tolerance
    assert found[1].keys() == expected[1].keys()
    for name, grad in found[1].items():
        assert grad.dtype == expected[1][name].dtype
        assert distance(grad, expected[1][name]) < tolerance, name


def counts(model: Any) -> tuple[int, ...]:
    found = fuse(model.get_base_model(), torch.float32)
    return tuple(found[kind] for kind in KINDS)


def fused(model: Any) -> Any:
    assert sum(counts(model)) > 0
    return model


def has_own_forward(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@contextmanager
def kept_tensors(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps, by its address; without the model's own weights."""
    kept: dict[int, int] = {}
    held = []
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held.append(tensor)  # else a later tensor could get the address of a freed one
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("targets", [None, "all-linear"], ids=["attention", "all-linear"])
@pytest.mark.parametrize("family", CONFIGS)
def test_same_hidden_states_and_gradients(family: str, targets: str | None) -> None:
    model = make_model(family, targets)
    expected = run(model)
    with model.disable_adapter():
        assert distance(run(model)[0][-1], expected[0][-1]) > 0.01  # the adapter matters
    assert len(expected[1]) == sum("lora_" in name for name, _ in model.named_parameters())
    assert counts(model) == COUNTS[family]
    assert_same(run(model), expected)
    assert_same(run(model), expected)  # nothing is left over from the pass before


@pytest.mark.parametrize("family", ["llama", "llama-bias", "qwen3", "gemma"])
def test_under_bfloat16_autocast_the_difference_is_that_of_rounding(family: str) -> None:
    model = make_model(family, "all-linear")
    exact = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(model)
    fuse(model.get_base_model(), torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model)
    for one, two, wanted in zip(found[0], rounded[0], exact[0], strict=True):
        assert distance(one.float(), wanted) < 0.002 + 1.5 * distance(two.float(), wanted)
    for name, grad in found[1].items():
        assert grad.dtype == torch.float32
        assert distance(grad, exact[1][name]) < 0.01 + 1.5 * distance(rounded[1][name], exact[1][name]), name


@pytest.mark.parametrize("family", ["llama", "llama-bias"])
def test_fused_for_bfloat16_it_still_runs_without_autocast(family: str) -> None:
    model = make_model(family, "all-linear")
    expected = run(model)[0][-1]
    fuse(model.get_base_model(), torch.bfloat16)
    with torch.no_grad():
        logits = model(IDS).logits
    assert logits.dtype == torch.float32
    assert 1e-5 < distance(logits, expected) < 0.02  # its frozen matrices are rounded


@pytest.mark.parametrize("targets", [["q_proj"], ["k_proj", "o_proj"], ["gate_proj"], ["up_proj"], ["down_proj"]])
def test_any_part_of_a_group_may_be_adapted(targets: list[str]) -> None:
    model = make_model("llama-bias", targets)
    expected = run(model)
    assert expected[1]
    assert_same(run(fused(model)), expected)


def test_layers_of_a_group_may_read_different_inputs() -> None:
    """As in attention to another sequence, or when a pass ended before all were asked."""
    attention = make_model("llama", "all-linear").get_base_model().model.layers[0].self_attn
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    generator = torch.Generator().manual_seed(4)
    x, y, z = (torch.randn(3, 32, generator=generator) for _ in range(3))
    order = ((q, x), (k, y), (v, y), (q, z), (q, x), (q, x), (v, z), (k, x))
    expected = [layer(given) for layer, given in order]
    assert fuse(torch.nn.ModuleList([attention]), torch.float32)["attention inputs"] == 1
    for (layer, given), value in zip(order, expected, strict=True):
        torch.testing.assert_close(layer(given), value, rtol=1e-5, atol=1e-5)


def test_ranks_and_scales_may_differ() -> None:
    model = make_model(
        "llama", "all-linear", rank_pattern={"q_proj": 2, "up_proj": 7}, alpha_pattern={"k_proj": 3}, use_rslora=True
    )
    expected = run(model)
    assert_same(run(fused(model)), expected)


def test_a_disabled_adapter_is_off_and_comes_back() -> None:
    model = make_model("llama", "all-linear")
    expected = run(model)
    with model.disable_adapter():
        off = run(model)
    fused(model)
    with model.disable_adapter():
        assert_same(run(model), off)
    assert_same(run(model), expected)


def test_of_two_adapters_the_active_ones_count() -> None:
    model = make_model("llama", ["q_proj", "v_proj"])
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", "k_proj", "up_proj"], task_type="CAUSAL_LM")
    model.add_adapter("other", config)
    randomise(model)

    def results() -> list[Result]:
        found = []
        for names in (["default"], ["other"], ["default", "other"], ["default"]):
            model.base_model.set_adapter(names)
            found.append(run(model))
        return found

    expected = results()
    assert len({len(grads) for _, grads in expected}) == 3
    fused(model)
    for one, two in zip(results(), expected, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("targets", ["all-linear", ["v_proj", "down_proj"]])
def test_dropout_takes_the_path_of_peft(targets: str | list[str]) -> None:
    model = make_model("llama", targets, lora_dropout=0.5)
    without = run(model)
    model.train()
    torch.manual_seed(3)
    expected = run(model)
    assert distance(expected[0][-1], without[0][-1]) > 0.01
    with kept_tensors(model.eval()) as plain:
        model(IDS, use_cache=False)
    fused(model.train())
    torch.manual_seed(3)
    assert_same(run(model), expected)
    assert_same(run(model.eval()), without)
    with kept_tensors(model) as leaner:  # without dropout there is no need for PEFT's path, which keeps x A^T
        model(IDS, use_cache=False)
    size = IDS.numel() * 4 * 4
    assert list(leaner.values()).count(size) < list(plain.values()).count(size)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "lora bias"])
def test_other_kinds_of_lora_are_left_to_peft(options: dict[str, Any]) -> None:
    model = make_model("llama", ["q_proj", "up_proj"], **options)
    expected = run(model)
    assert_same(run(fused(model)), expected)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["up_proj"]])
def test_adapters_that_differ_within_a_batch(targets: list[str]) -> None:
    model = make_model("llama", targets)
    with torch.no_grad():
        expected = model(IDS, adapter_names=["default", "__base__"]).logits
        both = model(IDS).logits
    assert distance(both[0], expected[0]) < 1e-5
    assert distance(both[1], expected[1]) > 0.01
    fused(model)
    with torch.no_grad():
        assert distance(model(IDS, adapter_names=["default", "__base__"]).logits, expected) < 1e-5


def test_merged_adapters() -> None:
    model = make_model("llama", "all-linear")
    expected = run(model)
    fused(model)
    model.merge_adapter()
    with torch.no_grad():
        merged = model(IDS).logits
    assert distance(merged, expected[0][-1]) < 1e-5
    model.unmerge_adapter()
    assert_same(run(model), expected)


# ---------------------------------------------------------------- what is replaced


@pytest.mark.parametrize("num_layers", [1, 3])
def test_counts_follow_the_layers(num_layers: int) -> None:
    def of(family: str) -> tuple[int, ...]:
        return counts(make_model(family, changes={"num_hidden_layers": num_layers}))

    assert of("llama") == (2 * num_layers + 1, num_layers, num_layers)
    assert of("gemma") == (2 * num_layers + 1, num_layers, 0)
    base = make_base("llama", num_hidden_layers=num_layers)
    assert [fuse(base, torch.float32)[kind] for kind in KINDS] == [0, 0, 0]  # everything in it is trained
    base.requires_grad_(False)
    assert [fuse(base, torch.float32)[kind] for kind in KINDS] == [2 * num_layers + 1, num_layers, num_layers]


def test_what_is_trained_is_left_alone() -> None:
    model = make_model("llama", "all-linear")
    layers = model.get_base_model().model.layers
    trained = [layers[0].input_layernorm.weight, layers[0].self_attn.k_proj.base_layer.weight]
    trained.append(layers[1].mlp.down_proj.base_layer.weight)
    for parameter in trained:
        parameter.requires_grad_(True)
    expected = run(model)
    assert all(parameter.grad is not None for parameter in trained)
    assert counts(model) == (4, 1, 1)
    assert_same(run(model), expected)


@pytest.mark.parametrize("one_plus", [False, True])
def test_both_kinds_of_gain_are_recognised_and_others_left_alone(one_plus: bool) -> None:
    class SomeRMSNorm(torch.nn.Module):
        def __init__(self, extra: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.linspace(-1.0, 2.0, 16), requires_grad=False)
            self.eps, self.extra = 1e-6, extra

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gain = self.weight + one_plus
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * gain + self.extra

    x = torch.randn(3, 5, 16, requires_grad=True)
    weight = torch.randn(3, 5, 16)
    for extra, count in ((0.0, 1), (0.01, 0)):
        norm = SomeRMSNorm(extra)
        results = []
        for replaced in (0, count):
            if replaced or results:
                assert fuse(torch.nn.Sequential(norm), torch.float32)["norms"] == replaced
            y = norm(x)
            results.append((y, *torch.autograd.grad((y * weight).sum(), x)))
        for found, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_mlp_that_computes_something_else_is_left_alone() -> None:
    class Mlp(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = torch.nn.Linear(8, 12), torch.nn.Linear(8, 12)
            self.down_proj, self.act_fn, self.factor = torch.nn.Linear(12, 8), torch.nn.SiLU(), factor
            self.requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.factor

    x = torch.randn(3, 8)
    for factor, count in ((1.0, 1), (2.0, 0)):  # as Falcon-H1's, which is scaled
        mlp = Mlp(factor)
        expected = mlp(x)
        assert fuse(torch.nn.Sequential(mlp), torch.float32)["gated MLPs"] == count
        torch.testing.assert_close(mlp(x), expected)


# ---------------------------------------------------------------- what is kept for the backward pass


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_less_is_kept(targets: list[str] | str) -> None:
    def kept() -> int:
        with kept_tensors(model) as tensors:
            model(ids, use_cache=False)
        return sum(tensors.values())

    ids = IDS.repeat(4, 3)
    model = make_model("llama", targets)
    plain = kept()
    fused(model)
    assert kept() < 0.9 * plain


def test_a_frozen_mlp_keeps_its_gate_and_its_up_alone() -> None:
    mlp = fused(make_model("llama", ["q_proj"])).get_base_model().model.layers[0].mlp
    x = torch.randn(10, 32, requires_grad=True)
    with kept_tensors(mlp) as tensors:
        mlp(x)
    assert sum(tensors.values()) == 2 * 10 * 48 * 4


def test_nothing_is_held_after_a_pass() -> None:
    model = fused(make_model("llama", "all-linear"))
    inputs = []
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_proj.register_forward_pre_hook(lambda _, given: inputs.append(weakref.ref(given[0])))
    with torch.no_grad():
        model(IDS, use_cache=False)
    assert [reference() for reference in inputs] == [None, None]


def test_nothing_is_kept_below_the_first_adapted_layer() -> None:
    model = make_model("llama", changes={"num_hidden_layers": 3}, layers_to_transform=[2], layers_pattern="layers")
    expected = run(model)
    fused(model)
    layers = model.get_base_model().model.layers
    reached: dict[str, int] = {}
    with kept_tensors(model) as tensors:
        layers[2].register_forward_pre_hook(lambda *_: reached.update(below=len(tensors)))
        output = model(IDS, output_hidden_states=True, use_cache=False)
    assert reached["below"] == 0 < len(tensors)
    assert [value.requires_grad for value in output.hidden_states] == [False, False, False, True]
    found = run(model)
    assert_same(found, expected)
    assert len(found[1]) == 4
    assert all(".layers.2." in name for name in found[1])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_gradient_checkpointing(targets: list[str] | str, reentrant: bool) -> None:
    model = make_model("llama", targets).train()
    expected = run(model)
    fused(model)
    model.enable_input_require_grads()
    base = model.get_base_model()
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    calls = []
    base.model.layers[0].self_attn.v_proj.register_forward_hook(lambda *_: calls.append(1))
    assert_same(run(model), expected)
    assert len(calls) == 2  # once more for the backward pass


# ---------------------------------------------------------------- what others see


@pytest.mark.parametrize("family", ["llama", "gemma", "phi3", "helium"])
def test_unfuse_gives_everything_back(family: str) -> None:
    def kept() -> list[int]:
        with kept_tensors(model) as tensors:
            model(IDS, use_cache=False)
        return sorted(tensors.values())

    model = make_model(family, "all-linear")
    expected, before = run(model), kept()
    fused(model)
    assert has_own_forward(model)
    assert kept() != before
    unfuse(model)
    assert has_own_forward(model) == []
    found = run(model)
    assert all(torch.equal(one, two) for one, two in zip(found[0], expected[0], strict=True))
    assert all(torch.equal(grad, expected[1][name]) for name, grad in found[1].items())
    assert kept() == before


def test_fusing_again_changes_nothing() -> None:
    model = make_model("llama", "all-linear")
    expected = run(model)
    assert counts(model) == counts(model) == COUNTS["llama"]
    assert_same(run(model), expected)
    unfuse(model)
    assert has_own_forward(model) == []
    assert counts(model) == COUNTS["llama"]
    assert_same(run(model), expected)


@pytest.mark.parametrize("family", ["llama-bias", "gemma"])
def test_state_dict_and_parameters_stay(family: str) -> None:
    model = make_model(family, "all-linear")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    trainable = [name for name, parameter in parameters.items() if parameter.requires_grad]
    fused(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable


def test_training_steps_reach_the_fused_modules() -> None:
    model, other = make_model("llama", "all-linear"), make_model("llama", "all-linear")
    fused(model)
    for one in (model, other):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(3):
            run(one)
            optimizer.step()
    assert distance(run(model)[0][-1], run(make_model("llama", "all-linear"))[0][-1]) > 0.01
    assert_same(run(model), run(other), 1e-4)


def test_a_saved_adapter_gives_the_same_model(tmp_path: Path) -> None:
    model = make_model("llama", "all-linear")
    expected = run(model)
    fused(model).save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(make_base("llama"), tmp_path, is_trainable=True).eval()
    assert_same(run(fresh), expected)


def test_a_merged_model_can_be_saved(tmp_path: Path) -> None:
    """The fused weights lie in one storage; safetensors must not take them for one tensor."""
    model = make_model("llama", "all-linear")
    expected = run(model)[0][-1]
    merged = fused(model).merge_and_unload()
    merged.save_pretrained(tmp_path)
    with torch.no_grad():
        assert distance(merged(IDS).logits, expected) < 1e-5
        assert distance(hf.AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
def test_generate(family: str) -> None:
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    model = make_model(family, "all-linear")
    expected = model.generate(IDS, attention_mask=mask, **options)
    with model.disable_adapter():
        assert not torch.equal(model.generate(IDS, attention_mask=mask, **options), expected)
    fused(model)
    assert torch.equal(model.generate(IDS, attention_mask=mask, **options), expected)
