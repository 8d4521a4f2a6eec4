"""Token classification: an encoder, and a linear head at every token."""

from torch import Tensor, nn

from tsla.models.classifier import Classified
from tsla.models.encoder import Encoder


class TokenClassifier(nn.Module):
    """One of `num_classes` for each token.

    >>> model = TokenClassifier(Encoder(vocab_size=256, dim=128, depth=2, causal=True), num_classes=256)
    >>> logits = model(torch.randint(256, (4, 1000)))  # (4, 1000, 256)

    Args:
        encoder: makes the tokens.
        num_classes: width of the logits.
        dropout: before the head.

    Raises:
        ValueError: num_classes below 1.
    """

    def __init__(self, encoder: Encoder, *, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes ({num_classes}) must be at least 1")
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, num_classes)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``(b, n, num_classes)`` of ids ``(b, n)`` or values ``(b, n, input_dim)``; mask: True = real."""
        return self.run(tokens, mask).logits

    def run(
        self, tokens: Tensor, mask: Tensor | None = None, wanted: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Classified:  # fmt: skip
        """Logits, and the loss that mixers add.

        wanted: ``(count,)`` int64, the tokens whose logits are asked for, by their places when all rows stand in one;
        they come as ``(count, num_classes)``. With many classes and few such tokens, the head is most of the work
        saved. Places and not a mask, whose count a device would have to tell.
        cu_seqlens: ``(sequences + 1,)`` int, the bounds of the sequences packed into the one row of tokens.
        """
        x, aux = self.encoder.encode(self.encoder.embed(tokens, mask, cu_seqlens), mask, cu_seqlens)
        x = x if wanted is None else x.flatten(0, 1).index_select(0, wanted)
        return Classified(self.head(self.dropout(x)), aux)
