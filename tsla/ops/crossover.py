"""The length at which the linear form starts to cost less than the direct one (TaylorShift, arXiv 2403.02920)."""

from math import sqrt

from tsla.ops.checks import check_choice
from tsla.ops.feature_map import taylor_feature_dim


def taylor_crossover(
    d: int, *, value_dim: int | None = None, resource: str = "flops", packed: bool = True, order: int = 2
) -> float:
    """Sequence length above which the linear form is cheaper, by counts, for n == m and head dims d and e.

    With p products of degree >= 2 (d^2 unpacked, d(d+1)/2 packed at order 2), operations per head are
    2 N^2 (d + e) + 6 N^2 direct and N (2p + 4p(e+1) + 4d(e+1) + 4(e+1) + e) linear: the paper's N0 where p = d^2 and
    e = d. Live entries at the peak are eN + 2N^2 and p(e+1) + 2dN + (e+1)N + pN: its N1.

    Args:
        d: head dim of queries and keys.
        value_dim: head dim of values, e; None = d.
        resource: ``"flops"`` or ``"memory"``.
        packed: count each product of degree >= 2 once.
        order: degree of the polynomial; the direct form's own cost hardly depends on it.

    Raises:
        ValueError: d or value_dim below 1, odd order, or another resource.
    """
    e = d if value_dim is None else value_dim
    for name, width in (("d", d), ("value_dim", e)):
        if width < 1:
            raise ValueError(f"{name} ({width}) must be at least 1")
    products = taylor_feature_dim(d, order=order, packed=packed) - (1 + d if order else 1)
    if check_choice("resource", resource, ("flops", "memory")) == "flops":
        return linear_operations(d, e, products) / (2 * (d + e) + 6)
    slope = 2 * d + 1 + products  # 2 N^2 - slope N - p (e + 1) = 0
    return (slope + sqrt(slope**2 + 8 * products * (e + 1))) / 4


def linear_operations(d: int, e: int, products: int) -> int:
    """Operations per token and head of the linear form."""
    return 2 * products + 4 * products * (e + 1) + 4 * d * (e + 1) + 4 * (e + 1) + e
