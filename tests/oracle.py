"""What attention is, from its formula: fp64 loops over numbers. Shares no code with tsla.

`attention`, `window` and `state` loop over every pair; `dense` is the same formula as one matrix, itself tested against
the loops, for lengths at which loops take seconds. All are differentiable.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import factorial, inf

import torch
from torch import Tensor


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def taylor(score: Tensor, order: int | None) -> Tensor:
    """1 + s + s^2/2! + ... + s^order/order!; the score itself for order None (ready-made features)."""
    return (
        score if order is None else sum((score**i / factorial(i) for i in range(1, order + 1)), torch.ones_like(score))
    )


def polynomial(score: Tensor, order: int | None, coefficients: Sequence[float] | None) -> Tensor:
    """`taylor`, or the sum of coefficients times powers."""
    if coefficients is None:
        return taylor(score, order)
    return sum((c * score**p for p, c in enumerate(coefficients) if p), torch.full_like(score, coefficients[0]))


def index_tuples(d: int, degree: int, start: int = 0) -> Iterator[tuple[int, ...]]:
    """All (i, j, ...) with start <= i <= j <= ... < d, in the order of a dictionary."""
    if degree == 0:
        yield ()
        return
    for first in range(start, d):
        for rest in index_tuples(d, degree - 1, first):
            yield (first, *rest)


def features(x: Tensor, order: int | None) -> Tensor:
    """(..., d) -> (..., f): x^a / sqrt(a!) of every monomial a up to the order."""
    if order is None:
        return x
    columns = []
    for degree in range(order + 1):
        for monomial in index_tuples(x.shape[-1], degree):
            column, repeats = torch.ones_like(x[..., 0]), 1
            for i in monomial:
                column = column * x[..., i]
            for i in set(monomial):
                repeats *= factorial(monomial.count(i))
            columns.append(column / repeats**0.5)
    return torch.stack(columns, dim=-1)


def decay(log_decay: Tensor | None, key_mask: Tensor | None, b: int, h: int, i: int, j: int) -> float | Tensor:
    """exp of the log decays between two places, of the real tokens after the earlier place up to the later one."""
    if log_decay is None:
        return 1.0
    total = zeros()
    for t in range(min(i, j) + 1, max(i, j) + 1):
        if key_mask is None or key_mask[b, t]:
            total = total + (log_decay[h] if log_decay.dim() == 1 else log_decay[b, h, t])
    return total.exp()


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, order: int | None = 2, scale: float | None = None, causal: bool = False,
    key_mask: Tensor | None = None, log_decay: Tensor | None = None, normalize: bool = True, eps: float = 0.0,
    coefficients: Sequence[float] | None = None, center: str = "zero", floor: float = 0.0,
) -> Tensor:  # fmt: skip
    """sum_j w_ij v_j / sum_j w_ij, w_ij = decay_ij T(scale q_i.k_j), over the real keys; 0 where there are none.

    With center "mean", a query's scores are taken less their mean, each weighed by its decay. With a floor, a sum
    that is nearer to 0 becomes the floor, with the sign of the sum; 0 is positive.

    The queries are the last of the keys where there are fewer of them and the order matters: what came before
    is then part of k and v. `log_decay` is (h,) or (b, h, m), one for each key.
    """
    (b, h, n, d), (g, m) = q.shape, k.shape[1:3]
    scale = (d**-0.5 if scale is None else scale) if order is not None else 1.0
    out = []
    for row, head, i in product(range(b), range(h), range(n)):
        group, place = head * g // h, i + m - n
        numerator, denominator = zeros(v.shape[-1]), zeros()
        seen = [j for j in range(m) if (j <= place or not causal) and (key_mask is None or key_mask[row, j])]
        scores = {j: scale * (q[row, head, i] * k[row, group, j]).sum() for j in seen}
        left = {j: decay(log_decay, key_mask, row, head, place, j) for j in seen}
        middle = sum(scores[j] * left[j] for j in seen) / sum(left.values()) if center == "mean" and seen else 0.0
        for j in seen:
            weight = polynomial(scores[j] - middle, order, coefficients) * left[j]
            numerator, denominator = numerator + weight * v[row, group, j], denominator + weight
        if normalize:
            denominator = denominator + eps
            if abs(denominator.item()) < floor:
                denominator = zeros() + (floor if denominator >= 0 else -floor)
            numerator = numerator / denominator if denominator != 0 else numerator
        out.append(numerator)
    return torch.stack(out).reshape(b, h, n, v.shape[-1])


def poly(
    q1: Tensor, q2: Tensor, q3: Tensor, v: Tensor, *, order: int = 2, key_mask: Tensor | None = None,
    normalize_first: bool = False,
) -> Tensor:  # fmt: skip
    """sum_jk T(q1_i.q2_j) T(q2_j.q3_k) v_k over the sum of those weights, j and k real; 0 where there are none.

    With `normalize_first`, the weights T(q2_j.q3_k) of each j are first divided by their sum over k.
    """
    (b, h, n, _), (g, m) = q1.shape, q2.shape[1:3]
    out = []
    for row, head, i in product(range(b), range(h), range(n)):
        group, numerator, denominator = head * g // h, zeros(v.shape[-1]), zeros()
        real = [j for j in range(m) if key_mask is None or key_mask[row, j]]
        for j in real:
            near = taylor((q1[row, head, i] * q2[row, group, j]).sum(), order)
            far = [taylor((q2[row, group, j] * q3[row, group, k]).sum(), order) for k in real]
            whole = sum(far) if normalize_first else 1.0
            for k, weight in zip(real, far, strict=True):
                numerator = numerator + near * weight / whole * v[row, group, k]
                denominator = denominator + near * weight / whole
        out.append(numerator / denominator if real else numerator)
    return torch.stack(out).reshape(b, h, n, v.shape[-1])


def dense_poly(
    q1: Tensor, q2: Tensor, q3: Tensor, v: Tensor, *, order: int = 2, key_mask: Tensor | None = None,
    normalize_first: bool = False,
) -> Tensor:  # fmt: skip
    """`poly` with the weights of all pairs as matrices."""
    group = q1.shape[1] // q2.shape[1]
    real = torch.ones(q2.shape[0], q2.shape[2]) if key_mask is None else key_mask
    q2, q3, v = (
        x.masked_fill(real[:, None, :, None] == 0, 0.0).repeat_interleave(group, dim=1) for x in (q2, q3, v)
    )  # fmt: skip
    near, far = (
        taylor(torch.einsum("bhid,bhjd->bhij", x, y), order) * real[:, None, None] for x, y in ((q1, q2), (q2, q3))
    )
    if normalize_first:
        far = far / torch.where(far.sum(-1, keepdim=True) == 0, 1.0, far.sum(-1, keepdim=True))
    total = torch.einsum("bhij,bhjk->bhi", near, far)[..., None]
    return torch.einsum("bhij,bhjk,bhke->bhie", near, far, v) / torch.where(total == 0, 1.0, total)


def state(
    k: Tensor, v: Tensor, *, order: int | None = 2, heads: int | None = None, key_mask: Tensor | None = None,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """After the last key: the sums over j of decay_j phi(k_j) v_j^T and decay_j phi(k_j), for each of `heads` heads."""
    (b, g, m, e), phi = v.shape, features(k, order)
    heads = heads or g
    kv = []
    for row, head in product(range(b), range(heads)):
        group, total = head * g // heads, zeros(phi.shape[-1], e + 1)
        for j in range(m):
            if key_mask is None or key_mask[row, j]:
                value = torch.cat([v[row, group, j], zeros(1) + 1])
                pair = phi[row, group, j][:, None] * value[None, :]
                total = total + pair * decay(log_decay, key_mask, row, head, m - 1, j)
        kv.append(total)
    both = torch.stack(kv).reshape(b, heads, -1, e + 1)
    return both[..., :-1], both[..., -1]


def window(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, causal: bool = False, scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Softmax over the real keys with |i - j| <= window, j <= i if causal; 0 where there are none."""
    (b, h, n, d), g = q.shape, k.shape[1]
    scale = d**-0.5 if scale is None else scale
    out = []
    for row, head, i in product(range(b), range(h), range(n)):
        group, total, value = head * g // h, zeros(), zeros(v.shape[-1])
        for j in range(i - window, i + 1 if causal else i + window + 1):
            if 0 <= j < n and (key_mask is None or key_mask[row, j]):
                weight = (scale * (q[row, head, i] * k[row, group, j]).sum()).exp()
                total, value = total + weight, value + weight * v[row, group, j]
        out.append(value / total if total != 0 else value)
    return torch.stack(out).reshape(b, h, n, v.shape[-1])


def dense(
    q: Tensor, k: Tensor, v: Tensor, *, order: int | None = 2, scale: float | None = None, causal: bool = False,
    key_mask: Tensor | None = None, log_decay: Tensor | None = None, normalize: bool = True, eps: float = 0.0,
    start: tuple[Tensor, Tensor] | None = None, coefficients: Sequence[float] | None = None, center: str = "zero",
    floor: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Output, kv and z: `attention` and `state` as matrices, continuing from the sums `start`. No earlier keys in k."""
    (b, h, _, d), (g, m) = q.shape, k.shape[1:3]
    heads = g if log_decay is None else h
    q = q * ((d**-0.5 if scale is None else scale) if order is not None else 1.0)
    real = torch.ones(b, m, dtype=torch.bool) if key_mask is None else key_mask
    k, v = (x.masked_fill(~real[:, None, :, None], 0.0) for x in (k, v))
    rates = torch.zeros(b, h, m, dtype=q.dtype)
    if log_decay is not None:
        rates = (log_decay.reshape(1, h, 1) if log_decay.dim() == 1 else log_decay) * real[:, None]
    passed = rates.cumsum(-1)
    every_k, every_v = (x.repeat_interleave(h // g, dim=1) for x in (k, v))
    factor = real[:, None, None].expand(b, h, q.shape[2], m).to(q.dtype)
    if log_decay is not None:
        factor = factor * torch.exp(-(passed[..., :, None] - passed[..., None, :]).abs())
    if causal:
        factor = factor.tril()
    scores = torch.einsum("bhid,bhjd->bhij", q, every_k)
    left = passed.exp() if log_decay is not None else torch.ones(1)
    before = None if start is None else [x.repeat_interleave(h // heads, dim=1) for x in start]
    middle = torch.zeros_like(q[..., 0])
    if center == "mean":
        total, count = (scores * factor).sum(-1), factor.sum(-1)
        if before is not None:  # sums of keys and their count stand in z as the features of degree 1 and 0
            total = total + left * (q * before[1][:, :, None, 1 : 1 + d]).sum(-1)
            count = count + left * before[1][:, :, None, 0]
        middle = total / torch.where(count == 0, 1.0, count)
    weights = polynomial(scores - middle[..., None], order, coefficients) * factor
    phi, phi_k = features(q, order), features(k, order) * real[:, None, :, None]
    values = v
    if log_decay is not None:
        phi_k = phi_k.repeat_interleave(h // g, dim=1) * torch.exp(passed[..., -1:] - passed)[..., None]
        values = every_v
    kv, z = torch.einsum("bsjf,bsje->bsfe", phi_k, values), phi_k.sum(2)
    numerator, denominator = weights @ every_v, weights.sum(-1)
    if start is not None:
        phi = phi * expansion(middle, d, order, coefficients)
        numerator = numerator + left[..., None] * torch.einsum("bhif,bhfe->bhie", phi, before[0])
        denominator = denominator + left * torch.einsum("bhif,bhf->bhi", phi, before[1])
        last = passed[..., -1:].exp() if log_decay is not None else torch.ones(1)
        kv, z = kv + start[0] * last[..., None], z + start[1] * last
    if normalize:
        denominator = denominator + eps
        least = torch.where(denominator < 0, -1.0, 1.0).to(denominator) * floor
        denominator = torch.where(denominator.abs() < floor, least, denominator)
        numerator = numerator / torch.where(denominator == 0, 1.0, denominator)[..., None]
    return numerator, kv, z


def expansion(middle: Tensor, d: int, order: int | None, coefficients: Sequence[float] | None) -> Tensor | float:
    """The factor of each feature in P(s - m) = sum_p s^p/p! P^(p)(-m), p its degree."""
    if order is None:
        return 1.0
    left = [1 / factorial(p) for p in range(order + 1)] if coefficients is None else list(coefficients)
    columns = []
    for degree in range(order + 1):
        value = polynomial(-middle, None, left) if left else torch.zeros_like(middle)
        columns += [value] * sum(1 for _ in index_tuples(d, degree))
        left = [p * c for p, c in enumerate(left)][1:]
    return torch.stack(columns, dim=-1)


def dense_window(
    q: Tensor, k: Tensor, v: Tensor, *, window: int, causal: bool = False, scale: float | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`window` as one matrix."""
    n, group = q.shape[2], q.shape[1] // k.shape[1]
    real = torch.ones(q.shape[0], n, dtype=torch.bool) if key_mask is None else key_mask
    k, v = (x.masked_fill(~real[:, None, :, None], 0.0).repeat_interleave(group, dim=1) for x in (k, v))
    place = torch.arange(n)
    gap = place[:, None] - place
    near = (gap.abs() <= window) & ((gap >= 0) | (not causal)) & real[:, None, None]
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~near, -inf)
    top = scores.detach().amax(-1, keepdim=True).nan_to_num(neginf=0.0) if n else scores
    weights = (scores - top).exp().masked_fill(~near, 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights @ v / torch.where(total == 0, 1.0, total)


def dense_hybrid(
    q: Tensor, k: Tensor, v: Tensor, fq: Tensor, fk: Tensor, *, support: Tensor, scale: float | None = None,
    log_scale: Tensor | None = None, gamma: Tensor | None = None, causal: bool = False, key_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """where(support, exp(s), fq.fk exp(log_scale)) over the sum of each row, s = scale q.k; 0 where nothing is seen.

    support: ``(b, h, n, m)`` bool. gamma ``(h,)``: gamma exp(s - c) instead, c the row's largest s on the support. The
    queries are the last of the keys where there are fewer of them.
    """
    (n, m), group = (q.shape[2], k.shape[2]), q.shape[1] // k.shape[1]
    real = torch.ones(q.shape[0], m, dtype=torch.bool) if key_mask is None else key_mask
    k, v, fk = (x.masked_fill(~real[:, None, :, None], 0.0).repeat_interleave(group, dim=1) for x in (k, v, fk))
    seen = real[:, None, None] & (torch.ones(n, m, dtype=torch.bool).tril(m - n) if causal else torch.ones(n, m) > 0)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    near = support & seen
    if gamma is not None:
        top = scores.masked_fill(~near, -inf).amax(-1, keepdim=True)
        scores = scores - torch.where(top == -inf, 0.0, top) + gamma.log()[:, None, None]
    far = torch.einsum("bhif,bhjf->bhij", fq, fk)
    far = far if log_scale is None else far * log_scale.exp()[..., None]
    weights = torch.where(near, scores.masked_fill(~near, 0.0).exp(), far).masked_fill(~seen, 0.0)
    total = weights.sum(-1, keepdim=True)
    return weights @ v / torch.where(total == 0, 1.0, total)


def clusters(q: Tensor, k: Tensor, hashes: Tensor, *, cluster: int, mask: Tensor | None = None) -> Tensor:
    """Which pairs ``(b, h, n, n)`` of real tokens meet: in any round, the same place // cluster in the orders of both.

    The order of queries is that of [q, 0, sqrt(M - |q|^2)].a, that of keys of [k, sqrt(M - |k|^2), 0].a, M the sum of
    both largest squares, a a row of `hashes`.
    """
    (b, h, n, _), g = q.shape, k.shape[1]
    found = torch.zeros(b, h, n, n, dtype=torch.bool)
    for row, head in product(range(b), range(h)):
        real = [i for i in range(n) if mask is None or mask[row, i]]
        own, others = (x[real].detach() for x in (q[row, head], k[row, head * g // h]))
        if not real:
            continue
        longest = sum(max((x * x).sum().item() for x in y) for y in (own, others))
        for a in hashes:
            numbers = []
            for y, at in ((own, -1), (others, -2)):
                value = [((x * a[:-2]).sum() + max(longest - (x * x).sum().item(), 0) ** 0.5 * a[at]).item() for x in y]
                order = sorted(range(len(real)), key=value.__getitem__)
                numbers.append({i: place // cluster for place, i in enumerate(order)})
            for i, j in product(range(len(real)), repeat=2):
                if numbers[0][i] == numbers[1][j]:
                    found[row, head, real[i], real[j]] = True
    return found


def fourier(
    q: Tensor, k: Tensor, v: Tensor, *, radius: Tensor, power: int = 4, causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """sum_j w_ij v_j / sum_j w_ij, w_ij = prod_c (sinc^2(R_c (q_ic - k_jc)) + 1e-12)^(power / 2), pair by pair.

    The queries are the last of the keys where the order matters.
    """
    (b, h, n, d), (g, m) = q.shape, k.shape[1:3]
    radius = radius.reshape(-1).expand(d)
    out = []
    for row, head, i in product(range(b), range(h), range(n)):
        group, total, value = head * g // h, zeros(), zeros(v.shape[-1])
        for j in range(m):
            if (j <= i + m - n or not causal) and (key_mask is None or key_mask[row, j]):
                weight = zeros() + 1
                for c in range(d):
                    x = radius[c] * (q[row, head, i, c] - k[row, group, j, c])
                    sinc = x.sin() / x if x != 0 else 1.0 - x * x / 6
                    weight = weight * (sinc * sinc + 1e-12) ** (power // 2)
                total, value = total + weight, value + weight * v[row, group, j]
        out.append(value / total if total != 0 else value)
    return torch.stack(out).reshape(b, h, n, v.shape[-1])


def dense_fourier(
    q: Tensor, k: Tensor, v: Tensor, *, radius: Tensor, power: int = 4, causal: bool = False,
    key_mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`fourier` as one matrix, of logarithms: products of many channels would underflow."""
    (n, m), group = (q.shape[2], k.shape[2]), q.shape[1] // k.shape[1]
    if m == 0:
        return v.new_zeros(*q.shape[:3], v.shape[-1])
    seen = torch.ones(q.shape[0], 1, n, m, dtype=torch.bool)
    seen = seen.tril(m - n) if causal else seen
    if key_mask is not None:
        seen = seen & key_mask[:, None, None]
        k, v = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    x = radius * (q[:, :, :, None] - k[:, :, None])
    sinc = torch.where(x == 0, 1 - x * x / 6, x.sin() / torch.where(x == 0, 1.0, x))
    logs = (sinc * sinc + 1e-12).log().sum(-1) * (power / 2)
    top = logs.masked_fill(~seen, -inf).amax(-1, keepdim=True).detach().nan_to_num(neginf=0.0)
    weights = (logs - top).masked_fill(~seen, -inf).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ v / torch.where(total == 0, 1.0, total)
