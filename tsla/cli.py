"""The command `tsla`. Reads its arguments without importing torch; each verb imports what it needs."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsla import __version__

if TYPE_CHECKING:
    from tsla.config import Config
    from tsla.training.fit import Resume

HELP = """\
tsla trains and compares transformers with linear-cost attention.

  tsla train [key=value ...]         train an experiment; `tsla train --help` lists what can be set
  tsla train resume=RUN_DIR          go on with a run that was stopped; resume=auto with the newest of these options
  tsla eval RUN_DIR [split=test] [checkpoint=best|last]
                                     accuracy of a trained run
  tsla info                          versions and machine
  tsla --help | --version

examples
  tsla train                                         short ListOps with Taylor attention
  tsla train experiment=digits mixer=softmax seed=1
  tsla train experiment=listops mixer.kv_heads=1 mixer.local_heads=2 trainer.max_steps=200
"""


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
    others = [a for a in arguments if not a.startswith("resume=")]
    try:
        if not resumed:
            return _new_run(compose(others), resume=False)
        if resumed == ["auto"]:
            return _new_run(compose(others), resume=True)
        if len(arguments) > 1:
            raise UsageError(f"resume goes on with the run's own options; leave out "
                             f"{', '.join(others) or 'the second resume'}")  # fmt: skip
        path = Path(resumed[0])
        if not (path / "config.yaml").is_file():
            raise UsageError(f"resume ({path}) must be auto, or a run directory with a config.yaml")
        config = read(path / "config.yaml")
    except ConfigError as error:
        raise UsageError("\n      ".join(["these options do not work:", *error.problems])) from None
    return _resume(config, path, "last")


def _new_run(config: "Config", *, resume: bool) -> int:
    """Begin a run, or with `resume` go on with the newest unfinished one of the same config if there is one."""
    if config.init_from is not None and not (Path(config.init_from) / "model" / "config.json").is_file():
        raise UsageError(f"init_from ({config.init_from}) must be the directory of a finished run")
    if config.dry_run:
        from tsla.dry_run import dry_run

        return dry_run(config)
    from tsla.run import start, train, unfinished

    try:
        path = unfinished(config) if resume else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if path is not None:
        return _resume(config, path, "any")
    try:
        run = start(config)
    except OSError as error:
        raise UsageError(str(error)) from None
    return train(config, run, "no")


def _resume(config: "Config", path: Path, how: "Resume") -> int:
    if (path / "result.json").exists():
        print(f"{path} is finished: see {path / 'result.json'}")
        return 0
    from tsla.run import train
    from tsla.training.run_dir import RunDir

    return train(config, RunDir(path), how)


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
    from rich.console import Console

    from tsla.run import evaluate_run

    evaluate_run(config, checkpoint, options["split"], Console())
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
