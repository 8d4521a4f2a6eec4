"""The length at which the linear form starts to cost less than the direct one (TaylorShift, arXiv 2403.02920)."""

from math import sqrt

from tsla.ops.checks import check_choice
from tsla.ops.feature_map import taylor_feature_dim


def taylor_crossover(d: int, *, resource: str = "flops", packed: bool = True, order: int = 2) -> float:
    """Sequence length above which the linear form is cheaper, by counts, for n == m and head dims d == e.

    With p products of degree >= 2 (d^2 unpacked, d(d+1)/2 packed at order 2), operations per head are
    4 N^2 d + 6 N^2 direct and N (2p + 4p(d+1) + 4d(d+1) + 4(d+1) + d) linear: the paper's N0 where p = d^2.
    Live entries at the peak are dN + 2N^2 and p(d+1) + 2dN + (d+1)N + pN: its N1.

    Args:
        d: head dim.
        resource: ``"flops"`` or ``"memory"``.
        packed: count each product of degree >= 2 once.
        order: degree of the polynomial; the direct form's own cost hardly depends on it.

    Raises:
        ValueError: d below 1, odd order, or another resource.
    """
    if d < 1:
        raise ValueError(f"d ({d}) must be at least 1")
    products = taylor_feature_dim(d, order=order, packed=packed) - (1 + d if order else 1)
    if check_choice("resource", resource, ("flops", "memory")) == "flops":
        linear = 2 * products + 4 * products * (d + 1) + 4 * d * (d + 1) + 4 * (d + 1) + d
        return linear / (4 * d + 6)
    slope = 2 * d + 1 + products  # 2 N^2 - slope N - p (d + 1) = 0
    return (slope + sqrt(slope**2 + 8 * products * (d + 1))) / 4
