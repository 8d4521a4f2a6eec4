"""The Taylor feature map: phi(q) . phi(k) = 1 + q.k + (q.k)^2 / 2! + ... (arXiv 2402.18668, 2403.02920).

Since (q.k)^i / i! is the sum over all multi-indices a of degree i of q^a k^a / a!, the features of degree i are
x^a / sqrt(a!). Packed, each distinct monomial stands once; unpacked, every ordered product does, over sqrt(i!).
"""

from functools import lru_cache
from itertools import combinations_with_replacement
from math import comb, factorial, prod

import torch
from torch import Tensor


def taylor_feature_dim(d: int, *, order: int = 2, packed: bool = True) -> int:
    """Number of features that `taylor_feature_map` makes of a `d`-vector: C(d + order, order), or sum of d^i unpacked.

    Example: d=16, order 2 gives 153, or 273 unpacked.
    """
    check_order(order)
    return comb(d + order, order) if packed else sum(d**i for i in range(order + 1))


def taylor_feature_map(x: Tensor, *, order: int = 2, packed: bool = True) -> Tensor:
    """Features phi(x) with phi(q) . phi(k) = sum_{i <= order} (q.k)^i / i!.

    Args:
        x: ``(..., d)``. Nothing is scaled here: put the attention scale on the queries.
        order: even degree of the polynomial; an odd one has negative values and is refused.
        packed: each monomial once (x_i x_j for i <= j, row by row), or all d^i ordered products.

    Returns:
        ``(..., taylor_feature_dim(d))`` in the type of `x`: 1, then x, then the products of degree 2, and so on.

    Raises:
        ValueError: if `order` is odd or negative.
    """
    check_order(order)
    columns = _columns(x)
    by_degree = _monomials(columns, order) if packed else _tensor_powers(columns, order)
    features = torch.cat(by_degree, dim=-2)
    if order >= 2:
        features = features * _coefficients(x.shape[-1], order, packed, x)
    return _rows(features, x)


def taylor_feature_vjp(x: Tensor, grad: Tensor, *, order: int = 2) -> Tensor:
    """Gradient with respect to `x` of the packed features, given the gradient ``(..., f)`` with respect to them.

    Written out, not traced, so that a backward pass can make the features again without an autograd graph.
    """
    d = x.shape[-1]
    if order == 0:
        return torch.zeros_like(x)
    columns = _columns(x)
    grads = list((_columns(grad) * _coefficients(d, order, True, x)).split(degree_sizes(d, order), dim=-2))
    below = _monomials(columns, order - 1)
    out = torch.zeros_like(columns)
    for degree in range(order, 1, -1):  # products of this degree are x_i times the tail of the degree below
        width, start = grads[degree - 1].shape[-2], 0
        lower = grads[degree - 1].clone()
        for i in range(d):
            tail = _tail(d, i, degree - 1)
            piece = grads[degree][..., start : start + tail, :]
            out[..., i, :] += (piece * below[degree - 1][..., width - tail :, :]).sum(-2)
            lower[..., width - tail :, :] += piece * columns[..., i : i + 1, :]
            start += tail
        grads[degree - 1] = lower
    return _rows(out + grads[1], x)


def check_order(order: int) -> None:
    """Raise ValueError unless `order` is even: an odd Taylor polynomial of exp turns negative."""
    if order < 0 or order % 2:
        raise ValueError(f"order ({order}) must be even and not negative: an odd one gives negative attention weights")


def _columns(x: Tensor) -> Tensor:
    """Vectors as the columns of contiguous ``(..., d, n)`` matrices: products of rows then run along n, not along d."""
    return (x[None] if x.dim() == 1 else x).transpose(-1, -2).contiguous()


def _rows(columns: Tensor, like: Tensor) -> Tensor:
    """Back from `_columns` to the shape of `like`, but for the width."""
    rows = columns.transpose(-1, -2)
    return rows[0] if like.dim() == 1 else rows


def _monomials(x: Tensor, order: int) -> list[Tensor]:
    """All monomials of the columns of `x` by degree 0..order, without their coefficients.

    Sorted by their factors' indices, those of degree p that start with x_i are x_i times the ones of degree p - 1
    that start at x_i or later: a tail of that list, so a slice and no gather.
    """
    by_degree = [torch.ones_like(x[..., :1, :])] + ([x] if order else [])
    d = x.shape[-2]
    for degree in range(2, order + 1):
        previous = by_degree[-1]
        width = previous.shape[-2]
        products = [x[..., i : i + 1, :] * previous[..., width - _tail(d, i, degree - 1) :, :] for i in range(d)]
        by_degree.append(torch.cat(products, dim=-2))
    return by_degree


def _tensor_powers(x: Tensor, order: int) -> list[Tensor]:
    by_degree = [torch.ones_like(x[..., :1, :])]
    for _ in range(order):
        by_degree.append((x.unsqueeze(-2) * by_degree[-1].unsqueeze(-3)).flatten(-3, -2))
    return by_degree


def _tail(d: int, i: int, degree: int) -> int:
    """How many monomials of `degree` use only x_i ... x_{d-1}."""
    return comb(d - i + degree - 1, degree)


def degree_sizes(d: int, order: int) -> list[int]:
    """How many packed features of each degree there are."""
    return [_tail(d, 0, degree) for degree in range(order + 1)]


@lru_cache(maxsize=64)
def _coefficient_table(d: int, order: int, packed: bool) -> tuple[float, ...]:
    if not packed:
        return tuple(factorial(degree) ** -0.5 for degree in range(order + 1) for _ in range(d**degree))
    return tuple(
        prod(factorial(monomial.count(i)) for i in set(monomial)) ** -0.5
        for degree in range(order + 1)
        for monomial in combinations_with_replacement(range(d), degree)
    )


# torch.compile looks through lru_cache, and cannot trace what is inside
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constants(d: int, order: int, packed: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    return _column(d, order, packed, device, dtype)


@lru_cache(maxsize=64)
def _column(d: int, order: int, packed: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The table on a device: to copy it there in every call would wait each time for all that the device has to do."""
    with torch.inference_mode(False):  # a later call may learn
        return torch.tensor(_coefficient_table(d, order, packed), device=device, dtype=dtype)[:, None]


def _coefficients(d: int, order: int, packed: bool, like: Tensor) -> Tensor:
    """1 / sqrt(a!) of every feature, as a column."""
    if type(like) is Tensor:
        return _constants(d, order, packed, like.device, like.dtype)
    # A tensor without numbers, of a tracer, makes another, which must not be kept for others.
    return torch.tensor(_coefficient_table(d, order, packed), device=like.device, dtype=like.dtype)[:, None]
