"""Leaner forward and backward passes for the modules of a decoder whose weights are frozen but for LoRA adapters.

transformers' modules are written so that every weight could be trained. Here almost none is: a frozen norm needs no
gradient of its gain, a frozen product needs not to keep its input, and what several products read (the hidden states of
query, key and value; of gate and up) is kept once. `fuse` gives such modules another `forward`; the modules, their
names and their weights stay what they are, so that PEFT, checkpoints and generation see no difference. Each replacement
is tried against the module's own forward on random numbers first and is left out when they differ.

Frozen matrices are held in the precision in which they are used: under bfloat16 autocast they would be cast anew for
every product, to the same numbers.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.nn.functional import silu

from demeanor.train import elementwise

Tensor = torch.Tensor
KINDS = ("norms", "attention inputs", "rotary embeddings", "gated MLPs", "last layers")


def fuse(model: Any, dtype: torch.dtype, without: Collection[str] = ()) -> dict[str, int]:
    """Replace what can be replaced in `model` (a transformers model, PEFT layers already in place).

    Args:
        model: the model; its frozen matrices are cast to `dtype`.
        dtype: what products are computed in: bfloat16 under autocast, else the weights' own.
        without: kinds that are left as they are.

    Returns:
        How many modules of each kind got a leaner forward.
    """
    counts = dict.fromkeys((kind for kind in KINDS if kind not in without), 0)
    for module in list(model.modules()):
        if "norms" in counts and type(module).__name__.endswith("RMSNorm"):
            counts["norms"] += _fuse_norm(module)
        children = dict(module.named_children())
        group = [children.get(name) for name in ("q_proj", "k_proj", "v_proj")]
        if "attention inputs" in counts and all(_is_plain(layer) for layer in group):
            _fuse_group(group, dtype)
            counts["attention inputs"] += 1
        group = [children.get(name) for name in ("gate_proj", "up_proj")]
        down = children.get("down_proj")
        plain = all(_is_plain(layer) for layer in (*group, down)) and _is_silu(children.get("act_fn"))
        if "gated MLPs" in counts and plain:
            counts["gated MLPs"] += _fuse_mlp(module, group, down, dtype)
        if "rotary embeddings" in counts:
            counts["rotary embeddings"] += _fuse_rotary(module)
    if "last layers" in counts:
        counts["last layers"] = _prune_last_layer(model)
    return counts


def unfuse(model: Any) -> None:
    """Give the modules their own forward back."""
    for module in model.modules():
        if getattr(module.__dict__.get("forward"), "__module__", "") == __name__:
            del module.forward


# ---------------------------------------------------------------- norms


def _fuse_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or eps is None or weight.requires_grad:
        return False
    probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight.device)
    plain = module.forward
    expected = plain(probe)
    for one_plus in (False, True):
        gain = weight.detach().float() + one_plus
        if torch.allclose(_Norm.apply(probe, gain, eps, expected.dtype), expected, rtol=1e-5, atol=1e-6):
            break
    else:
        return False

    def forward(hidden_states: Tensor) -> Tensor:
        device = hidden_states.device.type
        out = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        result: Tensor = _Norm.apply(hidden_states, gain, eps, out)
        return result

    module.forward = forward
    return True


class _Norm(torch.autograd.Function):
    """y = x / rms(x) * gain; the backward pass needs x / rms(x), which is kept, and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, out: torch.dtype) -> Tensor:
        y, unit, scale = elementwise.norm(x.reshape(-1, x.shape[-1]), gain, eps, out)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(unit, scale, gain)
            ctx.dtype = x.dtype
        result: Tensor = y.view(x.shape)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dx = elementwise.norm_backward(grad.reshape(-1, grad.shape[-1]), *ctx.saved_tensors, ctx.dtype)
        return dx.view(grad.shape), None, None, None


# ---------------------------------------------------------------- products with adapters


def _is_plain(layer: Any) -> bool:
    """A frozen linear layer, bare or inside a PEFT LoRA layer of the usual kind."""
    if layer is None:
        return False
    base = getattr(layer, "base_layer", layer)
    if type(base) is not torch.nn.Linear or base.weight.requires_grad:
        return False
    if base is layer:
        return True
    from peft.tuners.lora import Linear as LoraLinear

    return type(layer) is LoraLinear and not any(layer.use_dora.values()) and not layer.lora_variant


def _is_silu(act: Any) -> bool:
    return act is not None and type(act).__name__ in ("SiLU", "SiLUActivation")


def _adapters(layers: Sequence[Any]) -> list[tuple[int, Tensor, Tensor, float]] | None:
    """(which layer, A [r, in], B [out, r], scale) of each active adapter; None when one must take PEFT's own path."""
    found = []
    for number, layer in enumerate(layers):
        if not hasattr(layer, "base_layer"):
            continue
        if layer.merged or layer._forward_pre_hooks:  # by these PEFT mixes adapters within a batch
            return None
        if layer.disable_adapters:
            continue
        for name in layer.active_adapters:
            if name not in layer.lora_A:
                continue
            dropout = layer.lora_dropout[name]
            if isinstance(dropout, torch.nn.Dropout) and dropout.p > 0 and layer.training:
                return None
            a, b = layer.lora_A[name], layer.lora_B[name]
            if b.bias is not None:
                return None
            found.append((number, a.weight, b.weight, float(layer.scaling[name])))
    return found


class _Group:
    """Linear layers that read the same input, computed as one product."""

    def __init__(self, layers: Sequence[Any], dtype: torch.dtype) -> None:
        self.layers = layers
        bases = [getattr(layer, "base_layer", layer) for layer in layers]
        self.sizes = [base.weight.shape[0] for base in bases]
        self.weight = torch.cat([base.weight.detach().to(dtype) for base in bases])
        biases = [base.bias for base in bases]
        self.bias = None
        if any(bias is not None for bias in biases):
            zero = [self.weight.new_zeros(size) for size in self.sizes]
            self.bias = torch.cat([z if b is None else b.detach().to(dtype) for z, b in zip(zero, biases, strict=True)])
        start = 0
        for base, size in zip(bases, self.sizes, strict=True):  # the layers' own weights become views: no second copy
            base.weight.data = self.weight[start : start + size]
            start += size

    def __call__(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """The layers' outputs, or None when an adapter needs PEFT's own path."""
        adapters = _adapters(self.layers)
        if adapters is None:
            return None
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        factors = [tensor for _, a, b, _ in adapters for tensor in (a, b)]
        spec = [(number, scale) for number, _, _, scale in adapters]
        bias = None if self.bias is None else self.bias.to(dtype)
        result: tuple[Tensor, ...] = _Products.apply(
            x.to(dtype), self.weight.to(dtype), bias, self.sizes, spec, *factors
        )
        return result


class _Products(torch.autograd.Function):
    """y_i = x W_i^T + b_i + scale (x A_i^T) B_i^T for layers i of one input. Keeps x alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sizes: list[int], spec: Any, *factors: Tensor
    ) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        outs = list(torch.nn.functional.linear(flat, weight, bias).split(sizes, dim=1))
        cast = [factor.to(x.dtype) for factor in factors]
        if spec:
            low = flat @ torch.cat(cast[::2]).T  # [N, sum of ranks]
            for (number, scale), b, part in zip(spec, cast[1::2], _ranks(low, cast), strict=True):
                outs[number].addmm_(part, b.T, alpha=scale)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(flat if spec else flat.new_empty(0), weight, *cast)  # a view would keep all of flat
            ctx.spec, ctx.shape, ctx.dtypes = spec, x.shape, [factor.dtype for factor in factors]
            ctx.sizes = sizes
        outs[2:] = [out.contiguous() for out in outs[2:]]  # the value: as a view it would keep query and key as well
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        flat, weight, *factors = ctx.saved_tensors
        grads = tuple(grad.reshape(-1, grad.shape[-1]) for grad in grads)
        wants_x, results = ctx.needs_input_grad[0], [None] * len(factors)
        lows = []
        if ctx.spec:
            low = flat @ torch.cat(factors[::2]).T
            for place, ((number, scale), part) in enumerate(zip(ctx.spec, _ranks(low, factors), strict=True)):
                grad = grads[number]
                lows.append((grad @ factors[2 * place + 1]).mul_(scale))
                results[2 * place + 1] = (grad.T @ part).float().mul_(scale).to(ctx.dtypes[2 * place + 1])
            both = torch.cat(lows, dim=1)
            down = (both.T @ flat).float()
            for place, part in enumerate(down.split([a.shape[0] for a in factors[::2]])):
                results[2 * place] = part.to(ctx.dtypes[2 * place])
        dx = None
        if wants_x:
            first, *others = zip(grads, weight.split(ctx.sizes), strict=True)
            dx = first[0] @ first[1]
            for grad, own in others:
                dx.addmm_(grad, own)
            if lows:
                dx.addmm_(both, torch.cat(factors[::2]))
            dx = dx.view(ctx.shape)
        return dx, None, None, None, None, *results


def _ranks(low: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return low.split([a.shape[0] for a in factors[::2]], dim=1)


def _fuse_group(layers: Sequence[Any], dtype: torch.dtype) -> None:
    """The first layer that is asked computes all; the others, asked with the same tensor, hand out theirs."""
    group = _Group(layers, dtype)
    plain = [layer.forward for layer in layers]
    waiting: list[Any] = [None, None]  # the input, and the outputs not yet handed out

    def make(number: int) -> Callable[..., Tensor]:
        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args or kwargs:
                return plain[number](x, *args, **kwargs)
            if waiting[0] is not x or waiting[1].get(number) is None:
                outputs = group(x)
                if outputs is None:
                    return plain[number](x)
                waiting[:] = x, dict(enumerate(outputs))
            result: Tensor = waiting[1].pop(number)
            if not waiting[1]:
                waiting[:] = None, None
            return result

        return forward

    for number, layer in enumerate(layers):
        layer.forward = make(number)


# ---------------------------------------------------------------- gated MLPs


def _fuse_mlp(module: Any, layers: Sequence[Any], down: Any, dtype: torch.dtype) -> bool:
    plain = module.forward
    probe = torch.randn(3, layers[0].weight.shape[1], generator=torch.Generator().manual_seed(0)).to(layers[0].weight)
    with torch.no_grad():
        if not torch.allclose(plain(probe), down(silu(layers[0](probe)) * layers[1](probe)), rtol=1e-3, atol=1e-3):
            return False
    inputs, output = _Group(layers, dtype), _Group([down], dtype)

    def forward(x: Tensor) -> Tensor:
        parts = inputs(x)
        if parts is None:
            return plain(x)
        result = output(_GatedSilu.apply(*parts))
        return plain(x) if result is None else result[0]

    module.forward = forward
    return True


class _GatedSilu(torch.autograd.Function):
    """silu(gate) * up. Keeps the two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        result: Tensor = elementwise.gate(gate, up)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        dgate, dup = elementwise.gate_backward(grad, *ctx.saved_tensors)
        return dgate, dup


# ---------------------------------------------------------------- rotary embedding


def _fuse_rotary(module: Any) -> bool:
    """Let an attention module's own forward call `_rotate` where it calls its modelling file's apply_rotary_pos_emb."""
    plain = type(module).forward
    original = getattr(plain, "__globals__", {}).get("apply_rotary_pos_emb")
    if original is None or "apply_rotary_pos_emb" not in plain.__code__.co_names or "forward" in module.__dict__:
        return False
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin = (torch.randn(1, heads, 3, 8, generator=generator) for heads in (4, 2, 1, 1))
    cos, sin = (torch.cat([x[0, ..., :4]] * 2, dim=-1) for x in (cos, sin))
    try:
        turned = original(q, k, cos, sin)
    except Exception:  # of another signature
        return False
    if not all(map(torch.allclose, turned, _rotate(q, k, cos, sin))):
        return False
    own = {**plain.__globals__, "apply_rotary_pos_emb": _rotate}
    forward = types.FunctionType(plain.__code__, own, plain.__name__, plain.__defaults__, plain.__closure__)
    forward.__kwdefaults__ = plain.__kwdefaults__
    forward.__module__ = __name__
    module.forward = types.MethodType(forward, module)
    return True


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """q and k [B, H, L, D] turned by the angles whose cosines and sines, [B, L, D], are the same in both halves."""
    width = cos.shape[-1]
    if width < q.shape[-1]:  # partial: what lies beyond is not turned
        turned = _rotate(q[..., :width], k[..., :width], cos, sin, unsqueeze_dim)
        one, two = (torch.cat([part, x[..., width:]], dim=-1) for part, x in zip(turned, (q, k), strict=True))
        return one, two
    cos, sin = (x[..., : width // 2].unsqueeze(unsqueeze_dim) for x in (cos, sin))
    apply: Any = _Rotate.apply
    return apply(q, cos, sin), apply(k, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        result: Tensor = elementwise.turn(x, cos, sin)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return elementwise.turn(grad, cos, -sin), None, None


# ---------------------------------------------------------------- the last layer


def _prune_last_layer(model: Any) -> int:
    """Let the last layer work, after its attention, on the places alone that are read (`tree.keep`)."""
    layers = getattr(getattr(model, "base_model", model), "layers", None)
    names = {"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"}
    if not isinstance(layers, torch.nn.ModuleList) or not layers:
        return False
    layer: Any = layers[-1]
    if {name for name, _ in layer.named_children()} != names or not _adds_up(layer):
        return False
    plain = layer.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tree = kwargs.get("tree")
        keep = getattr(tree, "keep", None)
        if tree is None or keep is None or args:
            result: Tensor = plain(hidden_states, *args, **kwargs)
            return result
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
        hidden = hidden_states.index_select(1, keep) + attended.index_select(1, keep)
        tree.pruned = True
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    layer.forward = forward
    return True


def _adds_up(layer: Any) -> bool:
    """Whether the layer is h = x + attention(norm(x)), h + mlp(norm(h)), and nothing else: tried with a stand-in for
    the attention."""
    generator = torch.Generator().manual_seed(0)
    weight = getattr(layer.post_attention_layernorm, "weight", None)
    if weight is None:
        return False
    x = torch.randn(1, 3, len(weight), generator=generator).to(weight)
    attention = layer.self_attn.__dict__.get("forward")
    layer.self_attn.forward = lambda hidden_states, **kwargs: (hidden_states * 2 - 1, None)
    try:
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            x = x.to(layer.mlp.down_proj.weight.dtype) if hasattr(layer.mlp, "down_proj") else x
            hidden = x + layer.input_layernorm(x) * 2 - 1
            expected = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            return bool(torch.allclose(layer(x), expected, rtol=1e-2, atol=1e-2))
    except Exception:
        return False
    finally:
        del layer.self_attn.forward
        if attention is not None:
            layer.self_attn.forward = attention
