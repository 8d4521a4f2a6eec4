"""`HeadSplit`: two mechanisms side by side."""

import torch
from mechanisms import DIM
from torch import Tensor

from tsla.mixers import HeadSplit, Mixed, Mixer, SoftmaxAttention, TaylorAttention, WindowAttention


def part(cls, **options):
    return cls(DIM, **{"heads": 2, "head_dim": 6, "value_dim": 3, "output_projection": False, **options})


def test_heads_are_joined_far_first():
    far, near = part(TaylorAttention), part(WindowAttention, window=3, heads=1)
    both, x, mask = HeadSplit(far, near, output_projection=False), torch.randn(2, 11, DIM), torch.rand(2, 11) < 0.7
    assert both.width == 6 + 3
    assert torch.equal(both(x, mask=mask), torch.cat([far(x, mask=mask), near(x, mask=mask)], dim=-1))
    projected = HeadSplit(far, near)
    assert torch.equal(projected(x), both(x) @ projected.to_out.weight.T)


def test_splits_nest():
    inner = HeadSplit(part(SoftmaxAttention, causal=True), part(WindowAttention, causal=True), output_projection=False)
    outer = HeadSplit(inner, part(WindowAttention, window=0, causal=True))
    x = torch.randn(2, 11, DIM)
    out, state = outer.extend(x[:, :5])
    rest, _ = outer.extend(x[:, 5:], state)
    torch.testing.assert_close(torch.cat([out, rest], dim=1), outer(x))
    assert outer.state_bytes(7) == inner.state_bytes(7)


class Streams(Mixer):
    """A mechanism with a second stream and a loss of its own."""

    supports = frozenset({"bidirectional"})

    def __init__(self) -> None:
        super().__init__(DIM, width=DIM, causal=False)
        self.to_out = torch.nn.Identity()

    def mix(self, x: Tensor, context=None, *, mask=None, side=None, cu_seqlens=None) -> Mixed:
        return Mixed(x, x[:, :1] + (0 if side is None else side), x.square().mean())


def test_second_stream_and_loss_of_the_far_part_pass_through():
    both, x, side = HeadSplit(Streams(), part(WindowAttention)), torch.randn(2, 11, DIM), torch.randn(2, 1, DIM)
    mixed = both.mix(x, side=side)
    assert torch.equal(mixed.side, x[:, :1] + side)
    assert torch.equal(mixed.aux, x.square().mean())
    assert mixed.output.shape == (2, 11, DIM)


def test_a_block_may_hand_a_second_stream_to_anyone():
    """Mechanisms without one leave it alone."""
    x, side = torch.randn(2, 11, DIM), torch.randn(2, 3, DIM)
    for cls in (TaylorAttention, SoftmaxAttention, WindowAttention):
        mixed = part(cls).mix(x, side=side)
        assert mixed.side is None and mixed.aux is None
