"""Loggers beside metrics.csv. None of them asks a question or waits for a network unless told to."""

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


def wandb_logger(folder: Path, *, project: str, mode: str) -> Logger:
    """A Weights & Biases run in `folder`, offline (send it later by `wandb sync`) or online.

    Raises:
        ValueError: online without a key that works: asking for one would block the run.
    """
    if mode == "online":
        import wandb

        try:
            wandb.Api()  # looks for a key, in the environment and in netrc, and tries it
        except wandb.Error as error:
            raise ValueError(
                f"logger.mode=online needs a key that works ({error}): run `wandb login`, or use logger.mode=offline"
            ) from None
    # `offline` alone goes through the environment, which wandb reads once in a process; `mode` is always heeded.
    # The id is the run's through every resume and nobody else's: a folder's name alone may not be, nor be allowed.
    unique = sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return WandbLogger(
        project=project, name=folder.name, id=unique, save_dir=folder, offline=mode == "offline", mode=mode
    )


def tensorboard_logger(folder: Path) -> Logger:
    """TensorBoard files in `folder`/tensorboard.

    Raises:
        ValueError: if tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ValueError("logger=tensorboard needs the package: pip install 'tsla[tensorboard]'")
    return TensorBoardLogger(folder, name="", version="tensorboard")


def end_logging(loggers: list[Logger]) -> None:
    """Close what would take in the numbers of this process's next training too: wandb has one run at a time."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
