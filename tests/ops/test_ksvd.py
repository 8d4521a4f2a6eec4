"""The objective of the kernel SVD: its formula, and the decomposition at which it and its gradient are 0."""

import pytest
import torch
from torch.testing import assert_close

from tsla.ops import ksvd_objective
from tsla.ops.norm import unit

B, H, N, D, S = 2, 3, 11, 7, 4


def numbers(*shape):
    return torch.randn(shape, dtype=torch.float64)


def objective(w_e, w_r, phi_q, phi_k, scale, mask=None):
    """J of weights ``(h, d, s)`` and features ``(b, h, n, d)``."""
    return ksvd_objective(phi_q @ w_e, phi_k @ w_r, scale, (w_e * w_r).sum((-2, -1)), mask=mask)


@pytest.mark.parametrize("per_row", [False, True])
def test_formula(per_row):
    e, r, scale, trace = numbers(B, H, N, S), numbers(B, H, N, S), numbers(H, S), numbers(*(B, H)[1 - per_row :])
    mask = torch.rand(B, N) < 0.6
    mask[0] = True
    for real in (None, mask):
        got = ksvd_objective(e, r, scale, trace, mask=real)
        for row in range(B):
            total = 0.0
            for head in range(H):
                seen = [i for i in range(N) if real is None or real[row, i]]
                sizes = [sum(((scale[head] * y[row, head, i]) ** 2).sum() for i in seen) for y in (e, r)]
                total += sum(sizes) / len(seen) / 2 - (trace[row, head] if per_row else trace[head])
            assert_close(got[row], total / H, rtol=1e-12, atol=1e-12)


def test_a_row_without_real_tokens_has_none():
    e, r, scale, trace = (x.requires_grad_() for x in (numbers(B, H, N, S), numbers(B, H, N, S), numbers(H, S),
                                                       numbers(H)))  # fmt: skip
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[1] = False
    got = ksvd_objective(e, r, scale, trace, mask=mask)
    assert got[0] != 0 and got[1] == 0
    got.sum().backward()
    assert e.grad.isfinite().all() and (e.grad[1] == 0).all()
    assert ksvd_objective(e[:, :, :0], r[:, :, :0], scale, trace).eq(0).all()


def decomposition(phi_q, phi_k, count):
    """W_e, W_r and L of the first `count` singular vectors of phi_q phi_k^T."""
    u, sigma, v = torch.linalg.svd(phi_q @ phi_k.mT)
    u, sigma, v = u[..., :count], sigma[..., :count], v.mT[..., :count]
    return phi_k.mT @ v / sigma[..., None, :], phi_q.mT @ u / sigma[..., None, :], (phi_q.shape[-2] / sigma).sqrt()


@pytest.mark.parametrize("count", [S, D])
def test_at_the_singular_vectors_it_and_its_gradient_are_0(count):
    """Those of each head; other weights are no such place, nor are these with another L."""
    phi_q, phi_k = unit(numbers(H, N, D)), unit(numbers(H, N, D))
    w_e, w_r, scale = decomposition(phi_q, phi_k, count)
    u, _, v = torch.linalg.svd(phi_q @ phi_k.mT)
    assert_close(phi_q @ w_e, u[..., :count], rtol=0, atol=1e-12)
    assert_close(phi_k @ w_r, v.mT[..., :count], rtol=0, atol=1e-12)

    def at(w_e, w_r, scale):
        leaves = w_e.clone().requires_grad_(), w_r.clone().requires_grad_()
        j = objective(*leaves, phi_q[None], phi_k[None], scale)[0]
        return j.item(), max(x.abs().max().item() for x in torch.autograd.grad(j, leaves))

    assert max(map(abs, at(w_e, w_r, scale))) < 1e-12
    assert max(map(abs, at(w_e, w_r, -scale))) < 1e-12
    for others in ((1.1 * w_e, w_r, scale), (w_e, w_r, 1.1 * scale), (w_r, w_e, scale)):
        value, gradient = at(*others)
        assert abs(value) > 1e-3 and gradient > 1e-3
