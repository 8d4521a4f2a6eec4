"""Weights of the field's own layers, read into ours: from a state dict to a layer that gives the same outputs.

Sizes are read off the tensors; what leaves no trace in them is an argument. Nothing is dropped silently: a key that is
missing, unknown, of another shape, or of a part that our layer does not have, is a ValueError that names it.
"""

import torch
from torch import Tensor

from tsla.mixers.performer import PerformerAttention
from tsla.mixers.taylor import TaylorAttention
from tsla.mixers.taylorshift import TaylorShiftAttention
from tsla.mixers.weights import Weights, check_keys, fill, head_widths, shape_of, shaped
from tsla.ops.checks import check_choice


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
    check_keys(weights, source, ("to_q.0.weight", "to_kv.0.weight"), optional)
    width, dim = shape_of(weights, "to_q.0.weight", None, None)
    rows, _ = shape_of(weights, "to_kv.0.weight", None, dim)
    told: dict[str, int] = {} if heads is None else {"heads": heads}
    if "to_v_gates.0.weight" in weights:
        told["to_v_gates.0.weight"] = shape_of(weights, "to_v_gates.0.weight", None, dim)[0]
    if rotary := "rotary_emb.freqs" in weights:
        told["rotary_emb.freqs"] = width // (2 * shape_of(weights, "rotary_emb.freqs", None)[0] or 1)
    if rows != 2 * width:
        told["to_kv.0.weight"] = width // (rows // 2 or 1)
    heads, head_dim = head_widths(told, "to_q.0.weight", width)
    kv_heads = heads if rows == 2 * width else 1
    keys, values = shaped(weights, "to_kv.0.weight", 2 * kv_heads * head_dim, dim).chunk(2)
    if rotary:
        _check_rotary(shaped(weights, "rotary_emb.freqs", head_dim // 2), head_dim)
    found = {"to_q.weight": weights["to_q.0.weight"], "to_k.weight": keys, "to_v.weight": values}
    if gate := "to_v_gates.0.weight" in weights:
        found["to_gate.weight"] = weights["to_v_gates.0.weight"]
        found["to_gate.bias"] = keys.new_zeros(heads)
    if projection := "to_out.0.weight" in weights:
        found["to_out.weight"] = shaped(weights, "to_out.0.weight", dim, width)
    layer = TaylorAttention(
        dim, heads=heads, head_dim=head_dim, value_dim=head_dim, kv_heads=kv_heads, causal=causal, rotary=rotary,
        gate=gate, output_projection=projection,
    )  # fmt: skip
    return fill(layer, found)


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
    check_keys(weights, "TaylorShiftAttention", ("qkv.weight", "proj.weight"), ("temperature", *biases))
    dim, _ = shape_of(weights, "proj.weight", None, None)
    qkv, proj = shaped(weights, "qkv.weight", 3 * dim, dim), shaped(weights, "proj.weight", dim, dim)
    told: dict[str, int] = {} if heads is None else {"heads": heads}
    if normalize := "temperature" in weights:
        told["temperature"] = shape_of(weights, "temperature", 1, None, 1, 1)[1]
    heads, head_dim = head_widths(told, "proj.weight", dim)
    found = dict(zip(("to_q.weight", "to_k.weight", "to_v.weight"), qkv.chunk(3), strict=True))
    found["to_out.weight"] = proj
    found["temperature"] = weights["temperature"].flatten() if normalize else qkv.new_full((heads,), heads**-0.5)
    if bias := any(key in weights for key in biases):
        inner = shaped(weights, "qkv.bias", 3 * dim) if "qkv.bias" in weights else qkv.new_zeros(3 * dim)
        outer = shaped(weights, "proj.bias", dim) if "proj.bias" in weights else qkv.new_zeros(dim)
        found |= dict(zip(("to_q.bias", "to_k.bias", "to_v.bias"), inner.chunk(3), strict=True))
        found["to_out.bias"] = outer
    layer = TaylorShiftAttention(
        dim, heads=heads, head_dim=head_dim, value_dim=head_dim, bias=bias, a=a, b=b, c=c, normalize=normalize,
        scale_output=scale_output,
    )  # fmt: skip
    return fill(layer, found)


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
    check_keys(weights, "BasedLinearAttention", tuple(names), ())
    features, dim = shape_of(weights, "q_proj.weight", None, None)
    _, width = shape_of(weights, "o_proj.weight", dim, None)
    shape_of(weights, "k_proj.weight", features, dim)
    shape_of(weights, "v_proj.weight", width, dim)
    (_, head_dim), (_, value_dim) = (
        head_widths({"heads": heads}, key, size)
        for key, size in (("q_proj.weight", features), ("o_proj.weight", width))
    )
    layer = TaylorAttention(dim, heads=heads, head_dim=head_dim, value_dim=value_dim, causal=causal)
    return fill(layer, {f"{ours}.weight": weights[theirs] for theirs, ours in names.items()})


def read_performer(
    weights: Weights, *, heads: int | None = None, causal: bool = False, kind: str = "positive",
    redraw_every: int | None = 1000,
) -> PerformerAttention:  # fmt: skip
    """The layer of a `SelfAttention` or `CrossAttention` of performer-pytorch (1.1.4), with its random features.

    Its softmax features have 0.0001 added, after a division by the largest of all keys, and its causal sums 0.000001;
    ours have neither, and are those of its formula without them. Its ReLU features are ours, with their 0.001. Where a
    mask is given it leaves out values only: masked keys still weigh on the rest. Ours are as if they were not there.
    How much its small numbers make is measured in docs/parity.md.

    Built with `no_projection` it has the same weights, for another function; that, and a kernel function that is not
    ReLU, leave no trace and have no layer here. Its dropout leaves none either; the layer has none. Its biases, which
    it usually has on its output only, come along (`bias`); ours then has all, 0 where it has none.

    Args:
        weights: its state dict.
        heads: if given, must be those that the width of the random features tells.
        causal: as it was built.
        kind: ``"positive"``, its softmax kernel, or ``"relu"``, its `generalized_attention`.
        redraw_every: its `feature_redraw_interval`, which it counts in forward passes and training in optimiser steps.

    Raises:
        ValueError: keys and shapes that are not such a layer's; ``local_attn.rel_pos.inv_freq``, which tells local
            heads: their windows are blocks and their neighbours, those of `WindowAttention` move with the query.
    """
    check_choice("kind", kind, ("positive", "relu"))
    if "local_attn.rel_pos.inv_freq" in weights:
        raise ValueError(
            "local_attn.rel_pos.inv_freq must not be there: local heads look at whole blocks of tokens, "
            "those of a HeadSplit at a window around each token, and no choice of theirs makes the two equal"
        )
    matrix, names = "fast_attention.projection_matrix", ("to_q", "to_k", "to_v", "to_out")
    biases = [f"{name}.bias" for name in names]
    check_keys(weights, "SelfAttention", (*(f"{name}.weight" for name in names), matrix), biases)
    width, dim = shape_of(weights, "to_q.weight", None, None)
    features, head_dim = shape_of(weights, matrix, None, None)
    told = {} if heads is None else {"heads": heads}
    heads, head_dim = head_widths({**told, matrix: width // head_dim}, "to_q.weight", width)
    found = {"feature_map.projection": shaped(weights, matrix, features, head_dim)}
    for name in ("to_q", "to_k", "to_v"):
        found[f"{name}.weight"] = shaped(weights, f"{name}.weight", width, dim)
    found["to_out.weight"] = shaped(weights, "to_out.weight", dim, width)
    if bias := any(key in weights for key in biases):
        for name, size in zip(biases, (width, width, width, dim), strict=True):
            found[name] = shaped(weights, name, size) if name in weights else found["to_q.weight"].new_zeros(size)
    layer = PerformerAttention(
        dim, heads=heads, head_dim=head_dim, value_dim=head_dim, causal=causal, bias=bias, features=features, kind=kind,
        redraw_every=redraw_every,
    )  # fmt: skip
    return fill(layer, found)


def _check_rotary(frequencies: Tensor, head_dim: int) -> None:
    """Ours are 10000^(-2i / head_dim), exactly; theirs are rounded to the type they were made in, float32 or lower."""
    ours = 10_000 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    rounding = max(1e-6, torch.finfo(frequencies.dtype).eps)
    if not torch.allclose(frequencies.double().cpu(), ours, rtol=rounding, atol=0):
        raise ValueError("rotary_emb.freqs must be 10000^(-2 i / head_dim), the positions TaylorAttention has")
