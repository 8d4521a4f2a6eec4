"""Parity with taylor-series-linear-attention 0.2.0, weights shared, in float64.

Its conventions: the denominator is clamped at 1e-5, which order 2 never meets (it is at least half the number of keys);
the gate has no bias and sees the token before its prenorm; a prenorm is x / |x| sqrt(dim), and leaves the context as it
is. Its causal product is C++ that pip does not have, so a stub of two lines stands in.
"""

import sys

import pytest
import torch
from mechanisms import padding
from peers import causal_product
from torch.nn.functional import rms_norm

from tsla.mixers import ChannelFirst, TaylorAttention

DIM, EXACT = 32, {"rtol": 1e-10, "atol": 1e-10}
OPTIONS = {
    "plain": ({}, {}),
    "packed": ({"remove_even_power_dups": True}, {}),
    "one key head": ({"one_headed_kv": True}, {"kv_heads": 1}),
    "gate": ({"gate_value_heads": True}, {"gate": True}),
    "heads apart": ({"combine_heads": False}, {"output_projection": False}),
    "rotary": ({"rotary_emb": True}, {"rotary": True}),
    "all": (
        {"one_headed_kv": True, "gate_value_heads": True, "rotary_emb": True, "remove_even_power_dups": True},
        {"kv_heads": 1, "gate": True, "rotary": True},
    ),
}


@pytest.fixture
def pair(request):
    """The package's layer and ours, with one set of weights."""
    theirs_options, ours_options = OPTIONS[request.param[0]]
    causal = request.param[1]
    package = pytest.importorskip("taylor_series_linear_attention")
    with causal_product():
        theirs = package.TaylorSeriesLinearAttn(DIM, dim_head=8, heads=4, causal=causal, **theirs_options).double()
    ours = TaylorAttention(DIM, heads=4, head_dim=8, value_dim=8, causal=causal, **ours_options).double()
    keys, values = theirs.to_kv[0].weight.data.chunk(2)
    weights = {"to_q.weight": theirs.to_q[0].weight.data, "to_k.weight": keys, "to_v.weight": values}
    if "output_projection" not in ours_options:
        weights["to_out.weight"] = theirs.to_out[0].weight.data
    if "gate" in ours_options:
        weights |= {"to_gate.weight": theirs.to_v_gates[0].weight.data, "to_gate.bias": torch.zeros(4).double()}
    if "rotary" in ours_options:  # made in float32
        theirs.rotary_emb.freqs.data = 10_000 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    ours.load_state_dict(weights)
    return theirs, ours


def pairs(*names, causal=False):
    return pytest.mark.parametrize("pair", [(name, causal) for name in names or OPTIONS], indirect=True, ids=str)


def tokens(b=3, n=40):
    return torch.randn(b, n, DIM, dtype=torch.float64)


@pairs()
def test_plain(pair):
    theirs, ours = pair
    for n in (1, 40, 300):
        x = tokens(n=n)
        torch.testing.assert_close(ours(x), theirs(x), **EXACT)


@pairs()
def test_gradients(pair):
    theirs, ours = pair
    x = tokens().requires_grad_()
    weights = torch.randn(ours(x).shape, dtype=torch.float64)
    ours_grad, theirs_grad = (torch.autograd.grad((layer(x) * weights).sum(), x)[0] for layer in (ours, theirs))
    torch.testing.assert_close(ours_grad, theirs_grad, **EXACT)


@pairs(*(name for name in OPTIONS if name not in ("rotary", "all")))
def test_masks(pair):
    """Not with rotary: we count real tokens, the package counts places."""
    theirs, ours = pair
    x = tokens()
    for mask in (padding(40, 23, 1, total=40), padding(40, 0, 7, total=40, left=True), torch.rand(3, 40) < 0.5):
        torch.testing.assert_close(ours(x, mask=mask), theirs(x, mask=mask), **EXACT)


@pairs("rotary", "all")
def test_masks_with_rotary(pair):
    """Padding on the right leaves the places as they are."""
    theirs, ours = pair
    x, mask = tokens(), padding(40, 23, 1, total=40)
    torch.testing.assert_close(ours(x, mask=mask)[mask], theirs(x, mask=mask)[mask], **EXACT)


@pairs(*(name for name in OPTIONS if name not in ("rotary", "all")))
@pytest.mark.parametrize("m", [7, 40, 100])
def test_cross_attention(pair, m):
    theirs, ours = pair
    x, context, mask = tokens(), tokens(n=m), padding(m, 5, 0, total=m)
    torch.testing.assert_close(ours(x, context), theirs(x, context=context), **EXACT)
    torch.testing.assert_close(ours(x, context, mask=mask), theirs(x, context=context, mask=mask), **EXACT)


@pairs("plain", "one key head")
def test_prenorm(pair):
    """A norm of the model's, before ours, is the package's own; its context goes un-normed."""
    theirs, ours = pair
    norm = sys.modules["taylor_series_linear_attention.attention"].RMSNorm(DIM).double()
    torch.nn.init.normal_(norm.gamma)
    theirs.norm = norm
    x, context = tokens(), tokens(n=9)
    normed = rms_norm(x, (DIM,), norm.gamma, eps=0.0)
    torch.testing.assert_close(ours(normed), theirs(x), **EXACT)
    torch.testing.assert_close(ours(normed, context), theirs(x, context=context), **EXACT)


@pairs()
def test_channels_first(pair):
    """Images, volumes and series; the package's wrapper takes no mask."""
    theirs, ours = pair
    wrapper = sys.modules["taylor_series_linear_attention"].ChannelFirstTaylorSeriesLinearAttn(DIM).double()
    wrapper.attn = theirs
    for space in ((40,), (5, 8), (2, 3, 4)):
        x = torch.randn(2, DIM, *space, dtype=torch.float64)
        torch.testing.assert_close(ChannelFirst(ours)(x), wrapper(x), **EXACT)


@pairs(causal=True)
def test_causal(pair):
    theirs, ours = pair
    for n in (1, 40, 300):
        x = tokens(n=n)
        torch.testing.assert_close(ours(x), theirs(x), **EXACT)


@pairs(causal=True)
def test_decoding(pair):
    """Prefill and steps, outputs and states; packed features are the same up to their order."""
    theirs, ours = pair
    x, state, cache = tokens(n=12), None, None
    for start, stop in ((0, 5), *((i, i + 1) for i in range(5, 12))):
        out, state = ours.extend(x[:, start:stop], state)
        expected, cache = theirs(x[:, start:stop], cache=cache, return_cache=True)
        torch.testing.assert_close(out, expected, **EXACT)
    assert cache.seq_len == 12 and (state.length == 12).all()
    heads = slice(0, ours.kv_heads)  # the package repeats a shared head
    sums = cache.kv_cumsum[:, heads]
    torch.testing.assert_close(state.kv[:, :, :9], sums[:, :, :9], **EXACT)  # 1, x
    if sums.shape[2] == 45:  # packed: 1, x, then squares before products
        torch.testing.assert_close(state.kv.sort(dim=2).values, sums.sort(dim=2).values, **EXACT)
