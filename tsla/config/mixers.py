"""The options of every mixer, one dataclass for each mechanism; `MixerConfig`, last, is the list of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from tsla.config.options import option, union_members

FORMS = ("auto", "direct", "linear", "native", "triton")
CENTERS = ("zero", "mean")
ROOTS = ("none", "value", "sigmoid")
DIRECTIONS = frozenset({"bidirectional", "causal"})
DECAYS = ("none", "fixed", "selective")
MAPS = ("elu", "relu", "cosine", "rebased", "taylor", "t2r")
FAVOR = ("hyperbolic", "positive", "relu")
REDRAW = 1000
HYBRID = ("favor", "taylor", "hedgehog", "elu")
TABLES = ("alibi", "paper", "retention", "none")
SHARING = ("none", "head", "kv", "layer")


@dataclass
class MixerOptions:
    """What every mixer has."""

    directions = DIRECTIONS  # what model.causal may ask of it; no option, so without an annotation

    name: str = option("", "the mechanism")

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """What its own options, and the width and direction of the model, do not let together."""
        return iter(())


@dataclass
class NoneConfig(MixerOptions):
    """No mixing: the control row."""

    name: str = option("none", "the mechanism", choices=("none",))


@dataclass
class HeadsConfig(MixerOptions):
    """The options of every mixer with heads."""

    heads: int = option(8, "query heads, local ones included", low=1)
    head_dim: int | None = option(None, "width of a query or key head; null = dim / heads", low=1)
    value_dim: int | None = option(None, "width of a value head; null = dim / heads", low=1)
    kv_heads: int | None = option(None, "key/value heads; null = heads, 1 = multi-query", low=1)
    gate: bool = option(False, "multiply each head's output by a sigmoid of its token")
    qk_norm: bool = option(False, "RMS-normalise queries and keys")
    bias: bool = option(False, "biases on the projections")
    dropout: float | None = option(None, "on the output; null = model.dropout", low=0, high=1)
    output_projection: bool = option(True, "mix the heads by a last linear layer")
    token_shift: bool = option(False, "read half of each token's channels from the token before it")
    local_heads: int = option(0, "how many of the heads are exact softmax in a window instead", low=0)
    local_window: int = option(32, "how far the local heads see", low=0)


@dataclass
class OwnHeadsConfig(MixerOptions):
    """The options of mixers with heads that own their projections, so that they have none of the others' options."""

    heads: int = option(8, "heads, a divisor of model.dim", low=1)
    bias: bool = option(False, "biases on the projections")
    dropout: float | None = option(None, "on the output; null = model.dropout", low=0, high=1)

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """Heads without a width."""
        if dim % self.heads:
            yield f"mixer.heads ({self.heads}) must divide model.dim ({dim})"


@dataclass
class PolynomialConfig(HeadsConfig):
    """The options of the mixers that weigh a pair by a polynomial of its score, in a direct and a linear form."""

    head_dim: int | None = option(16, "width of a head; cost grows with its square; null = dim / heads", low=1)
    impl: str = option("auto", "form of the computation", choices=FORMS)
    crossover: float | None = option(
        None, "length from which impl=auto takes the linear form; null = measured, else counted", low=0
    )

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """Forms that cannot be had, and weights below 0."""
        order, head_dim = getattr(self, "order", 2), self.head_dim or dim // self.heads
        if order % 2:
            yield f"mixer.order ({order}) must be even: an odd polynomial gives negative attention weights"
        if self.crossover is not None and self.impl not in ("auto", "native"):
            yield f"mixer.crossover ({self.crossover:g}) needs mixer.impl=auto or native, got {self.impl}"
        if self.impl in ("native", "triton") and order != 2:
            yield f"mixer.impl={self.impl} needs mixer.order=2, got {order}"
        if self.impl in ("native", "triton") and head_dim > 64:
            yield f"mixer.impl={self.impl} needs a mixer.head_dim of at most 64, got {head_dim}"


@dataclass
class TaylorConfig(PolynomialConfig):
    """Taylor-series linear attention."""

    name: str = option("taylor", "the mechanism", choices=("taylor",))
    order: int = option(2, "even degree of the polynomial", low=0)
    center: str = option("zero", "score the polynomial is expanded around: 0 or a query's mean", choices=CENTERS)
    decay: str = option("none", "forgetting: a learned rate per head, or per head and token", choices=DECAYS)

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """As its base, and a centre that is not there."""
        yield from super().problems(dim, causal)
        if self.center == "mean" and self.order == 0:
            yield "mixer.center=mean needs mixer.order of at least 2: a constant polynomial has no centre"


@dataclass
class TaylorShiftConfig(PolynomialConfig):
    """TaylorShift: Taylor attention of unit vectors, weights a s^2 + b s + c."""

    name: str = option("taylorshift", "the mechanism", choices=("taylorshift",))
    a: float = option(0.5, "of the square of the score", above=0)
    b: float = option(1.0, "of the score", low=-100, high=100)
    c: float = option(1.0, "of every pair", low=0)
    normalize: bool = option(True, "divide queries and keys by their length")
    scale_output: bool = option(True, "multiply outputs by sqrt(keys seen / head_dim)")

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """As its base, and a polynomial that falls below 0."""
        yield from super().problems(dim, causal)
        if self.c < self.b**2 / (4 * self.a):
            yield (f"mixer.c ({self.c}) must be at least b^2 / (4 a) ({self.b**2 / (4 * self.a):g}): "
                   "a s^2 + b s + c would give negative weights")  # fmt: skip


@dataclass
class TaylorPolyConfig(PolynomialConfig):
    """Poly-attention of order 2 with Taylor weights: tokens read others through a middle one."""

    directions = frozenset({"bidirectional"})
    name: str = option("taylor_poly", "the mechanism", choices=("taylor_poly",))
    qk_norm: bool = option(True, "RMS-normalise the three queries; their scores are not scaled otherwise")
    order: int = option(2, "even degree of the polynomial", low=0)
    normalize_first: bool = option(False, "average at the middle token; else it counts by what it has seen")
    root: str = option("none", "multiply outputs by a projection of their token, or by its sigmoid", choices=ROOTS)


@dataclass
class SoftmaxConfig(HeadsConfig):
    """Softmax attention."""

    name: str = option("softmax", "the mechanism", choices=("softmax",))


@dataclass
class FourierConfig(HeadsConfig):
    """FourierFormer: weights by products of sinc of q - k."""

    name: str = option("fourier", "the mechanism", choices=("fourier",))
    power: int = option(4, "even power of sinc", low=2)
    radius: float = option(1.0, "factor of q - k at the start; it is learned", low=1e-6, high=1e6)
    per_channel: bool = option(False, "a radius for each channel of a head; else one for all")

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """Weights below 0."""
        if self.power % 2:
            yield f"mixer.power ({self.power}) must be even: odd ones give negative weights"


@dataclass
class WindowConfig(HeadsConfig):
    """Softmax attention in a sliding window."""

    name: str = option("window", "the mechanism", choices=("window",))
    window: int = option(64, "how far a token sees; 0 is itself only", low=0)


@dataclass
class GatedConvConfig(MixerOptions):
    """A gated convolution over a few tokens, the local layer of Based."""

    name: str = option("gated_conv", "the mechanism", choices=("gated_conv",))
    kernel: int = option(3, "tokens seen: up to the token if causal, else around it", low=1)
    expand: int = option(2, "width of the convolution over dim", low=1)
    dropout: float | None = option(None, "on the output; null = model.dropout", low=0, high=1)


@dataclass
class LunaConfig(OwnHeadsConfig):
    """Luna: tokens packed into a short second sequence, which they read."""

    name: str = option("luna", "the mechanism", choices=("luna",))
    slots: int = option(16, "length of the second sequence", low=1)
    tie_kv: bool = option(True, "one projection for keys and values")
    bias: bool = option(True, "biases on the projections")


@dataclass
class LinearConfig(HeadsConfig):
    """Linear attention: weights phi(q).phi(k) by a feature map to choose."""

    name: str = option("linear", "the mechanism", choices=("linear",))
    map: str = option("elu", "phi: elu + 1, relu, cosFormer's, ReBased's, Taylor's or T2R's", choices=MAPS)
    horizon: int | None = option(None, "for map=cosine: tokens of the longest input; null = the task's", low=1)

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """A horizon that nothing reads."""
        if self.horizon is not None and self.map != "cosine":
            yield f"mixer.horizon ({self.horizon}) needs mixer.map=cosine, got {self.map}"


@dataclass
class RandomConfig(HeadsConfig):
    """The options of mixers with random features."""

    features: int | None = option(None, "of a head", low=1)
    redraw_every: int | None = option(
        REDRAW, "optimiser steps after which training draws new ones; null = never", low=1
    )

    def paired(self) -> bool:
        """Whether features come in pairs, of one random vector each."""
        return False

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """Half a pair."""
        if self.features is not None and self.features % 2 and self.paired():
            yield f"mixer.features ({self.features}) must be even: they come in pairs"


@dataclass
class PerformerConfig(RandomConfig):
    """Performer: softmax attention in the mean over random features, FAVOR+."""

    name: str = option("performer", "the mechanism", choices=("performer",))
    features: int | None = option(None, "of a head, in pairs if hyperbolic; null = head_dim * ln(head_dim)", low=1)
    kind: str = option("hyperbolic", "positive features, pairs of them, or ReLU's", choices=FAVOR)
    scaling: str = option("random", "lengths of the random vectors, or all sqrt(head_dim)", choices=("random", "fixed"))

    def paired(self) -> bool:
        """Those of w and -w."""
        return self.kind == "hyperbolic"


@dataclass
class RFAConfig(RandomConfig):
    """Random feature attention."""

    name: str = option("rfa", "the mechanism", choices=("rfa",))
    features: int | None = option(None, "of a head, in pairs if gaussian; null = of max(head_dim, 32) vectors", low=1)
    kind: str = option("gaussian", "sines and cosines, or ReLU's", choices=("gaussian", "arccos"))

    def paired(self) -> bool:
        """Sine and cosine."""
        return self.kind == "gaussian"


@dataclass
class RFAGateConfig(RFAConfig):
    """Random feature attention with a gate that forgets."""

    directions = frozenset({"causal"})
    name: str = option("rfa_gate", "the mechanism", choices=("rfa_gate",))


@dataclass
class HedgehogConfig(HeadsConfig):
    """Hedgehog: feature maps that learn to be as sharp as softmax."""

    name: str = option("hedgehog", "the mechanism", choices=("hedgehog",))
    kind: str = option("softmax", "which of its feature maps", choices=("softmax", "exp", "max", "joint"))
    width: int | None = option(None, "half as many as features; null = head_dim", low=1)


@dataclass
class ScatterbrainConfig(RandomConfig):
    """Scatterbrain: exact weights on a sparse support, those of a feature map off it; LoLCATs' hybrid."""

    name: str = option("scatterbrain", "the mechanism", choices=("scatterbrain",))
    support: str = option("local", "where weights are exact: in a window, or in clusters", choices=("local", "lsh"))
    window: int | None = option(None, "of local: how far a token sees exactly; null = 32", low=0)
    cluster: int | None = option(None, "of lsh: tokens of a cluster; null = 32", low=1)
    rounds: int | None = option(None, "of lsh: how often tokens are put in clusters; null = 2", low=1)
    map: str = option("favor", "phi off the support: near exp, or learned and elu + 1 with a gamma", choices=HYBRID)
    features: int | None = option(None, "of favor: of a head, in pairs; null = head_dim * ln(head_dim)", low=1)

    def paired(self) -> bool:
        """Those of w and -w."""
        return True

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """As its base, and what the support or the map does not read."""
        yield from super().problems(dim, causal)
        for name, needs in (("window", "local"), ("cluster", "lsh"), ("rounds", "lsh")):
            if getattr(self, name) is not None and self.support != needs:
                yield f"mixer.{name} ({getattr(self, name)}) needs mixer.support={needs}, got {self.support}"
        if self.map != "favor" and self.features is not None:
            yield f"mixer.features ({self.features}) needs mixer.map=favor, got {self.map}"
        if self.map != "favor" and self.redraw_every not in (None, REDRAW):
            yield f"mixer.redraw_every ({self.redraw_every}) needs mixer.map=favor, got {self.map}"
        if causal and self.support == "lsh":
            yield "mixer.support=lsh needs model.causal=false: a later token would change the clusters of earlier ones"


@dataclass
class LightningConfig(HeadsConfig):
    """Lightning Attention-2: sums that decay at a fixed rate, with a norm instead of a denominator."""

    name: str = option("lightning", "the mechanism", choices=("lightning",))
    activation: str = option("silu", "of queries and keys", choices=("silu", "none"))
    decay: str = option("alibi", "table of the rates of heads and layers", choices=TABLES)


@dataclass
class TransNormerConfig(LightningConfig):
    """The gated linear attention of TransNormerLLM; model=transnormer is the rest of it."""

    name: str = option("transnormer", "the mechanism", choices=("transnormer",))
    lrpe: str = option("first", "layers whose features turn with the position", choices=("first", "all", "none"))


@dataclass
class LinformerConfig(HeadsConfig):
    """Linformer: softmax attention to a few learned sums of all keys and values."""

    directions = frozenset({"bidirectional"})
    name: str = option("linformer", "the mechanism", choices=("linformer",))
    rank: int | None = option(None, "sums; null = 64, or the longest input if that is shorter", low=1)
    sharing: str = option("head", "what has matrices of its own: a head, a layer, or all with one", choices=SHARING)
    max_length: int | None = option(None, "tokens of the longest input; null = the task's", low=1)


@dataclass
class PrimalConfig(OwnHeadsConfig):
    """Primal-Attention: a kernel of pairs by its singular vectors, without pairs and without values."""

    name: str = option("primal", "the mechanism", choices=("primal",))
    rank: int = option(20, "singular vectors of a head", low=1)
    rank_multi: int | None = option(None, "tokens they are made of over rank, unless causal; null = 10", low=1)
    ksvd: float = option(0.05, "weight of the loss that makes them singular vectors; 0 = none", low=0)
    trace: str = option("parameters", "its trace: of what is learnt, or, unless causal, of what tokens make of it",
                        choices=("parameters", "weights"))  # fmt: skip

    def problems(self, dim: int, causal: bool) -> Iterator[str]:
        """As its base, a part of a loss that is not there, and what its direction leaves out."""
        yield from super().problems(dim, causal)
        if self.trace == "weights" and not self.ksvd:
            yield "mixer.trace=weights needs a mixer.ksvd above 0: there is no loss"
        if causal and self.rank_multi is not None:
            yield f"mixer.rank_multi ({self.rank_multi}) needs model.causal=false: no tokens are chosen otherwise"
        if causal and self.trace != "parameters":
            yield f"mixer.trace={self.trace} needs model.causal=false: both are the same otherwise"


MixerConfig = (
    NoneConfig
    | TaylorConfig
    | TaylorShiftConfig
    | TaylorPolyConfig
    | SoftmaxConfig
    | FourierConfig
    | WindowConfig
    | GatedConvConfig
    | LunaConfig
    | LinearConfig
    | PerformerConfig
    | RFAConfig
    | RFAGateConfig
    | HedgehogConfig
    | ScatterbrainConfig
    | LightningConfig
    | TransNormerConfig
    | LinformerConfig
    | PrimalConfig
)
MIXERS = tuple(union_members(MixerConfig))  # their names
