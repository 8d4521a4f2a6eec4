"""Attention that is exact among tokens hashed together and by features elsewhere (Scatterbrain, arXiv 2110.15343)."""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops.types import accumulation_dtype, full_precision
from tsla.ops.window_kernel import check_hybrid, finite, one_denominator

ROUNDING = 64  # units in the last place of a sum; a difference below as many is nothing but rounding


def cluster_kernel_attention(
    q: Tensor, k: Tensor, v: Tensor, fq: Tensor, fk: Tensor, hashes: Tensor, *, cluster: int,
    scale: float | None = None, log_scale: Tensor | None = None, relative: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Softmax weights inside clusters and kernel weights elsewhere, o_i = sum_j w_ij v_j / sum_j w_ij; bidirectional.

        w_ij = exp(scale q_i.k_j)           if i and j are of one cluster in any round
        w_ij = fq_i.fk_j exp(log_scale_i)   if not

    In each round, queries and keys are sorted by a hash of their own (`ranks`), and those from the same places on are a
    cluster. A pair that meets in several rounds counts once. The kernel's part is the sum over all keys less that over
    clusters: rounding could leave a little of either sign where that is nearly everything, or below 0, which no weight
    is, so that a difference no larger than rounding counts as 0. Memory is O(rounds n (cluster + d + f + e)).

    Args:
        q: ``(b, h, n, d)``.
        k: ``(b, g, n, d)``; g divides h.
        v: ``(b, g, n, e)``.
        fq: ``(b, h, n, f)``;  fk: ``(b, g, n, f)``, features that give no negative weight.
        hashes: ``(rounds, d + 2)``, random Gaussian vectors.
        cluster: tokens of a cluster; the last may have fewer.
        scale, log_scale, relative: as in `window_kernel_attention`.
        key_mask: ``(b, n)`` bool, True = real, of queries as of keys: they are the same tokens. A masked query is in no
            cluster, and has the kernel's weights alone.

    Returns:
        ``(b, h, n, e)`` in the type of q, made in float32 at least; a row without keys is 0. No gradient reaches the
        choice of clusters.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_hybrid(q, k, v, fq, fk, log_scale, key_mask)
    (b, h, n, d), m = q.shape, k.shape[2]
    if n != m:
        raise ValueError(f"clusters need as many keys ({m}) as queries ({n})")
    if cluster < 1:
        raise ValueError(f"cluster ({cluster}) must be at least 1")
    if hashes.dim() != 2 or len(hashes) < 1 or hashes.shape[1] != d + 2:
        raise ValueError(f"hashes must have shape (rounds, {d + 2}), of at least one round, got {tuple(hashes.shape)}")
    if n == 0:
        return v.new_zeros(b, h, 0, v.shape[-1], dtype=q.dtype)
    dtype = accumulation_dtype(q.dtype)
    with full_precision(q.device):
        scaled = q.to(dtype) * (d**-0.5 if scale is None else scale)
        k, v, fq, fk = (x.to(dtype) for x in (k, v, fq, fk))
        v = pad(v, (0, 1), value=1.0)  # the last column of every sum is the denominator
        if key_mask is not None:  # masked rows may hold anything, NaN too, and 0 * NaN is NaN
            k, v, fk = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v, fk))
        placed = ranks(q.to(dtype), k, hashes, key_mask)
        everything = (fq.unflatten(1, (k.shape[1], -1)) @ (fk.transpose(-1, -2) @ v)[:, :, None]).flatten(1, 2)
        k, v, fk = (x.repeat_interleave(h // x.shape[1], dim=1) for x in (k, v, fk))
        exact, most, inside = _inside(scaled, k, v, fq, fk, placed, cluster, key_mask)
        off, mass = everything - inside, everything[..., -1:].detach()
        off = torch.where(off[..., -1:] > ROUNDING * torch.finfo(dtype).eps * mass, off, 0.0)
        own = off.new_zeros(()) if log_scale is None else log_scale.to(dtype)[..., None]
        return one_denominator(exact, most, off, own, relative).to(q.dtype)


class Ranks(NamedTuple):
    """Places of queries and of keys in the order of each round, ``(b, h, rounds, n)``; masked tokens are last."""

    queries: Tensor
    keys: Tensor


@torch.no_grad()
def ranks(q: Tensor, k: Tensor, hashes: Tensor, mask: Tensor | None) -> Ranks:
    """Asymmetric hashing: a query and a key are near each other in their orders where their product is large.

    q' = [q, 0, sqrt(M - |q|^2)] and k' = [k, sqrt(M - |k|^2), 0] with M = max |q|^2 + max |k|^2 have one length, and
    q'.k' = q.k: the shorter their distance, the larger their product. Their hash is their part along a random vector.

    Args:
        q: ``(b, h, n, d)``.
        k: ``(b, g, n, d)``.
        hashes: ``(rounds, d + 2)``.
        mask: ``(b, n)``; maxima and places are those of real tokens.
    """
    if mask is not None:
        q, k = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (q, k))
    hashes, d = hashes.to(q.dtype), q.shape[-1]
    group = q.shape[1] // k.shape[1]
    squares = [q.square().sum(-1), k.square().sum(-1).repeat_interleave(group, dim=1)]
    longest = sum(x.amax(-1, keepdim=True) for x in squares)
    along = [q @ hashes[:, :d].T, (k @ hashes[:, :d].T).repeat_interleave(group, dim=1)]
    found = []
    for square, part, own in zip(squares, along, (hashes[:, d + 1], hashes[:, d]), strict=True):
        value = (part + (longest - square).clamp(min=0).sqrt()[..., None] * own).transpose(-1, -2)
        value = value if mask is None else value.masked_fill(~mask[:, None, None], inf)
        found.append(value.argsort(dim=-1, stable=True).argsort(dim=-1))
    return Ranks(*found)


def _inside(
    q: Tensor, k: Tensor, v: Tensor, fq: Tensor, fk: Tensor, placed: Ranks, cluster: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What each query has of its clusters: sums of exact weights and their `most`, and of kernel weights."""
    n, rounds = q.shape[2], placed.keys.shape[2]
    orders = Ranks(placed.queries.argsort(-1), placed.keys.argsort(-1))
    count = -(-n // cluster)

    def clusters(x: Tensor, order: Tensor) -> Tensor:
        """``(b, h, n, .)`` to ``(b, h, rounds, clusters, cluster, .)``."""
        taken = _take(x[:, :, None].expand(-1, -1, rounds, -1, -1), order)
        return pad(taken, (0, 0, 0, count * cluster - n)).unflatten(3, (count, cluster))

    def tokens(x: Tensor) -> Tensor:
        """``(b, h, rounds, clusters, cluster, .)`` to ``(b, h, rounds, n, .)``."""
        return _take(x.flatten(3, 4), placed.queries)

    keys, values = clusters(k, orders.keys).transpose(-1, -2), clusters(v, orders.keys)
    real = values.new_ones(1, n, dtype=torch.bool) if mask is None else mask
    place = torch.arange(count * cluster, device=q.device)
    real = (place < real.sum(-1, keepdim=True)).unflatten(1, (count, cluster))[:, None, None]
    real = real[..., None] & real[..., None, :]  # masked tokens come last, and are in no cluster
    # of each pair, in how many rounds it meets: every one of them adds that part of it
    own, others = (
        clusters((x // cluster).transpose(-1, -2), order).movedim(-1, 0)
        for x, order in zip(placed, orders, strict=True)
    )
    times = sum((one[..., :, None] == two[..., None, :]).to(q.dtype) for one, two in zip(own, others, strict=True))
    shares = torch.where(real, 1 / times.clamp(min=1), 0.0)
    scores = (clusters(q, orders.queries) @ keys).masked_fill(~real, -inf)
    weights = clusters(fq, orders.queries) @ clusters(fk, orders.keys).transpose(-1, -2)
    each = scores.amax(-1, keepdim=True)
    exact = tokens(((scores - finite(each).detach()).exp() * shares) @ values)
    inside = tokens((weights * shares) @ values).sum(2)
    each = tokens(each)
    most = each.amax(2)
    factor = (each - finite(most)[:, :, None]).detach().exp()
    return (exact * factor).sum(2), most, inside


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` ``(b, h, rounds, n)`` of x ``(b, h, rounds, n, .)``."""
    return x.gather(3, index[..., None].expand(*index.shape, x.shape[-1]))
