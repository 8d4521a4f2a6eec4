"""The oracle of the other tests: its loops by hand, its matrices against its loops."""

import math

import oracle
import pytest
import torch
from cases import agree, qkv, some_decay, some_mask


def test_weight_is_the_taylor_polynomial():
    s = torch.tensor(0.1, dtype=torch.float64)
    assert oracle.taylor(s, 0).item() == 1
    assert oracle.taylor(s, 2).item() == pytest.approx(1.105)
    assert oracle.taylor(s, 4).item() == pytest.approx(1.1051708333333)
    assert oracle.taylor(s, 20).item() == pytest.approx(math.exp(0.1), abs=1e-15)
    assert oracle.taylor(s, None) is s


def test_features_of_a_vector_by_hand():
    x = torch.tensor([2.0, 3.0], dtype=torch.float64)
    root = 2**-0.5
    expected = [1, 2, 3, 4 * root, 6, 9 * root, 8 / 6**0.5, 12 * root, 18 * root, 27 / 6**0.5]
    assert oracle.features(x, 3).tolist() == pytest.approx(expected)


def test_decay_skips_masked_tokens():
    rates = torch.tensor([-1.0, -2.0, -4.0, -8.0], dtype=torch.float64)[None, None]
    mask = torch.tensor([[True, False, True, True]])
    assert oracle.decay(rates, None, 0, 0, 3, 0).log().item() == pytest.approx(-14)
    assert oracle.decay(rates, mask, 0, 0, 0, 3).log().item() == pytest.approx(-12)
    assert oracle.decay(rates[0, :, 3], None, 0, 0, 1, 3).log().item() == pytest.approx(-16)
    assert oracle.decay(None, mask, 0, 0, 3, 0) == 1


def test_loops_of_one_pair_by_hand():
    q, k, v = (torch.tensor([[x]], dtype=torch.float64) for x in ([[1.0, 1]], [[1.0, 0], [2.0, 1]], [[3.0], [5.0]]))
    # scores 1 and 3 (scale 1): weights 2.5 and 8.5
    assert oracle.attention(q, k, v, scale=1).item() == pytest.approx((2.5 * 3 + 8.5 * 5) / 11)
    assert oracle.attention(q, k, v, scale=1, normalize=False).item() == pytest.approx(2.5 * 3 + 8.5 * 5)
    assert oracle.attention(q, k, v, scale=1, eps=1.0).item() == pytest.approx((2.5 * 3 + 8.5 * 5) / 12)
    for sign in (1, -1):  # features: weights 1 and 3, or -1 and -3
        options = {"order": None, "floor": 5.0}
        assert oracle.attention(sign * q, k, v, **options).item() == pytest.approx(sign * (3 + 3 * 5) / (sign * 5))
        assert oracle.attention(sign * q, k, v, **options | {"floor": 3.0}).item() == pytest.approx(18 / 4)
    mask = torch.tensor([[True, False]])
    assert oracle.attention(q, k, v, scale=1, key_mask=mask).item() == 3
    kv, z = oracle.state(k, v, order=0, log_decay=torch.tensor([-1.0], dtype=torch.float64))
    assert (kv.item(), z.item()) == pytest.approx((3 / math.e + 5, 1 / math.e + 1))


CASES = {
    "plain": {},
    "causal": {"causal": True},
    "order 4": {"order": 4, "scale": 0.3},
    "coefficients": {"coefficients": (2.0, -1.0, 0.7), "normalize": False},
    "centre": {"center": "mean", "causal": True},
    "centre, order 4": {"center": "mean", "order": 4},
    "features": {"order": None, "normalize": False},
    "features, eps": {"order": None, "eps": 0.5, "causal": True},
    "features, floor": {"order": None, "eps": 0.1, "floor": 0.7, "causal": True},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("rates", [None, (4,), (3, 4, 6)], ids=["no decay", "per head", "per token"])
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "mask"])
def test_matrices_equal_loops(options, rates, masked):
    inputs = qkv(b=3, n=6) | ({"log_decay": some_decay(*rates)} if rates else {})
    mask = some_mask(3, 6) if masked else None

    def loops(q, k, v, log_decay=None):
        options_of_state = {"order": options.get("order", 2), "key_mask": mask, "log_decay": log_decay}
        sums = oracle.state(k, v, heads=4 if rates else 2, **options_of_state)
        return oracle.attention(q, k, v, key_mask=mask, log_decay=log_decay, **options), *sums

    agree(lambda **x: oracle.dense(**x, key_mask=mask, **options), loops, inputs)


@pytest.mark.parametrize(
    "options",
    [{}, {"center": "mean", "order": 4}, {"center": "mean", "coefficients": (2.0, -1.0, 0.7), "normalize": False}],
    ids=str,
)
@pytest.mark.parametrize("rates", [None, (4,), (2, 4, 7)], ids=["no decay", "per head", "per token"])
def test_continuing_from_sums_equals_loops_over_all_keys(rates, options):
    inputs = qkv(n=7) | ({"log_decay": some_decay(*rates)} if rates else {})
    mask = some_mask(2, 7)
    heads, order = 4 if rates else 2, options.get("order", 2)

    def resumed(q, k, v, log_decay=None):
        early, late = (log_decay, log_decay) if rates is None or len(rates) == 1 else log_decay.split([3, 4], dim=-1)
        start = oracle.state(k[:, :, :3], v[:, :, :3], order=order, heads=heads, key_mask=mask[:, :3], log_decay=early)
        rest = {"key_mask": mask[:, 3:], "log_decay": late, "causal": True, "start": start, **options}
        return oracle.dense(q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], **rest)

    def whole(q, k, v, log_decay=None):
        out = oracle.attention(q[:, :, 3:], k, v, key_mask=mask, log_decay=log_decay, causal=True, **options)
        return out, *oracle.state(k, v, order=order, heads=heads, key_mask=mask, log_decay=log_decay)

    agree(resumed, whole, inputs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 2, 9])
def test_window_matrix_equals_loops(window, causal):
    mask = some_mask(3, 6)
    options = {"window": window, "causal": causal, "key_mask": mask}
    agree(lambda **x: oracle.dense_window(**x, **options), lambda **x: oracle.window(**x, **options), qkv(b=3, n=6))
