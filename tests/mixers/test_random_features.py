"""Random features in the mean over draws: what they estimate, and how their rows are spread.

Means are compared within three standard errors. Every test starts from the same seed, so that none fails by chance: the
largest deviation among the 40 entries of rows is 2.8, elsewhere 2.3, and where a trap is shown the least is 89.
"""

import math

import pytest
import torch

from tsla.mixers.performer import FavorFeatures, orthogonal_rows
from tsla.mixers.rfa import RandomFeatures

D, PAIRS, DRAWS = 8, 6, 3000


def some(count=PAIRS, length=1.7):
    """Queries or keys of this length, ``(1, 1, count, D)``."""
    x = torch.randn(1, 1, count, D, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True) * length


def estimates(made, q, k, draws=DRAWS):
    """phi(q).phi(k) of each pair and draw, ``(draws, pairs)``; queries are not divided by their largest feature."""
    generator, found = torch.Generator().manual_seed(7), []
    for _ in range(draws):
        made.resample(generator)
        fq, fk = (unscaled(made, x) for x in (q, k))
        found.append((fq * fk).sum(-1).flatten())
    return torch.stack(found)


def unscaled(made, x):
    """Features of keys without the number that all of them are multiplied by."""
    features = made(x, is_query=False)
    return features / made.shift().double().exp() if isinstance(made, FavorFeatures) else features


def deviation(found, expected):
    """Largest distance of a mean over draws from what is expected, in standard errors."""
    error = found.std(0) / len(found) ** 0.5
    return ((found.mean(0) - expected).abs() / error).max().item()


def softmax_weight(q, k):
    return ((q * k).sum(-1) / D**0.5).exp().flatten()


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_favor_is_softmax_in_the_mean(kind):
    made, q, k = FavorFeatures(D, features=20, kind=kind), some(), some()
    k[..., 0, :] = q[..., 0, :]  # a weight of 2.8
    assert deviation(estimates(made, q, k), softmax_weight(q, k)) < 3


def test_other_rows_for_queries_than_for_keys_estimate_nothing():
    """The trap: every weight is then 1 in the mean, whatever the query and the key."""
    q, found = some(), []
    one, other = FavorFeatures(D, features=20), FavorFeatures(D, features=20)
    for _ in range(DRAWS):
        one.resample()
        other.resample()
        found.append((unscaled(one, q) * unscaled(other, q)).sum(-1).flatten())
    assert deviation(torch.stack(found), torch.ones(PAIRS)) < 3
    assert deviation(torch.stack(found), softmax_weight(q, q)) > 50


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_one_radius_for_all_rows_varies_less_and_is_biased(kind):
    q, fixed, drawn = (
        some(length=3.0),
        *(FavorFeatures(D, features=8, kind=kind, scaling=s) for s in ("fixed", "random")),
    )
    narrow, wide = estimates(fixed, q, q), estimates(drawn, q, q)
    assert (narrow.var(0) < wide.var(0) / 2).all()
    assert deviation(narrow, softmax_weight(q, q)) > 50 and (narrow.mean(0) < softmax_weight(q, q)).all()


def test_hyperbolic_features_vary_less_than_as_many_positive_ones():
    q, k = some(), some()
    positive, hyperbolic = (
        estimates(FavorFeatures(D, features=16, kind=kind), q, k).var(0) for kind in ("positive", "hyperbolic")
    )
    assert (hyperbolic < positive).all()


@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "relu"])
def test_features_of_a_query_are_those_of_a_key_but_for_a_factor_of_its_own(kind):
    made, q = FavorFeatures(D, features=20, kind=kind), some(count=50, length=6.0)
    ratio = made(q, is_query=True) / made(q, is_query=False)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), rtol=1e-10, atol=0)
    assert kind == "relu" or ratio[0, 0, :, 0].std() > 0


def test_gaussian_features_are_a_gaussian_in_the_mean():
    made, q, k = RandomFeatures(1, D, features=24), some(), some()
    torch.nn.init.normal_(made.sigma, mean=1.0, std=0.3)
    unit_q, unit_k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    expected = (-((unit_q - unit_k) * made.sigma).square().sum(-1) / 2).exp().flatten()
    with torch.no_grad():
        assert deviation(estimates(made, q, k), expected) < 3


def test_arccos_features_are_the_kernel_of_the_angle_in_the_mean():
    made, q, k = RandomFeatures(1, D, features=24, kind="arccos"), some(), some()
    torch.nn.init.normal_(made.sigma, mean=1.0, std=0.3)
    a, b = (x / x.norm(dim=-1, keepdim=True) * made.sigma for x in (q, k))
    sizes = a.norm(dim=-1) * b.norm(dim=-1)
    angle = ((a * b).sum(-1) / sizes).acos()
    expected = (sizes * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)).flatten()
    with torch.no_grad():
        assert deviation(estimates(made, q, k), expected.detach()) < 3


def draws_of_rows(scaling="random"):
    return torch.stack([orthogonal_rows(10, 4, scaling=scaling).double() for _ in range(DRAWS)])


def test_rows_are_orthogonal_in_blocks_and_of_the_length_that_is_asked_for():
    for scaling in ("random", "fixed"):
        rows = draws_of_rows(scaling)
        for start in (0, 4, 8):
            block = rows[:, start : start + 4]
            products = block @ block.mT
            products.diagonal(dim1=-2, dim2=-1).zero_()
            assert products.abs().max() < 1e-4
        squares = rows.square().sum(-1)
        if scaling == "fixed":
            torch.testing.assert_close(squares, torch.full_like(squares, 4.0), rtol=1e-5, atol=0)
        else:  # chi-squared with as many degrees of freedom as there are columns
            assert deviation(squares, 4.0) < 3 and deviation((squares - 4) ** 2, 8.0) < 3
            assert abs(torch.corrcoef(squares.T)).fill_diagonal_(0).max() < 0.1


def moments(directions):
    """Largest deviations of the means of all entries from 0, and of their squares from 1 / width."""
    return deviation(directions.flatten(1), 0.0), deviation(directions.flatten(1).square(), 1 / 4)


def test_directions_are_uniform():
    means, squares = moments(draws_of_rows("fixed") / 2)
    assert means < 3 and squares < 3


def test_directions_straight_from_a_qr_are_not_uniform():
    """The trap: of each block's first direction, the first entry has always the same sign."""
    raw = torch.stack([torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0].T for _ in range(DRAWS)])
    assert moments(raw)[0] > 50
    assert raw[:, 0, 0].sign().unique().numel() == 1
    assert draws_of_rows()[:, 0, 0].sign().unique().numel() == 2
