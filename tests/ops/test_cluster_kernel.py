"""Exact weights inside clusters and kernel weights elsewhere: against the dense formula, and what hashing finds."""

import oracle
import pytest
import torch
from cases import Largest, agree, error, some_mask
from torch.testing import assert_close

from ops.test_window_kernel import inputs
from tsla.ops import cluster_kernel_attention
from tsla.ops.cluster_kernel import ranks

RELATIVE = pytest.mark.parametrize("relative", [False, True], ids=["own scale", "relative"])
HASHES = r"hashes must have shape \(rounds, 5\), of at least one round, got"
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def dense(q, k, v, fq, fk, log_scale, hashes, *, cluster, relative=False, key_mask=None, scale=None):
    support = oracle.clusters(q, k, hashes, cluster=cluster, mask=key_mask)
    if not relative:
        return oracle.dense_hybrid(
            q, k, v, fq, fk, support=support, log_scale=log_scale, key_mask=key_mask, scale=scale
        )
    fq, gamma = fq * log_scale.exp()[..., None], torch.ones(q.shape[1], dtype=q.dtype)
    return oracle.dense_hybrid(q, k, v, fq, fk, support=support, gamma=gamma, key_mask=key_mask, scale=scale)


@RELATIVE
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("n", "cluster", "rounds"), [(1, 3, 2), (2, 1, 1), (17, 4, 3), (24, 4, 5), (40, 16, 2)])
def test_equals_the_formula(n, cluster, rounds, masked, relative):
    """Pairs that meet more than once, of which there are many with five rounds of four, count once."""
    x, mask, hashes = inputs(b=3, n=n), some_mask(3, n) if masked else None, torch.randn(rounds, 5).double()
    options = {"cluster": cluster, "relative": relative, "key_mask": mask, "scale": 0.8}
    agree(
        lambda **y: cluster_kernel_attention(**y, hashes=hashes, **options),
        lambda **y: dense(**y, hashes=hashes, **options), x, 1e-9,
    )  # fmt: skip


@RELATIVE
def test_one_cluster_of_all_is_softmax_whatever_the_features(relative):
    """What is left of the kernel's sum is rounding, and counts as nothing even where the kernel is much larger."""
    x = inputs(n=50)
    x["log_scale"] = x["log_scale"] + 8
    out = cluster_kernel_attention(**x, hashes=torch.randn(3, 5), cluster=50, relative=relative)
    assert_close(out, oracle.dense_window(x["q"], x["k"], x["v"], window=50), **EXACT)


def test_what_rounding_leaves_of_the_kernel_counts_as_nothing():
    """In float32 it is of either sign, and by the scale of these weights far more than all exact ones."""
    x = inputs(n=64, f=40, dtype=torch.float32)
    x["log_scale"] = x["log_scale"] * 0 + 20
    out = cluster_kernel_attention(**x, hashes=torch.randn(2, 5), cluster=64)
    assert error(out, oracle.dense_window(x["q"], x["k"], x["v"], window=64).double()) < 1e-5


def planted(n=512, d=16):
    """Queries and keys of one size, key i the near duplicate of query p(i); and p."""
    q, where = torch.randn(1, 1, n, d).double(), torch.randperm(n)
    return q, q[:, :, where] + 0.1 * torch.randn(1, 1, n, d).double(), where


def test_near_duplicates_meet_more_often_than_chance():
    q, k, where = planted()
    cluster, found = 32, []
    for _ in range(10):
        placed = ranks(q, k, torch.randn(1, 18).double(), None)
        own, others = placed.queries[0, 0, 0][where] // cluster, placed.keys[0, 0, 0] // cluster
        found.append((own == others).double().mean())
    assert torch.stack(found).mean() > 3 * cluster / 512  # which is chance


def test_a_hash_shifted_is_the_same_hash():
    """Places count, not values: what is added to all hashes, as LSH with offsets does, changes nothing."""
    q, k, _ = planted(64)
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    hashes = torch.randn(3, 18).double()
    moved = hashes.clone()
    moved[:, -2:] = moved[:, -2:] + 5.0  # of vectors of one length, one number more for every query, and every key
    for one, other in zip(ranks(q, k, hashes, None), ranks(q, k, moved, None), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_truncation(left):
    x, hashes = inputs(b=2, n=30), torch.randn(3, 5).double()
    mask = torch.ones(2, 30, dtype=torch.bool)
    real = slice(11, 30) if left else slice(0, 19)
    mask[1] = False
    mask[1, real] = True
    alone = cluster_kernel_attention(**{name: y[1:, :, real] for name, y in x.items()}, hashes=hashes, cluster=4)
    for name in ("k", "v", "fk", "q"):
        x[name][1].masked_fill_(~mask[1, :, None], 1e9 if name == "q" else torch.nan)
    out = cluster_kernel_attention(**x, hashes=hashes, cluster=4, key_mask=mask)
    assert_close(out[1:, :, real], alone, rtol=1e-10, atol=1e-10)
    assert out.isfinite().all()


def test_a_row_without_keys_is_zero_and_has_finite_gradients():
    x, mask = {name: y.requires_grad_() for name, y in inputs(n=20).items()}, torch.ones(2, 20, dtype=torch.bool)
    mask[0] = False
    out = cluster_kernel_attention(**x, hashes=torch.randn(2, 5), cluster=4, key_mask=mask)
    out.sum().backward()
    assert (out[0] == 0).all() and all(y.grad.isfinite().all() for y in x.values())


@RELATIVE
@pytest.mark.parametrize("log_scale", [-1e4, 0.0, 1e4])
def test_weights_of_any_size(log_scale, relative):
    x, hashes = inputs(n=150, d=16), torch.randn(2, 18)
    x["q"], x["k"], x["log_scale"] = x["q"] * 25, x["k"] * 25, x["log_scale"] + log_scale
    exact = cluster_kernel_attention(**x, hashes=hashes, cluster=8, relative=relative)
    low = {name: y.float().requires_grad_() for name, y in x.items()}
    out = cluster_kernel_attention(**low, hashes=hashes, cluster=8, relative=relative)
    out.square().sum().backward()
    assert error(out.detach(), exact) < 1e-3 and all(y.grad.isfinite().all() for y in low.values())


def test_memory_grows_with_the_length_only():
    found = []
    for n in (1024, 2048):
        x = inputs(b=1, h=1, g=1, n=n, d=8, e=8, f=32, dtype=torch.float32)
        with Largest() as made:
            cluster_kernel_attention(**x, hashes=torch.randn(2, 10), cluster=32)
        found.append(made.numel)
    assert found[1] == 2 * found[0] == 2 * 2 * 1024 * 32


def test_no_tokens_or_rows():
    for empty in ("n", "b", "e"):
        x = inputs(**{"b": 2, "h": 4, "e": 5, "n": 7} | {empty: 0})
        out = cluster_kernel_attention(**x, hashes=torch.randn(2, 5), cluster=3)
        assert out.shape == (*x["q"].shape[:3], x["v"].shape[-1]) and out.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"cluster": 0}, r"cluster \(0\) must be at least 1"),
        ({}, {"hashes": torch.zeros(2, 3)}, rf"{HASHES} \(2, 3\)"),
        ({}, {"hashes": torch.zeros(0, 5)}, rf"{HASHES} \(0, 5\)"),
        ({"q": (2, 4, 8, 3), "fq": (2, 4, 8, 7), "log_scale": (2, 4, 8)}, {},
         r"clusters need as many keys \(9\) as queries \(8\)"),
        ({"fq": (2, 4, 8, 7)}, {}, r"fq must have the batch, heads and length of q \(2, 4, 9\), got \(2, 4, 8\)"),
    ],
    ids=["cluster", "hashes", "no hashes", "cross", "features"],
)  # fmt: skip
def test_refusals(change, options, message):
    x = inputs() | {name: torch.ones(shape) for name, shape in change.items()}
    with pytest.raises(ValueError, match=f"^{message}$"):
        cluster_kernel_attention(**x, **{"hashes": torch.randn(2, 5), "cluster": 3} | options)
