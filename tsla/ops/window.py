"""Exact softmax attention inside a sliding window, in time and memory O(n * window)."""

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from tsla.ops.checks import check_qkv
from tsla.ops.packing import attend_packed
from tsla.ops.types import Attended


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, causal: bool = False, scale: float | None = None,
    key_mask: Tensor | None = None, cu_seqlens: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Softmax attention of query i over the keys with i - window <= j <= i if causal, |i - j| <= window if not.

    Queries go in blocks, each against the stretch of keys it can see, so no n x n matrix is made.

    Args:
        q: ``(b, h, n, d)``.
        k: ``(b, g, n, d)``; g divides h.
        v: ``(b, g, n, e)``.
        window: how far a query sees, in positions; 0 is the token itself.
        scale: factor of q.k, default ``d ** -0.5``.
        key_mask: ``(b, n)`` bool, True = real.
        cu_seqlens: ``(sequences + 1,)`` int, the bounds of the sequences packed into a single row: windows end there.

    Returns:
        ``(b, h, n, e)`` in the type of q; a row that sees no key is 0.

    Raises:
        ValueError: shapes or a window that do not fit.
    """
    check_qkv(q, k, v, causal, key_mask)
    (b, h, n, _), m = q.shape, k.shape[2]
    if window < 0:
        raise ValueError(f"window ({window}) must not be negative")
    if n != m:
        raise ValueError(f"window attention needs as many keys ({m}) as queries ({n})")
    if cu_seqlens is not None:

        def each(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> Attended:
            return Attended(
                window_attention(q, k, v, window=window, causal=causal, scale=scale, key_mask=key_mask), None
            )

        return attend_packed(each, q, k, v, cu_seqlens, key_mask=key_mask).output
    if n == 0:
        return v.new_zeros(b, h, 0, v.shape[-1], dtype=q.dtype)
    window = min(window, n - 1)
    block = min(n, max(window + 1, 16))  # about as long as the window: at most half of each stretch is wasted
    blocks, tail = -(-n // block), -n % block
    behind, ahead = (0, 0) if blocks == 1 else (window, 0 if causal else window)  # a single block sees all there are
    real = q.new_ones(b, n, dtype=torch.bool) if key_mask is None else key_mask
    real = pad(real, (behind, ahead + tail)).unfold(1, block + behind + ahead, block)  # (b, blocks, stretch)
    row = torch.arange(block, device=q.device)[:, None]
    column = torch.arange(block + behind + ahead, device=q.device)[None]
    gap = column - behind - row
    near = (gap >= -window) & (gap <= (0 if causal else window))
    visible = real[:, :, None] & near  # (b, blocks, block, stretch)

    def stretches(x: Tensor) -> Tensor:  # (b, g, n, .) -> (b * blocks, g, stretch, .)
        x = pad(x, (0, 0, behind, ahead + tail)).unfold(2, block + behind + ahead, block).movedim(2, 1)
        return x.flatten(0, 1).transpose(-1, -2)

    queries = pad(q, (0, 0, 0, tail)).unflatten(2, (blocks, block)).movedim(2, 1).flatten(0, 1)
    if key_mask is not None:  # masked rows may hold anything, NaN too, and 0 * NaN is NaN
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    out = masked_softmax_attention(queries, stretches(k), stretches(v), visible.flatten(0, 1)[:, None], scale)
    return out.unflatten(0, (b, blocks)).movedim(1, 2).flatten(2, 3)[:, :, :n].to(q.dtype)


def masked_softmax_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """`scaled_dot_product_attention` under a bool mask that broadcasts to the pairs; rows that see nothing give 0."""
    none = ~visible.any(-1, keepdim=True)
    # A row without keys is shown all of them and then erased: softmax over nothing is NaN on some backends.
    out: Tensor = scaled_dot_product_attention(q, k, v, attn_mask=visible | none, scale=scale, enable_gqa=True)
    return out.masked_fill(none, 0.0)
