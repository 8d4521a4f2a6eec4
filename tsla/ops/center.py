"""The expansion point of ``center="mean"``: the mean score of each query."""

import torch
from torch import Tensor

from tsla.ops.scan import causal_scan, two_way_scan


def mean_scores(
    q: Tensor, k: Tensor, real: Tensor, causal: bool, gates: Tensor | None, z: Tensor | None, chunk: int
) -> Tensor:
    """q_i.mean(k) over the keys that query i sees, each by its decay; 0 where there is none.

    Sums of keys are attention of its own kind, with a single feature that is 1; in a state they stand beside their
    count, as the features of degree 1 and 0.

    Args:
        q: ``(b, s, r, n, d)``, scaled.
        k: ``(b, s, m, d)``, masked rows zero.
        real: ``(b, s, m, 1)``, 1 for a real key and 0 for a masked one.
        causal: only keys 0..i, and those of `z`.
        gates: log decays ``(b, s, n)``.
        z: sum of features of earlier keys ``(b, s, f)``.
        chunk: tokens per step where keys decay.

    Returns:
        ``(b, s, r, n)``.
    """
    d = k.shape[-1]
    values = torch.cat([k, real], dim=-1)
    before = values.new_zeros(*k.shape[:2], 1, d + 1)
    if z is not None:
        before = torch.cat([z[..., 1 : 1 + d], z[..., :1]], dim=-1)[:, :, None]
    one = torch.ones_like(real)
    if gates is None:
        sums = values.cumsum(-2) if causal else values.sum(-2, keepdim=True)
        sums = sums + before
    elif causal:
        sums = causal_scan(one[:, :, None], one, values, gates, None, before, None, chunk)[0][:, :, 0]
    else:
        sums = two_way_scan(one[:, :, None], one, values, gates, None, before, None, chunk)[:, :, 0]
    count = sums[..., -1:]
    mean = sums[..., :-1] / torch.where(count == 0, 1.0, count)
    return (q * mean[:, :, None]).sum(-1)
