"""From a config to the things it describes, and back from a saved folder. This and `build_mixer` know both sides."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_never

from lightning.pytorch.loggers import Logger
from torch import nn

from tsla.build_mixer import Place, build_mixer, named_mixer
from tsla.config import Config, ConfigError
from tsla.config.compose import freeze, parse_group
from tsla.config.mixers import MixerConfig, PolynomialConfig, TaylorShiftConfig
from tsla.config.schema import (
    CsvLoggerConfig,
    EncoderConfig,
    ModelConfig,
    PretrainOptions,
    TensorboardLoggerConfig,
    TrainerConfig,
    VisionConfig,
    WandbLoggerConfig,
)
from tsla.config.tasks import (
    DigitsConfig,
    DnaStrandConfig,
    FilesConfig,
    GreyConfig,
    ImageConfig,
    InductionConfig,
    ListOpsConfig,
    MqarConfig,
    PathfinderConfig,
    R8Config,
    RetrievalConfig,
    SelectiveCopyConfig,
    SeriesConfig,
    TaskOptions,
    TextConfig,
)
from tsla.mixers import Mixer
from tsla.models import Encoder, SequenceClassifier, TokenClassifier, VisionTransformer
from tsla.models.pretrained import load_weights, read_model_config, save_model
from tsla.ops import native
from tsla.ops.measured import auto_crossover
from tsla.tasks.base import Task, TaskSpec, parse_spec
from tsla.tasks.digits import Digits
from tsla.tasks.dna import DnaStrand
from tsla.tasks.files import Files
from tsla.tasks.images import Images
from tsla.tasks.listops import ListOps
from tsla.tasks.listops_grammar import CLOSER, OPENER
from tsla.tasks.loading import Batch, Curriculum, LengthBatches, Loader, Rows
from tsla.tasks.mqar import Mqar
from tsla.tasks.pathfinder import Pathfinder
from tsla.tasks.recall import Induction, SelectiveCopy
from tsla.tasks.retrieval import Retrieval
from tsla.tasks.series import Series
from tsla.tasks.texts import TextClasses
from tsla.training.clock import Limits
from tsla.training.fit import FitSettings
from tsla.training.hardware import check_hardware, pick_device
from tsla.training.loggers import tensorboard_logger, wandb_logger
from tsla.training.optim import OptimSettings

Model = SequenceClassifier | TokenClassifier | VisionTransformer


def build_task(config: Config) -> Task:
    """The task of a run; nothing is generated or read yet."""
    match config.task:
        case ListOpsConfig() as c:
            return ListOps(**_own(c), cache_dir=Path(config.data_dir))
        case DigitsConfig() as c:
            return Digits(train_rows=c.train_rows, eval_rows=c.eval_rows, seed=c.seed)
        case ImageConfig() | GreyConfig() as c:
            return Images(**_own(c), cache_dir=Path(config.data_dir))
        case MqarConfig() as c:
            return Mqar(**_own(c), cache_dir=Path(config.data_dir))
        case InductionConfig() as c:
            return Induction(**_own(c), cache_dir=Path(config.data_dir))
        case SelectiveCopyConfig() as c:
            return SelectiveCopy(**_own(c), cache_dir=Path(config.data_dir))
        case SeriesConfig() as c:
            return Series(**_own(c), cache_dir=Path(config.data_dir))
        case DnaStrandConfig() as c:
            return DnaStrand(**_own(c), cache_dir=Path(config.data_dir))
        case FilesConfig() as c:
            return Files(**_own(c), cache_dir=Path(config.data_dir))
        case TextConfig() | R8Config() as c:
            return TextClasses(**_own(c), cache_dir=Path(config.data_dir))
        case RetrievalConfig() as c:
            return Retrieval(**_own(c), cache_dir=Path(config.data_dir))
        case PathfinderConfig() as c:
            return Pathfinder(**_own(c), cache_dir=Path(config.data_dir))
        case _:
            assert_never(config.task)


def _own(task: TaskOptions) -> dict[str, Any]:
    """The options of a task that say what its rows are."""
    return {name: value for name, value in asdict(task).items() if name != "packing"}


def build_model(model: ModelConfig, mixer: MixerConfig, spec: TaskSpec) -> Model:
    """The model of a task. A pattern of layers takes its other mixers with the chosen mixer's heads.

    Raises:
        ValueError: options that do not fit together, or a model that cannot do such a task.
    """
    longest = spec.max_length + (model.pool == "cls")  # whose token goes first
    pattern = [named_mixer(name, mixer, model) for name in model.layers] or [mixer]
    shared: dict[str, nn.Module] = {}

    def layer_mixer(layer: int) -> Mixer:
        return build_mixer(pattern[layer % len(pattern)], model, Place(layer, model.depth, longest, shared))

    match model:
        case EncoderConfig():
            return _encoder(model, layer_mixer, spec)
        case VisionConfig():
            return _vision(model, layer_mixer, spec)
        case _:
            assert_never(model)


def _encoder(model: EncoderConfig, mixer: Callable[[int], Mixer], spec: TaskSpec) -> Model:
    encoder = Encoder(
        vocab_size=spec.vocab_size, input_dim=spec.channels, dim=model.dim, depth=model.depth, mixer=mixer,
        causal=model.causal, positions=model.positions, max_length=spec.max_length, norm=model.norm,
        feed_forward=model.feed_forward, feed_forward_mult=model.feed_forward_mult, short_conv=model.short_conv,
        conv_residual=model.conv_residual, conv_embedding=model.conv_embedding, embedding_scale=model.embedding_scale,
        brackets=_brackets(spec) if model.bracket_depth else None, dropout=model.dropout, loops=model.loops,
        gradient_checkpointing=model.gradient_checkpointing,
    )  # fmt: skip
    if spec.target == "tokens":
        return TokenClassifier(encoder, num_classes=spec.outputs, dropout=model.dropout)
    return SequenceClassifier(
        encoder, num_classes=spec.outputs, pool=model.pool, pairs=spec.pairs, dropout=model.dropout
    )


def _brackets(spec: TaskSpec) -> list[int]:
    """What each token id does to the number of open brackets."""
    if spec.inputs != "listops":
        raise ValueError(f"model.bracket_depth=true needs a task of brackets, which {spec.name} is not")
    return [(token >= OPENER) - 2 * (token == CLOSER) for token in range(spec.vocab_size or 0)]


def _vision(model: VisionConfig, mixer: Callable[[int], Mixer], spec: TaskSpec) -> VisionTransformer:
    if len(spec.image) != 2:
        raise ValueError(f"model=vision needs a task of images, which {spec.name} is not")
    if spec.pairs:
        raise ValueError(f"model=vision looks at one image, and rows of {spec.name} have two")
    if spec.target == "tokens":
        raise ValueError(f"model=vision gives one answer per image, and {spec.name} asks for one per pixel")
    return VisionTransformer(
        image_size=(spec.image[0], spec.image[1]), patch_size=model.patch_size, channels=spec.channels or 1,
        levels=None if spec.vocab_size is None else spec.vocab_size - 1, num_classes=spec.outputs, dim=model.dim,
        depth=model.depth, mixer=mixer, causal=model.causal, positions=model.positions, short_conv=model.short_conv,
        conv_residual=model.conv_residual, norm=model.norm, feed_forward=model.feed_forward,
        feed_forward_mult=model.feed_forward_mult, pool=model.pool, dropout=model.dropout,
        gradient_checkpointing=model.gradient_checkpointing,
    )  # fmt: skip


def frozen(config: Config) -> Config:
    """`config` with the number by which ``mixer.impl=auto`` will choose, where it leaves that to what is measured.

    Later measurements, and other machines, then change nothing in a run that has begun.
    """
    mixer, model = config.mixer, config.model
    if not isinstance(mixer, PolynomialConfig) or mixer.impl != "auto" or mixer.crossover is not None:
        return config
    try:
        device = pick_device(config.trainer.accelerator).type
    except ValueError:  # told when the run wants it
        return config
    head_dim = mixer.head_dim or model.dim // mixer.heads
    order = 2 if isinstance(mixer, TaylorShiftConfig) else mixer.order
    crossover = auto_crossover(
        head_dim, mixer.value_dim or model.dim // mixer.heads, order=order, causal=model.causal, backward=True,
        device=device, native=device == "cpu" and native.fits(head_dim, order) and native.ready(),
    )  # fmt: skip
    return freeze(config, {"crossover": round(crossover, 2)})


def mixer_name(config: Config) -> str:
    """What tables call the mixer: ``taylor``, ``window+taylor`` for a pattern; of a pretrained run, something else."""
    name = "+".join(config.model.layers) or config.mixer.name
    return f"{name} (pretrained)" if isinstance(config.pretrain, PretrainOptions) else name


def check_trainer(config: Config) -> None:
    """Raise ValueError unless this machine has what the trainer asks for; to call before any work is done."""
    t = config.trainer
    check_hardware(t.accelerator, devices=t.devices, precision=t.precision, compiled=t.compile)


def build_loaders(
    config: Config, task: Task, splits: tuple[str, ...], *, rank: int = 0, world: int = 1,
    pose: Callable[[Batch, int], Batch] | None = None,
) -> list[Loader]:  # fmt: skip
    """Batches of the named splits: `train` in an order of (seed, epoch), the others by length, each row once.

    Of several processes, `world`, that train together, each takes the share of its `rank`. `pose`: see `Loader`.

    Raises:
        ValueError: if a process would get no batch, or hardware that is not there.
    """
    pinned = pick_device(config.trainer.accelerator).type == "cuda"  # whose copies need not be waited for then
    loaders = []
    for split in splits:
        training = split == "train"
        rows = Rows(task.split(split), task.spec, packed=training and config.task.packing)
        batches = LengthBatches(
            rows.padded, config.trainer.batch_tokens, batch_rows=config.trainer.batch_rows,
            seed=config.seed if training else None, rank=rank, world=world, drop_uneven=training,
            curriculum=_curriculum(config.trainer, rows, world) if training else None,
        )  # fmt: skip
        if (count := len(batches.cuts) - 1) < world:
            raise ValueError(
                f"the {split} split makes {count} batches of trainer.batch_tokens ({config.trainer.batch_tokens}), "
                f"too few for trainer.devices ({world})"
            )
        workers = config.trainer.workers if training else 0
        loaders.append(Loader(rows, batches, workers=workers, pin_memory=pinned, pose=pose))
    return loaders


def _curriculum(trainer: TrainerConfig, rows: Rows, world: int) -> Curriculum | None:
    """Its limit is told by batches, of which a step takes some from each process."""
    if trainer.curriculum == "none":
        return None
    steps = trainer.curriculum_steps or 0
    return Curriculum(trainer.curriculum, rows.hardness(trainer.curriculum), steps * trainer.accumulate * world)


def build_optim(config: Config) -> OptimSettings:
    """Optimiser and schedule."""
    return OptimSettings(**{name: getattr(config.optim, name) for name in OptimSettings._fields})


def build_fit(config: Config) -> FitSettings:
    """How to train."""
    t = config.trainer
    return FitSettings(
        limits=Limits(t.max_steps, t.max_epochs, t.max_minutes), batch_tokens=t.batch_tokens, accumulate=t.accumulate,
        validate_every=t.validate_every, checkpoint_every=t.checkpoint_every, precision=t.precision,
        accelerator=t.accelerator, devices=t.devices, compile=t.compile,
        ema=t.ema, patience=t.patience,
        idle_parameters="none" in (config.mixer.name, *config.model.layers),  # what leads to such a mixer leads nowhere
    )  # fmt: skip


def build_loggers(config: Config, folder: Path) -> list[Logger]:
    """Loggers beside metrics.csv."""
    match config.logger:
        case CsvLoggerConfig():
            return []
        case WandbLoggerConfig() as c:
            return [wandb_logger(folder, project=c.project, mode=c.mode)]
        case TensorboardLoggerConfig():
            return [tensorboard_logger(folder)]
        case _:
            assert_never(config.logger)


def save(model: Model, config: Config, spec: TaskSpec, folder: Path) -> None:
    """Write a trained model so that `load_model` needs nothing but the folder."""
    save_model(model, {"task": spec._asdict(), "mixer": asdict(config.mixer), "model": asdict(config.model)}, folder)


def load_initial(model: Model, spec: TaskSpec, folder: Path) -> None:
    """Fill `model` with the weights of a saved one; a head that answers other questions stays as it is.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: a damaged or foreign file, or weights of another model, with what differs.
    """
    problems: list[str] = []
    saved = parse_spec(read_model_config(folder).get("task"), problems)
    if saved is None:
        raise ConfigError([f"{folder / 'config.json'}: {problem}" for problem in problems])
    same = all(getattr(saved, name) == getattr(spec, name) for name in ("target", "outputs", "names", "pairs"))
    load_weights(model, folder, keep=() if same else ("head.", "classifier.head."))


def load_model(folder: str | Path) -> Model:
    """The model that a run saved in its `model` folder, ready to use; its config is data, and checked.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: a damaged or foreign file, or a config that does not fit, with what is wrong.
    """
    return load_model_and_spec(folder)[0]


def load_model_and_spec(folder: str | Path) -> tuple[Model, TaskSpec]:
    """As `load_model`, with what the model has to know about its task."""
    folder = Path(folder)
    saved = read_model_config(folder)
    problems: list[str] = []
    mixer = parse_group("mixer", saved.get("mixer"), problems)
    model = parse_group("model", saved.get("model"), problems)
    spec = parse_spec(saved.get("task"), problems)
    if problems or spec is None:
        raise ConfigError([f"{folder / 'config.json'}: {problem}" for problem in problems])
    made = build_model(model, mixer, spec)
    load_weights(made, folder)
    return made.eval(), spec
