"""The block and its parts, against formulas written out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from tsla.mixers import NoMixer, TaylorAttention
from tsla.models import Block, FeedForward, ShortConv, SRMSNorm
from tsla.models.block import add

DIM = 12


def weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.dim() == 2)


def test_feed_forwards_by_formula():
    x = torch.randn(3, 5, DIM)
    plain = FeedForward(DIM)
    torch.testing.assert_close(plain(x), plain.out(gelu(plain.into(x))))
    gated = FeedForward(DIM, kind="swiglu")
    value, gate = gated.into(x)[..., :32], gated.into(x)[..., 32:]
    torch.testing.assert_close(gated(x), gated.out(value * silu(gate)))
    product = FeedForward(DIM, kind="sglu")
    value, gate = product.into(x)[..., :32], product.into(x)[..., 32:]
    torch.testing.assert_close(product(x), product.out(value * gate))


@pytest.mark.parametrize("kind", ["swiglu", "sglu"])
@pytest.mark.parametrize("mult", [1.0, 4.0, 2.5])
def test_all_feed_forwards_have_the_same_number_of_weights(kind, mult):
    plain, gated = FeedForward(DIM, mult=mult), FeedForward(DIM, kind=kind, mult=mult)
    assert weights(plain) == 2 * DIM * int(DIM * mult)
    assert weights(gated) == 3 * DIM * int(DIM * mult * 2 / 3)
    assert weights(gated) == weights(plain)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_short_convolution_by_loops(kernel, causal):
    layer = ShortConv(DIM, kernel=kernel, causal=causal)
    x, mask = torch.randn(2, 7, DIM), torch.arange(7) < torch.tensor([[7], [4]])
    first = -(kernel - 1) if causal else -(kernel // 2)
    expected = torch.zeros_like(x)
    for b in range(2):
        for t in range(7):
            expected[b, t] += layer.conv.bias
            for j in range(kernel):
                at = t + first + j
                if 0 <= at < 7 and mask[b, at]:
                    expected[b, t] += layer.conv.weight[:, 0, j] * x[b, at]
    torch.testing.assert_close(layer(x, mask), expected)
    torch.testing.assert_close(layer(x), layer(x, torch.ones(2, 7, dtype=torch.bool)))


@pytest.mark.parametrize("residual", [False, True])
def test_the_block_by_its_formula(residual):
    block = Block(TaylorAttention(DIM, heads=2), short_conv=3, conv_residual=residual, feed_forward="swiglu").eval()
    x, mask = torch.randn(2, 7, DIM), torch.arange(7) < torch.tensor([[7], [4]])
    around = block.conv(block.mixer_norm(x), mask)
    half = x + block.mixer(block.mixer_norm(x) + around, mask=mask) + (around if residual else 0)
    out, side, aux = block(x, mask)
    torch.testing.assert_close(out, half + block.feed_forward(block.feed_forward_norm(half)))
    assert side is None and aux is None


def test_a_block_without_parameters_in_its_norms():
    block = Block(TaylorAttention(DIM, heads=2), norm="srms", feed_forward="sglu").eval()
    x = 3 * torch.randn(2, 7, DIM)

    def normed(x: Tensor) -> Tensor:
        return x / (x.square().sum(-1, keepdim=True) / DIM + 1e-6).sqrt()

    half = x + block.mixer(normed(x))
    torch.testing.assert_close(block(x)[0], half + block.feed_forward(normed(half)))
    norms = (block.mixer_norm, block.feed_forward_norm)
    assert all(isinstance(norm, SRMSNorm) and not list(norm.parameters()) for norm in norms)
    with pytest.raises(ValueError, match=r"^norm \('rms'\) must be one of layer, srms$"):
        Block(NoMixer(DIM), norm="rms")


def test_without_a_mixer_tokens_stay_apart():
    block = Block(NoMixer(DIM), short_conv=3)
    x = torch.randn(1, 5, DIM)
    torch.testing.assert_close(block(x)[0][:, 2:3], block(x[:, 2:3])[0])


def test_the_convolution_looks_the_way_of_the_mixer():
    for causal in (False, True):
        block = Block(TaylorAttention(DIM, heads=2, causal=causal), short_conv=4)
        assert block.conv.reach == ((3, 0) if causal else (2, 1))
    assert Block(NoMixer(DIM)).conv is None


def test_what_goes_on_beside_the_mixer_is_of_a_convolution():
    with pytest.raises(ValueError, match=r"^conv_residual=True needs a convolution: short_conv above 0$"):
        Block(NoMixer(DIM), conv_residual=True)


def test_dropout_is_on_what_the_feed_forward_adds():
    block = Block(NoMixer(DIM), dropout=1.0).train()
    x = torch.randn(1, 5, DIM)
    torch.testing.assert_close(block(x)[0], x)
    assert not torch.equal(block.eval()(x)[0], x)


def test_losses_that_may_be_absent_add_up():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert add(None, None) is None
    assert add(one, None) is one and add(None, two) is two
    assert add(one, two) == 3
