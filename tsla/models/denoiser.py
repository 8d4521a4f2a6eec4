"""Masked reconstruction: an encoder that is shown a part of its input, and a head that tells the rest."""

import torch
from torch import Tensor, nn

from tsla.models.classifier import Classified
from tsla.models.encoder import Encoder


class Denoiser(nn.Module):
    """What stood at hidden places: logits of ids, or real values.

    A hidden input is 0, the id of padding or so many zeros, and a learned vector is added where it was embedded.

    >>> from tsla.models import Denoiser
    >>> model = Denoiser(Encoder(vocab_size=256, dim=128, depth=2), outputs=256)
    >>> tokens, hidden = torch.randint(1, 256, (4, 1000)), torch.arange(0, 4000, 7)
    >>> logits = model.run(tokens, None, hidden).logits  # (572, 256)

    Args:
        encoder: makes the tokens.
        outputs: ids, or numbers of a step.
        dropout: before the head.

    Raises:
        ValueError: outputs below 1.
    """

    def __init__(self, encoder: Encoder, *, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        if outputs < 1:
            raise ValueError(f"outputs ({outputs}) must be at least 1")
        self.encoder = encoder
        self.hidden = nn.Parameter(torch.zeros(encoder.width))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, outputs)

    def run(self, tokens: Tensor, mask: Tensor | None, wanted: Tensor, cu_seqlens: Tensor | None = None) -> Classified:
        """What is said of the hidden places, ``(count, outputs)``, and the loss that mixers add.

        Args:
            tokens: ids ``(b, n)`` or values ``(b, n, input_dim)``, the hidden ones too, which nothing here looks at.
            mask: ``(b, n)`` bool, True = real.
            wanted: ``(count,)`` int64, the hidden places when all rows stand in one.
            cu_seqlens: ``(sequences + 1,)`` int, the bounds of the sequences packed into the one row of tokens.
        """
        hidden = torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        hidden.view(-1)[wanted] = True
        places = hidden[..., None]
        shown = tokens.masked_fill(hidden if tokens.dim() == 2 else places, 0)
        x = self.encoder.embed(shown, mask, cu_seqlens, added=self.hidden * places)
        x, aux = self.encoder.encode(x, mask, cu_seqlens)
        return Classified(self.head(self.dropout(x.flatten(0, 1).index_select(0, wanted))), aux)
