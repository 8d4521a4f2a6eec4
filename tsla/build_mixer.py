"""From the config of a mixer to its module: one case for each mechanism."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar, assert_never

from torch import nn

from tsla.config.mixers import (
    FourierConfig,
    GatedConvConfig,
    HeadsConfig,
    HedgehogConfig,
    LightningConfig,
    LinearConfig,
    LinformerConfig,
    LunaConfig,
    MixerConfig,
    NoneConfig,
    OwnHeadsConfig,
    PerformerConfig,
    PolynomialConfig,
    PrimalConfig,
    RFAConfig,
    RFAGateConfig,
    ScatterbrainConfig,
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
    LinformerAttention,
    LinformerProjection,
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
from tsla.mixers.base import HeadOptions
from tsla.mixers.luna import LunaStream
from tsla.ops import taylor_crossover

Part = TypeVar("Part", bound=nn.Module)


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
        return _without_heads(config, model, place)
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
            horizon = _longest("horizon", config.horizon, place) if config.map == "cosine" else None
            return LinearAttention(model.dim, map=config.map, horizon=horizon, **heads)
        case LinformerConfig():
            return _linformer(config, model, place)
        case PerformerConfig():
            return PerformerAttention(model.dim, **own, **heads)
        case RFAGateConfig():
            return RFAGateAttention(model.dim, **own, **heads)
        case RFAConfig():
            return RFAAttention(model.dim, **own, **heads)
        case ScatterbrainConfig():
            return ScatterbrainAttention(model.dim, **own, **heads)
        case HedgehogConfig():
            return HedgehogAttention(model.dim, **own, **heads)
        case TransNormerConfig():
            return TransNormerAttention(model.dim, **own, layer=place.layer, depth=place.depth, **heads)
        case LightningConfig():
            return LightningAttention(model.dim, **own, layer=place.layer, depth=place.depth, **heads)
        case _:
            assert_never(config)


def _longest(option: str, given: int | None, place: Place) -> int:
    """Tokens of the longest input, for a mechanism that has to know: the task's, or what an option says.

    Raises:
        ValueError: an option that the task's inputs go beyond.
    """
    if given is not None and given < place.max_length:
        raise ValueError(f"mixer.{option} ({given}) must be at least the longest input ({place.max_length})")
    return given or place.max_length


def _linformer(config: LinformerConfig, model: ModelConfig, place: Place) -> LinformerAttention:
    """With the matrix of all layers, if they share one."""
    longest, shared = _longest("max_length", config.max_length, place), None
    if config.sharing == "layer":
        shared = _shared(
            place, "linformer", LinformerProjection, lambda: LinformerProjection(longest, config.rank, tied=True)
        )
    return LinformerAttention(
        model.dim, max_length=longest, rank=config.rank, sharing=config.sharing, projection=shared,
        **_head_options(config, model),
    )  # fmt: skip


def _without_heads(
    config: NoneConfig | GatedConvConfig | LunaConfig | PrimalConfig, model: ModelConfig, place: Place
) -> Mixer:
    """Those that own their projections, if they have any."""
    if isinstance(config, NoneConfig):
        return NoMixer(model.dim, causal=model.causal)
    dropout = model.dropout if config.dropout is None else config.dropout
    match config:
        case GatedConvConfig():
            return GatedConv(
                model.dim, kernel=config.kernel, expand=config.expand, causal=model.causal, dropout=dropout
            )
        case LunaConfig():
            stream = _shared(place, "luna", LunaStream, lambda: LunaStream(config.slots, model.dim))
            return LunaAttention(
                model.dim, heads=config.heads, slots=config.slots, tie_kv=config.tie_kv, causal=model.causal,
                bias=config.bias, dropout=dropout, stream=stream,
            )  # fmt: skip
        case PrimalConfig():
            pattern = model.layers or [config.name]
            layers = sum(pattern[layer % len(pattern)] == config.name for layer in range(place.depth))
            return PrimalAttention(
                model.dim, heads=config.heads, rank=config.rank, rank_multi=config.rank_multi, causal=model.causal,
                bias=config.bias, dropout=dropout, ksvd=config.ksvd / layers, trace=config.trace,
            )  # fmt: skip
        case _:
            assert_never(config)


def _shared(place: Place, name: str, kind: type[Part], make: Callable[[], Part]) -> Part:
    """The module of that name that layers of a model share: made for the first of them."""
    if name not in place.shared:
        place.shared[name] = make()
    found = place.shared[name]
    assert isinstance(found, kind)
    return found


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
    if issubclass(other, OwnHeadsConfig) and isinstance(chosen, HeadsConfig | OwnHeadsConfig):
        return other(heads=chosen.heads)
    if not issubclass(other, HeadsConfig) or not isinstance(chosen, HeadsConfig):
        return other()
    shared = {f.name: getattr(chosen, f.name) for f in fields(HeadsConfig) if f.name != "name"}
    made = other(**shared)
    if isinstance(made, PolynomialConfig):
        chosen_one = chosen.crossover if isinstance(chosen, PolynomialConfig) else None
        counted = taylor_crossover(made.head_dim or model.dim // made.heads)
        made = replace(made, crossover=counted if chosen_one is None else chosen_one)
    return made
