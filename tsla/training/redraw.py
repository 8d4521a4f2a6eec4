"""Random features that training draws anew."""

from typing import Any

import lightning as L
import torch

# Far from the seeds of initialisation and dropout, which are small or of another form.
STREAM = 0x7E57_FEA7


class Redraw(L.Callback):
    """After every `redraw_every` optimiser steps of a module that has such a number, its `resample(generator)`.

    What is drawn is a function of the seed, the step and the module's place, so that a resumed run, and each of several
    processes, draws the same. Validation and the test draw nothing, and a checkpoint keeps what was drawn.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.step = seed, 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:  # in the midst of an accumulated step
            return
        self.step = trainer.global_step
        for place, module in enumerate(pl_module.modules()):
            every = getattr(module, "redraw_every", None)
            if isinstance(every, int) and self.step % every == 0:
                generator = torch.Generator()
                generator.manual_seed((STREAM + (self.seed * 1_000_003 + self.step) * 1_000_003 + place) % 2**63)
                module.resample(generator)  # type: ignore[operator]
