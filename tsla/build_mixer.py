"""From the config of a mixer to its module: one case for each mechanism."""

from dataclasses import fields, replace
from typing import Any, NamedTuple, assert_never

from torch import nn

from tsla.config.mixers import (
    FourierConfig,
    GatedConvConfig,
    HeadsConfig,
    HedgehogConfig,
    LightningConfig,
    LinearConfig,
    MixerConfig,
    NoneConfig,
    PerformerConfig,
    PolynomialConfig,
    RFAConfig,
    RFAGateConfig,
    SoftmaxConfig,
    TaylorConfig,
    TaylorPolyConfig,
    TaylorShiftConfig,
    TransNormerConfig,
    WindowConfig,
)
from tsla.config.schema import ModelConfig, members
from tsla.mixers import (
    FourierAttention,
    GatedConv,
    HeadSplit,
    HedgehogAttention,
    LightningAttention,
    LinearAttention,
    Mixer,
    NoMixer,
    PerformerAttention,
    RFAAttention,
    RFAGateAttention,
    SoftmaxAttention,
    TaylorAttention,
    TaylorPolyAttention,
    TaylorShiftAttention,
    TokenShift,
    TransNormerAttention,
    WindowAttention,
)
from tsla.mixers.base import HeadOptions
from tsla.ops import taylor_crossover


class Place(NamedTuple):
    """Where a mixer stands: its layer from 0 of so many, and the longest input the task has, in tokens.

    shared: modules that mixers of several layers have in common, by name; the first that needs one puts it there.
    """

    layer: int
    depth: int
    max_length: int
    shared: dict[str, nn.Module]


def build_mixer(config: MixerConfig, model: ModelConfig, place: Place) -> Mixer:
    """The mixer of one layer of a model, with local heads beside it and shifted tokens if asked for."""
    if isinstance(config, HeadsConfig) and config.token_shift:
        return TokenShift(build_mixer(replace(config, token_shift=False), model, place))
    if not isinstance(config, HeadsConfig) or not config.local_heads:
        return _mechanism(config, model, place)
    part = replace(
        config, local_heads=0, output_projection=False, dropout=0.0,
        head_dim=config.head_dim or model.dim // config.heads, value_dim=config.value_dim or model.dim // config.heads,
    )  # fmt: skip
    far = _mechanism(replace(part, heads=config.heads - config.local_heads), model, place)
    shared = {f.name: getattr(part, f.name) for f in fields(HeadsConfig) if f.name not in ("name", "heads")}
    near = _mechanism(WindowConfig(heads=config.local_heads, window=config.local_window, **shared), model, place)
    assert isinstance(near, WindowAttention)
    dropout = model.dropout if config.dropout is None else config.dropout
    return HeadSplit(far, near, bias=config.bias, dropout=dropout, output_projection=config.output_projection)


def _mechanism(config: MixerConfig, model: ModelConfig, place: Place) -> Mixer:
    """The module of a mechanism: one case each, whose own options go by the names the module gives them."""
    if not isinstance(config, HeadsConfig):
        return _without_heads(config, model)
    heads, own = _head_options(config, model), _own_options(config)
    match config:
        case TaylorConfig():
            return TaylorAttention(model.dim, **own, **heads)
        case TaylorShiftConfig():
            return TaylorShiftAttention(model.dim, **own, **heads)
        case TaylorPolyConfig():
            return TaylorPolyAttention(model.dim, **own, **heads)
        case SoftmaxConfig():
            return SoftmaxAttention(model.dim, **heads)
        case FourierConfig():
            return FourierAttention(model.dim, **own, **heads)
        case WindowConfig():
            return WindowAttention(model.dim, **own, **heads)
        case LinearConfig():
            return LinearAttention(model.dim, map=config.map, horizon=_horizon(config, place), **heads)
        case PerformerConfig():
            return PerformerAttention(model.dim, **own, **heads)
        case RFAGateConfig():
            return RFAGateAttention(model.dim, **own, **heads)
        case RFAConfig():
            return RFAAttention(model.dim, **own, **heads)
        case HedgehogConfig():
            return HedgehogAttention(model.dim, **own, **heads)
        case TransNormerConfig():
            return TransNormerAttention(model.dim, **own, layer=place.layer, depth=place.depth, **heads)
        case LightningConfig():
            return LightningAttention(model.dim, **own, layer=place.layer, depth=place.depth, **heads)
        case _:
            assert_never(config)


def _horizon(config: LinearConfig, place: Place) -> int | None:
    """Tokens of the longest input, for the map that has to know.

    Raises:
        ValueError: a horizon that the task's inputs go beyond.
    """
    if config.map != "cosine":
        return None
    if config.horizon is not None and config.horizon < place.max_length:
        raise ValueError(f"mixer.horizon ({config.horizon}) must be at least the longest input ({place.max_length})")
    return config.horizon or place.max_length


def _without_heads(config: NoneConfig | GatedConvConfig, model: ModelConfig) -> Mixer:
    if isinstance(config, NoneConfig):
        return NoMixer(model.dim, causal=model.causal)
    dropout = model.dropout if config.dropout is None else config.dropout
    return GatedConv(model.dim, kernel=config.kernel, expand=config.expand, causal=model.causal, dropout=dropout)


def _own_options(config: HeadsConfig) -> dict[str, Any]:
    """The options a mechanism has beside those of every mixer with heads."""
    shared = {f.name for f in fields(HeadsConfig)}
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in shared}


def _head_options(config: HeadsConfig, model: ModelConfig) -> HeadOptions:
    return {
        "heads": config.heads,
        "head_dim": config.head_dim or model.dim // config.heads,  # null is dim / heads, here for Taylor too
        "value_dim": config.value_dim,
        "kv_heads": config.kv_heads,
        "causal": model.causal,
        "rotary": model.positions == "rotary",
        "gate": config.gate,
        "qk_norm": config.qk_norm,
        "bias": config.bias,
        "dropout": model.dropout if config.dropout is None else config.dropout,
        "output_projection": config.output_projection,
    }


def named_mixer(name: str, chosen: MixerConfig, model: ModelConfig) -> MixerConfig:
    """The chosen mixer itself, or another mechanism with its heads and widths, and its crossover if it has one.

    If not, the counted one: the config has no place for a measured one, by which a run could be repeated.
    """
    if name == chosen.name:
        return chosen
    other = members("mixer")[name]
    if not issubclass(other, HeadsConfig) or not isinstance(chosen, HeadsConfig):
        return other()
    shared = {f.name: getattr(chosen, f.name) for f in fields(HeadsConfig) if f.name != "name"}
    made = other(**shared)
    if isinstance(made, PolynomialConfig):
        chosen_one = chosen.crossover if isinstance(chosen, PolynomialConfig) else None
        counted = taylor_crossover(made.head_dim or model.dim // made.heads)
        made = replace(made, crossover=counted if chosen_one is None else chosen_one)
    return made
