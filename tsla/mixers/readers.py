"""Weights of the field's own layers, read into ours: from a state dict to a layer that gives the same outputs.

Sizes are read off the tensors; what leaves no trace in them is an argument. Nothing is dropped silently: a key that is
missing, unknown, of another shape, or of a part that our layer does not have, is a ValueError that names it.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from tsla.mixers.base import HeadMixer
from tsla.mixers.taylor import TaylorAttention
from tsla.mixers.taylorshift import TaylorShiftAttention

Weights = Mapping[str, Tensor]
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Layer = TypeVar("Layer", bound=HeadMixer)


def read_taylor_series(weights: Weights, *, heads: int | None = None, causal: bool = False) -> TaylorAttention:
    """The layer of a `TaylorSeriesLinearAttn` (package taylor-series-linear-attention, 0.2.0).

    Read off the weights: widths, a single key/value head, gate, rotary positions, and whether heads are combined. The
    packed features (`remove_even_power_dups`) and its clamp of the denominator change no output and leave no trace. A
    shift of tokens leaves none either, and does change outputs: shift x by yourself before such a layer.

    Args:
        weights: its state dict.
        heads: query heads; needed unless a gate, rotary positions or a single key/value head tell them.
        causal: as it was built.

    Raises:
        ValueError: keys and shapes that are not such a layer's; ``norm.gamma``, a norm that stands before our layers,
            not in them; rotary frequencies of another base than 10000.
    """
    source = "TaylorSeriesLinearAttn"
    if "norm.gamma" in weights:
        raise ValueError(
            "norm.gamma must not be there: TaylorAttention has no norm before it. Leave the key out and give the layer "
            "x / |x| * sqrt(dim) * gamma (a gate would see that too; the one of to_v_gates.0.weight saw x)"
        )
    optional = ("to_out.0.weight", "to_v_gates.0.weight", "rotary_emb.freqs")
    _check_keys(weights, source, ("to_q.0.weight", "to_kv.0.weight"), optional)
    width, dim = _shape(weights, "to_q.0.weight", None, None)
    rows, _ = _shape(weights, "to_kv.0.weight", None, dim)
    told: dict[str, int] = {} if heads is None else {"heads": heads}
    if "to_v_gates.0.weight" in weights:
        told["to_v_gates.0.weight"] = _shape(weights, "to_v_gates.0.weight", None, dim)[0]
    if rotary := "rotary_emb.freqs" in weights:
        told["rotary_emb.freqs"] = width // (2 * _shape(weights, "rotary_emb.freqs", None)[0] or 1)
    if rows != 2 * width:
        told["to_kv.0.weight"] = width // (rows // 2 or 1)
    heads, head_dim = _heads(told, "to_q.0.weight", width)
    kv_heads = heads if rows == 2 * width else 1
    keys, values = _shaped(weights, "to_kv.0.weight", 2 * kv_heads * head_dim, dim).chunk(2)
    if rotary:
        _check_rotary(_shaped(weights, "rotary_emb.freqs", head_dim // 2), head_dim)
    found = {"to_q.weight": weights["to_q.0.weight"], "to_k.weight": keys, "to_v.weight": values}
    if gate := "to_v_gates.0.weight" in weights:
        found["to_gate.weight"] = weights["to_v_gates.0.weight"]
        found["to_gate.bias"] = keys.new_zeros(heads)
    if projection := "to_out.0.weight" in weights:
        found["to_out.weight"] = _shaped(weights, "to_out.0.weight", dim, width)
    layer = TaylorAttention(
        dim, heads=heads, head_dim=head_dim, value_dim=head_dim, kv_heads=kv_heads, causal=causal, rotary=rotary,
        gate=gate, output_projection=projection,
    )  # fmt: skip
    return _fill(layer, found)


def read_taylorshift(
    weights: Weights, *, scale_output: bool, heads: int | None = None, a: float = 0.5, b: float = 1.0, c: float = 1.0
) -> TaylorShiftAttention:
    """The layer of a `TaylorShiftAttention` of the TaylorShift repository (arXiv 2403.02920).

    Its two forms, direct and efficient, are one function, which ours is too. Without a ``temperature`` it was built
    with ``normalize_input=False``: its scores, q.k / sqrt(dim), are ours at a temperature of 1 / sqrt(heads). Biases,
    which it has on its output and usually on its inputs, come along (`bias`); ours then has both, 0 where it has none.

    Args:
        weights: its state dict.
        scale_output: its `output_normalized`, False in its layer and True in its models: the factor sqrt(N / head_dim).
        heads: needed unless a temperature tells them.
        a, b, c: of its polynomial.

    Raises:
        ValueError: keys and shapes that are not such a layer's; a polynomial with negative values.
    """
    biases = ("qkv.bias", "proj.bias")
    _check_keys(weights, "TaylorShiftAttention", ("qkv.weight", "proj.weight"), ("temperature", *biases))
    dim, _ = _shape(weights, "proj.weight", None, None)
    qkv, proj = _shaped(weights, "qkv.weight", 3 * dim, dim), _shaped(weights, "proj.weight", dim, dim)
    told: dict[str, int] = {} if heads is None else {"heads": heads}
    if normalize := "temperature" in weights:
        told["temperature"] = _shape(weights, "temperature", 1, None, 1, 1)[1]
    heads, head_dim = _heads(told, "proj.weight", dim)
    found = dict(zip(("to_q.weight", "to_k.weight", "to_v.weight"), qkv.chunk(3), strict=True))
    found["to_out.weight"] = proj
    found["temperature"] = weights["temperature"].flatten() if normalize else qkv.new_full((heads,), heads**-0.5)
    if bias := any(key in weights for key in biases):
        inner = _shaped(weights, "qkv.bias", 3 * dim) if "qkv.bias" in weights else qkv.new_zeros(3 * dim)
        outer = _shaped(weights, "proj.bias", dim) if "proj.bias" in weights else qkv.new_zeros(dim)
        found |= dict(zip(("to_q.bias", "to_k.bias", "to_v.bias"), inner.chunk(3), strict=True))
        found["to_out.bias"] = outer
    layer = TaylorShiftAttention(
        dim, heads=heads, head_dim=head_dim, value_dim=head_dim, bias=bias, a=a, b=b, c=c, normalize=normalize,
        scale_output=scale_output,
    )  # fmt: skip
    return _fill(layer, found)


def read_based(weights: Weights, *, heads: int, causal: bool = True) -> TaylorAttention:
    """The layer of a `BasedLinearAttention` of flash-linear-attention (0.6.0; Based, arXiv 2402.18668).

    It divides by the sum of weights plus its `eps` (1e-12, or 1e-6 in its kernels), ours by the sum alone; that is at
    least half the number of keys, so outputs differ by a fraction of 2 eps at most.

    Args:
        weights: its state dict.
        heads: its `num_heads`, and as many key/value heads, the only number it works with.
        causal: as it was built.

    Raises:
        ValueError: keys and shapes that are not such a layer's.
    """
    names = {"q_proj.weight": "to_q", "k_proj.weight": "to_k", "v_proj.weight": "to_v", "o_proj.weight": "to_out"}
    _check_keys(weights, "BasedLinearAttention", tuple(names), ())
    features, dim = _shape(weights, "q_proj.weight", None, None)
    _, width = _shape(weights, "o_proj.weight", dim, None)
    _shape(weights, "k_proj.weight", features, dim)
    _shape(weights, "v_proj.weight", width, dim)
    (_, head_dim), (_, value_dim) = (
        _heads({"heads": heads}, key, size) for key, size in (("q_proj.weight", features), ("o_proj.weight", width))
    )
    layer = TaylorAttention(dim, heads=heads, head_dim=head_dim, value_dim=value_dim, causal=causal)
    return _fill(layer, {f"{ours}.weight": weights[theirs] for theirs, ours in names.items()})


def _check_keys(weights: Weights, source: str, needed: Sequence[str], optional: Sequence[str]) -> None:
    """Every key of `needed`, perhaps some of `optional`, and no other."""
    for key in needed:
        if key not in weights:
            raise ValueError(f"{key} is missing: the weights of a {source} are {', '.join(needed)}")
    for key in weights:
        if key not in (*needed, *optional):
            raise ValueError(f"{key} is not a weight of a {source}: those are {', '.join((*needed, *optional))}")
        _check_numbers(weights, key, needed[0])


def _check_numbers(weights: Weights, key: str, first: str) -> None:
    """A weight is a dense tensor of finite numbers; all but frequencies are of one type and device."""
    weight, like = weights[key], weights[first]
    if not isinstance(weight, Tensor) or weight.layout != torch.strided or weight.dtype not in FLOATS:
        got = f"{weight.dtype}, {weight.layout}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{key} must be a dense tensor of floating-point numbers, got {got}")
    if not key.startswith("rotary_emb.") and (weight.dtype, weight.device) != (like.dtype, like.device):
        raise ValueError(
            f"{key} ({weight.dtype}, {weight.device}) must be of the type and device of {first} "
            f"({like.dtype}, {like.device})"
        )
    if not weight.is_meta and not bool(weight.isfinite().all()):
        raise ValueError(f"{key} must hold finite numbers only")


def _shape(weights: Weights, key: str, *expected: int | None) -> tuple[int, ...]:
    """The shape of a weight, if it is as expected; None stands for any size but 0."""
    shape = tuple(weights[key].shape)
    fits = len(shape) == len(expected) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in expected)
        raise ValueError(f"{key} must have shape ({wanted}), got {shape}")
    return shape


def _shaped(weights: Weights, key: str, *expected: int | None) -> Tensor:
    """A weight, if its shape is as expected."""
    _shape(weights, key, *expected)
    return weights[key]


def _heads(told: Mapping[str, int], key: str, width: int) -> tuple[int, int]:
    """How many heads all that tells of them agrees on, and how wide they are if they share `width` of `key`."""
    if not told:
        raise ValueError(f"heads must be given: {key} of width {width} does not tell them")
    for name, count in told.items():
        if type(count) is not int:
            raise ValueError(f"{name} ({count!r}) must be a whole number")
    (first, heads), *rest = told.items()
    for other, count in rest:
        if count != heads:
            raise ValueError(f"{first} tells {heads} heads, {other} {count}")
    if heads < 1 or width % heads:
        raise ValueError(f"heads ({heads}, from {first}) must divide the width of {key} ({width})")
    return heads, width // heads


def _check_rotary(frequencies: Tensor, head_dim: int) -> None:
    """Ours are 10000^(-2i / head_dim), exactly; theirs are rounded to the type they were made in, float32 or lower."""
    ours = 10_000 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    rounding = max(1e-6, torch.finfo(frequencies.dtype).eps)
    if not torch.allclose(frequencies.double().cpu(), ours, rtol=rounding, atol=0):
        raise ValueError("rotary_emb.freqs must be 10000^(-2 i / head_dim), the positions TaylorAttention has")


def _fill(layer: Layer, weights: Weights) -> Layer:
    """The layer with these weights, in their type and on their device."""
    like = weights["to_q.weight"]
    layer.to(dtype=like.dtype, device=like.device).load_state_dict(dict(weights))
    return layer
