"""The one Lightning module: a classifier's loss, its metrics, its optimiser. Knows the model only as an `nn.Module`."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from tsla.tasks.loading import Batch
from tsla.training.optim import OptimSettings, make_optimizer, schedule


class ClassifierModule(L.LightningModule):
    """Trains `model.run(tokens, mask) -> (logits, aux)` on cross-entropy, plus the loss its mixers add.

    Args:
        model: see above.
        compiled: run it through torch.compile, for batches of any length; the weights keep their names.
        num_classes: width of its logits.
        optim: optimiser and schedule.
        progress: fraction of the training done, 0 to 1, which the schedule follows.
        seed: dropout at a step is a function of it and the step, whatever was drawn before.
    """

    def __init__(
        self, model: nn.Module, *, num_classes: int, optim: OptimSettings, progress: Callable[[], float], seed: int,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.optim, self.progress, self.seed = model, optim, progress, seed
        run: Any = model.run
        self.run = torch.compile(run, dynamic=True) if compiled else run
        self.train_loss = MeanMetric()  # since the last row of metrics.csv
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        for metric in (self.train_loss, self.train_accuracy):
            metric.persistent(True)  # so that the first row after a resume is the one it would have been
        self.val_loss = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Give the batch its own random numbers, so that a resumed run draws what the first would have."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx) % 2**63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the rows, in nats, plus what mixers add."""
        logits, aux = self.run(batch.tokens, batch.mask)
        loss = cross_entropy(logits.float(), batch.labels)
        self.train_loss.update(loss.detach(), len(batch.labels))
        self.train_accuracy.update(logits.detach(), batch.labels)
        return loss if aux is None else loss + aux

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count every row of the validation split once."""
        logits, _ = self.run(batch.tokens, batch.mask)
        self.val_loss.update(cross_entropy(logits.float(), batch.labels), len(batch.labels))
        self.val_accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and `val/accuracy`, over all rows of all processes."""
        scores = {"val/loss": self.val_loss.compute(), "val/accuracy": self.val_accuracy.compute()}
        # For the callbacks: the recorder tells the loggers. All processes have the same, which Lightning cannot know.
        self.log_dict(scores, logger=False, sync_dist=True)
        self.val_loss.reset()
        self.val_accuracy.reset()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the norm; Lightning's own way refuses a fused optimiser under bf16, though nothing is scaled there."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule that is asked after every step."""
        optimizer = make_optimizer(self.model, self.optim)
        factor = schedule(self.optim, self.progress)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
