"""Rows of docs/parity.md: mechanisms with feature maps against fla-core and performer-pytorch."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from cases import qkv, some_decay
from parity_cases import EXACT, FLA, PERFORMER, SINGLE, Case, Pair
from peers import fla, fla_feature_maps, performer, performer_layer, performer_without_eps, without_eps
from torch import Tensor, nn

from tsla.mixers import LightningAttention, LinearAttention, PerformerAttention
from tsla.mixers.features import FeatureMap
from tsla.mixers.hedgehog import HedgehogFeatures
from tsla.mixers.linear import RebasedFeatures, T2RFeatures, TaylorFeatures
from tsla.mixers.performer import FavorFeatures
from tsla.mixers.readers import read_performer
from tsla.models.performer_reader import read_performer_stack
from tsla.ops import linear_attention

DIM, HEADS, HEAD_DIM, LENGTH = 32, 4, 6, 64
SHIPPED = 1.0  # a bound for rows that are no parity: what the small numbers of performer-pytorch make

# --- fla-core ---------------------------------------------------------------------------------------------------------


def features() -> dict[str, Tensor]:
    x = qkv(g=HEADS, n=LENGTH, d=HEAD_DIM)
    return {"q": x["q"].abs(), "k": x["k"].abs(), "v": x["v"]}


def decayed(form: str, per_token: bool) -> Pair:
    """A decay of a head has no gradient here: sums over all tokens in float32."""
    naive = fla("ops/simple_gla/naive.py")
    fixed = some_decay(HEADS)

    def theirs(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor = fixed) -> Tensor:
        rates = (log_decay if per_token else log_decay[:, None].expand(2, -1, LENGTH)).transpose(1, 2)
        run = getattr(naive, f"naive_{form}_simple_gla")
        return run(*(y.transpose(1, 2) for y in (q, k, v)), rates, scale=1.0)[0].transpose(1, 2)

    def ours(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor = fixed) -> Tensor:
        return linear_attention(q, k, v, causal=True, normalize=False, log_decay=log_decay).output

    return ours, theirs, features() | ({"log_decay": some_decay(2, HEADS, LENGTH)} if per_token else {})


def heads_of(layer: LinearAttention | LightningAttention) -> Callable[..., Tensor]:
    """The mechanism alone, between the projections."""
    return lambda q, k, v: layer.attend(q, k, v, q.new_zeros(2, LENGTH, DIM), None)


def elu() -> Pair:
    """Divided by its sum alone on both sides."""
    naive = fla("ops/linear_attn/naive.py")
    layer = LinearAttention(DIM, heads=HEADS, head_dim=HEAD_DIM, causal=True).double()

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fq, fk = (torch.where(y > 0, y + 1, y.clamp(max=0).exp()).transpose(1, 2) for y in (q, k))
        run = partial(naive.naive_chunk_linear_attn, scale=1.0, normalize=True)
        return without_eps(lambda values: run(fq, fk, values.transpose(1, 2)).transpose(1, 2), v)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return without_eps(lambda values: heads_of(layer)(q, k, values), v)

    return ours, theirs, qkv(g=HEADS, n=LENGTH, d=HEAD_DIM)


def retention() -> Pair:
    """The RMS norm over all heads that follows takes the factor 1 / sqrt(d) out again."""
    naive = fla("ops/retention/naive.py")
    layer = LightningAttention(
        DIM, heads=HEADS, head_dim=HEAD_DIM, causal=True, activation="none", decay="retention"
    ).double()

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = naive.naive_retention(q * HEAD_DIM**0.5, k, v)
        return out / (out.square().mean((1, 3), keepdim=True) + 1e-6).sqrt()

    return heads_of(layer), theirs, features()


def head_linear(layer: nn.Module, made: list[nn.Module]) -> None:
    """Gives `HeadLinear` the weights of one linear layer for each head, drawn with a bias."""
    with torch.no_grad():
        for head, linear in enumerate(module.layer for module in made):
            nn.init.normal_(linear.bias)
            layer.weight[head] = linear.weight.T
            layer.bias[head] = linear.bias


def feature_map(name: str) -> Pair:
    """phi(q).phi(k), since both packages are free to order features as they like."""
    package = fla_feature_maps()
    queries, keys = (
        [getattr(package, f"{name}FeatureMap")(HEAD_DIM, **({"bias": True} if name == "T2R" else {})).double()
         for _ in range(HEADS)]
        for _ in range(2)
    )  # fmt: skip
    match name:
        case "Hedgehog":
            made: FeatureMap = HedgehogFeatures(HEADS, HEADS, HEAD_DIM, kind="joint").double()
        case "T2R":
            made = T2RFeatures(HEADS, HEADS, HEAD_DIM).double()
        case "Rebased":
            made, queries, keys = RebasedFeatures(HEAD_DIM).double(), queries[:1] * HEADS, keys[:1] * HEADS
            for own, module in enumerate((keys[0], queries[0])):
                nn.init.normal_(module.gamma, mean=1.0)
                nn.init.normal_(module.beta)
                made.gamma.data[own], made.beta.data[own] = module.gamma.detach(), module.beta.detach()
        case _:
            made = TaylorFeatures(HEAD_DIM)
    if isinstance(made, HedgehogFeatures | T2RFeatures):
        head_linear(made.query, queries)
        head_linear(made.key, keys)

    def theirs(q: Tensor, k: Tensor) -> Tensor:
        fq, fk = (
            torch.stack([phi(y[:, head]) for head, phi in enumerate(each)], dim=1)
            for y, each in ((q, queries), (k, keys))
        )
        return fq @ fk.mT

    x = qkv(g=HEADS, n=9, d=HEAD_DIM)
    return lambda q, k: made(q, is_query=True) @ made(k, is_query=False).mT, theirs, {"q": x["q"], "k": x["k"]}


def of_fla_features() -> Iterator[Case]:
    single = ", float32 inside"
    for form in ("recurrent", "parallel"):
        for per_token in (False, True):
            option = "decay per head" + " and token" * per_token + single
            yield Case(FLA, f"naive_{form}_simple_gla", option, SINGLE, partial(decayed, form, per_token))
    yield Case(FLA, "naive_chunk_linear_attn", "as LinearAttention(map='elu')", EXACT, elu)
    yield Case(FLA, "naive_retention", "as LightningAttention(decay='retention')" + single, SINGLE, retention)
    for name, ours in (
        ("Hedgehog", "HedgehogFeatures(kind='joint')"), ("T2R", "T2RFeatures"), ("Rebased", "RebasedFeatures"),
        ("Taylor", "TaylorFeatures"),
    ):  # fmt: skip
        yield Case(FLA, f"{name}FeatureMap", f"as {ours}, weights copied", EXACT, partial(feature_map, name))


# --- performer-pytorch ------------------------------------------------------------------------------------------------


def weights_of_queries(kind: str) -> Pair:
    """phi(q).phi(k) over their sum, in which factors of a query, and one of all keys, cancel."""
    package, x = performer(), qkv(g=HEADS, n=9, d=HEAD_DIM)
    made = FavorFeatures(HEAD_DIM, features=19, kind=kind).double()

    def theirs(q: Tensor, k: Tensor) -> Tensor:
        rows = {"projection_matrix": made.projection}
        if kind == "relu":
            products = package.generalized_kernel(q, **rows) @ package.generalized_kernel(k, **rows).mT
        else:
            with performer_without_eps():
                fq, fk = (package.softmax_kernel(y, is_query=query, **rows) for y, query in ((q, True), (k, False)))
            products = fq @ fk.mT
        return products / products.sum(-1, keepdim=True)

    def ours(q: Tensor, k: Tensor) -> Tensor:
        products = made(q, is_query=True) @ made(k, is_query=False).mT
        return products / products.sum(-1, keepdim=True)

    return ours, theirs, {"q": x["q"], "k": x["k"]}


def bare(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` without the small numbers."""

    def without(**inputs: Tensor) -> Any:
        with performer_without_eps():
            return run(**inputs)

    return without


def tokens(n: int = 40) -> Tensor:
    return torch.randn(3, n, DIM, dtype=torch.float64)


def layer(kind: str, causal: bool, shipped: bool) -> Pair:
    theirs = performer_layer(
        "SelfAttention", DIM, heads=HEADS, dim_head=HEAD_DIM, causal=causal, generalized_attention=kind == "relu"
    ).eval()
    ours = read_performer(theirs.state_dict(), heads=HEADS, causal=causal, kind=kind)
    return ours, theirs if shipped else bare(theirs), {"x": tokens()}


def shipped(size: float, causal: bool) -> Pair:
    """Its attention between the projections, of queries and keys of this size."""
    theirs = performer_layer("FastAttention", HEAD_DIM, nb_features=19, causal=causal)
    made = FavorFeatures(HEAD_DIM, features=19, kind="positive").double()
    made.projection = theirs.projection_matrix

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fq, fk = made(size * q, is_query=True), made(size * k, is_query=False)
        return linear_attention(fq, fk, v, causal=causal, eps=0.0).output

    x = qkv(g=HEADS, n=LENGTH, d=HEAD_DIM, e=HEAD_DIM)
    return ours, lambda q, k, v: theirs(size * q, size * k, v), x


def cross_layer(kind: str) -> Pair:
    theirs = performer_layer(
        "CrossAttention", DIM, heads=HEADS, dim_head=8, generalized_attention=kind == "relu"
    ).eval()
    ours = read_performer(theirs.state_dict(), kind=kind)
    return ours, bare(theirs), {"x": tokens(), "context": tokens(17)}


def our_weights(kind: str) -> Pair:
    """The other way: what this package has drawn and initialised, in their layer."""
    ours = PerformerAttention(DIM, heads=HEADS, features=20, kind=kind, bias=True).double()
    theirs = performer_layer(
        "SelfAttention", DIM, heads=HEADS, dim_head=8, nb_features=20, qkv_bias=True,
        generalized_attention=kind == "relu",
    ).eval()  # fmt: skip
    names = {"feature_map.projection": "fast_attention.projection_matrix"}
    theirs.load_state_dict({names.get(name, name): weight for name, weight in ours.state_dict().items()})
    return ours, bare(theirs), {"x": tokens()}


def stack(kind: str, causal: bool) -> Pair:
    theirs = performer_layer(
        "Performer", DIM, 3, HEADS, HEAD_DIM, causal=causal, generalized_attention=kind == "relu"
    ).eval()
    return read_performer_stack(theirs.state_dict(), causal=causal, kind=kind), bare(theirs), {"x": tokens()}


def of_performer() -> Iterator[Case]:
    kinds = {"positive": "softmax_kernel", "relu": "generalized_kernel"}
    for kind, name in kinds.items():
        yield Case(PERFORMER, "weights of a query", name, EXACT, partial(weights_of_queries, kind))
    for kind, name in kinds.items():
        for causal in (False, True):
            option = name + ", causal" * causal
            yield Case(PERFORMER, "SelfAttention", option, EXACT, partial(layer, kind, causal, False))
        yield Case(PERFORMER, "SelfAttention, our weights in it", name, EXACT, partial(our_weights, kind))
        yield Case(PERFORMER, "CrossAttention", name, EXACT, partial(cross_layer, kind))
        for causal in (False, True):
            option = name + ", causal" * causal
            yield Case(PERFORMER, "Performer, 3 blocks", option, 10 * EXACT, partial(stack, kind, causal))
    whole = "SelfAttention as shipped"
    yield Case(PERFORMER, whole, "generalized_kernel", EXACT, partial(layer, "relu", False, True))
    bound, both = "no parity: ", ((False, ""), (True, ", causal"))
    yield Case(PERFORMER, bound + whole, "generalized_kernel, causal", SHIPPED, partial(layer, "relu", True, True))
    for causal, name in both:
        made = partial(layer, "positive", causal, True)
        yield Case(PERFORMER, bound + whole, f"softmax_kernel{name}", SHIPPED, made)
    for size in (0.3, 1.0):
        for causal, name in both:
            option = f"queries and keys of size {size}{name}"
            yield Case(PERFORMER, bound + "FastAttention as shipped", option, SHIPPED, partial(shipped, size, causal))
