"""Poly-attention of order 2 (arXiv 2602.02422) with Taylor weights: queries read values through a middle token."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops.attention import taylor_attention
from tsla.ops.checks import check_qkv
from tsla.ops.types import accumulation_dtype


def taylor_poly_attention(
    q1: Tensor, q2: Tensor, q3: Tensor, v: Tensor, *, order: int = 2, scale: float = 1.0,
    key_mask: Tensor | None = None, normalize_first: bool = False, impl: str = "auto", crossover: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:  # fmt: skip
    """Sums over pairs (j, k): o_i = sum_jk w(q1_i.q2_j) w(q2_j.q3_k) v_k / sum_jk w(q1_i.q2_j) w(q2_j.q3_k).

    w is the Taylor polynomial of exp, of ``scale`` times the product. Two attentions in a row give it, from q2 to q3
    over v and from q1 to q2 over what came out, so that nothing of size n x f is stored.

    Args:
        q1: ``(b, h, n, d)``.
        q2: ``(b, g, m, d)``; g divides h, query head i reads head i * g // h.
        q3: ``(b, g, m, d)``.
        v: ``(b, g, m, e)``.
        order: even degree of the polynomial.
        scale: factor of both products; not ``d ** -0.5``, since these vectors usually come RMS-normalised.
        key_mask: ``(b, m)`` bool, True = real: of the middle tokens j as of the last ones k.
        normalize_first: average over k by itself, a_j = sum_k w_jk v_k / sum_k w_jk, then over j. Else a middle token
            counts by its mass, sum_k w_jk, as in the formula above.
        impl, crossover, chunk_size: as in `taylor_attention`, of both.

    Returns:
        ``(b, h, n, e)`` in the type of q1, computed in float32 at least; a row without keys is 0.

    Raises:
        ValueError: as in `taylor_attention`.
    """
    check_qkv(q2, q3, v, False, key_mask)
    check_qkv(q1, q2, v, False, key_mask)
    dtype = accumulation_dtype(q1.dtype)  # of the sums between the two, which float16 could not hold
    if key_mask is not None:  # what padding holds must not reach the sums of the first attention's backward pass
        q2 = q2.masked_fill(~key_mask[:, None, :, None], 0.0)
    q2, v = q2.to(dtype), v.to(dtype)

    def attend(q: Tensor, k: Tensor, values: Tensor, normalize: bool) -> Tensor:
        return taylor_attention(
            q.to(dtype), k, values, order=order, scale=scale, key_mask=key_mask, normalize=normalize, impl=impl,
            crossover=crossover, chunk_size=chunk_size,
        ).output  # fmt: skip

    if normalize_first:
        return attend(q1, q2, attend(q2, q3, v, True), True).to(q1.dtype)
    keys = v.new_full((), q3.shape[2]) if key_mask is None else key_mask.sum(-1)[:, None, None, None]
    mass = pad(v, (0, 1), value=1.0) / keys.clamp(min=1)  # a key's share of them all: sums over keys have the size of v
    sums = attend(q1, q2, attend(q2, q3, mass, False), True)
    total = sums[..., -1:]  # 0 only where there is no key, and then the sums are 0 too
    return (sums[..., :-1] / torch.where(total == 0, 1.0, total)).to(q1.dtype)
