"""The implementations that are compared: ours by their `impl`, torch's softmax, TaylorShift's formula, and packages.

Packages are called where they take queries, keys and values, so that no projection is timed; they are imported when
they are used, and none is needed. What cannot do a case, such as values wider than keys, raises `Unavailable`. On a
GPU the same are compared, those in plain torch as they are, and `tsla.bench.gpu_peers` beside them.
"""

import contextlib
import io
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import elu, normalize, pad, scaled_dot_product_attention

from tsla.bench.cases import CUDA, TAYLOR, Case, Implementation, Made, Unavailable, repeated
from tsla.bench.exact import exponential, of_features, of_scores, of_unit_vectors, second_order
from tsla.bench.gpu_peers import gpu_implementations
from tsla.ops import linear_attention, taylor_attention
from tsla.ops.attention import FORMS

WINDOW = 128  # of local-attention
COMPILED = "+compile"  # ends the names of what runs under torch.compile
OURS = tuple(form for form in FORMS if form not in ("native", "triton"))  # auto is these where they can be


def ours(device: str = "cpu") -> tuple[str, ...]:
    """Names of ours; on a GPU the Triton kernels too."""
    return (*OURS, "triton") if device == CUDA else OURS


def implementations(device: str = "cpu") -> dict[str, Implementation]:
    """All of them on this device by name, ours first."""
    forms = ours(device)
    peers = [
        *(Implementation(impl, TAYLOR, partial(_ours, impl), _pairs if impl == "direct" else _none) for impl in forms),
        Implementation("linear-elu", "elu + 1", _linear_elu),
        Implementation("tsla-0.2.0", TAYLOR, partial(_series, False), partial(_unpacked, 3)),
        Implementation("tsla-0.2.0-packed", TAYLOR, partial(_series, True), partial(_unpacked, 3)),
        Implementation("taylorshift", "TaylorShift", _taylorshift, partial(_unpacked, 2)),
        Implementation("sdpa", "softmax", _sdpa),
        *([Implementation("sdpa-flash", "softmax", _sdpa_flash)] if device == CUDA else []),
        Implementation("sdpa-full", "softmax, d = e", _sdpa_full),
        *(gpu_implementations() if device == CUDA else []),
        Implementation("performer", "FAVOR+", _performer),
        Implementation("linear-attention-transformer", "softmax(q) softmax(k)", _linear_transformer, _causal_sums),
        Implementation("local-attention", f"softmax, window {WINDOW}", _local),
    ]
    compiled = [
        peer._replace(name=f"{peer.name}{COMPILED}", compiled=True)
        for peer in peers
        if peer.name.startswith(("tsla", "taylorshift"))
    ]
    return {peer.name: peer for peer in (*peers, *compiled)}


# Ours and torch's -----------------------------------------------------------------------------------------------------


def _ours(impl: str, case: Case) -> Made:
    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return taylor_attention(q, k, v, causal=case.causal, return_state=False, impl=impl).output

    return Made(form, of_scores(second_order, case.d**-0.5, case.causal))


def _linear_elu(case: Case) -> Made:
    """Ours of given features, those of the Linear Transformer (arXiv 2006.16236): elu(q) + 1 and elu(k) + 1."""
    eps = 1e-6

    def features(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return elu(q) + 1, elu(k) + 1

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(*features(q, k), v, causal=case.causal, eps=eps, return_state=False).output

    return Made(form, of_features(features, case.causal, lambda sums: sums + eps))


def _sdpa(case: Case) -> Made:
    """q and k, or v, padded with zeros to one width, which its fast kernel asks for."""
    wide = max(case.d, case.e)

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(
            q, k, v, is_causal=case.causal, scale=case.d**-0.5, enable_gqa=case.kv_heads != case.heads
        )

    return Made(
        form, of_scores(exponential, case.d**-0.5, case.causal),
        lambda inputs: [pad(x, (0, wide - x.shape[-1])) for x in inputs],
    )  # fmt: skip


def _sdpa_flash(case: Case) -> Made:
    """torch's SDPA chooses among kernels; this one is FlashAttention or fails."""
    if case.dtype == "float32":
        raise Unavailable("FlashAttention takes float16 and bfloat16")
    default = _sdpa(case)

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return default.form(q, k, v)

    return default._replace(form=form)


def _sdpa_full(case: Case) -> Made:
    """Queries and keys as wide as the values, as in a softmax model: more inputs than the others have."""
    if case.d == case.e:
        raise Unavailable("the same as sdpa: d = e")
    full = _sdpa(case._replace(d=case.e))

    def widened(inputs: list[Tensor]) -> list[Tensor]:
        generator = torch.Generator(case.device).manual_seed(1)
        shapes = ((*x.shape[:-1], case.e) for x in inputs[:2])
        made = [torch.randn(shape, generator=generator, device=case.device) for shape in shapes]
        return [*(x.to(inputs[2].dtype) for x in made), inputs[2]]

    return full._replace(prepare=widened)


def _taylorshift(case: Case) -> Made:
    """The efficient form of its Algorithm 1 (arXiv 2403.02920), with its normalisation and a temperature of 1.

    The products of all d^2 pairs, the denominator as a first column of v, and factors that keep sums of like size:
    q and k have length d^(1/4), v is divided by N.
    """
    if case.causal:
        raise Unavailable("the formula is bidirectional")

    def form(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, d = k.shape[-2:]
        q, k = normalize(q, dim=-1) * d**0.25, normalize(k, dim=-1) * d**0.25
        v = torch.cat([v.new_full((*v.shape[:-1], 1), (d / n) ** 0.5), v], dim=-1) / n
        squares = 0.5 * (_box(q) @ (_box(k).mT @ v))
        sums = squares + d**0.5 * (q @ (k.mT @ v)) + d * v.sum(-2, keepdim=True)
        return sums[..., 1:] / sums[..., :1]

    return Made(repeated(form, case), of_unit_vectors(case.causal))


def _box(x: Tensor) -> Tensor:
    return (x[..., :, None] * x[..., None, :]).flatten(-2)


# Packages -------------------------------------------------------------------------------------------------------------


def _series(packed: bool, case: Case) -> Made:
    """The layer of taylor-series-linear-attention with nothing for projections: q is its x, (k, v) its context."""
    from taylor_series_linear_attention import TaylorSeriesLinearAttn

    if case.causal:
        raise Unavailable("causal needs pytorch-fast-transformers (C++ and CUDA); without it the package exits")
    if case.kv_heads not in (1, case.heads):
        raise Unavailable(f"key/value heads must be 1 or {case.heads}")
    layer = TaylorSeriesLinearAttn(
        case.heads * case.d, dim_head=case.d, heads=case.heads, one_headed_kv=case.kv_heads == 1 < case.heads,
        combine_heads=False, remove_even_power_dups=packed,
    )  # fmt: skip
    layer.to(case.device)
    layer.to_q, layer.to_kv, layer.merge_heads = nn.Identity(), nn.Identity(), nn.Identity()
    return Made(
        lambda q, k, v: layer(q, context=(k, v)), of_scores(second_order, case.d**-0.5, case.causal),
    )  # fmt: skip


def _performer(case: Case) -> Made:
    from performer_pytorch.performer_pytorch import FastAttention, softmax_kernel

    if case.dtype != "float32":
        raise Unavailable("its random features are float32")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces that it has no CUDA
        torch.manual_seed(0)
        attention = FastAttention(case.d, causal=case.causal).to(case.device)
    floor = 1e-6 if case.causal else 0.0  # what its causal form adds to every sum of a feature

    def features(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        drawn = attention.projection_matrix.to(q.dtype)
        phi = softmax_kernel(q, projection_matrix=drawn, is_query=True)
        return phi, softmax_kernel(k, projection_matrix=drawn, is_query=False)

    def exact(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        added = floor * features(q, k)[0][:, :, rows].sum(-1, keepdim=True)
        return of_features(features, case.causal, lambda sums: sums + added)(q, k, v, rows)

    return Made(repeated(attention, case), exact)


def _linear_transformer(case: Case) -> Made:
    from linear_attention_transformer.linear_attention_transformer import causal_linear_attn, linear_attn

    if case.d != case.e:
        raise Unavailable("needs d = e")

    def features(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return q.softmax(-1) * case.d**-0.5, k.exp() if case.causal else k.softmax(-2)

    form = partial(causal_linear_attn, bucket_size=1) if case.causal else linear_attn
    divide: Callable[[Tensor], Tensor] = (lambda x: x.clamp(min=1e-3)) if case.causal else torch.ones_like
    return Made(repeated(form, case), of_features(features, case.causal, divide))


def _local(case: Case) -> Made:
    from local_attention import LocalAttention

    window = min(WINDOW, case.length)
    if case.length % window:
        raise Unavailable(f"tokens ({case.length}) must be whole windows of {window}")
    attention = LocalAttention(window, causal=case.causal, exact_windowsize=True, use_rotary_pos_emb=False)
    attention.to(case.device)
    return Made(repeated(attention, case), of_scores(exponential, case.d**-0.5, case.causal, window))


# Shared ---------------------------------------------------------------------------------------------------------------


def _none(case: Case) -> int:
    return 0


def _pairs(case: Case) -> int:
    """Some six tensors of n x n weights."""
    return 6 * 4 * case.batch * case.heads * case.length**2


def _unpacked(copies: int, case: Case) -> int:
    """Features of all d^2 pairs, of queries and keys and on the way to them."""
    return 2 * copies * 4 * case.batch * case.heads * case.length * case.d**2


def _causal_sums(case: Case) -> int:
    """A d x e matrix for every token, twice."""
    return 2 * 4 * case.batch * case.heads * case.length * case.d * case.e if case.causal else 0
