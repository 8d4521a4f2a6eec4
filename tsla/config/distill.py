"""The options of `tsla distill`, and the config of the run that it makes from a teacher's; read without torch."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from tsla.config.compose import load_yaml, typed, with_mixer
from tsla.config.mixers import HeadsConfig, NoneConfig, SoftmaxConfig
from tsla.config.options import ConfigError, as_argument, check_options, did_you_mean, option, spell
from tsla.config.schema import Config, NoPretrainConfig, members

LOSSES = ("maps", "outputs")
LEARNT = ("maps", "mixers")
SHARED = tuple(f.name for f in fields(HeadsConfig))  # by all mixers with heads
ALONE = ("token_shift", "local_heads")  # which put something else around a mechanism
KEPT = tuple(name for name in SHARED if name not in ("name", "local_window", *ALONE))  # as the teacher has them


@dataclass
class DistillOptions:
    """How a softmax model becomes one of another mixer."""

    loss: str | None = option(None, "what the student's mixers learn: the teacher's attention maps, or its heads' "
                              "outputs; null = maps where the mechanism has such maps", choices=LOSSES)  # fmt: skip
    learn: str | None = option(None, "which parameters do: those that the teacher has not, or all of the mixers; "
                               "null = maps where there are any", choices=LEARNT)  # fmt: skip
    distill_steps: int = option(400, "optimiser steps of distilling", low=1)
    distill_lr: float = option(1e-2, "its peak learning rate", above=0)
    distill_batch_tokens: int | None = option(None, "its most tokens of a batch; null = the teacher's", low=1)
    finetune_steps: int = option(300, "optimiser steps of finetuning on the task", low=1)
    finetune_lr: float = option(1e-3, "its peak learning rate", above=0)
    finetune_batch_tokens: int | None = option(None, "its most tokens of a batch; null = the teacher's", low=1)
    lora: int = option(0, "rank of the changes to q, k, v and output projections; 0 = all weights learn", low=0)
    rows: int = option(64, "rows of the validation split whose attention is measured", low=1)
    seed: int = option(0, "of new weights, order and dropout", low=0, high=2**32 - 1)
    out: str | None = option(None, "where the run goes; null = runs/distill/<date-time-id>")


class Distillation(NamedTuple):
    """A teacher's folder, the options, and the arguments that chose the mixer."""

    teacher: Path
    options: DistillOptions
    mixer: tuple[str, ...]

    @property
    def command(self) -> str:
        """The shortest command that gives the same, but for where it goes."""
        usual = DistillOptions()
        given = [as_argument(f.name, getattr(self.options, f.name)) for f in fields(usual)
                 if f.name != "out" and getattr(self.options, f.name) != getattr(usual, f.name)]  # fmt: skip
        return shlex.join(["tsla", "distill", str(self.teacher), *self.mixer, *given])


def parse_distill(arguments: Sequence[str]) -> Distillation:
    """What the arguments ask for: a folder, `mixer=...`, `mixer.option=...` and options.

    Raises:
        ConfigError: with every problem found.
    """
    names = {f.name: f for f in fields(DistillOptions)}
    folders, mixer = list[Path](), list[str]()
    values, problems = dict[str, Any](), list[str]()
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or Path(argument).is_dir():
            folders.append(Path(argument))
        elif key.split(".")[0] == "mixer":
            mixer.append(argument)
        elif key in names and key not in values:
            values[key] = typed(key, names[key].type, None if text == "null" else text, problems)
        elif key in names:
            problems.append(f"{key} is given twice")
        else:
            problems.append(f"{key} is not an option of distill{did_you_mean(key, [*names, 'mixer'])}: it takes mixer, "
                            f"mixer.<option>, {', '.join(names)}")  # fmt: skip
    if len(folders) != 1:
        problems.append(f"distill takes one run directory, got {len(folders)}")
    options = DistillOptions(**values)
    if problems := problems or check_options("", options):
        raise ConfigError(problems)
    return Distillation(folders[0], options, tuple(mixer))


def to_yaml(asked: Distillation) -> str:
    """What `read_distill` reads back."""
    data = {"teacher": str(asked.teacher), "mixer": list(asked.mixer), **asdict(asked.options)}
    return OmegaConf.to_yaml(OmegaConf.create(data))


def read_distill(path: Path) -> Distillation:
    """What a distill.yaml says.

    Raises:
        ConfigError: a file that is not one, with its path.
    """
    problems: list[str] = []
    try:
        data = load_yaml(path.read_text())
        values = {f.name: typed(f.name, f.type, data.pop(f.name), problems) for f in fields(DistillOptions)}
        found = Distillation(Path(data.pop("teacher")), DistillOptions(**values), tuple(data.pop("mixer")))
        problems += [f"{key} is not an option" for key in data] or check_options("", found.options)
    except Exception as error:  # any parser error, or an option that is missing: this is not such a file
        problems, found = [f"not the options of a distillation: {error!r}"], None
    if found is None or problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    return found


def student_config(teacher: Config, asked: Distillation) -> Config:
    """The student's run: the teacher's config with another mixer, trained as finetuning is.

    Raises:
        ConfigError: a teacher that is not softmax throughout, a mixer that it cannot become, or options of it.
    """
    if problems := [*_teacher_problems(teacher)]:
        raise ConfigError([f"{asked.teacher}: {problem}" for problem in problems])
    if not any(argument.startswith("mixer=") for argument in asked.mixer):
        raise ConfigError([f"give mixer=NAME, one of {', '.join(students())}"])
    config = with_mixer(replace(teacher, model=replace(teacher.model, layers=[])), asked.mixer, KEPT)
    if isinstance(config.mixer, NoneConfig) or not isinstance(config.mixer, HeadsConfig):
        raise ConfigError([f"mixer={config.mixer.name} has no attention that could learn from softmax: it takes one of "
                           f"{', '.join(students())}"])  # fmt: skip
    if isinstance(config.mixer, SoftmaxConfig):
        raise ConfigError(["mixer=softmax is what the teacher has: choose another"])
    if given := [name for name in ALONE if getattr(config.mixer, name)]:
        raise ConfigError([f"mixer.{name} puts something beside the mechanism that the teacher has no weights for: "
                           "leave it out" for name in given])  # fmt: skip
    options = asked.options
    return replace(
        stage(config, options.finetune_steps, options.finetune_lr, options.finetune_batch_tokens),
        seed=options.seed, run_dir=options.out, init_from=None, dry_run=False,
        pretrain=NoPretrainConfig(),
        task=replace(config.task, packing=False),
    )  # fmt: skip


def stage(config: Config, steps: int, lr: float, batch_tokens: int | None, **optim: Any) -> Config:
    """`config` for so many optimiser steps, of which it warms up for a tenth at most and validates after each fifth."""
    trainer = config.trainer
    return replace(
        config,
        optim=replace(config.optim, lr=lr, warmup_steps=min(config.optim.warmup_steps, steps // 10), **optim),
        trainer=replace(
            trainer, max_steps=steps, max_epochs=None, max_minutes=None, ema=None, patience=None, devices=1,
            compile=False, batch_tokens=batch_tokens or trainer.batch_tokens,
            validate_every=min(trainer.validate_every, -(-steps // 5)),
        ),
    )  # fmt: skip


def students() -> list[str]:
    """The mixers that a student may have, as far as their options tell."""
    return [name for name, cls in members("mixer").items() if issubclass(cls, HeadsConfig) and cls != SoftmaxConfig]


def _teacher_problems(config: Config) -> list[str]:
    mixer = config.mixer
    if others := sorted({mixer.name, *config.model.layers} - {"softmax"}):
        return [f"a teacher has softmax attention in all layers, and this run has {', '.join(others)}"]
    return [f"a teacher has softmax attention alone, and this run has mixer.{name}={spell(getattr(mixer, name))}"
            for name in ALONE if getattr(mixer, name)]  # fmt: skip
