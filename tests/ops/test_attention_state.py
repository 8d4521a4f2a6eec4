"""States: cutting a sequence anywhere and going on, step by step, changes nothing; nor does using a state twice."""

import copy
import pickle
from itertools import pairwise

import oracle
import pytest
import torch
from cases import close, flat, qkv, results, some_decay, some_mask
from torch.testing import assert_close

from tsla.ops import KernelState, linear_attention, taylor_attention, taylor_feature_dim

EXACT = {"rtol": 1e-11, "atol": 1e-11}
RUNS = {
    "direct": lambda **x: taylor_attention(**x, impl="direct"),
    "linear": lambda **x: taylor_attention(**x, impl="linear", chunk_size=4),
    "auto, order 4": lambda **x: taylor_attention(**x, order=4),
    "centre": lambda **x: taylor_attention(**x, center="mean", impl="linear", chunk_size=4),
    "centre, direct, coefficients": lambda **x: taylor_attention(
        **x, center="mean", coefficients=(1, 0.5, 0.3), impl="direct"
    ),
    "features": lambda q, k, v, **x: linear_attention(q, k, v, **x, eps=99, chunk_size=4),
    "floor": lambda q, k, v, **x: linear_attention(q, k, v, **x, floor=0.5, impl="linear", chunk_size=2),
    "sums": lambda q, k, v, **x: linear_attention(q, k, v, **x, normalize=False, impl="direct"),
}
runs = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


def pieces(run, cuts, x, mask=None):
    """Causal outputs of the pieces between the cuts, joined, and the last state."""
    outputs, state = [], None
    for start, stop in pairwise(cuts):
        part = {name: tensor[:, :, start:stop] for name, tensor in x.items()}
        some = None if mask is None else mask[:, start:stop]
        out, state = run(**part, causal=True, key_mask=some, state=state)
        outputs.append(out)
    return torch.cat(outputs, dim=2), state


@runs
@pytest.mark.parametrize("decayed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_split_and_resume_at_every_position(run, masked, decayed):
    x = qkv(n=9) | ({"log_decay": some_decay(2, 4, 9)} if decayed else {})
    mask = some_mask(2, 9) if masked else None
    whole = results(lambda **y: run(**y, causal=True, key_mask=mask), x)
    for cut in range(10):
        parts = results(lambda cut=cut, **y: pieces(run, (0, cut, 9), y, mask), x)
        for got, expected in zip(parts, whole, strict=True):
            close(got, expected, 1e-10)


@runs
@pytest.mark.parametrize("decayed", [False, True])
def test_prefill_and_steps_are_the_full_pass(run, decayed):
    x = qkv(n=12) | ({"log_decay": some_decay(2, 4, 12)} if decayed else {})
    mask = some_mask(2, 12)
    whole = results(lambda **y: run(**y, causal=True, key_mask=mask), x)
    for first in (0, 5):
        cuts = (0, *range(first, 13)) if first else range(13)
        parts = results(lambda cuts=cuts, **y: pieces(run, cuts, y, mask), x)
        for got, expected in zip(parts, whole, strict=True):
            close(got, expected, 1e-10)


@runs
def test_decay_per_head_lasts_across_calls(run):
    x, rates = qkv(n=9), some_decay(4)
    whole, end = run(**x, causal=True, log_decay=rates)
    first = run(**{name: tensor[:, :, :4] for name, tensor in x.items()}, causal=True, log_decay=rates)
    rest = run(
        **{name: tensor[:, :, 4:] for name, tensor in x.items()}, causal=True, log_decay=rates, state=first.state
    )
    assert_close(torch.cat([first.output, rest.output], dim=2), whole, **EXACT)
    for a, b in zip(rest.state, end, strict=True):
        assert_close(a, b, **EXACT)


def test_state_is_the_sum_of_features():
    x, mask, rates = qkv(n=9), some_mask(2, 9), some_decay(4)
    state = taylor_attention(**x, causal=True, key_mask=mask).state
    kv, z = oracle.state(x["k"], x["v"], key_mask=mask)
    assert_close(state.kv, kv, **EXACT)
    assert_close(state.z, z, **EXACT)
    decayed = taylor_attention(**x, causal=True, key_mask=mask, log_decay=rates).state
    assert_close(decayed.kv, oracle.state(x["k"], x["v"], heads=4, key_mask=mask, log_decay=rates)[0], **EXACT)


@runs
def test_length_counts_visible_keys(run):
    x, mask = qkv(n=9), some_mask(2, 9)
    state = run(**x, causal=True, key_mask=mask).state
    assert torch.equal(state.length, mask.sum(-1)) and state.length.dtype == torch.int64
    again = run(**x, causal=True, state=state).state
    assert torch.equal(again.length, mask.sum(-1) + 9)
    none = run(**qkv(n=0), causal=True, state=state).state
    assert torch.equal(none.length, state.length)


@runs
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("asked", [None, False, True])
def test_state_is_returned_when_asked_for(run, asked, causal):
    state = run(**qkv(n=9), causal=causal, return_state=asked).state
    assert (state is not None) == (causal if asked is None else asked)


def test_state_does_not_grow_and_has_the_documented_shape():
    shapes = {"kv": (2, 2, 10, 5), "z": (2, 2, 10), "length": (2,)}
    for n in (1, 500):
        state = taylor_attention(**qkv(n=n), causal=True).state
        assert {name: tuple(x.shape) for name, x in state._asdict().items()} == shapes
        assert max(x.untyped_storage().nbytes() for x in state) <= 2 * 2 * 10 * 6 * 8  # no view of something longer
    assert taylor_feature_dim(3) == 10
    decayed = taylor_attention(**qkv(n=3), causal=True, log_decay=some_decay(4)).state
    assert decayed.kv.shape == (2, 4, 10, 5)


@runs
def test_a_bidirectional_state_joins_two_sets_of_keys(run):
    x, more = qkv(n=5, m=9), qkv(n=5, m=6)
    first = run(**x, return_state=True).state
    got = run(**more | {"q": x["q"]}, state=first, return_state=True)
    both = {name: torch.cat([x[name], more[name]], dim=2) for name in "kv"}
    expected = run(**both | {"q": x["q"]}, return_state=True)
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert_close(a, b, **EXACT)


@runs
def test_a_state_can_be_used_twice(run):
    """Two continuations of one prefix, and the gradients of both together."""
    x, one, two = qkv(n=6), qkv(n=3), qkv(n=4)
    named = {f"{name}{i}": tensor for i, part in enumerate((x, one, two)) for name, tensor in part.items()}

    def shared(**y):
        split = [{name: y[f"{name}{i}"] for name in "qkv"} for i in range(3)]
        state = run(**split[0], causal=True).state
        return [run(**part, causal=True, state=state).output for part in split[1:]]

    def apart(**y):
        split = [{name: y[f"{name}{i}"] for name in "qkv"} for i in range(3)]
        joined = [{name: torch.cat([split[0][name], part[name]], dim=2) for name in "qkv"} for part in split[1:]]
        return [run(**part, causal=True).output[:, :, 6:] for part in joined]

    for got, expected in zip(results(shared, named), results(apart, named), strict=True):
        close(got, expected, 1e-10)


@runs
def test_the_given_state_is_not_the_returned_one(run):
    state = run(**qkv(n=3), causal=True).state
    for n in (0, 2):
        after = run(**qkv(n=n), causal=True, state=state).state
        assert all(a.data_ptr() != b.data_ptr() for a, b in zip(after[:2], state[:2], strict=True))


def test_state_survives_copy_and_pickle():
    state = taylor_attention(**qkv(n=3), causal=True).state
    for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert isinstance(twin, KernelState)
        assert all(torch.equal(a, b) for a, b in zip(twin, state, strict=True))


@pytest.mark.parametrize("steps", [5_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("decay", [None, -0.001])
def test_long_decoding_does_not_drift(steps, decay):
    """Steps of one token, in float32, against chunks in float64."""
    x = qkv(b=1, h=1, g=1, n=steps, d=3, e=2, dtype=torch.float32)
    rates = {} if decay is None else {"log_decay": torch.tensor([decay])}
    state, outputs = None, []
    with torch.no_grad():
        for i in range(steps):
            part = (tensor[:, :, i : i + 1] for tensor in x.values())
            out, state = taylor_attention(*part, causal=True, state=state, **rates)
            outputs.append(out)
        doubles = {name: tensor.double() for name, tensor in x.items()}
        expected, end = taylor_attention(**doubles, causal=True, **rates)
    assert_close(torch.cat(outputs, dim=2).double(), expected, rtol=1e-4, atol=1e-4)
    assert_close(state.kv.double() / steps, end.kv / steps, rtol=1e-4, atol=1e-4)
    assert state.length.item() == steps
