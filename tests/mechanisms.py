"""Every mixer by name, built small, and what it computes: the same weights through plain torch and the fp64 oracle."""

import oracle
import torch
from torch import Tensor

from tsla.mixers import (
    GatedConv,
    HeadMixer,
    HeadSplit,
    Mixer,
    NoMixer,
    SoftmaxAttention,
    TaylorAttention,
    TaylorPolyAttention,
    TaylorShiftAttention,
    TokenShift,
    WindowAttention,
)

DIM, WINDOW = 16, 4
OPTIONS = {
    "plain": {},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1},
    "rotary": {"rotary": True},
    "gate": {"gate": True},
    "qk_norm": {"qk_norm": True},
    "widths": {"head_dim": 6, "value_dim": 3},
    "no projection": {"output_projection": False},
    "bias": {"bias": True},
    "all": {
        "kv_heads": 2, "rotary": True, "gate": True, "qk_norm": True, "bias": True, "head_dim": 8, "value_dim": 5,
    },
}  # fmt: skip
HEADS = {
    "taylor": TaylorAttention,
    "taylor, direct": lambda dim, **x: TaylorAttention(dim, impl="direct", **x),
    "taylor, linear": lambda dim, **x: TaylorAttention(dim, impl="linear", **x),
    "taylor, order 4": lambda dim, **x: TaylorAttention(dim, **{"order": 4, "head_dim": 4} | x),
    "taylor, centre": lambda dim, **x: TaylorAttention(dim, center="mean", **x),
    "taylor, fixed decay": lambda dim, **x: TaylorAttention(dim, decay="fixed", **x),
    "taylor, selective decay": lambda dim, **x: TaylorAttention(dim, decay="selective", center="mean", **x),
    "taylorshift": TaylorShiftAttention,
    "taylorshift, plain": lambda dim, **x: TaylorShiftAttention(
        dim, a=0.7, b=-0.5, c=2.0, normalize=False, scale_output=False, **x
    ),
    "poly": TaylorPolyAttention,
    "poly, averages": lambda dim, **x: TaylorPolyAttention(
        dim, normalize_first=True, root="value", impl="linear", **{"qk_norm": False} | x
    ),
    "poly, order 4": lambda dim, **x: TaylorPolyAttention(dim, root="sigmoid", **{"order": 4, "head_dim": 4} | x),
    "softmax": SoftmaxAttention,
    "window": lambda dim, **x: WindowAttention(dim, window=WINDOW, **x),
    "window 0": lambda dim, **x: WindowAttention(dim, window=0, **x),
}
CONVOLUTIONS = {"conv": {}, "conv, wide": {"kernel": 6, "expand": 1}}
BARE = ("none", *CONVOLUTIONS)  # without heads and their options
NAMES = (*BARE, "split", "shift", *HEADS)
FULLY = (
    "taylor",
    "taylorshift",
    "poly",
    "softmax",
    "window",
    "split",
    "shift",
)  # all options; others none of them and all
WITH_OPTIONS = [(name, "plain") for name in BARE] + [
    (name, kind) for name in NAMES[len(BARE) :] for kind in OPTIONS if name in FULLY or kind in ("plain", "all")
]
CAUSAL = [name for name in NAMES if not name.startswith("poly")]
CAUSAL_WITH_OPTIONS = [case for case in WITH_OPTIONS if case[0] in CAUSAL]


def directions(name: str) -> tuple[bool, ...]:
    """The values of `causal` that a mechanism can have."""
    return (False, True) if name in CAUSAL else (False,)


EVERY_WAY = [(name, kind, causal) for name, kind in WITH_OPTIONS for causal in directions(name)]


def build(name: str, kind: str = "plain", *, causal: bool = False, dtype: torch.dtype = torch.float64, **more) -> Mixer:
    """A mixer of 4 heads in evaluation mode; norms and gates are moved off their neutral start."""
    options = {"heads": 4, "causal": causal, **OPTIONS[kind], **more}
    if name == "none":
        mixer: Mixer = NoMixer(DIM, causal=causal)
    elif name in CONVOLUTIONS:
        mixer = GatedConv(DIM, causal=causal, **CONVOLUTIONS[name], **more)
    elif name == "split":
        joined = {key: options.pop(key) for key in ("output_projection", "dropout") if key in options}
        joined["bias"] = options.get("bias", False)
        parts = [cls(DIM, **options, output_projection=False) for cls in (HEADS["taylor"], HEADS["window"])]
        mixer = HeadSplit(*parts, **joined)
    elif name == "shift":
        mixer = TokenShift(HEADS["taylor"](DIM, **options))
    else:
        mixer = HEADS[name](DIM, **options)
    for parameter in mixer.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0)
    return mixer.to(dtype).eval()


def expected(mixer: Mixer, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The output of a mixer."""
    if isinstance(mixer, NoMixer):
        return torch.zeros_like(x)
    if isinstance(mixer, GatedConv):
        return gated_conv(mixer, x, mask)
    if isinstance(mixer, TokenShift):
        return expected(mixer.inner, shifted(x, mask if context is None else None), context, mask)
    if isinstance(mixer, HeadSplit):
        out = torch.cat([expected(part, x, context, mask) for part in (mixer.far, mixer.near)], dim=-1)
        return linear(mixer.to_out, out)
    assert isinstance(mixer, HeadMixer)
    keys = x if context is None else context
    q, k, v = (
        linear(layer, y).unflatten(-1, (heads, -1)).transpose(1, 2)
        for y, layer, heads in (
            (x, mixer.to_q, mixer.heads), (keys, mixer.to_k, mixer.kv_heads), (keys, mixer.to_v, mixer.kv_heads),
        )
    )  # fmt: skip
    if hasattr(mixer.q_norm, "weight"):
        q, k = (unit(y, norm) for y, norm in ((q, mixer.q_norm), (k, mixer.k_norm)))
    if mixer.rotary:
        q, k = (turn(y, mask) for y in (q, k))
    out = heads_of(mixer, q, k, v, x, mask)
    if mixer.to_gate is not None:
        out = out / (1 + (-(x @ mixer.to_gate.weight.T + mixer.to_gate.bias)).exp()).transpose(1, 2)[..., None]
    return linear(mixer.to_out, out.transpose(1, 2).flatten(2))


def linear(layer: torch.nn.Module, x: Tensor) -> Tensor:
    """x W^T + b, or x where there is no such layer."""
    if isinstance(layer, torch.nn.Identity):
        return x
    return x @ layer.weight.T + (0 if layer.bias is None else layer.bias)


def unit(x: Tensor, norm: torch.nn.Module) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 2.3e-16).sqrt() * norm.weight


def heads_of(mixer: HeadMixer, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    options = {"causal": mixer.causal, "key_mask": mask}
    if isinstance(mixer, TaylorAttention):
        rates = None
        if mixer.decay is not None:
            own = 0 if mixer.decay.weight is None else (x @ mixer.decay.weight.T).transpose(1, 2)
            rates = -(1 + (-(own + mixer.decay.bias[:, None])).exp()).log().expand(x.shape[0], -1, x.shape[1])
        return oracle.dense(q, k, v, order=mixer.order, log_decay=rates, center=mixer.center, **options)[0]
    if isinstance(mixer, TaylorShiftAttention):
        size = q.shape[-1] ** -0.5
        if mixer.normalize:
            size = 1.0
            q, k = (y / y.square().sum(-1, keepdim=True).sqrt() for y in (q, k))
        q = q * mixer.temperature[:, None, None]
        out = oracle.dense(q, k, v, scale=size, coefficients=mixer.coefficients, **options)[0]
        if mixer.scale_output:
            real = torch.ones(k.shape[0], k.shape[2]).double() if mask is None else mask.double()
            seen = torch.stack([real[:, : i + 1 if mixer.causal else None].sum(-1) for i in range(q.shape[2])], dim=-1)
            out = out * (seen / q.shape[-1]).sqrt()[:, None, :, None]
        return out
    if isinstance(mixer, TaylorPolyAttention):
        middle = linear(mixer.to_middle, x).unflatten(-1, (mixer.kv_heads, -1)).transpose(1, 2)
        middle = unit(middle, mixer.middle_norm) if hasattr(mixer.middle_norm, "weight") else middle
        middle = turn(middle, mask) if mixer.rotary else middle
        out = oracle.dense_poly(
            q, middle, k, v, order=mixer.order, key_mask=mask, normalize_first=mixer.normalize_first
        )  # fmt: skip
        if mixer.root != "none":
            root = linear(mixer.to_root, x).unflatten(-1, (mixer.heads, -1)).transpose(1, 2)
            out = out * (root if mixer.root == "value" else 1 / (1 + (-root).exp()))
        return out
    if isinstance(mixer, WindowAttention):
        return oracle.dense_window(q, k, v, window=mixer.window, **options)
    if q.shape[2] == k.shape[2]:
        return oracle.dense_window(q, k, v, window=k.shape[2], **options)
    k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp()
    weights = weights if mask is None else weights * mask[:, None, None]
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def gated_conv(mixer: GatedConv, x: Tensor, mask: Tensor | None) -> Tensor:
    """Each real token from the real ones around it, or up to it; zeros at the others."""
    projected, taps = linear(mixer.in_proj, x), mixer.conv.weight[:, 0]
    (width, kernel), out = taps.shape, torch.zeros_like(projected[..., : taps.shape[0]])
    for row in range(x.shape[0]):
        real = [i for i in range(x.shape[1]) if mask is None or mask[row, i]]
        for at, i in enumerate(real):
            near = mixer.conv.bias
            for j in range(kernel):
                other = at + j - (kernel - 1 if mixer.causal else kernel // 2)
                if 0 <= other < len(real):
                    near = near + taps[:, j] * projected[row, real[other], :width]
            out[row, i] = near / (1 + (-near).exp()) * projected[row, i, width:]
    return linear(mixer.out_proj, out)


def shifted(x: Tensor, mask: Tensor | None) -> Tensor:
    """The second half of each token from the last real one before it."""
    out, half = x.clone(), -(-x.shape[-1] // 2)
    for row in range(x.shape[0]):
        last = torch.zeros_like(x[row, 0, half:]) if x.shape[1] else None
        for i in range(x.shape[1]):
            out[row, i, half:] = last
            last = x[row, i, half:] if mask is None or mask[row, i] else last
    return out


def turn(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rotary positions as products of complex numbers. Real tokens count up from 0; others stand on the one before."""
    b, _, n, d = x.shape
    real = torch.ones(b, n, dtype=torch.bool) if mask is None else mask
    place = torch.tensor([[max(sum(row[: i + 1]) - 1, 0) for i in range(n)] for row in real.tolist()])
    angle = place[:, None, :, None] * 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def padding(*lengths: int, total: int, left: bool = False) -> Tensor:
    """Masks of rows with so many real tokens at one end."""
    place = torch.arange(total)
    return torch.stack([place >= total - n if left else place < n for n in lengths])
