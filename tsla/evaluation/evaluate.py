"""Accuracy and loss of a classifier over a split, every row counted once."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tsla.tasks.loading import Loader


@torch.inference_mode()
def evaluate(model: nn.Module, loader: Loader, device: torch.device) -> dict[str, float]:
    """``{"accuracy": fraction, "loss": nats}`` of `model(tokens, mask) -> logits` over the rows of `loader`.

    Raises:
        ValueError: if there are no rows.
    """
    model = model.to(device).eval()
    rows = right = 0
    loss = 0.0
    for batch in loader:
        tokens, mask, labels = (x.to(device) for x in batch)
        logits = model(tokens, mask).float()
        rows += len(labels)
        right += int((logits.argmax(-1) == labels).sum())
        loss += float(cross_entropy(logits, labels, reduction="sum"))
    if not rows:
        raise ValueError("there are no rows to evaluate")
    return {"accuracy": right / rows, "loss": loss / rows}
