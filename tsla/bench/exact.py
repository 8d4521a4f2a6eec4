"""What each implementation should compute, by its own formula: weights of every pair, in the type of the inputs.

Given float64, these are what an implementation is held against before it is timed. All take q ``(b, h, n, d)``, k and v
of h heads, and the places of the queries that are asked for, so that a few rows of a long sequence can be checked.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Exact = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # q, k, v, rows -> (b, h, rows, e)


def exponential(scores: Tensor) -> Tensor:
    """Softmax's weights, before they are divided by their sum."""
    return scores.exp()


def second_order(scores: Tensor) -> Tensor:
    """1 + s + s^2 / 2, the weights of Taylor attention."""
    return 1 + scores + scores**2 / 2


def of_scores(weigh: Callable[[Tensor], Tensor], scale: float, causal: bool, window: int | None = None) -> Exact:
    """Weights of scale q.k; with a window, of keys at most so far away."""

    def exact(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        weights = weigh(q[:, :, rows] @ k.mT * scale) * visible(rows, k.shape[2], causal, window)
        return weights @ v / weights.sum(-1, keepdim=True)

    return exact


def of_unit_vectors(causal: bool) -> Exact:
    """TaylorShift: weights of the cosine of q and k (temperature 1), the output times sqrt(keys seen / d)."""

    def exact(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        unit_q, unit_k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
        seen = visible(rows, k.shape[2], causal)
        weights = second_order(unit_q[:, :, rows] @ unit_k.mT) * seen
        return weights @ v / weights.sum(-1, keepdim=True) * (seen.sum(-1, keepdim=True) / q.shape[-1]).sqrt()

    return exact


def of_features(
    features: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], causal: bool, divide: Callable[[Tensor], Tensor]
) -> Exact:
    """Weights phi(q).psi(k) of features that depend on the whole sequence; `divide` makes a divisor of their sums."""

    def exact(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        phi, psi = features(q, k)
        weights = phi[:, :, rows] @ psi.mT * visible(rows, k.shape[2], causal)
        return weights @ v / divide(weights.sum(-1, keepdim=True))

    return exact


def visible(rows: Tensor, m: int, causal: bool, window: int | None = None) -> Tensor:
    """Which of m keys the queries at `rows` see ``(rows, m)``."""
    apart = rows[:, None] - torch.arange(m, device=rows.device)
    seen = apart >= 0 if causal else torch.ones_like(apart, dtype=torch.bool)
    return seen if window is None else seen & (apart.abs() <= window)


def relative_error(got: Tensor, right: Tensor) -> float:
    """Largest difference over the largest value; what `got` is wider by is padding."""
    return ((got[..., : right.shape[-1]].double() - right).abs().max() / right.abs().max()).item()
