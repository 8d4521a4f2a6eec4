"""Mistakes that mechanisms with feature maps invite: each made on purpose, to see that the check tells it from ours."""

import math

import pytest
import torch
from mechanisms import DIM, build, padding
from torch.testing import assert_close

from tsla.mixers import LightningAttention, TransNormerAttention
from tsla.mixers.decay import decay_table
from tsla.mixers.performer import FavorFeatures
from tsla.ops import linear_attention

AVERAGES = (
    "linear", "performer", "performer, positive", "rfa", "hedgehog", "hedgehog, exp", "hedgehog, max",
    "hedgehog, joint", "linear, rebased", "performer, relu", "rfa, arccos",
)  # fmt: skip
NEXT_TO_NOTHING = AVERAGES[-3:]  # are the features of 0


def tokens(b=2, n=32, dtype=torch.float64):
    return torch.randn(b, n, DIM, dtype=dtype)


# --- the largest of all keys ------------------------------------------------------------------------------------------


class LargestOfAllKeys(FavorFeatures):
    """The field's way: keys over the largest of all, and something small beside."""

    def forward(self, x, *, is_query, places=None):
        exponent = x * x.shape[-1] ** -0.25 @ self.projection.to(x.dtype).T
        most = exponent.amax(-1, keepdim=True) if is_query else exponent.amax((-2, -1), keepdim=True)
        return (exponent - x.square().sum(-1, keepdim=True) / 2 / x.shape[-1] ** 0.5 - most).exp() + 1e-4


def past_of_a_changed_end(mixer, x):
    """Outputs of all tokens but the last, before and after it grows."""
    grown = x.clone()
    grown[:, -1] *= 1000
    return mixer(x)[:, :-1], mixer(grown)[:, :-1]


@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "relu"])
def test_a_later_key_changes_no_earlier_output(kind):
    mixer, x = build("performer", causal=True), tokens()
    mixer.feature_map = FavorFeatures(4, features=8, kind=kind).double()
    assert torch.equal(*past_of_a_changed_end(mixer, x))
    mixer.feature_map = LargestOfAllKeys(4, features=8, kind="positive").double()
    before, after = past_of_a_changed_end(mixer, x)
    assert (before - after).abs().max() > 1e-2


# --- masks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AVERAGES)
def test_a_masked_key_is_no_key(name, monkeypatch):
    """Not one whose features are those of 0, nor one that has only no value."""
    mixer, x, mask = build(name), tokens(), padding(20, 20, total=32)
    expected, attend = mixer(x[:, :20]), type(mixer).attend
    assert_close(mixer(x, mask=mask)[:, :20], expected, rtol=1e-10, atol=1e-10)
    real = mask[:, None, :, None]
    wrong = {
        "before the map": lambda q, k, v, x, _: attend(mixer, q, k * real, v * real, x, None),
        "values only": lambda q, k, v, x, _: attend(mixer, q, k, v * real, x, None),
    }
    if name in NEXT_TO_NOTHING:
        del wrong["before the map"]
    for how, run in wrong.items():
        monkeypatch.setattr(mixer, "attend", run)
        assert (mixer(x, mask=mask)[:, :20] - expected).abs().max() > 1e-2, how


# --- what is drawn ----------------------------------------------------------------------------------------------------

DRAWN = ("performer", "performer, relu", "rfa", "rfa, arccos", "rfa_gate")


@pytest.mark.parametrize("name", DRAWN)
def test_only_resample_draws(name):
    mixer, x = build(name), tokens()
    rows = mixer.feature_map.projection.clone()
    first = mixer(x)
    for training in (False, True, False):
        mixer.train(training)
        assert torch.equal(mixer(x), first)
        assert torch.equal(mixer.feature_map.projection, rows)
    mixer.feature_map.resample(torch.Generator().manual_seed(1))
    assert (mixer(x) - first).abs().max() > 1e-3
    again = build(name)
    again.load_state_dict(mixer.state_dict())
    assert "feature_map.projection" in mixer.state_dict() and torch.equal(again(x), mixer(x))
    again.feature_map.resample(torch.Generator().manual_seed(1))
    assert torch.equal(again.feature_map.projection, mixer.feature_map.projection)


# --- tables of decay --------------------------------------------------------------------------------------------------

CODE = [0.61, 0.78, 0.88, 0.94, 0.97, 0.98, 0.992, 0.996]  # of 8 heads in the first of 24 layers
PAPER = [1, 0.37, 0.14, 0.050, 0.018, 0.0067, 0.0025, 0.0009]


def test_the_first_layers_decay_is_that_of_the_code_and_of_the_paper():
    for kind, expected in (("alibi", CODE), ("paper", PAPER)):
        found = decay_table(8, kind, layer=0, depth=24).exp().tolist()
        for value, wanted in zip(found, expected, strict=True):
            digits = 3 if wanted > 0.99 else 2 if wanted > 0.1 else 4 if wanted < 0.01 else 3
            assert round(value, digits) == wanted, (kind, found)


def test_the_last_layer_of_the_code_forgets_next_to_nothing_and_that_of_the_paper_a_little():
    slopes = torch.tensor([2.0 ** -(h + 1) for h in range(8)])
    assert_close(decay_table(8, "alibi", layer=23, depth=24), -slopes * 1e-5, rtol=1e-2, atol=0)
    assert_close(decay_table(8, "paper", layer=23, depth=24), -torch.arange(8.0) / 24)


def test_between_the_layers_decay_falls_in_a_line():
    slopes = torch.tensor([2.0 ** -(h + 1) for h in range(8)])
    assert_close(decay_table(8, "alibi", layer=6, depth=24), -slopes * (1 - 6 / 23 + 1e-5))
    assert_close(decay_table(8, "paper", layer=6, depth=24), -torch.arange(8.0) * (1 - 6 / 24))


def test_a_single_layer_is_a_first_one():
    for kind in ("alibi", "paper"):
        assert torch.equal(decay_table(8, kind, layer=0, depth=1), decay_table(8, kind, layer=0, depth=9))


def test_heads_that_are_no_power_of_two():
    """12: those of 8, then every second one of 16."""
    slopes = [2.0**-e for e in (1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5)]
    assert_close(decay_table(12, "alibi"), -torch.tensor(slopes) * (1 + 1e-5))
    assert_close(decay_table(1, "alibi"), torch.tensor([-(2.0**-8) * (1 + 1e-5)]))


def test_retention_is_the_same_in_all_layers():
    expected = torch.tensor([1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128])
    for layer in (0, 4):
        assert_close(decay_table(3, "retention", layer=layer, depth=5).exp(), expected)


# --- one step of decay more or less -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [None, 1, 7, 64])
def test_a_key_has_decayed_by_its_distance(chunk):
    """All weights are 1 but for decay and only the first value is not 0, so that the output at i is lambda^i."""
    n, rate = 131, 0.97
    ones, v = torch.ones(1, 1, n, 1, dtype=torch.float64), torch.zeros(1, 1, n, 1, dtype=torch.float64)
    v[..., 0, :] = 1
    decay = torch.tensor([math.log(rate)], dtype=torch.float64)
    for impl in ("direct", "linear"):
        options = {"chunk_size": chunk} if impl == "linear" else {}
        found = linear_attention(
            ones, ones, v, causal=True, normalize=False, log_decay=decay, impl=impl, **options
        ).output.flatten()
        place = torch.arange(n)
        assert_close(found, rate ** place.double(), rtol=1e-12, atol=0)
        for wrong in (place + 1, place - 1, place // 64 * 64):  # both papers' proofs, and decay between chunks only
            assert (found - rate ** wrong.double()).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["lightning", "lightning, retention", "transnormer", "rfa_gate"])
@pytest.mark.parametrize("cut", [1, 63, 64, 65])
def test_decay_goes_on_where_decoding_does(name, cut):
    mixer, x = build(name, causal=True), tokens(n=70)
    first, state = mixer.extend(x[:, :cut])
    second, _ = mixer.extend(x[:, cut:], state)
    assert_close(torch.cat([first, second], dim=1), mixer(x), rtol=1e-9, atol=1e-9)
    late = state._replace(kv=state.kv * 0.97, z=state.z * 0.97)  # as if it had decayed once more
    assert (mixer.extend(x[:, cut:], late)[0] - second).abs().max() > 1e-4


# --- sums in low precision --------------------------------------------------------------------------------------------

LONG = 4096


def averaged(mixer, values):
    """What a mixer in bf16 makes of equal keys with these values ``(n,)``, in one pass and in pieces."""
    x = torch.zeros(1, LONG, DIM, dtype=torch.bfloat16)
    x[0, :, 0] = values
    torch.nn.init.zeros_(mixer.to_k.weight)
    torch.nn.init.zeros_(mixer.to_v.weight)
    mixer.to_v.weight.data[:, 0] = 1
    for bias in (mixer.to_v.bias, mixer.to_out.bias):
        torch.nn.init.zeros_(bias)
    mixer.to_out.weight.data.copy_(torch.eye(DIM))
    pieces, state = [], None
    for piece in x.split(64, dim=1):
        out, state = mixer.extend(piece, state)
        pieces.append(out)
    return mixer(x)[0].float(), torch.cat(pieces, dim=1)[0].float()


def bf16_sums(values):
    """The same by a state in bf16."""
    total = count = torch.zeros((), dtype=torch.bfloat16)
    found = []
    for value in values.bfloat16():
        total, count = total + value, count + 1
        found.append(total / count)
    return torch.stack(found).float()


@pytest.mark.parametrize("name", ["linear", "performer", "performer, relu", "rfa, arccos", "hedgehog", "hedgehog, exp"])
def test_thousands_of_keys_do_not_stop_a_sum_in_bf16(name):
    mixer = build(name, "bias", causal=True, dtype=torch.bfloat16)
    rounding = torch.finfo(torch.bfloat16).eps
    constant = torch.full((LONG,), 0.7).bfloat16().float()
    for out in averaged(mixer, constant):
        assert_close(out, constant[:, None].expand(-1, DIM), rtol=rounding, atol=0)
    late = (torch.arange(LONG) >= LONG // 2).float()
    mean = late.cumsum(0) / torch.arange(1, LONG + 1)
    for out in averaged(mixer, late):
        assert_close(out, mean[:, None].expand(-1, DIM), rtol=rounding, atol=1e-6)
    assert bf16_sums(late)[-1] == 1.0 and mean[-1] == 0.5  # both sums have stopped at 256


# --- places of tokens -------------------------------------------------------------------------------------------------


class PlaceOnTheModule(TransNormerAttention):
    """The field's way: the number of tokens seen is the module's, not the state's."""

    seen = 0

    def _attended(self, q, k, v, x, mask, state, *, keep):
        if state is not None:
            state = state._replace(length=torch.full_like(state.length, self.seen))
        self.seen += x.shape[1]
        return super()._attended(q, k, v, x, mask, state, keep=keep)


def in_turns(mixer, texts):
    """Outputs of texts that are decoded a token of each at a time."""
    states, outputs = [None] * len(texts), [[] for _ in texts]
    for i in range(texts[0].shape[1]):
        for at, x in enumerate(texts):
            out, states[at] = mixer.extend(x[:, i : i + 1], states[at])
            outputs[at].append(out)
    return [torch.cat(parts, dim=1) for parts in outputs]


def test_two_texts_decoded_in_turns_do_not_know_of_each_other():
    mixer, wrong = (
        cls(DIM, heads=4, causal=True, depth=2).double() for cls in (TransNormerAttention, PlaceOnTheModule)
    )
    wrong.load_state_dict(mixer.state_dict())
    texts = [tokens(n=9), tokens(n=9)]
    for out, x in zip(in_turns(mixer, texts), texts, strict=True):
        assert_close(out, mixer(x), rtol=1e-9, atol=1e-9)
    assert_close(in_turns(wrong, texts[:1])[0], mixer(texts[0]), rtol=1e-9, atol=1e-9)  # alone, it is right
    wrong.seen = 0
    errors = [(out - mixer(x)).abs().max() for out, x in zip(in_turns(wrong, texts), texts, strict=True)]
    assert max(errors) > 1e-2


def test_nothing_of_a_decoding_stays_on_the_module():
    mixer = LightningAttention(DIM, heads=4, causal=True, depth=2).double()
    before = {name: value for name, value in vars(mixer).items() if not name.startswith("_")}
    mixer.extend(tokens())
    assert {name: value for name, value in vars(mixer).items() if not name.startswith("_")} == before
