"""The objective of an asymmetric kernel singular value decomposition, which Primal-Attention adds to its loss."""

import torch
from torch import Tensor


def ksvd_objective(e: Tensor, r: Tensor, scale: Tensor, trace: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """J = mean_i |L e_i|^2 / 2 + mean_j |L r_j|^2 / 2 - Tr(W_e^T W_r), L = diag(scale), in the mean over heads.

    With e_i = W_e^T phi_q(x_i) and r_j = W_r^T phi_k(x_j), J and its gradient by W_e and W_r are 0 where e and r are
    left and right singular vectors of the n x n kernel phi_q(x_i).phi_k(x_j) with values sigma and L^2 = n / sigma
    (arXiv 2305.19798, with means in the place of sums).

    Args:
        e, r: ``(b, h, n, s)``, scores of queries and of keys.
        scale: ``(h, s)``; its signs do not matter.
        trace: ``(h,)`` or ``(b, h)``.
        mask: ``(b, n)`` bool, True = real token; the means are over these.

    Returns:
        J of each row, ``(b,)``; 0 for a row without real tokens.
    """
    squares = ((e * scale[:, None]).square() + (r * scale[:, None]).square()).sum(-1)
    if mask is None:
        mask = torch.ones(e.shape[0], e.shape[2], dtype=torch.bool, device=e.device)
    count = mask.sum(-1)
    total = squares.masked_fill(~mask[:, None], 0.0).sum(-1) / count.clamp(min=1)[:, None]
    return (total / 2 - trace).mean(1).masked_fill(count == 0, 0.0)
