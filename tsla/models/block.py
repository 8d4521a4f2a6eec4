"""The pre-norm block: norm, mixer, norm, feed-forward, each on a residual."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, silu

from tsla.mixers import Mixer
from tsla.models.norm import make_norm
from tsla.ops.checks import check_choice
from tsla.ops.packing import each_sequence

FEED_FORWARDS = ("gelu", "swiglu", "sglu")


class FeedForward(nn.Module):
    """Two linear layers with GELU, or at the same number of parameters three whose first two are multiplied.

    SwiGLU (arXiv 2002.05202) is (x W_v * silu(x W_u)) W_o; SGLU (TransNormerLLM, arXiv 2307.14995) has no activation,
    (x W_v * x W_u) W_o.

    Args:
        dim: model width.
        kind: ``"gelu"``, ``"swiglu"`` or ``"sglu"``.
        mult: hidden width over dim, as GELU counts it.
    """

    def __init__(self, dim: int, *, kind: str = "gelu", mult: float = 4.0) -> None:
        super().__init__()
        check_choice("feed_forward", kind, FEED_FORWARDS)
        hidden = int(dim * mult) if kind == "gelu" else int(dim * mult * 2 / 3)
        if hidden < 1:
            raise ValueError(f"feed_forward_mult ({mult}) leaves no hidden width at dim {dim}")
        self.into = nn.Linear(dim, hidden if kind == "gelu" else 2 * hidden)
        self.out = nn.Linear(hidden, dim)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.into(x)
        if self.kind == "gelu":
            return self.out(gelu(hidden))
        value, gate = hidden.chunk(2, dim=-1)
        return self.out(value * (silu(gate) if self.kind == "swiglu" else gate))


class ShortConv(nn.Module):
    """Depthwise convolution over a few neighbouring tokens.

    Args:
        dim: model width.
        kernel: tokens seen: the token and those before it if causal, centred on it if not.
        causal: see above.
    """

    def __init__(self, dim: int, *, kernel: int, causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.reach = (kernel - 1, 0) if causal else (kernel // 2, (kernel - 1) // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(b, n, dim)``; masked tokens ``(b, n)`` count as zeros, as the space beyond the ends does."""
        if x.shape[1] == 0:  # torch's convolution refuses inputs shorter than its kernel
            return x
        y = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        return self.conv(pad(y.transpose(1, 2), self.reach)).transpose(1, 2)


class GridConv(nn.Module):
    """Depthwise convolution over the neighbours in a grid whose cells are the tokens, row by row.

    Args:
        dim: model width.
        kernel: side of the square seen: centred on the cell; if causal, the cell and those above and left of it.
        grid: height and width.
        causal: see above.
    """

    def __init__(self, dim: int, *, kernel: int, grid: tuple[int, int], causal: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, groups=dim)
        self.grid = grid
        self.reach = (kernel - 1, 0) * 2 if causal else (kernel // 2, (kernel - 1) // 2) * 2

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(b, height * width, dim)``; masked cells count as zeros, as the space beyond the edges does."""
        y = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        y = y.transpose(1, 2).unflatten(2, self.grid)
        return self.conv(pad(y, self.reach)).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """x + mixer(y), then x + feed_forward(norm(x)); y is norm(x), with what a convolution finds around it added.

    Attention alone takes that on, and makes of it means over many tokens. `conv_residual` puts it on x itself, too, so
    that a feed-forward sees what stands around its own token.

    Args:
        mixer: the token mixer; its `dim` and `causal` are the block's.
        norm: ``"layer"`` or ``"srms"``, see `SRMSNorm`.
        feed_forward, feed_forward_mult: see `FeedForward`.
        short_conv: kernel of a `ShortConv` before the mixer, or of a `GridConv` where there is a grid; 0 = none.
        conv_residual: x + conv(norm(x)) goes on, not x.
        grid: height and width, if the tokens are the cells of a grid.
        dropout: on what the feed-forward adds (the mixer has its own).
    """

    def __init__(
        self,
        mixer: Mixer,
        *,
        norm: str = "layer",
        feed_forward: str = "gelu",
        feed_forward_mult: float = 4.0,
        short_conv: int = 0,
        conv_residual: bool = False,
        grid: tuple[int, int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if short_conv < 0:
            raise ValueError(f"short_conv ({short_conv}) must not be negative")
        if conv_residual and not short_conv:
            raise ValueError("conv_residual=True needs a convolution: short_conv above 0")
        dim = mixer.dim
        self.mixer_norm = make_norm(norm, dim)
        self.conv: ShortConv | GridConv | None = None
        if short_conv and grid is None:
            self.conv = ShortConv(dim, kernel=short_conv, causal=mixer.causal)
        elif short_conv and grid is not None:
            self.conv = GridConv(dim, kernel=short_conv, grid=grid, causal=mixer.causal)
        self.conv_residual = conv_residual
        self.mixer = mixer
        self.feed_forward_norm = make_norm(norm, dim)
        self.feed_forward = FeedForward(dim, kind=feed_forward, mult=feed_forward_mult)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, side: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x ``(b, n, dim)`` and its mask ``(b, n)``; returns x, the second stream, and the loss the mixer adds.

        side: the second stream of the layers before; a mixer that has none leaves it to those after it.

        cu_seqlens: the bounds of the sequences packed into the one row of x, see `Mixer.mix`.
        """
        y = self.mixer_norm(x)
        if self.conv is not None:
            around = self.conv(y, mask) if cu_seqlens is None else each_sequence(self.conv, y, cu_seqlens, mask)
            x, y = x + around if self.conv_residual else x, y + around
        mixed = self.mixer.mix(y, mask=mask, side=side, cu_seqlens=cu_seqlens)
        x, side = x + mixed.output, side if mixed.side is None else mixed.side
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), side, mixed.aux


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sum of two losses either of which may be absent."""
    return b if a is None else a if b is None else torch.add(a, b)
