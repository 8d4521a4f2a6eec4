"""Linformer: when it is softmax, what shares a projection, and what inputs it takes."""

import re

import pytest
import torch
from mechanisms import DIM, padding
from torch.testing import assert_close

from tsla.build_mixer import Place, build_mixer
from tsla.config import compose
from tsla.config.mixers import LinformerConfig
from tsla.config.schema import EncoderConfig
from tsla.mixers import HeadSplit, LinformerAttention, LinformerProjection, SoftmaxAttention, TokenShift


def refused(message):
    """The whole message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def tokens(n=11, b=2):
    return torch.randn(b, n, DIM, dtype=torch.float64)


def linformer(**options):
    return LinformerAttention(DIM, **{"heads": 4, "max_length": 11} | options).double()


@pytest.mark.parametrize("sharing", ["none", "head", "kv", "layer"])
def test_a_slot_for_each_token_is_softmax(sharing):
    mixer = linformer(rank=11, sharing=sharing, kv_heads=2)
    exact = SoftmaxAttention(DIM, heads=4, kv_heads=2).double()
    for matrix in mixer.projection.parameters():
        matrix.data.copy_(torch.eye(11))
    exact.load_state_dict({name: x for name, x in mixer.state_dict().items() if not name.startswith("projection")})
    x, context = tokens(), tokens()
    assert_close(mixer(x), exact(x), rtol=0, atol=1e-12)
    assert_close(mixer(x[:, :5], context), exact(x[:, :5], context), rtol=0, atol=1e-12)
    assert not torch.allclose(mixer(x[:, :10]), exact(x[:, :10]))  # a slot is left, whose key is 0


@pytest.mark.parametrize(
    ("sharing", "shapes"),
    [("none", [(2, 11, 5)] * 2), ("head", [(11, 5)] * 2), ("kv", [(11, 5)]), ("layer", [(11, 5)])],
)
def test_what_has_a_matrix(sharing, shapes):
    mixer = linformer(rank=5, sharing=sharing, kv_heads=2)
    assert [tuple(x.shape) for x in mixer.projection.parameters()] == shapes


def test_matrices_begin_as_gaussians_of_variance_one_over_rank():
    made = LinformerProjection(2000, 50)
    for matrix in (made.keys, made.values):
        assert abs(matrix.mean()) < 0.002 and abs(matrix.var() * 50 - 1) < 0.02
    assert not torch.equal(made.keys, made.values)


def test_layers_share_one_matrix():
    first = linformer(sharing="layer")
    second = linformer(sharing="layer", projection=first.projection)
    x = tokens()
    second(first(x)).sum().backward()
    both = first.projection.keys.grad.clone()
    first.projection.keys.grad = None
    second(first(x).detach()).sum().backward()
    assert second.projection is first.projection and not torch.allclose(both, first.projection.keys.grad)


def test_the_builder_shares_it_between_the_layers_of_a_model_and_no_others():
    def built(sharing, shared, layer, **options):
        config = LinformerConfig(sharing=sharing, heads=4, **options)
        return build_mixer(config, EncoderConfig(dim=DIM), Place(layer, 3, 20, shared))

    shared: dict = {}
    first, shifted = built("layer", shared, 0), built("layer", shared, 1, token_shift=True)
    split = built("layer", shared, 2, local_heads=2)
    assert isinstance(shifted, TokenShift) and isinstance(split, HeadSplit)
    assert first.projection is shifted.inner.projection is split.far.projection
    assert built("layer", {}, 0).projection is not first.projection
    assert first.projection.max_length == first.projection.rank == 20
    apart = [built("head", shared, layer) for layer in (0, 1)]
    assert len({id(mixer.projection) for mixer in (first, *apart)}) == 3


def test_the_longest_input_is_the_tasks():
    def built(*arguments):
        config = compose(["experiment=digits", "mixer=linformer", *arguments])
        return build_mixer(config.mixer, config.model, Place(0, 1, 500, {})).projection

    assert (built().max_length, built().rank) == (500, 64)
    assert (built("mixer.max_length=600", "mixer.rank=550").max_length, built("mixer.rank=500").rank) == (600, 500)
    with refused("mixer.max_length (499) must be at least the longest input (500)"):
        built("mixer.max_length=499")
    with refused("rank (501) must be at most max_length (500)"):
        built("mixer.rank=501")


def test_inputs_longer_than_the_longest_are_refused():
    mixer, message = linformer(), "12 tokens are more than max_length (11)"
    for call in (lambda: mixer(tokens(12)), lambda: mixer(tokens(3), tokens(12)),
                 lambda: mixer.mix(tokens(20, 1), cu_seqlens=torch.tensor([0, 8, 20]))):  # fmt: skip
        with refused(message):
            call()
    assert mixer(tokens(12), tokens(11)).shape == (2, 12, DIM)
    assert mixer.mix(tokens(20, 1), cu_seqlens=torch.tensor([0, 9, 20])).output.shape == (1, 20, DIM)


def test_the_position_among_real_tokens_chooses_the_row_of_a_token():
    """So padding on the left is truncation, and not what zeros there would give."""
    mixer, x, mask = linformer(), tokens(), padding(7, 7, total=11, left=True)
    assert_close(mixer(x, mask=mask)[:, 4:], mixer(x[:, 4:]), rtol=0, atol=1e-12)
    assert not torch.allclose(mixer(x, mask=mask)[:, 4:], mixer(x.masked_fill(~mask[..., None], 0.0))[:, 4:])


def test_a_row_without_keys_is_exactly_zero_with_finite_gradients():
    mixer, x = linformer(), tokens()
    x[0] = torch.inf
    mask = torch.ones(2, 11, dtype=torch.bool)
    mask[0] = False
    context = x.clone()
    out = mixer(tokens(), context, mask=mask)
    assert (out[0] == 0).all() and (out[1] != 0).all()
    x = tokens().requires_grad_()
    mixer(x, mask=mask).sum().backward()
    assert x.grad.isfinite().all() and (x.grad[0] == 0).all()


def test_between_heads_and_output_everything_is_float32():
    """The one rounding is that of the output: scores of size 30 from bfloat16 slots would be off by 0.1."""
    mixer, x = (
        LinformerAttention(DIM, heads=4, max_length=2000, rank=8).bfloat16(),
        torch.randn(1, 2000, DIM).bfloat16(),
    )
    q, k, v = (3 * y for y in mixer.heads_of(x))
    exact = mixer.double().attend(q.double(), k.double(), v.double(), x.double(), None)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            low = mixer.bfloat16().attend(q, k, v, x, None)
        assert low.dtype == torch.bfloat16
        assert_close(low.double(), exact, rtol=2**-8, atol=1e-4)


def test_state_bytes_are_those_of_the_slots():
    assert LinformerAttention(DIM, heads=4, kv_heads=2, max_length=99, rank=7).state_bytes(50) == 4 * 2 * 7 * 8
    assert linformer(rank=7).state_bytes(3) == 8 * 4 * 7 * 8


def test_refusals():
    with refused("LinformerAttention does not support 'causal', only bidirectional, cross, packed"):
        linformer(causal=True)
    with refused("LinformerAttention does not support 'decode', only bidirectional, cross, packed"):
        linformer().extend(tokens())
    with refused("rank (12) must be at most max_length (11)"):
        linformer(rank=12)
    for name in ("rank", "max_length"):
        with refused(f"{name} (0) must be at least 1"):
            linformer(**{name: 0})
    with refused("sharing ('all') must be one of none, head, kv, layer"):
        linformer(sharing="all")
    made = LinformerProjection(11, 5, tied=True)
    with refused("a projection is for sharing='layer' alone, got sharing='kv'"):
        linformer(sharing="kv", projection=made)
    with refused("projection is of max_length 11 and rank 5, got 11 and 6"):
        linformer(sharing="layer", rank=6, projection=made)
    with refused("projection is of max_length 11 and rank 5, got 12 and None"):
        linformer(sharing="layer", max_length=12, projection=made)
    for other in (LinformerProjection(11, 5), LinformerProjection(11, 5, heads=2, tied=True)):
        with refused("projection must be one matrix, for keys, values and all heads"):
            linformer(sharing="layer", projection=other)
