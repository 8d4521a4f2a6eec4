"""The command `tsla`. Reads its arguments without importing torch; each verb imports what it needs."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsla import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from tsla.config import Config
    from tsla.training.run_dir import RunDir

HELP = """\
tsla trains and compares transformers with linear-cost attention.

  tsla train [key=value ...]         train an experiment; `tsla train --help` lists what can be set
  tsla train resume=RUN_DIR          go on with a run that was stopped
  tsla eval RUN_DIR [split=test] [checkpoint=best|last]
                                     accuracy of a trained run
  tsla info                          versions and machine
  tsla --help | --version

examples
  tsla train                                         short ListOps with Taylor attention
  tsla train experiment=digits mixer=softmax seed=1
  tsla train experiment=listops mixer.kv_heads=1 mixer.local_heads=2 trainer.max_steps=200
"""


PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}  # for what holds paths


class UsageError(Exception):
    """The command line asks for something that does not exist: exit status 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for a failed run, 2 for a usage error, 128 + signal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, Callable[[list[str]], int]] = {"train": _train, "eval": _eval, "info": _info}
    try:
        match arguments:
            case [] | ["--help" | "-h" | "help", *_]:
                print(HELP, end="")
                return 0
            case ["--version", *_]:
                print(f"tsla {__version__}")
                return 0
            case [verb, *rest] if verb in verbs:
                return verbs[verb](rest)
            case [verb, *_]:
                from tsla.config.options import did_you_mean

                raise UsageError(f"tsla has no command {verb!r}{did_you_mean(verb, verbs)}; see tsla --help")
            case _:
                raise AssertionError(arguments)
    except UsageError as error:
        print(f"tsla: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"tsla: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tsla: interrupted", file=sys.stderr)
        return 130


# tsla train -----------------------------------------------------------------------------------------------------------


def _train(arguments: list[str]) -> int:
    from tsla.config import ConfigError, compose, read
    from tsla.config.help import options_text

    if "--help" in arguments or "-h" in arguments:
        print(options_text())
        return 0
    resumed = [a.removeprefix("resume=") for a in arguments if a.startswith("resume=")]
    try:
        if not resumed:
            return _run(compose(arguments), None)
        if len(arguments) > 1:
            others = ", ".join(a for a in arguments if not a.startswith("resume="))
            raise UsageError(f"resume goes on with the run's own options; leave out {others or 'the second resume'}")
        path = Path(resumed[0])
        if not (path / "config.yaml").is_file():
            raise UsageError(f"resume ({path}) must be a run directory with a config.yaml")
        if (path / "result.json").exists():
            print(f"{path} is finished: see {path / 'result.json'}")
            return 0
        return _run(read(path / "config.yaml"), path)
    except ConfigError as error:
        raise UsageError("\n      ".join(["these options do not work:", *error.problems])) from None


def _run(config: "Config", resumed: Path | None) -> int:
    """Train, evaluate once on the test split, and write the result."""
    import os

    from tsla.config import to_yaml
    from tsla.training.terminal import open_console

    main_process = os.environ.get("LOCAL_RANK", "0") == "0"
    from tsla.training.run_dir import RunDir, new_run_dir

    if resumed is not None:
        run = RunDir(resumed)
    elif not main_process:  # a further process of a multi-device run: the first one has made the folder
        run = RunDir(Path(os.environ["TSLA_RUN_DIR"]))
    else:
        try:
            run = new_run_dir(config.run_dir, config.experiment)
        except (FileExistsError, OSError) as error:
            raise UsageError(str(error)) from None
        os.environ["TSLA_RUN_DIR"] = str(run.path)
        run.config.write_text(to_yaml(config))
    with open_console(run.log, quiet=not main_process) as console:
        _print_config(config, run, console)
        from tsla.training.stop import Stopped

        try:
            _train_and_test(config, run, console, resume=resumed is not None)
        except Stopped as stopped:
            console.print(f"{stopped}; go on with: tsla train resume={run.path}", **PLAIN)
            return 128 + stopped.signum
        except (ValueError, OSError) as error:
            console.print(f"failed: {error}", style="red", **PLAIN)
            return 1
    return 0


def _train_and_test(config: "Config", run: "RunDir", console: "Console", *, resume: bool) -> None:
    import os

    import lightning as L

    from tsla import build
    from tsla.evaluation.curves import draw_curves
    from tsla.evaluation.evaluate import evaluate
    from tsla.evaluation.result import accuracy_table, cost_line, make_result
    from tsla.models import account
    from tsla.training.checkpoints import load_weights
    from tsla.training.fit import fit
    from tsla.training.run_dir import provenance, write_json

    L.seed_everything(config.seed, verbose=False)
    with console.status(f"preparing {config.task.name}"):
        task = build.build_task(config)
        spec, references = task.spec, task.references()
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        loaders = build.build_loaders(config, task, ("train", "val"), rank=rank, world=config.trainer.devices)
    model = build.build_model(config.model, config.mixer, spec)
    costs = account(model, spec.max_length)
    lines = "  ".join(f"{name} {value:.3f}" for name, value in references.items())
    console.print(f"{costs.parameters:,} parameters; to beat: {lines}", highlight=False)
    fitted = fit(
        model, *loaders, num_classes=spec.num_classes, optim=build.build_optim(config),
        settings=build.build_fit(config), run=run, loggers=build.build_loggers(config, run.path), console=console,
        seed=config.seed, resume=resume,
    )  # fmt: skip
    if not fitted.is_main:
        return
    build.save(model, config, spec, run.model)
    load_weights(model, run.checkpoints / "best.ckpt")
    (test,) = build.build_loaders(config, task, ("test",))
    tested = evaluate(model, test, fitted.device)  # the one time a run looks at the test split
    what = {"task": spec.name, "mixer": build.mixer_name(config), "experiment": config.experiment, "seed": config.seed}
    result = make_result(what, costs, fitted, tested, references, provenance())
    title = f"{spec.name}, {what['mixer']}, seed {config.seed}"
    draw_curves(run.metrics, run.curves, references, title)
    write_json(run.result, result)
    console.print()
    console.print(f"[bold]{title}[/]", highlight=False)
    console.print(accuracy_table(str(what["mixer"]), tested["accuracy"], references))
    console.print(cost_line(result), highlight=False, soft_wrap=True)
    console.print(f"run {run.path}   learning curve {run.curves}", **PLAIN)


def _print_config(config: "Config", run: "RunDir", console: "Console") -> None:
    from rich.markup import escape

    from tsla.config import GROUPS
    from tsla.config.help import spell

    console.print(f"[bold]tsla {__version__}[/]  experiment {config.experiment}  seed {config.seed}", highlight=False)
    for group in GROUPS:
        part = getattr(config, group)
        values = " ".join(f"{f.name}={spell(getattr(part, f.name))}" for f in fields(part) if f.name != "name")
        console.print(f"[bold]{group:8}[/]{part.name}  [dim]{escape(values)}[/]", highlight=False)
    console.print(f"[bold]run     [/]{escape(str(run.path))}", highlight=False, soft_wrap=True)


# tsla eval, tsla info -------------------------------------------------------------------------------------------------


def _eval(arguments: list[str]) -> int:
    from tsla.config import ConfigError, read

    options = {"split": "test", "checkpoint": "best"}
    allowed = {"split": ("train", "val", "test"), "checkpoint": ("best", "last")}
    paths = []
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or Path(argument).is_dir():
            paths.append(Path(argument))
        elif key not in options:
            raise UsageError(f"eval has no option {key!r}: it takes split= and checkpoint=")
        elif value not in allowed[key]:
            raise UsageError(f"{key} ({value!r}) must be one of {', '.join(allowed[key])}")
        else:
            options[key] = value
    if len(paths) != 1:
        raise UsageError(f"eval takes one run directory, got {len(paths)}")
    run, checkpoint = paths[0], paths[0] / "checkpoints" / f"{options['checkpoint']}.ckpt"
    for needed in (run / "config.yaml", checkpoint):
        if not needed.is_file():
            raise UsageError(f"{needed} does not exist: {run} is not a run with that checkpoint")
    try:
        config = read(run / "config.yaml")
    except ConfigError as error:
        raise UsageError(str(error)) from None
    return _evaluate(config, checkpoint, options["split"])


def _evaluate(config: "Config", checkpoint: Path, split: str) -> int:
    import torch
    from rich.console import Console

    from tsla import build
    from tsla.evaluation.evaluate import evaluate
    from tsla.evaluation.result import accuracy_table
    from tsla.training.checkpoints import load_weights

    console = Console()
    task = build.build_task(config)
    model = build.build_model(config.model, config.mixer, task.spec)
    load_weights(model, checkpoint)
    (loader,) = build.build_loaders(config, task, (split,))
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    scores = evaluate(model, loader, device)
    title = f"{task.spec.name}, {split} split, {checkpoint.name}, loss {scores['loss']:.4f}"
    references = task.references() if split == "test" else {}
    console.print(f"[bold]{title}[/]", highlight=False)
    console.print(accuracy_table(build.mixer_name(config), scores["accuracy"], references))
    return 0


def _info(arguments: list[str]) -> int:
    if arguments:
        raise UsageError(f"info takes no arguments, got {' '.join(arguments)}")
    from tsla.config.compose import config_root
    from tsla.training.run_dir import provenance

    facts = provenance()
    print(f"tsla {__version__}")
    for name, value in {
        **facts["versions"],
        **facts["host"],
        "commit": facts["git_sha"],
        "configs": config_root(),
    }.items():
        if name != "tsla":
            print(f"  {name:10} {value if value is not None else '-'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
