"""The command `tsla`. Reads its arguments without importing torch; each verb imports what it needs."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tsla import __version__
from tsla.usage import UsageError, check_out, usage

if TYPE_CHECKING:
    from tsla.config import Config
    from tsla.run import Resume

HELP = """\
tsla trains and compares transformers with linear-cost attention.

  tsla train [key=value ...]      train an experiment; --help lists every option
  tsla train resume=RUN_DIR       go on with a run that was stopped
  tsla train ... resume=auto      go on with the newest unfinished run of these
                                  options, or start one
  tsla suite FILE | NAME | key=a,b ... [out=DIR] [jobs=2] [estimate=false]
                                  train every combination; finished cells are
                                  skipped, killed ones gone on with
  tsla train -m key=a,b ...       the same
  tsla report RUN_DIR|SUITE ... [out=report]
                                  tables, figures and a page of runs
  tsla eval RUN_DIR [split=test|val|train] [checkpoint=best|last]
                    [task.key=value ...] [out=FILE.json]
                                  scores of a trained run, on other rows too
  tsla predict RUN_DIR INPUT [out=FILE.csv|.jsonl] [column=NAME]
                                  what a trained run says of new inputs
  tsla distill RUN_DIR mixer=NAME [mixer.key=value ...] [key=value ...]
                                  a trained softmax model with a linear mechanism
                                  in its place, which learns from its attention
  tsla distill resume=RUN_DIR     go on with that
  tsla data list                  every task: source, licence, size
  tsla data prepare|verify|baselines TASK [key=value ...]
                                  make its rows ready, count them anew, score
                                  trivial rules on them
  tsla data inspect PATH [key=value ...]
                                  what is in your files, and how to train on it
  tsla bench attention|model|mixers|decode [key=value ...]
                                  time and memory beside torch's attention and
                                  the field's packages, after a check of each
  tsla bench crossover [key=value ...]
                                  from which length on the linear form is faster
                                  here; mixer.impl=auto then goes by it
  tsla info                       versions and machine
  tsla info --build               compile native code now, not on first use
  tsla --help | --version

examples
  tsla train                             short ListOps with Taylor attention
  tsla train experiment=digits mixer=softmax seed=1
  tsla train experiment=listops mixer.kv_heads=1 trainer.max_steps=200
  tsla suite experiment=digits mixer=taylor,softmax seed=0,1,2 out=runs/digits
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 for a failed run, 2 for a usage error, 128 + signal."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs: dict[str, Callable[[list[str]], int]] = {
        "train": _train, "suite": _suite, "report": _report, "eval": _eval, "predict": _predict, "distill": _distill,
        "data": _data, "bench": _bench, "info": _info,
    }  # fmt: skip
    try:
        match arguments:
            case [] | ["--help" | "-h" | "help", *_]:
                print(HELP, end="")
                return 0
            case ["--version", *_]:
                print(f"tsla {__version__}")
                return 0
            case [verb, *rest] if verb in {*verbs} - {"train", "distill"} and {"-h", "--help"} & set(rest):
                print(HELP, end="")
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
    if "-m" in arguments or "--multirun" in arguments:
        return _suite([a for a in arguments if a not in ("-m", "--multirun")])
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
        raise usage("these options do not work:", error) from None
    return _resume(config, path, "exact")


def _new_run(config: "Config", *, resume: bool) -> int:
    """Begin a run, or with `resume` go on with the newest unfinished one of the same config if there is one."""
    if config.init_from is not None and not (Path(config.init_from) / "model" / "config.json").is_file():
        raise UsageError(f"init_from ({config.init_from}) must be the directory of a finished run")
    if config.dry_run:
        from tsla.dry_run import dry_run

        return dry_run(config)
    from tsla.run import begun, start, train, unfinished
    from tsla.training.run_dir import RunDir

    try:
        path = unfinished(config) if resume else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    if path is not None:
        return _resume(begun(config, RunDir(path)), path, "fall back")
    try:
        run = start(config)
    except OSError as error:
        raise UsageError(str(error)) from None
    return train(begun(config, run), run, "new")


def _resume(config: "Config", path: Path, how: "Resume") -> int:
    if (path / "distill.yaml").exists():
        raise UsageError(f"{path} is a run of tsla distill: go on with it by tsla distill resume={path}")
    from tsla.training.run_dir import is_finished

    if is_finished(path):
        print(f"{path} is finished: see {path / 'result.json'}")
        return 0
    from tsla.run import train
    from tsla.training.run_dir import RunDir

    return train(config, RunDir(path), how)


# tsla suite, tsla report ----------------------------------------------------------------------------------------------


def _suite(arguments: list[str]) -> int:
    from datetime import datetime

    from tsla.config import ConfigError
    from tsla.config.grid import cells_of, find_suite, read_suite, suite_of

    files = [a for a in arguments if "=" not in a or Path(a).exists()]
    others = [a for a in arguments if a not in files]
    options = {"estimate": "true", "jobs": "1"}
    for key in options:
        for argument in [a for a in others if a.startswith(f"{key}=")]:
            options[key] = argument.partition("=")[2]
            others.remove(argument)
    if options["estimate"] not in ("true", "false"):
        raise UsageError(f"estimate ({options['estimate']!r}) must be true or false")
    if not re.fullmatch(r"[1-9][0-9]{0,3}", options["jobs"]):
        raise UsageError(f"jobs ({options['jobs']!r}) must be how many cells to train at a time, at least 1")
    if len(files) > 1 or not arguments:
        raise UsageError("suite takes one file, or options with several values, such as seed=0,1,2")
    try:
        suite = suite_of(others)
        if files:
            if suite["grid"] or suite["overrides"]:
                raise UsageError("suite takes a file or options, not both (out=, jobs= and estimate= go with either)")
            suite = {**read_suite(find_suite(files[0])), **{k: v for k, v in suite.items() if k == "out"}}
        cells = cells_of(suite)
        from rich.console import Console

        from tsla.suite import run_suite

        name = Path(files[0]).stem if files else f"{datetime.now():%Y%m%d-%H%M%S}"
        here = files[0] if files and Path(files[0]).is_dir() else None  # a suite's own folder, wherever it is now
        out = Path(here or suite.get("out") or Path("runs", "suites", name))
        return run_suite(
            suite, cells, out, jobs=int(options["jobs"]), estimate=options["estimate"] == "true", console=Console()
        )
    except ConfigError as error:
        raise usage("this suite does not work:", error) from None


def _report(arguments: list[str]) -> int:
    paths, options = _split(arguments, out="report")
    if not paths:
        raise UsageError("report takes run directories, or folders that hold some")
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"{missing[0]} does not exist")
    from tsla.evaluation.report import write_report

    for path in write_report(paths, Path(options["out"])):
        print(path)
    return 0


def _split(arguments: list[str], **defaults: str) -> tuple[list[Path], dict[str, str]]:
    """Paths, and options with their defaults, of the arguments of a verb."""
    from tsla.config.options import did_you_mean

    paths, options = [], dict(defaults)
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or Path(argument).exists():
            paths.append(Path(argument))
        elif key in options:
            options[key] = value
        else:
            raise UsageError(f"there is no option {key!r}{did_you_mean(key, options)}: it takes "
                             f"{', '.join(f'{name}=' for name in options)}")  # fmt: skip
    return paths, options


# tsla distill ---------------------------------------------------------------------------------------------------------


def _distill(arguments: list[str]) -> int:
    from tsla.config import ConfigError, read
    from tsla.config.distill import parse_distill, read_distill, student_config
    from tsla.config.help import distill_text
    from tsla.training.run_dir import is_finished

    if "--help" in arguments or "-h" in arguments:
        print(distill_text())
        return 0
    resumed = [Path(a.removeprefix("resume=")) for a in arguments if a.startswith("resume=")]
    try:
        if not resumed:
            asked = parse_distill(arguments)
            teacher = _config_of(asked.teacher, asked.teacher / "checkpoints" / "best.ckpt")
            if not is_finished(asked.teacher):
                raise UsageError(f"{asked.teacher} is unfinished: a teacher has to have its result.json")
            config = student_config(teacher, asked)
            from tsla.distill import begin

            return begin(asked, teacher, config)
        if len(arguments) > 1:
            raise UsageError(f"resume goes on with the run's own options; give resume={resumed[0]} alone")
        for file in ("distill.yaml", "config.yaml"):
            if not (resumed[0] / file).is_file():
                raise UsageError(f"resume ({resumed[0]}) must be a run of tsla distill, and has no {file}")
        if is_finished(resumed[0]):
            print(f"{resumed[0]} is finished: see {resumed[0] / 'result.json'}")
            return 0
        asked, config = read_distill(resumed[0] / "distill.yaml"), read(resumed[0] / "config.yaml")
        from tsla.distill import go_on

        return go_on(asked, config, resumed[0])
    except ConfigError as error:
        raise usage("these options do not work:", error) from None


# tsla eval, predict, data, bench, info --------------------------------------------------------------------------------


def _eval(arguments: list[str]) -> int:
    changes = [argument for argument in arguments if argument.startswith("task.") and not Path(argument).exists()]
    others = [argument for argument in arguments if argument not in changes]
    paths, options = _split(others, split="test", checkpoint="best", out="")
    for key, allowed in {"split": ("train", "val", "test"), "checkpoint": ("best", "last")}.items():
        if options[key] not in allowed:
            raise UsageError(f"{key} ({options[key]!r}) must be one of {', '.join(allowed)}")
    if len(paths) != 1:
        raise UsageError(f"eval takes one run directory, got {len(paths)}")
    checkpoint = paths[0] / "checkpoints" / f"{options['checkpoint']}.ckpt"
    config = _config_of(paths[0], checkpoint)
    from rich.console import Console

    from tsla.config import ConfigError
    from tsla.config.compose import with_task
    from tsla.run import evaluate_run

    try:
        changed = with_task(config, changes)
    except ConfigError as error:
        raise usage("these options do not work:", error) from None
    out = Path(options["out"]) if options["out"] else None
    if out is not None:
        check_out(out, paths[0])
    evaluate_run(config, checkpoint, options["split"], Console(), on=changed.task, out=out)
    return 0


def _config_of(run: Path, *needed: Path) -> "Config":
    """The config of a run that has those files."""
    from tsla.config import ConfigError, read

    for file in (run / "config.yaml", *needed):
        if not file.is_file():
            raise UsageError(f"{file} does not exist: {run} is not a run that has it")
    try:
        return read(run / "config.yaml")
    except ConfigError as error:
        raise usage("this run's config does not work:", error) from None


def _predict(arguments: list[str]) -> int:
    paths, options = _split(arguments, out="", column="")
    if len(paths) != 2:
        raise UsageError(f"predict takes a run directory and an input, got {len(paths)} paths")
    run, source = paths
    _config_of(run, run / "model" / "config.json")
    if not source.exists():
        raise UsageError(f"{source} does not exist")
    from tsla.predict import predict

    print(predict(run, source, Path(options["out"]) if options["out"] else None, column=options["column"] or None))
    return 0


def _data(arguments: list[str]) -> int:
    from tsla.data_command import data

    return data(arguments)


def _bench(arguments: list[str]) -> int:
    from tsla.bench.command import bench

    return bench(arguments)


def _info(arguments: list[str]) -> int:
    if arguments == ["--build"]:
        return _build_native()
    if arguments:
        raise UsageError(f"info takes no argument but --build, got {' '.join(arguments)}")
    from tsla import native
    from tsla.config.compose import config_root
    from tsla.training.run_dir import provenance

    facts = provenance()
    print(f"tsla {__version__}")
    for name, value in {
        **facts["versions"],
        **facts["host"],
        "commit": facts["git_sha"],
        "configs": config_root(),
        "native": native.describe(),
        "triton": _version_of("triton"),
    }.items():
        if name != "tsla":
            print(f"  {name:10} {value if value is not None else '-'}")
    return 0


def _version_of(package: str) -> str:
    """What is installed, or that nothing is."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _build_native() -> int:
    from tsla import native

    built = native.build_all()
    for name, isa, seconds, path, problem in built:
        if path is not None:
            print(f"{name}  {isa}  {'cached' if seconds is None else f'{seconds:.1f} s'}  {path}")
        if problem:
            print(f"tsla: {problem}", file=sys.stderr)
    return int(any(library.problem for library in built))


if __name__ == "__main__":
    sys.exit(main())
