"""Every option there is but those of tasks and mixers, as dataclasses: of the model, of how it learns, of a run.

A group with several members is a union; the member is found by its `name`. Nothing here imports torch.
"""

# ruff: noqa: RUF009 - `option` makes a dataclass field, and a new list for each config

from dataclasses import dataclass
from typing import Any

from tsla.config.mixers import MIXERS, MixerConfig
from tsla.config.options import option, union_members
from tsla.config.tasks import TaskConfig

ENCODERS = ("encoder", "based", "transnormer")
NORMS = ("layer", "srms")
FEED_FORWARDS = ("gelu", "swiglu", "sglu")
FREEZABLE = ("mixer.crossover",)


@dataclass
class EncoderConfig:
    """A pre-norm encoder with a classification head."""

    name: str = option("encoder", "plain, or with the options of a preset; see configs/model", choices=ENCODERS)
    dim: int = option(128, "model width", low=1)
    depth: int = option(2, "number of blocks", low=1)
    causal: bool = option(False, "tokens see earlier ones only")
    positions: str = option("none", "positions", choices=("none", "learned", "sinusoidal", "rotary"))
    layers: list[str] = option([], "mixers by layer, repeated over depth; empty = the chosen mixer", choices=MIXERS)
    short_conv: int = option(0, "kernel of a convolution over tokens before each mixer; 0 = none", low=0)
    conv_residual: bool = option(False, "what the convolution finds also goes on beside the mixer, see docs/lra.md")
    conv_embedding: bool = option(False, "embed a token with its neighbours, by three convolutions")
    bracket_depth: bool = option(False, "add a learned vector of how many brackets are open; for ListOps")
    embedding_scale: bool = option(False, "multiply embeddings by sqrt(dim), before positions are added")
    loops: int = option(1, "how often the blocks are gone through, with the same weights", low=1)
    norm: str = option("layer", "of blocks and output: LayerNorm, or SRMSNorm, without parameters", choices=NORMS)
    feed_forward: str = option("gelu", "kind of feed-forward; sglu is swiglu without SiLU", choices=FEED_FORWARDS)
    feed_forward_mult: float = option(4.0, "its hidden width over dim", above=0)
    pool: str = option("mean", "from tokens to one vector, if a task wants one", choices=("mean", "cls", "attention"))
    dropout: float = option(0.0, "on embedding, mixers, feed-forward and head", low=0, high=1)
    gradient_checkpointing: bool = option(False, "run blocks again in the backward pass instead of keeping them")


@dataclass
class VisionConfig:
    """A vision transformer: the encoder over the patches of an image."""

    name: str = option("vision", "the model", choices=("vision",))
    patch_size: int = option(2, "side of a patch in pixels; divides height and width", low=1)
    dim: int = option(128, "model width", low=1)
    depth: int = option(2, "number of blocks", low=1)
    causal: bool = option(False, "patches see earlier ones only, row by row")
    positions: str = option("sinusoidal", "positions; sinusoidal are of row and column, rotary go row by row",
                            choices=("none", "learned", "sinusoidal", "rotary"))  # fmt: skip
    layers: list[str] = option([], "mixers by layer, repeated over depth; empty = the chosen mixer", choices=MIXERS)
    short_conv: int = option(0, "side of a convolution over neighbouring patches before each mixer; 0 = none", low=0)
    conv_residual: bool = option(False, "what the convolution finds also goes on beside the mixer, see docs/lra.md")
    norm: str = option("layer", "of blocks and output: LayerNorm, or SRMSNorm, without parameters", choices=NORMS)
    feed_forward: str = option("gelu", "kind of feed-forward; sglu is swiglu without SiLU", choices=FEED_FORWARDS)
    feed_forward_mult: float = option(4.0, "its hidden width over dim", above=0)
    pool: str = option("mean", "from patches to one vector", choices=("mean", "attention"))
    dropout: float = option(0.0, "on embedding, mixers, feed-forward and head", low=0, high=1)
    gradient_checkpointing: bool = option(False, "run blocks again in the backward pass instead of keeping them")


@dataclass
class AdamWConfig:
    """AdamW with linear warm-up and a decay."""

    name: str = option("adamw", "the optimiser", choices=("adamw",))
    lr: float = option(1e-3, "peak learning rate", above=0)
    decay: str = option("cosine", "after warm-up: to final_lr at the end, or by the root of the steps",
                        choices=("cosine", "rsqrt"))  # fmt: skip
    final_lr: float = option(0.0, "for decay=cosine: learning rate at the end over the peak", low=0, high=1)
    warmup_steps: int = option(100, "optimiser steps of linear warm-up", low=0)
    weight_decay: float = option(0.05, "on matrices; not on biases, norms, embeddings and scales", low=0)
    beta1: float = option(0.9, "decay of the gradient mean", low=0, high=0.9999)
    beta2: float = option(0.98, "decay of the squared-gradient mean", low=0, high=0.99999)
    clip_norm: float = option(1.0, "largest gradient norm; 0 = no clipping", low=0)


@dataclass
class TrainerConfig:
    """How long, how big, how often, and on what."""

    name: str = option("default", "the trainer preset", choices=("default",))
    max_steps: int | None = option(None, "optimiser steps; the schedule follows them if given", low=1)
    max_epochs: int | None = option(None, "passes over the training split", low=1)
    max_minutes: float | None = option(None, "minutes of training, validation included", above=0)
    batch_tokens: int = option(4096, "most tokens of a batch, padding included; rows of like length go together", low=1)
    batch_rows: int | None = option(None, "most rows of a batch; null: as many as batch_tokens allow", low=1)
    curriculum: str = option("none", "easy rows first: short ones; of ListOps those with trees of little depth; "
                             "or those of task.easier, entry by entry",
                             choices=("none", "length", "depth", "stage"))  # fmt: skip
    curriculum_steps: int | None = option(None, "for a curriculum: optimiser steps until all rows may come", low=1)
    accumulate: int = option(1, "batches per optimiser step", low=1)
    validate_every: int = option(200, "optimiser steps between validations; best.ckpt is chosen there", low=1)
    checkpoint_every: int = option(200, "optimiser steps between writes of last.ckpt", low=1)
    precision: str = option("fp32", "type of matrix products; states stay fp32", choices=("fp32", "bf16"))
    accelerator: str = option("auto", "hardware", choices=("auto", "cpu", "cuda", "mps"))
    devices: int = option(1, "processes, one per device", low=1)
    compile: bool = option(False, "torch.compile the model")
    workers: int = option(0, "processes that make batches", low=0)
    ema: float | None = option(None, "decay of a moving average of the weights, which is then used", above=0, high=1)
    patience: int | None = option(None, "validations without a new best after which training ends", low=1)


@dataclass
class NoPretrainConfig:
    """No pretraining."""

    name: str = option("none", "what is learnt of the inputs first", choices=("none",))


@dataclass
class PretrainOptions:
    """How long and how fast a model learns of its inputs before it learns the task."""

    max_steps: int | None = option(None, "optimiser steps of pretraining; null = to the trainer's own limits", low=1)
    lr: float | None = option(None, "peak learning rate of pretraining; null = optim.lr", above=0)


@dataclass
class MaskedPretrainConfig(PretrainOptions):
    """Pretraining on the training inputs: what is hidden of them (arXiv 2310.02980)."""

    name: str = option("masked", "what is learnt of the inputs first", choices=("masked",))
    mask: float | None = option(None, "share of tokens that are hidden; null = 0.5 of images and series, 0.1 of "
                                "ListOps, 0.15 of others", above=0, high=1)  # fmt: skip


@dataclass
class CausalPretrainConfig(PretrainOptions):
    """Pretraining on the training inputs: the next token, or the next values of a series."""

    name: str = option("causal", "what is learnt of the inputs first", choices=("causal",))


@dataclass
class CsvLoggerConfig:
    """metrics.csv only, which is always written."""

    name: str = option("csv", "the logger", choices=("csv",))


@dataclass
class WandbLoggerConfig:
    """Weights & Biases beside metrics.csv; offline unless told otherwise."""

    name: str = option("wandb", "the logger", choices=("wandb",))
    project: str = option("tsla", "project name")
    mode: str = option("offline", "offline files can be sent later by `wandb sync`", choices=("offline", "online"))


@dataclass
class TensorboardLoggerConfig:
    """TensorBoard files beside metrics.csv."""

    name: str = option("tensorboard", "the logger", choices=("tensorboard",))


ModelConfig = EncoderConfig | VisionConfig
OptimConfig = AdamWConfig
PretrainConfig = NoPretrainConfig | MaskedPretrainConfig | CausalPretrainConfig
LoggerConfig = CsvLoggerConfig | WandbLoggerConfig | TensorboardLoggerConfig


@dataclass
class Config:
    """One run, completely."""

    task: TaskConfig
    mixer: MixerConfig
    model: ModelConfig
    optim: OptimConfig
    trainer: TrainerConfig
    pretrain: PretrainConfig
    logger: LoggerConfig
    experiment: str = option("quickstart", "the experiment these options started from")
    seed: int = option(0, "of weights, order and dropout", low=0, high=2**32 - 1)
    run_dir: str | None = option(None, "where the run goes; null = runs/<experiment>/<date-time-id>")
    data_dir: str = option("data", "where tasks keep what they generate")
    init_from: str | None = option(None, "a run whose weights to start from; a head of another task stays new")
    dry_run: bool = option(False, "only tell shapes, parameters, memory and time, after two steps")
    frozen: list[str] = option([], "written by a run: options that were null until it began", choices=FREEZABLE)


GROUPS: dict[str, Any] = {
    "task": TaskConfig,
    "mixer": MixerConfig,
    "model": ModelConfig,
    "optim": OptimConfig,
    "trainer": TrainerConfig,
    "pretrain": PretrainConfig,
    "logger": LoggerConfig,
}


def members(group: str) -> dict[str, Any]:
    """The dataclasses of a group by the names each goes by."""
    return union_members(GROUPS[group])
