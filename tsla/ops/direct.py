"""The direct form: the n x m matrix of weights, written out. The fastest form for short sequences, and the plainest."""

import torch
from torch import Tensor

from tsla.ops.kernel import Kernel, query_features, weights


def direct(
    q: Tensor, k: Tensor, v: Tensor, kernel: Kernel, *, causal: bool, gates: Tensor | None, shift: Tensor | None,
    start: Tensor | None,
) -> Tensor:  # fmt: skip
    """sum_j decay_ij w(q_i.k_j - m_i) v_j, unnormalised, plus what a starting state holds.

    Args:
        q: ``(b, s, r, n, d)``, r query heads per key head.
        k: ``(b, s, m, d)``.
        v: ``(b, s, m, e)``, masked rows zero.
        kernel: the weight of a pair.
        causal: later keys have weight 0.
        gates: log decays ``(b, s, n)``; the pair weight is exp(-|c_i - c_j|), c their running sum.
        shift: m ``(b, s, r, n)``, taken from each query's scores.
        start: ``(b, s, f, e)``.

    Returns:
        ``(b, s, r, n, e)``.
    """
    group, n = q.shape[2:4]
    queries = q.flatten(2, 3)  # one matrix product serves all query heads of a group
    shift = None if shift is None else shift.flatten(2, 3)
    scores = queries @ k.transpose(-1, -2)
    pair = weights(scores if shift is None else scores - shift[..., None], kernel)
    if causal or gates is not None:
        pair = (pair.unflatten(2, (group, n)) * pair_decay(gates, n, causal, pair)).flatten(2, 3)
    out = pair @ v
    if start is not None:
        read = query_features(queries, kernel, shift) @ start
        if gates is not None:
            read = (read.unflatten(2, (group, n)) * gates.cumsum(-1).exp()[:, :, None, :, None]).flatten(2, 3)
        out = out + read
    return out.unflatten(2, (group, n))


def pair_decay(gates: Tensor | None, n: int, causal: bool, like: Tensor) -> Tensor:
    """Factor of every pair, ``(n, n)`` or ``(b, s, 1, n, n)``: exp(-|c_i - c_j|), and 0 for a later key if causal."""
    if gates is None:
        return torch.ones(n, n, dtype=like.dtype, device=like.device).tril()
    total = gates.cumsum(-1)
    distance = total[..., :, None] - total[..., None, :]
    if causal:  # -inf before exp: exp of a large positive difference above the diagonal would be inf * 0
        later = torch.ones(n, n, dtype=torch.bool, device=like.device).triu(1)
        return distance.masked_fill(later, -torch.inf).exp()[:, :, None]
    return (-distance.abs()).exp()[:, :, None]
