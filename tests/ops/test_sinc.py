"""Sums of log sinc^2 and of its slopes over a tile of pairs, by native code and by torch."""

import pytest
import torch
from torch.testing import assert_close

import tsla.ops.sinc
from tsla.native import available
from tsla.ops.sinc import log_sinc, slope_sums, softmax, tiles, waves


@pytest.fixture(params=["native", "torch"])
def form(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(tsla.ops.sinc, "available", lambda name: False)
    elif not available("sinc"):
        pytest.skip("no C++ compiler")


def waves_of(q, k, radius):
    """Of a tile of all pairs."""
    return waves(q, radius).queries(slice(q.shape[-1])), waves(k, radius).keys(k.shape[-1])


def plain(q, k, radius):
    """The sums by autograd's own formulas; no pair may be equal."""
    sinc = torch.sinc(radius[:, None, None] * (q[..., None] - k[:, :, None]) / torch.pi)
    return (sinc.square() + 1e-12).log().sum(1)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-6), (torch.float64, 2e-13)])
def test_a_slope_near_equal_queries_and_keys_is_exact(form, dtype, allowed):
    """Where x cos x and sin x cancel, and where the series ends; whatever the places of the two."""
    radius, ones = torch.full((1,), 0.75, dtype=dtype), torch.ones(1, 4201, 1, dtype=dtype)
    for place in (0.0, 37.3, -1e4):
        key = torch.full((1, 1, 1), place, dtype=dtype)
        at = key + torch.cat([torch.linspace(-2, 2, 4001), torch.logspace(-20, 0, 200)]).to(dtype)
        q, k = waves_of(at, key, radius)
        x = (at - key)[0, 0].double() * 0.75
        value = torch.sinc(x / torch.pi).square() + 1e-12
        other = torch.where(x.abs() < 0.03, 1.0, x)
        series = -2 * x / 3 - 2 * x**3 / 45 - 4 * x**5 / 945 - 2 * x**7 / 4725
        slope = torch.where(x.abs() < 0.03, series, 2 / other.tan() - 2 / other) * (1 - 1e-12 / value) * 0.75
        room = allowed * (max(1, abs(place)) if dtype == torch.float64 else 1)
        assert (slope_sums(q, k, radius, ones)[0][0, 0] - slope).abs().max() < room
        assert (log_sinc(q, k, radius)[0, :, 0] - value.log()).abs().max() < room


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e5, 1e10, 1e20])
def test_waves_are_exact_wherever_they_are(form, size):
    """Angles are made in float64: R x in float32 would be off by whole turns."""
    x, radius = torch.randn(2, 3, 50).transpose(1, 2) * size, torch.rand(50) + 0.3
    for made in (waves(x, radius), waves(x[:, :, 1:2], radius), waves(x[:1, :, :0], radius)):
        angle = made.x.double() * radius.double()[:, None]
        assert_close(made.sin, angle.sin().float(), rtol=0, atol=1.5e-7)
        assert_close(made.cos, angle.cos().float(), rtol=0, atol=1.5e-7)
    assert torch.equal(waves(x, radius).x, x)


# Keys around a vector's and a block's, queries around those that are taken at a time, channels odd and even.
@pytest.mark.parametrize(
    ("b", "d", "rows", "keys"),
    [(1, 1, 1, 1), (2, 3, 5, 7), (3, 2, 4, 16), (1, 8, 3, 511), (2, 5, 9, 512), (1, 4, 2, 1030), (2, 16, 6, 33)],
)
def test_tiles_of_any_shape(form, b, d, rows, keys):
    q, k = torch.rand(b, d, rows) - 2, torch.rand(b, d, keys)  # apart, and no further than the first zero of sinc
    radius, weight = torch.rand(d) * 0.2 + 0.6, torch.randn(b, rows, keys)
    exact = [x.double().requires_grad_() for x in (q, k, radius)]
    true = plain(*exact)
    waves = waves_of(q, k, radius)
    assert_close(log_sinc(*waves, radius), true.float(), rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad((true * weight).sum(), exact)
    for got, gradient in zip(slope_sums(*waves, radius, weight), expected, strict=True):
        assert_close(got, gradient.float(), rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


def test_tiles_are_parts_of_what_there_is(form):
    """Rows and keys that end before the tensors do."""
    q, k, radius, weight = torch.randn(2, 3, 20), torch.randn(2, 3, 50), torch.rand(3), torch.randn(2, 6, 40)
    part = waves(q, radius).queries(slice(7, 13)), waves(k, radius).keys(40)
    alone = waves_of(q[:, :, 7:13], k[:, :, :40], radius)
    assert torch.equal(log_sinc(*part, radius), log_sinc(*alone, radius))
    for one, two in zip(slope_sums(*part, radius, weight), slope_sums(*alone, radius, weight), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (3, 3), (4, 16), (5, 33), (2, 530)])
def test_shares_of_what_is_seen(form, rows, keys, causal):
    """Of keys that are masked, ahead or neither, at any size of logarithms; 0 where no key is seen."""
    logs, mask = -(torch.rand(3, rows, keys) * 60).square(), torch.rand(5, keys) < 0.6
    mask[1] = False
    hidden = torch.zeros(5, 1, keys).masked_fill_(~mask[:, None], -torch.inf)[:3]
    seen = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows if causal else keys)
    for added, real in ((None, seen.expand(3, -1, -1)), (hidden, seen & mask[:3, None])):
        exact = (1.5 * logs.double()).masked_fill(~real, -torch.inf).softmax(-1).masked_fill(~real, 0.0)
        got = softmax(logs.clone(), scale=1.5, hidden=added, causal=causal)
        assert_close(got, exact.float(), rtol=1e-5, atol=1e-27)
        assert (got[~real] == 0).all()


def test_a_share_that_is_not_finite_stays_visible(form):
    logs = -torch.rand(2, 3, 20)
    logs[1, 1, 4] = torch.nan
    broken = softmax(logs, scale=2.0, hidden=None, causal=False).isnan().all(-1)
    assert broken[1, 1] and broken.sum() == 1


def test_one_radius_serves_all_channels(form):
    q, k, weight = torch.randn(2, 5, 6), torch.randn(2, 5, 7), torch.randn(2, 6, 7)
    radius = torch.full((1,), 0.7).expand(5)
    waves = waves_of(q, k, radius)
    assert torch.equal(log_sinc(*waves, radius), log_sinc(*waves, radius.clone()))
    for one, two in zip(slope_sums(*waves, radius, weight), slope_sums(*waves, radius.clone(), weight), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_stays_visible(form, side, value):
    both = [torch.randn(1, 3, 6), torch.randn(1, 3, 20)]
    both[side][0, 1, 4] = value
    sums = log_sinc(*waves_of(*both, torch.ones(3)), torch.ones(3))[0]
    broken = sums[4] if side == 0 else sums[:, 4]
    assert broken.isnan().all() and sums.isnan().sum() == broken.numel()


def test_no_distance_is_too_far(form):
    """From where sinc^2 is nothing beside the floor on, in as many channels as may be."""
    d, radius = 70, torch.ones(70)
    for distance in (1e7, 1e9, 1e12, 1e18):
        q, k = waves_of(torch.zeros(1, d, 5), torch.full((1, d, 20), distance), radius)
        sums, slopes = log_sinc(q, k, radius), slope_sums(q, k, radius, torch.ones(1, 5, 20))
        assert_close(sums, torch.full((1, 5, 20), d * torch.tensor(1e-12).log().item()), rtol=1e-3, atol=0)
        assert all(x.isfinite().all() for x in slopes) and all(x.abs().max() < 1 for x in slopes[:2])


def test_threads_change_nothing(form):
    q, k, radius, weight = torch.randn(3, 4, 30), torch.randn(3, 4, 1100), torch.rand(4), torch.randn(3, 30, 1100)
    waves, found, before = waves_of(q, k, radius), [], torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(log_sinc(*waves, radius))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)
    again = [slope_sums(*waves, radius, weight) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*again, strict=True))


def test_tiles_are_all_pairs_that_are_seen():
    for b, n, m, causal, numel in (
        (3, 10, 10, True, 40),
        (3, 10, 17, True, 1),
        (4, 6, 9, False, 120),
        (2, 0, 5, False, 9),
    ):
        seen = torch.zeros(b, n, m, dtype=torch.long)
        for tile in tiles(b, n, m, causal=causal, numel=numel):
            seen[tile.heads, tile.rows, : tile.keys] += 1
            assert seen[tile.heads, tile.rows, : tile.keys].numel() <= max(numel, m)
        needed = torch.ones_like(seen).tril(m - n) if causal else torch.ones_like(seen)
        assert (seen >= needed).all() and (seen <= 1).all()
