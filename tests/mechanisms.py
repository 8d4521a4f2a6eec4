"""Every mixer by name, built small, and what it computes: the same weights through plain torch and the fp64 oracle."""

from dataclasses import replace
from functools import partial
from typing import Any

import feature_oracle
import low_rank_oracle
import luna_oracle
import oracle
import torch
from plain_layers import linear, unit
from torch import Tensor

from tsla.build_mixer import Place, build_mixer
from tsla.config import members
from tsla.config.mixers import HeadsConfig
from tsla.config.schema import EncoderConfig
from tsla.mixers import (
    FeatureAttention,
    FourierAttention,
    GatedConv,
    HeadMixer,
    HeadSplit,
    HedgehogAttention,
    LightningAttention,
    LinearAttention,
    LinformerAttention,
    LunaAttention,
    Mixer,
    NoMixer,
    PerformerAttention,
    PrimalAttention,
    RFAAttention,
    RFAGateAttention,
    ScatterbrainAttention,
    SoftmaxAttention,
    TaylorAttention,
    TaylorPolyAttention,
    TaylorShiftAttention,
    TokenShift,
    TransNormerAttention,
    WindowAttention,
)
from tsla.mixers.performer import FavorFeatures

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
    "fourier": FourierAttention,
    "fourier, channels": lambda dim, **x: FourierAttention(dim, power=2, radius=2.0, per_channel=True, **x),
    "window": lambda dim, **x: WindowAttention(dim, window=WINDOW, **x),
    "window 0": lambda dim, **x: WindowAttention(dim, window=0, **x),
    "linear": LinearAttention,
    "linear, relu": lambda dim, **x: LinearAttention(dim, map="relu", **x),
    "linear, cosine": lambda dim, **x: LinearAttention(dim, map="cosine", horizon=5000, **x),
    "linear, rebased": lambda dim, **x: LinearAttention(dim, map="rebased", **x),
    "linear, taylor": lambda dim, **x: LinearAttention(dim, map="taylor", **x),
    "linear, t2r": lambda dim, **x: LinearAttention(dim, map="t2r", **x),
    "performer": PerformerAttention,
    "performer, positive": lambda dim, **x: PerformerAttention(dim, kind="positive", scaling="fixed", features=9, **x),
    "performer, relu": lambda dim, **x: PerformerAttention(dim, kind="relu", **x),
    "rfa": RFAAttention,
    "rfa, arccos": lambda dim, **x: RFAAttention(dim, kind="arccos", features=24, redraw_every=None, **x),
    "rfa_gate": RFAGateAttention,
    "hedgehog": HedgehogAttention,
    "hedgehog, exp": lambda dim, **x: HedgehogAttention(dim, kind="exp", **x),
    "hedgehog, max": lambda dim, **x: HedgehogAttention(dim, kind="max", width=9, **x),
    "hedgehog, joint": lambda dim, **x: HedgehogAttention(dim, kind="joint", **x),
    "scatterbrain": lambda dim, **x: ScatterbrainAttention(dim, window=WINDOW, **x),
    "scatterbrain, lsh": lambda dim, **x: ScatterbrainAttention(dim, support="lsh", cluster=3, map="taylor", **x),
    "scatterbrain, taylor": lambda dim, **x: ScatterbrainAttention(dim, window=0, map="taylor", **x),
    "scatterbrain, hedgehog": lambda dim, **x: ScatterbrainAttention(dim, window=2, map="hedgehog", **x),
    "lightning": LightningAttention,
    "lightning, retention": lambda dim, **x: LightningAttention(dim, activation="none", decay="retention", **x),
    "lightning, no decay": lambda dim, **x: LightningAttention(dim, decay="none", **x),
    "transnormer": lambda dim, **x: TransNormerAttention(dim, decay="paper", layer=0, depth=3, **x),
    "transnormer, later": lambda dim, **x: TransNormerAttention(dim, layer=1, depth=3, **x),
    "linformer": lambda dim, **x: LinformerAttention(dim, max_length=300, rank=6, **x),
    "linformer, own": lambda dim, **x: LinformerAttention(dim, max_length=301, rank=5, sharing="none", **x),
    "linformer, kv": lambda dim, **x: LinformerAttention(dim, max_length=500, sharing="kv", **x),
}
GROWING = ("softmax", "fourier")  # those whose state grows with every token
OTHERS = {"none", "taylor_poly", "gated_conv", "luna", "primal"}  # named otherwise here


def by_config(config: HeadsConfig, dim: int, *, causal: bool = False, rotary: bool = False, **options: Any) -> Mixer:
    """A mixer that has no line here, from its dataclass: all is proved of it but its formula."""
    model = EncoderConfig(dim=dim, causal=causal, positions="rotary" if rotary else "none")
    return build_mixer(replace(config, **options), model, Place(0, 2, 5000, {}))


NEW = {name: cls for name, cls in members("mixer").items() if name not in (*HEADS, *OTHERS)}
HEADS |= {name: partial(by_config, cls()) for name, cls in NEW.items() if issubclass(cls, HeadsConfig)}
OWN = {  # without the options of heads
    "none": NoMixer,
    "conv": GatedConv,
    "conv, wide": lambda dim, **x: GatedConv(dim, kernel=6, expand=1, **x),
    "luna": lambda dim, **x: LunaAttention(dim, heads=4, slots=5, **x),
    "luna, untied": lambda dim, **x: LunaAttention(dim, heads=2, slots=13, tie_kv=False, bias=False, **x),
    "primal": lambda dim, **x: PrimalAttention(dim, heads=4, rank=3, **x),
    "primal, few": lambda dim, **x: PrimalAttention(
        dim, heads=2, rank=2, bias=True, **({} if x["causal"] else {"rank_multi": 2, "trace": "weights"}) | x
    ),
}
BARE = tuple(OWN)
STREAMS: tuple[str, ...] = ("luna",)  # those that give a second stream
LOSSES = ("primal",)  # those that add a loss
NAMES = (*BARE, "split", "shift", *HEADS)
FULLY = ("taylor", "taylorshift", "poly", "softmax", "window", "split", "shift")  # all options; others none and all
WITH_OPTIONS = [(name, "plain") for name in BARE] + [
    (name, kind) for name in NAMES[len(BARE) :] for kind in OPTIONS if name in FULLY or kind in ("plain", "all")
]


def has(name: str, mode: str, *, of: tuple[str, ...]) -> bool:
    """Whether a mechanism has a mode: is none `of` those that lack it, or says so if it has no line here."""
    if name in NEW:
        made = HEADS[name](DIM, heads=4, causal="bidirectional" not in NEW[name].directions)
        return mode in made.supports
    return not name.startswith(of)


CAUSAL = [name for name in NAMES if has(name, "causal", of=("poly", "linformer", "scatterbrain, lsh"))]
BIDIRECTIONAL = [name for name in NAMES if has(name, "bidirectional", of=("rfa_gate",))]
CROSS = [
    name
    for name in BIDIRECTIONAL
    if has(name, "cross", of=("conv", "primal", "split", "window", "poly", "scatterbrain", "lightning", "transnormer"))
    and not name.endswith(("decay", "cosine"))
]
CAUSAL_WITH_OPTIONS = [case for case in WITH_OPTIONS if case[0] in CAUSAL]


def directions(name: str) -> tuple[bool, ...]:
    """The values of `causal` that a mechanism can have."""
    return tuple(causal for causal, able in ((False, BIDIRECTIONAL), (True, CAUSAL)) if name in able)


EVERY_WAY = [(name, kind, causal) for name, kind in WITH_OPTIONS for causal in directions(name)]


def build(
    name: str, kind: str = "plain", *, causal: bool | None = None, dtype: torch.dtype = torch.float64, **more
) -> Mixer:  # fmt: skip
    """A mixer of 4 heads in evaluation mode; norms and gates are moved off their neutral start.

    causal: None takes the first direction that it has.
    """
    causal = directions(name)[0] if causal is None else causal
    options = {"heads": 4, "causal": causal, **OPTIONS[kind], **more}
    if name in OWN:
        mixer: Mixer = OWN[name](DIM, causal=causal, **more)
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
        elif not parameter.is_meta and not parameter.any():  # a token's own say on decay, which starts at 0
            torch.nn.init.normal_(parameter, std=0.3)
    return mixer.to(dtype).eval()


def expected(mixer: Mixer, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The output of a mixer."""
    if isinstance(mixer, NoMixer):
        return torch.zeros_like(x)
    if isinstance(mixer, GatedConv):
        return gated_conv(mixer, x, mask)
    if isinstance(mixer, LunaAttention):
        return luna_oracle.causal(mixer, x, mask) if mixer.causal else luna_oracle.two_way(mixer, x, context, mask)[0]
    if isinstance(mixer, PrimalAttention):
        return low_rank_oracle.primal(mixer, x, mask)
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
    if isinstance(mixer, FourierAttention):
        return oracle.dense_fourier(q, k, v, radius=(1 + mixer.raw_radius.exp()).log(), power=mixer.power, **options)
    if isinstance(mixer, FeatureAttention):
        return feature_heads(mixer, q, k, v, x, mask)
    if isinstance(mixer, LinformerAttention):
        return low_rank_oracle.linformer(mixer, q, k, v, mask)
    if isinstance(mixer, ScatterbrainAttention):
        return hybrid_heads(mixer, q, k, v, x, mask)
    if isinstance(mixer, WindowAttention):
        return oracle.dense_window(q, k, v, window=mixer.window, **options)
    if q.shape[2] == k.shape[2]:
        return oracle.dense_window(q, k, v, window=k.shape[2], **options)
    k, v = (y.repeat_interleave(q.shape[1] // y.shape[1], dim=1) for y in (k, v))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).exp()
    weights = weights if mask is None else weights * mask[:, None, None]
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-300)


def feature_heads(
    mixer: FeatureAttention, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None
) -> Tensor:  # fmt: skip
    """Sums over features by their formula, with gates and norms."""
    made, h = mixer.feature_map, q.shape[1]
    if mask is not None:  # what stands at masked keys is nothing a formula need bear
        k = k.masked_fill(~mask[:, None, :, None], 0.0)
    fq = feature_oracle.features(made, q, True, places_of(x, mask))
    fk = feature_oracle.features(made, k, False, places_of(x, mask) if k.shape[2] == q.shape[2] else None)
    decays = None
    if isinstance(mixer, RFAGateAttention):
        gate = 1 / (1 + (-(x @ mixer.forgetting.weight.T + mixer.forgetting.bias)).exp())  # (b, n, h)
        fk, v = (y.repeat_interleave(h // y.shape[1], dim=1) for y in (fk, v))
        fk, decays = fk * (1 - gate).transpose(1, 2)[..., None], gate.log().transpose(1, 2)
    if isinstance(mixer, LightningAttention) and mixer.log_decay is not None:
        decays = mixer.log_decay.expand(q.shape[0], q.shape[2], h).transpose(1, 2)
    out = oracle.dense(
        fq, fk, v, order=None, causal=mixer.causal, key_mask=mask, log_decay=decays, normalize=mixer.normalize,
        eps=made.eps if made.positive else 0.0, floor=0.0 if made.positive or not mixer.normalize else 1e-3,
    )[0]  # fmt: skip
    if isinstance(mixer, LightningAttention):
        out = out / (out.square().mean((1, 3), keepdim=True) + 1e-6).sqrt()
    if isinstance(mixer, TransNormerAttention):
        out = out * linear(mixer.to_u, x).unflatten(-1, (h, -1)).transpose(1, 2)
    return out


def hybrid_heads(
    mixer: ScatterbrainAttention, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None
) -> Tensor:  # fmt: skip
    """exp on the support, products of features off it; of a map that is not near exp, gamma times exp against them."""
    made, places = mixer.feature_map, places_of(x, mask)
    if mask is not None:
        k = k.masked_fill(~mask[:, None, :, None], 0.0)
    fq, fk = feature_oracle.features(made, q, True, places), feature_oracle.features(made, k, False, places)
    if mixer.support == "lsh":
        support = oracle.clusters(q, k, mixer.hashes.double(), cluster=mixer.cluster, mask=mask)
    else:
        gap = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
        support = (gap.abs() <= mixer.window).expand(*q.shape[:3], -1)
    size = made.projection.shape[0] * 2 if isinstance(made, FavorFeatures) else 1
    scale = None if mixer.log_gamma is None else mixer.log_gamma.exp()
    return oracle.dense_hybrid(
        q, k, v, fq / size, fk, support=support, gamma=scale, causal=mixer.causal, key_mask=mask
    )  # fmt: skip


def places_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """Position of each token ``(b, n)``: how many real ones come before it, or before the last real one."""
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return torch.tensor([[max(sum(row[: i + 1]) - 1, 0) for i in range(len(row))] for row in real.tolist()]).reshape(
        real.shape
    )


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
    d = x.shape[-1]
    place = places_of(x[:, 0], mask)
    angle = place[:, None, :, None] * 10_000 ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2)


def padding(*lengths: int, total: int, left: bool = False) -> Tensor:
    """Masks of rows with so many real tokens at one end."""
    place = torch.arange(total)
    return torch.stack([place >= total - n if left else place < n for n in lengths])
