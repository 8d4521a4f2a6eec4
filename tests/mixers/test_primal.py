"""Primal-Attention: its loss, what its weights are made of, and what options go with which direction."""

import math
import re

import low_rank_oracle
import pytest
import torch
from cases import agree
from mechanisms import DIM, build, padding
from torch.testing import assert_close

from tsla.build_mixer import Place, build_mixer, named_mixer
from tsla.config.mixers import PrimalConfig, SoftmaxConfig
from tsla.config.schema import EncoderConfig
from tsla.mixers import NoMixer, PrimalAttention
from tsla.models import Encoder, SequenceClassifier
from tsla.ops.norm import unit
from tsla.training.optim import OptimSettings, make_optimizer

KINDS = pytest.mark.parametrize(
    ("name", "causal"), [(name, causal) for name in ("primal", "primal, few") for causal in (False, True)]
)
BOTH_WAYS = pytest.mark.parametrize("causal", [False, True])
BOUNDS = torch.tensor([0, 5, 5, 6, 18, 25])


def refused(message):
    """The whole message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def tokens(n=11, b=3):
    return torch.randn(b, n, DIM, dtype=torch.float64)


def some_masks():
    holes = torch.rand(3, 11) < 0.6
    holes[0] = False
    return padding(11, 7, 1, total=11), padding(11, 7, 1, total=11, left=True), holes


# The loss -------------------------------------------------------------------------------------------------------------


@KINDS
def test_the_loss_is_the_weighted_square_of_the_objective(name, causal):
    mixer, x = build(name, causal=causal, ksvd=0.3), tokens()
    for mask in (None, *some_masks()):
        expected = 0.3 * low_rank_oracle.primal_objective(mixer, x, mask) ** 2
        assert_close(mixer.mix(x, mask=mask).aux, expected, rtol=1e-9, atol=1e-9)


@KINDS
def test_its_gradients(name, causal):
    mixer, mask = build(name, causal=causal, ksvd=0.3), padding(11, 7, 4, total=11)
    agree(
        lambda x: mixer.mix(x, mask=mask).aux, lambda x: 0.3 * low_rank_oracle.primal_objective(mixer, x, mask) ** 2,
        {"x": tokens()}, 1e-8,
    )  # fmt: skip


@KINDS
def test_padding_does_not_change_it(name, causal):
    mixer, x = build(name, causal=causal), tokens()
    whole = mixer.mix(x[:, :7]).aux
    for left in (False, True):
        mask = padding(7, 7, 7, 0, total=11, left=left)
        padded = torch.full((4, 11, DIM), torch.nan).double()
        padded[mask] = x[:, :7].reshape(-1, DIM)
        assert_close(mixer.mix(padded, mask=mask).aux, whole, rtol=1e-9, atol=1e-9)  # nor does a row without tokens


@KINDS
def test_of_packed_sequences_it_is_that_of_as_many_rows(name, causal):
    """An empty one, and one whose tokens are all masked, do not count."""
    mixer, x, mask = build(name, causal=causal), tokens(25, 1), torch.ones(1, 25, dtype=torch.bool)
    mask[0, 5], mask[0, 9:14] = False, False
    rows, real = torch.zeros(3, 12, DIM).double(), torch.zeros(3, 12, dtype=torch.bool)
    for row, (start, stop) in enumerate(((0, 5), (6, 18), (18, 25))):
        rows[row, : stop - start], real[row, : stop - start] = x[0, start:stop], mask[0, start:stop]
    got = mixer.mix(x, mask=mask, cu_seqlens=BOUNDS).aux
    assert_close(got, mixer.mix(rows, mask=real).aux, rtol=1e-9, atol=1e-9)


@BOTH_WAYS
def test_nothing_to_lose(causal):
    mixer, x = build("primal", causal=causal), tokens().requires_grad_()
    out, _, aux = mixer.mix(x, mask=torch.zeros(3, 11, dtype=torch.bool))
    assert (out == 0).all() and aux == 0
    (out.sum() + aux).backward()
    for gradient in (x.grad, *(parameter.grad for parameter in mixer.parameters())):
        assert (gradient == 0).all()
    mixer.zero_grad()
    out, _, aux = mixer.mix(torch.full((3, 11, DIM), torch.nan).double(), mask=torch.zeros(3, 11, dtype=torch.bool))
    (out.sum() + aux).backward()  # nor do the weights learn of what stands there
    assert all((parameter.grad == 0).all() for parameter in mixer.parameters())
    assert mixer.mix(tokens(0)).aux == 0 == mixer.mix(tokens(11, 0)).aux
    assert mixer.mix(tokens(0, 1), cu_seqlens=torch.tensor([0, 0])).aux == 0


@BOTH_WAYS
def test_without_a_weight_there_is_none(causal):
    mixer, x = build("primal", causal=causal, ksvd=0.0), tokens()
    assert mixer.mix(x).aux is None and mixer.scale is None
    other = build("primal", causal=causal)
    other.load_state_dict({**mixer.state_dict(), "scale": other.scale})
    assert torch.equal(other(x), mixer(x)) and torch.equal(other.mix(x).aux, other.train().mix(x).aux)


def test_it_is_0_where_the_weights_are_singular_vectors():
    """Of the kernel of the running means; their order by L^2 = n / sigma."""
    mixer, x = build("primal", causal=True), tokens(b=1)
    d, s = DIM // 4, 3
    q, k = (unit(layer(x).unflatten(-1, (4, d)).transpose(1, 2).cumsum(2))[0] for layer in (mixer.to_q, mixer.to_k))
    u, sigma, v = torch.linalg.svd(q @ k.mT)
    u, sigma, v = u[..., :s], sigma[..., :s], v.mT[..., :s]
    before = mixer.mix(x).aux
    with torch.no_grad():
        mixer.to_e.copy_(k.mT @ v / sigma[:, None])
        mixer.to_r.copy_(q.mT @ u / sigma[:, None])
        mixer.scale.copy_((11 / sigma).sqrt())
    assert mixer.mix(x).aux < 1e-24 < 1e-6 < before


def test_learning_it_alone_brings_the_scores_to_singular_vectors():
    """Data-dependent, on one input: |J| falls to next to nothing."""
    mixer, x = build("primal", trace="weights", ksvd=1.0), tokens(b=1)
    learnt = torch.optim.Adam([mixer.to_e, mixer.to_r, mixer.scale], lr=0.01)
    first = mixer.mix(x).aux.item()
    for _ in range(200):
        learnt.zero_grad()
        mixer.mix(x).aux.backward()
        learnt.step()
    assert mixer.mix(x).aux < 1e-4 * first


def test_a_model_has_the_mean_over_its_layers():
    def built(names, **options):
        model = EncoderConfig(dim=DIM, depth=5, layers=names)
        return [build_mixer(PrimalConfig(heads=4, **options), model, Place(layer, 5, 64, {})) for layer in range(5)]

    assert [mixer.ksvd for mixer in built([])] == [0.05 / 5] * 5
    assert built(["softmax", "primal"])[1].ksvd == 0.05 / 2 and built(["softmax", "none", "primal"])[2].ksvd == 0.05
    mixers = built(["none", "primal"], ksvd=2.0)
    made = [mixers[layer] if layer % 2 else NoMixer(DIM) for layer in range(5)]
    model = SequenceClassifier(Encoder(vocab_size=9, dim=DIM, depth=5, mixer=made.__getitem__), num_classes=3)
    aux = model.run(torch.arange(8)[None]).aux
    for mixer in (mixers[1], mixers[3]):
        mixer.ksvd = 1.0
    alone = model.run(torch.arange(8)[None]).aux
    assert_close(aux, alone)  # 2 times the mean of two


# What the weights are made of -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 10, 64, 1000, 4097])
def test_tokens_are_taken_evenly_from_the_real_ones(n):
    mixer = PrimalAttention(2, heads=1, rank=5, rank_multi=3)
    places = torch.arange(float(n)).expand(2, n)[..., None].expand(2, n, 2)
    expected = [math.floor(i * (n - 1) / 14 + 1e-9) for i in range(15)]
    for left in (False, True):
        mask = padding(n, n, total=n + 3, left=left)
        wide = torch.full((2, n + 3, 2), -1.0)
        wide[mask] = places.reshape(-1, 2)
        assert mixer._sample(wide, mask)[0, :, 0].tolist() == expected
    assert mixer._sample(places, None)[1, :, 1].tolist() == expected
    assert expected[0] == 0 and expected[-1] == n - 1


def test_one_row_is_the_first():
    mixer = PrimalAttention(2, heads=1, rank=1, rank_multi=1)
    assert mixer._sample(torch.arange(10.0).reshape(1, 5, 2), None).tolist() == [[[0.0, 1.0]]]


def test_only_tokens_that_are_taken_reach_others():
    mixer, x = build("primal, few"), tokens()  # 4 of 11: 0, 3, 6, 10
    before = mixer(x)
    for place in range(11):
        changed = x.clone()
        changed[:, place] += 1
        seen = (mixer(changed) != before).any(-1).all(0)
        assert seen.all() if place in (0, 3, 6, 10) else seen.nonzero().tolist() == [[place]]


def test_a_causal_output_reads_means_of_queries_and_keys():
    """Twice the same token is the token once; the order of those before does not matter."""
    mixer, x = build("primal", causal=True), tokens()
    out = mixer(x)
    assert_close(mixer(torch.cat([x, x], 1))[:, -1], out[:, -1], rtol=1e-9, atol=1e-9)
    assert_close(mixer(x.flip(1))[:, -1], out[:, -1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(out[:, 5], mixer(x[:, 5:])[:, 0])


def test_sums_of_many_tokens_are_made_in_float32():
    """A bfloat16 sum stops growing after some hundred equal tokens, and what comes then is not seen."""
    mixer = PrimalAttention(DIM, heads=4, rank=3, causal=True).bfloat16()
    x = torch.randn(1, 2, DIM).bfloat16()
    many = torch.cat([x[:, :1].expand(1, 3000, DIM), x[:, 1:].expand(1, 6000, DIM)], dim=1)
    exact = mixer.double()(many.double())[:, -1]
    mixer.bfloat16()
    _, state = mixer.extend(many[:, :-1])
    assert state.queries.dtype == state.keys.dtype == torch.float32
    for low in (mixer(many)[:, -1], mixer.extend(many[:, -1:], state)[0][:, -1]):
        assert (low - exact).norm() < 0.02 * exact.norm()


def test_sizes_and_starts():
    mixer = PrimalAttention(DIM, heads=4, rank=3)
    assert mixer.to_e.shape == mixer.to_r.shape == (4, 30, 3) and mixer.scale.shape == (4, 3)
    causal = PrimalAttention(DIM, heads=4, rank=3, causal=True)
    assert causal.to_e.shape == causal.to_r.shape == (4, 4, 3)
    for weights in (mixer.to_e, mixer.to_r, causal.to_e, causal.to_r):
        for weight in weights:
            assert_close(weight.T @ weight, torch.eye(3))
        assert not torch.allclose(weights[0], weights[1])
    assert 0 <= mixer.scale.min() < mixer.scale.max() < 1
    assert (mixer.to_heads.weight.shape, mixer.to_out.weight.shape) == ((4, 6), (DIM, DIM))
    default = PrimalAttention(64)
    assert (default.heads, default.rank, default.rows, default.ksvd, default.trace) == (8, 20, 200, 0.05, "parameters")
    assert mixer.state_bytes(7) == 4 * 2 * DIM * 3 and causal.state_bytes(7) == 4 * 2 * DIM


def test_weight_decay_spares_the_scale():
    """Which the loss holds at the values of the kernel; A_e and A_r are matrices like others."""
    mixer = PrimalAttention(DIM, heads=4)
    decayed, kept = make_optimizer(mixer, OptimSettings(1e-3, 0.0, 0, 0.1, 0.9, 0.98, 1.0)).param_groups
    assert any(p is mixer.scale for p in kept["params"]) and any(p is mixer.to_e for p in decayed["params"])


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads (3) must divide dim (16)"),
        ({"heads": 0}, "heads (0) must be at least 1"),
        ({"rank": 0}, "rank (0) must be at least 1"),
        ({"rank_multi": 0}, "rank_multi (0) must be at least 1"),
        ({"ksvd": -1.0}, "ksvd (-1.0) must be finite and at least 0"),
        ({"ksvd": math.nan}, "ksvd (nan) must be finite and at least 0"),
        ({"trace": "both"}, "trace ('both') must be one of parameters, weights"),
        ({"causal": True, "rank_multi": 5}, "rank_multi (5) needs causal=False: W_e and W_r are parameters otherwise"),
        ({"causal": True, "trace": "weights"},
         "trace='weights' needs causal=False and a ksvd above 0: it would change nothing"),
        ({"ksvd": 0.0, "trace": "weights"},
         "trace='weights' needs causal=False and a ksvd above 0: it would change nothing"),
    ],
    ids=str,
)  # fmt: skip
def test_refusals(options, message):
    with refused(message):
        PrimalAttention(DIM, **{"heads": 4} | options)


def test_in_a_pattern_of_another_mixer_it_has_its_heads():
    chosen = SoftmaxConfig(heads=2, head_dim=3, kv_heads=1)
    assert named_mixer("primal", chosen, EncoderConfig(dim=DIM)) == PrimalConfig(heads=2)
