"""Sequence classification: an encoder, one vector per sequence, a head for one or for two of them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tsla.models.encoder import Encoder
from tsla.ops.packing import groups, in_order, take

POOLS = ("mean", "cls", "attention")
PAIRS = ("", "concat", "nli", "normed")


class Classified(NamedTuple):
    """Logits ``(b, num_classes)``, and the loss that mixers add (None where they add none)."""

    logits: Tensor
    aux: Tensor | None


class PairHead(nn.Module):
    """Logits of two sequences: a hidden layer over their vectors a and b, [a, b] or (arXiv 1705.02364) more of them.

    Args:
        dim: width of a vector, and of the hidden layer.
        num_classes: width of the logits.
        pairs: ``"concat"``, [a, b]; ``"nli"``, [a, b, a - b, a b]; or ``"normed"``, which is nli of vectors that are
            first standardised over the batch (arXiv 1502.03167). Means over many tokens hardly differ from one
            sequence to the next, and without that it takes long until the hidden layer sees anything but their mean.
    """

    def __init__(self, dim: int, num_classes: int, pairs: str) -> None:
        super().__init__()
        self.pairs = pairs
        self.norm = nn.BatchNorm1d(dim, affine=False) if pairs == "normed" else nn.Identity()
        self.hidden = nn.Linear(dim * (2 if pairs == "concat" else 4), dim)
        self.out = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(b, num_classes)`` of vectors ``(2 b, dim)``, those of all first sequences before the second ones."""
        a, b = self.norm(x).chunk(2)
        vectors = [a, b] if self.pairs == "concat" else [a, b, a - b, a * b]
        logits: Tensor = self.out(torch.relu(self.hidden(torch.cat(vectors, dim=-1))))
        return logits


class SequenceClassifier(nn.Module):
    """One of `num_classes` for each sequence, or for each two of them.

    >>> model = SequenceClassifier(Encoder(vocab_size=256, dim=128, depth=2), num_classes=10)
    >>> logits = model(torch.randint(256, (4, 1000)))

    Args:
        encoder: makes the tokens that are pooled.
        num_classes: width of the logits.
        pool: ``"mean"`` over real tokens; ``"cls"``, a learned token put first; ``"attention"``, a learned weighting.
        pairs: sequences are taken two by two, the first half of a batch with the second, and `PairHead` tells their
            class by ``"concat"``, ``"nli"`` or ``"normed"``; empty: each sequence has its own.
        dropout: before the head.

    Raises:
        ValueError: an unknown pool or way of pairs; ``"cls"`` in a causal encoder, whose first token sees nothing, or
            in a grid.
    """

    def __init__(
        self, encoder: Encoder, *, num_classes: int, pool: str = "mean", pairs: str = "", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f"pool ({pool!r}) must be one of {', '.join(POOLS)}")
        if pairs not in PAIRS:
            raise ValueError(f"pairs ({pairs!r}) must be one of '', {', '.join(PAIRS[1:])}")
        if pool == "cls" and encoder.causal:
            raise ValueError(
                "pool 'cls' puts a token first, where a causal encoder sees nothing: use mean or attention"
            )
        if pool == "cls" and encoder.grid is not None:
            raise ValueError("pool 'cls' adds a token, which has no place in a grid: use mean or attention")
        if num_classes < 1:
            raise ValueError(f"num_classes ({num_classes}) must be at least 1")
        self.encoder, self.pool, self.pairs = encoder, pool, pairs
        self.cls = nn.Parameter(torch.randn(encoder.dim) * encoder.dim**-0.5) if pool == "cls" else None
        self.score = nn.Linear(encoder.dim, 1, bias=False) if pool == "attention" else None
        self.dropout = nn.Dropout(dropout)
        self.head = PairHead(encoder.dim, num_classes, pairs) if pairs else nn.Linear(encoder.dim, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(b, num_classes)`` of ids ``(b, n)`` or values ``(b, n, input_dim)``; mask: True = real.

        Of pairs there are half as many. Padding may stand at either end; with pool ``"cls"``, whose token goes first,
        at the right one.
        """
        return self.run(tokens, mask).logits

    def run(self, tokens: Tensor, mask: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Classified:
        """Logits, and the loss that mixers add.

        cu_seqlens: ``(sequences + 1,)`` int, the bounds of the sequences packed into the one row of tokens; there is
            then a row of logits for each. Not with pool ``"cls"``, whose token would have to stand between them.
        """
        if cu_seqlens is not None and self.cls is not None:
            raise ValueError("pool 'cls' puts a token before a sequence, and these are packed: use mean or attention")
        x = self.encoder.embed(tokens, mask, cu_seqlens)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
            mask = None if mask is None else nn.functional.pad(mask, (1, 0), value=True)
        x, aux = self.encoder.encode(x, mask, cu_seqlens)
        if cu_seqlens is None:
            return Classified(self.head(self.dropout(self._pool(x, mask))), aux)
        found = groups(cu_seqlens)
        pooled = in_order([self._pool(take(x, group, 1), group.masked(mask)) for group in found], found)
        return Classified(self.head(self.dropout(pooled)), aux)

    def _pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.cls is not None:
            return x[:, 0]
        weight = x.new_zeros(*x.shape[:2], 1) if self.score is None else self.score(x)
        if mask is not None:  # a row without tokens pools to zero, not to the mean of its padding
            weight = weight.masked_fill(~mask[..., None], -torch.inf)
            x = x.masked_fill(~mask[..., None], 0.0)
            weight = weight.masked_fill(~mask.any(1)[:, None, None], 0.0)
        return (weight.softmax(dim=1) * x).sum(1)
