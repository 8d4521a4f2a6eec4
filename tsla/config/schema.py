"""Every option there is but those of mixers, as dataclasses: tasks, model, optimiser, trainer, loggers; and `Config`.

A group with several members is a union; the member is found by its `name`. Nothing here imports torch.
"""

# ruff: noqa: RUF009 - `option` makes a dataclass field, and a new list for each config

from dataclasses import dataclass
from typing import Any

from tsla.config.mixers import MIXERS, MixerConfig
from tsla.config.options import option, union_members

LISTOPS = ("listops", "listops_medium", "listops_short")
MQAR = ("mqar", "mqar_mix")
ENCODERS = ("encoder", "based", "transnormer")
IMAGES = {"digits": (8, 8)}  # tasks of images: height and width in pixels
NORMS = ("layer", "srms")
FEED_FORWARDS = ("gelu", "swiglu", "sglu")
FREEZABLE = ("mixer.crossover",)


@dataclass
class TaskOptions:
    """The options of every task."""

    name: str = option("", "the task")
    packing: bool = option(False, "rows of a training batch stand one after another, not padded to the longest")


@dataclass
class ListOpsConfig(TaskOptions):
    """ListOps as Long Range Arena defines it, generated here or read from a `listops-1000` folder."""

    name: str = option("listops", "which size; its numbers stand in configs/task", choices=LISTOPS)
    min_length: int = option(500, "rows are longer than this, in tokens", low=1)
    max_length: int = option(2000, "rows are shorter than this, in tokens", low=3)
    max_depth: int = option(10, "depth at which every node is a digit; the root has depth 1", low=2)
    max_args: int = option(10, "most arguments of an operator", low=2)
    train_rows: int = option(96_000, "rows of the training split", low=1)
    val_rows: int = option(2_000, "rows of the validation split", low=1)
    test_rows: int = option(2_000, "rows of the test split", low=1)
    seed: int = option(0, "of the generator, apart from the run's seed", low=0)
    path: str | None = option(None, "a folder with basic_{train,val,test}.tsv to read instead of generating")


@dataclass
class DigitsConfig(TaskOptions):
    """The 8x8 digits of scikit-learn as sequences of 64 pixels."""

    name: str = option("digits", "the task", choices=("digits",))
    seed: int = option(0, "of the split into train, val and test", low=0)


@dataclass
class MqarConfig(TaskOptions):
    """Multi-query associative recall, generated. Segments are written as length/pairs/rows."""

    name: str = option("mqar", "one kind of rows, or the standard mix of lengths; see configs/task", choices=MQAR)
    vocab_size: int = option(256, "tokens; one half are keys, the other values", low=4)
    train: list[str] = option(["64/4/20000"], "segments of the training split")
    val: list[str] = option(["64/4/1000"], "segments of the validation split")
    test: list[str] = option(["64/4/3000"], "segments of the test split")
    power: float = option(0.01, "queries stand near the pairs at small values, anywhere at 1", above=0)
    filler: bool = option(True, "random tokens between the queries instead of zeros")
    seed: int = option(0, "of the rows, apart from the run's seed", low=0)


@dataclass
class FilesConfig(TaskOptions):
    """Your own data: files, folders of texts, a saved data set or one of the Hub. See `tsla data inspect`."""

    name: str = option("files", "the task", choices=("files",))
    path: str | None = option(None, "a CSV, TSV, JSONL or Parquet file, a folder, or an id on the Hub; must be given")
    revision: str | None = option(None, "of a data set on the Hub: a branch, tag or commit")
    input: str = option("text", "the column to learn from")
    label: list[str] = option(["label"], "the columns to learn; several where target is labels or numbers")
    kind: str = option("bytes", "what inputs are", choices=("bytes", "tokens", "series"))
    target: str = option("class", "one class, any number of labels, or numbers", choices=("class", "labels", "numbers"))
    split: str = option("fraction", "drawn, by a column or the data's own parts, or by files",
                        choices=("fraction", "column", "file"))  # fmt: skip
    val_fraction: float = option(0.1, "rows for validation, where the data itself does not say which", above=0, high=1)
    test_fraction: float = option(0.1, "rows for the test, where the data itself does not say which", above=0, high=1)
    split_column: str = option("split", "for split=column: holds train, val or test; data in parts needs none")
    val_path: str | None = option(None, "for split=file: rows for validation")
    test_path: str | None = option(None, "for split=file: rows for the test")
    max_length: int | None = option(None, "longer inputs lose their end; null keeps all", low=1)
    slices: list[str] = option([], "further columns, for whose values scores are told")
    seed: int = option(0, "of the drawn splits, apart from the run's seed", low=0)


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
    conv_embedding: bool = option(False, "embed a token with its neighbours, by three convolutions")
    embedding_scale: bool = option(False, "multiply embeddings by sqrt(dim), before positions are added")
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
    norm: str = option("layer", "of blocks and output: LayerNorm, or SRMSNorm, without parameters", choices=NORMS)
    feed_forward: str = option("gelu", "kind of feed-forward; sglu is swiglu without SiLU", choices=FEED_FORWARDS)
    feed_forward_mult: float = option(4.0, "its hidden width over dim", above=0)
    pool: str = option("mean", "from patches to one vector", choices=("mean", "attention"))
    dropout: float = option(0.0, "on embedding, mixers, feed-forward and head", low=0, high=1)
    gradient_checkpointing: bool = option(False, "run blocks again in the backward pass instead of keeping them")


@dataclass
class AdamWConfig:
    """AdamW with linear warm-up and cosine decay."""

    name: str = option("adamw", "the optimiser", choices=("adamw",))
    lr: float = option(1e-3, "peak learning rate", above=0)
    final_lr: float = option(0.0, "learning rate at the end, as a fraction of the peak", low=0, high=1)
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


TaskConfig = ListOpsConfig | DigitsConfig | MqarConfig | FilesConfig
ModelConfig = EncoderConfig | VisionConfig
OptimConfig = AdamWConfig
LoggerConfig = CsvLoggerConfig | WandbLoggerConfig | TensorboardLoggerConfig


@dataclass
class Config:
    """One run, completely."""

    task: TaskConfig
    mixer: MixerConfig
    model: ModelConfig
    optim: OptimConfig
    trainer: TrainerConfig
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
    "logger": LoggerConfig,
}


def members(group: str) -> dict[str, Any]:
    """The dataclasses of a group by the names each goes by."""
    return union_members(GROUPS[group])
