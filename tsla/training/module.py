"""The one Lightning module: a model, its objective, its optimiser. Knows the model only as an `nn.Module`."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from tsla.tasks.loading import Batch
from tsla.training.guards import FiniteGuard
from tsla.training.objective import Objective, WeightedMean
from tsla.training.optim import OptimSettings, make_optimizer, schedule


class Learner(L.LightningModule):
    """Trains `model.run(inputs, mask) -> (logits, aux)` on its objective, plus the loss its mixers add.

    Args:
        model: see above.
        objective: loss and scores.
        optim: optimiser and schedule.
        progress: fraction of the training done, 0 to 1, which the schedule follows.
        seed: dropout at a step is a function of it and the step, whatever was drawn before.
        compiled: run the model through torch.compile, for batches of any length; the weights keep their names.
    """

    def __init__(
        self, model: nn.Module, *, objective: Objective, optim: OptimSettings, progress: Callable[[], float],
        seed: int, compiled: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.objective, self.optim, self.progress, self.seed = model, objective, optim, progress, seed
        run: Any = model.run
        self.run = torch.compile(run, dynamic=True) if compiled else run
        self.train_loss, self.val_loss = WeightedMean(), WeightedMean()  # of training: since the last row
        self.train_aux = WeightedMean()  # of the batches to which the model added a loss
        self.adds_loss = False  # whether it does; known without a look at the device
        self.train_scores, self.val_scores = objective.scores(training=True), objective.scores()
        self.guard = FiniteGuard()  # a callback, which goes before all others
        self.batch_shape = (0, 0)  # rows and padded length of the batch in hand, for messages
        self.loss_sum: Tensor | float = 0.0  # of the batches of an optimiser step, to see whether it is finite

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Give the batch its own random numbers, so that a resumed run draws what the first would have."""
        torch.manual_seed(((self.seed * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx) % 2**63)
        rows, length = batch.mask.shape
        self.batch_shape = (rows, length)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The objective's loss, plus what mixers add."""
        answers = self.objective.ask(self.run, batch)
        loss = self.objective.loss(answers)
        self.train_loss.update(loss.detach(), len(answers.targets))
        self.objective.update(self.train_scores, answers)
        if answers.aux is not None:
            self.adds_loss = True
            self.train_aux.update(answers.aux.detach(), 1)
            loss = loss + answers.aux
        self.loss_sum = self.loss_sum + loss.detach()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count every row of the validation split once."""
        answers = self.objective.ask(self.run, batch)
        self.val_loss.update(self.objective.loss(answers), len(answers.targets))
        self.objective.update(self.val_scores, answers)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and the scores, over all rows of all processes."""
        scores = {"val/loss": self.val_loss.compute()}
        scores |= {f"val/{name}": value for name, value in self.val_scores.compute().items()}
        # For the callbacks: the recorder tells the loggers. All processes have the same, which Lightning cannot know.
        self.log_dict(scores, logger=False, sync_dist=True)
        self.val_loss.reset()
        self.val_scores.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what training has counted since the last row of metrics.csv, in each process by itself."""
        checkpoint["since_row"] = [
            {name: self._of_all_processes(getattr(metric, name)) for name in metric._defaults}
            for metric in self._since_row()
        ]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give each process its own again: sums in another order would round the next row differently.

        Raises:
            ValueError: the checkpoint counts other things.
        """
        found, kept = checkpoint.get("since_row", []), self._since_row()
        if len(found) != len(kept):
            raise ValueError(
                f"the checkpoint has {len(found)} running sums and this version keeps {len(kept)}: it is of another "
                "version of tsla, which alone can go on with it"
            )
        for metric, counted in zip(kept, found, strict=True):
            for name, values in counted.items():
                setattr(metric, name, values[self.trainer.global_rank].to(self.device))

    def _of_all_processes(self, value: Tensor) -> Tensor:
        """``(processes, ...)``."""
        gathered: Any = self.all_gather(value.clone())
        return gathered.reshape(-1, *value.shape)

    def _since_row(self) -> list[Metric]:
        return [self.train_loss, *self.train_scores.values(), self.train_aux]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the norm, and have the optimiser leave out the update if it or the loss is not finite.

        Lightning's own way refuses a fused optimiser under bf16, though nothing is scaled there.
        """
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        step, together = self.trainer.global_step + 1, self.trainer.world_size > 1
        # By this name a fused optimiser learns, on the device, that a step is to be left out.
        norm, optimizer.found_inf = self.guard.watch(step, self.loss_sum, gradients, together=together)
        self.loss_sum = 0.0
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), gradient_clip_val, norm)

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule that is asked after every step."""
        optimizer = make_optimizer(self.model, self.optim)
        factor = schedule(self.optim, self.progress)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
