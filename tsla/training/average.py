"""An exponential moving average of the weights, which validation, the saved model and the test use instead of them."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class WeightAverage(L.Callback):
    """``average = decay * average + (1 - decay) * weights`` after each optimiser step, from the first weights on.

    Early averages would be mostly the start, so the decay grows with the step t as ``min(decay, (1 + t) / (10 + t))``.

    Args:
        model: whose parameters are averaged.
        decay: 0 to 1; None averages nothing.
    """

    def __init__(self, model: nn.Module, decay: float | None) -> None:
        self.model, self.decay = model, decay
        self.average: dict[str, Tensor] = {}
        self.step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.decay is not None and not self.average:
            self.average = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.average = {name: x.to(pl_module.device) for name, x in self.average.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.decay is None or trainer.global_step == self.step:  # in the midst of an accumulated step
            return
        self.step = trainer.global_step
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; once more to undo it."""
        for name, parameter in self.model.named_parameters() if self.average else ():
            weights = parameter.clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(weights)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average, self.step = dict(state_dict["average"]), state_dict["step"]
