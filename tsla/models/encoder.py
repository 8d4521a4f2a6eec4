"""The encoder: tokens or real-valued inputs, positions, a stack of blocks, a last norm."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tsla.mixers import Mixer, TaylorAttention
from tsla.mixers.base import positions as token_positions
from tsla.models.block import Block, add
from tsla.models.embedding import BracketDepth, ConvEmbedding, token_table
from tsla.models.norm import make_norm
from tsla.ops.checks import check_mask
from tsla.ops.packing import check_cu_seqlens, each_sequence

POSITIONS = ("none", "learned", "sinusoidal", "rotary")


class Encoder(nn.Module):
    """Pre-norm blocks over embedded tokens: ``(b, n)`` ids or ``(b, n, input_dim)`` values to ``(b, n, dim)``.

    Args:
        vocab_size: number of token ids, for token inputs; give this or `input_dim`.
        input_dim: width of a real-valued input.
        dim: model width.
        depth: number of blocks.
        heads: heads of the default mixer, `TaylorAttention`; 8 if not given. Not with `mixer`.
        mixer: makes the mixer of a layer from its index, with the encoder's `dim` and `causal`.
        causal: tokens see earlier ones only.
        positions: ``"none"``, ``"learned"``, ``"sinusoidal"`` or ``"rotary"`` (inside the mixers).
        max_length: longest input, which learned positions need to know.
        grid: height and width, if the tokens are the cells of a grid, row by row, all of them. Short convolutions are
            then squares, sinusoidal positions tell the row and the column, and positions are those of the cells,
            masked or not; rotary ones still count real tokens, row by row.
        norm, feed_forward, feed_forward_mult, short_conv, conv_residual: as in `Block`; the last norm is of the same
            kind.
        conv_embedding: make the embedding of a token from those around it too, see `ConvEmbedding`.
        embedding_scale: multiply embeddings by sqrt(dim), before positions are added. Those of tokens are drawn with a
            standard deviation of dim^-0.5, so that the numbers of a scaled vector have one of 1.
        brackets: of each token id, 1 where it opens a bracket, -1 where it closes one, else 0; a vector of how many are
            open is added to each token, see `BracketDepth`.
        dropout: on the embedding and on what each block adds.
        loops: how often all blocks are gone through, with the same weights (arXiv 1807.03819).
        gradient_checkpointing: keep only the blocks' inputs for the backward pass and run the blocks again there.

    Raises:
        ValueError: options that do not fit together.
    """

    def __init__(
        self, *, vocab_size: int | None = None, input_dim: int | None = None, dim: int, depth: int,
        heads: int | None = None, mixer: Callable[[int], Mixer] | None = None, causal: bool = False,
        positions: str = "none", max_length: int | None = None, grid: tuple[int, int] | None = None,
        norm: str = "layer", feed_forward: str = "gelu", feed_forward_mult: float = 4.0, short_conv: int = 0,
        conv_residual: bool = False, conv_embedding: bool = False, embedding_scale: bool = False,
        brackets: Sequence[int] | None = None, dropout: float = 0.0, loops: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if (vocab_size is None) == (input_dim is None):
            raise ValueError(f"give vocab_size ({vocab_size}) or input_dim ({input_dim}), and not both")
        for name, value in (("depth", depth), ("loops", loops)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        if heads is not None and mixer is not None:
            raise ValueError(f"heads ({heads}) belongs to the default mixer: give it to the mixers you make instead")
        self.dim, self.causal, self.grid, self.gradient_checkpointing = dim, causal, grid, gradient_checkpointing
        self.loops = loops
        self.positions = Positions(positions, dim, max_length, grid)
        mixers = [
            TaylorAttention(dim, heads=heads or 8, causal=causal, rotary=positions == "rotary", dropout=dropout)
            if mixer is None
            else mixer(layer)
            for layer in range(depth)
        ]
        for layer, made in enumerate(mixers):
            if (made.dim, made.causal) != (dim, causal):
                raise ValueError(
                    f"the mixer of layer {layer} has dim {made.dim} and causal={made.causal}, "
                    f"the model dim {dim} and causal={causal}"
                )
        if conv_embedding and grid is not None:
            raise ValueError(f"conv_embedding looks along a line of tokens, and these are a grid {grid}")
        if brackets is not None and len(brackets) != vocab_size:
            raise ValueError(f"brackets ({len(brackets)}) must say of each token id what it does, and needs vocab_size "
                             f"({vocab_size}) of them")  # fmt: skip
        self.brackets = None if brackets is None else BracketDepth(brackets, dim)
        self.convolutions = ConvEmbedding(dim, causal=causal) if conv_embedding else None
        self.width = width = dim // 4 if conv_embedding else dim  # of a token before those around it come in
        self.embedding_scale = embedding_scale
        self.embedding = nn.Linear(input_dim, width) if input_dim is not None else token_table(vocab_size or 0, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(m, norm=norm, feed_forward=feed_forward, feed_forward_mult=feed_forward_mult, short_conv=short_conv,
                  conv_residual=conv_residual, grid=grid, dropout=dropout)
            for m in mixers
        )  # fmt: skip
        self.norm = make_norm(norm, dim)

    def embed(
        self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Inputs with their positions, ``(b, n, dim)``.

        added: ``(b, n, width)``, put on the vector of each token by itself.

        Raises:
            ValueError: tokens, mask or cu_seqlens that do not fit together.
        """
        check_mask(mask, tuple(tokens.shape[:2]))
        if cu_seqlens is not None:
            check_cu_seqlens(cu_seqlens, tokens, tokens.shape[1])
        if self.grid is not None and tokens.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"input must have the {self.grid[0]} x {self.grid[1]} cells, got {tokens.shape[1]} tokens")

        def placed(part: nn.Module, x: Tensor) -> Tensor:
            return part(x, mask) if cu_seqlens is None else each_sequence(part, x, cu_seqlens, mask)

        x = self.embedding(tokens)
        x = x if added is None else x + added
        if self.convolutions is not None:
            x = placed(self.convolutions, x)
        if self.embedding_scale:
            x = x * self.dim**0.5
        x = placed(self.positions, x)
        return self.dropout(x if self.brackets is None else x + self.brackets(tokens, mask, cu_seqlens))

    def encode(
        self, x: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The blocks and the last norm on embedded tokens; and the sum of the losses that mixers add, or None."""
        side: Tensor | None = None
        aux: Tensor | None = None
        for block in [*self.blocks] * self.loops:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, side, more = checkpoint(block, x, mask, side, cu_seqlens, use_reentrant=False)
            else:
                x, side, more = block(x, mask, side, cu_seqlens)
            aux = add(aux, more)
        return self.norm(x), aux

    def forward(self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        """Contextual tokens ``(b, n, dim)``; mask ``(b, n)`` bool, True = real.

        cu_seqlens: ``(sequences + 1,)`` int; the input is then one row of sequences packed one after another.
        """
        return self.encode(self.embed(tokens, mask, cu_seqlens), mask, cu_seqlens)[0]


class Positions(nn.Module):
    """Adds learned or sinusoidal position vectors; none and rotary add nothing. Real tokens are counted, not slots.

    Args:
        kind: one of `POSITIONS`.
        dim: model width.
        max_length: number of learned vectors; with a grid, that of its cells.
        grid: height and width, if the tokens are cells, whose places count whether real or not. Of a sinusoidal vector
            the first half then tells the row, the second the column.
    """

    def __init__(self, kind: str, dim: int, max_length: int | None, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        if grid is not None:
            if min(grid) < 1:
                raise ValueError(f"grid {grid} must have a height and width of at least 1")
            max_length = grid[0] * grid[1]
        if kind not in POSITIONS:
            raise ValueError(f"positions ({kind!r}) must be one of {', '.join(POSITIONS)}")
        if kind == "learned" and (max_length is None or max_length < 1):
            raise ValueError(f"learned positions need max_length of at least 1, got {max_length}")
        if kind == "sinusoidal" and dim % 2:
            raise ValueError(f"sinusoidal positions need an even dim, got {dim}")
        if kind == "sinusoidal" and grid is not None and dim % 4:
            raise ValueError(f"sinusoidal positions in a grid need a dim that 4 divides, got {dim}")
        self.kind, self.max_length, self.grid = kind, max_length, grid
        self.table = token_table(max_length or 0, dim) if kind == "learned" else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(b, n, dim)``."""
        if self.table is None and self.kind != "sinusoidal":
            return x
        places = token_positions(None if self.grid is not None else mask, x)
        if self.table is None and self.grid is not None:
            row, column = places // self.grid[1], places % self.grid[1]
            return x + torch.cat([sinusoids(place, x.shape[-1] // 2) for place in (row, column)], -1).to(x.dtype)
        if self.table is None:
            return x + sinusoids(places, x.shape[-1]).to(x.dtype)
        if x.shape[1] > self.table.num_embeddings:  # padding needs no position, so only real tokens are too many
            longest = x.shape[1] if mask is None else int(places.max()) + 1
            if longest > self.table.num_embeddings:
                raise ValueError(f"input of length {longest} is longer than the learned positions ({self.max_length})")
        return x + self.table(places)


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Sines and cosines of positions at wavelengths from 2 pi to 20 000 pi (arXiv 1706.03762), ``(..., dim)``."""
    frequency = 10_000.0 ** (-torch.arange(0, dim, 2, device=positions.device) / dim)
    angle = positions[..., None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)
