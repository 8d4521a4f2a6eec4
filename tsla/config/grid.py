"""Many runs from one description: every combination of some options, as a YAML file or on the command line.

A suite file holds, all but one of the first two optional::

    grid:                          # every combination of these values
      experiment: [digits, listops_short]
      seed: [0, 1, 2]
    variants:                      # each with every combination; the options of a variant go together
      - [mixer=taylor]
      - [mixer=none, model.short_conv=0]
    overrides: [trainer.max_steps=100]   # of all cells
    out: runs/suites/small         # where the cells go, a folder each

Variants may have names, by which their cells then go, and there may be several kinds of them, all combined; an option
of theirs may have several values::

    variants:
      task:
        digits: [experiment=digits, "seed=0,1,2"]
        recall: [experiment=mqar, trainer.max_steps=800]
      model:
        taylor: [mixer=taylor]
        control: [mixer=none, model.short_conv=0]

``mixer=all`` stands for every mixer that has the direction of the cell's model, causal or not. The suites in
``configs/suite`` go by their names.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tsla.config.compose import compose, config_root, load_yaml
from tsla.config.mixers import MIXERS
from tsla.config.options import ConfigError, as_argument, did_you_mean
from tsla.config.schema import GROUPS, Config

KEYS = ("grid", "variants", "overrides", "out")
EVERY_MIXER = "mixer=all"
FORBIDDEN = ("run_dir", "resume", "dry_run")  # a suite decides them


class Point(NamedTuple):
    """One of the values that are combined: options that go together, and those of them that no name speaks for."""

    name: str
    options: list[str]
    unnamed: list[str]


class Cell(NamedTuple):
    """One run of a suite.

    name: of its folder.  group: name without the seed; cells that share it differ in nothing else.
    arguments: of `tsla train`.  config: what they give.
    """

    name: str
    group: str
    arguments: tuple[str, ...]
    config: Config


def find_suite(name: str) -> Path:
    """The file or folder of that name; or the suite of ours that it names.

    Raises:
        ConfigError: there is none.
    """
    ours = {path.stem: path for path in sorted((config_root() / "suite").glob("*.yaml"))}
    if Path(name).exists():
        return Path(name)
    if name not in ours:
        told = did_you_mean(name, ours) or f"; suites here: {', '.join(ours)}"
        raise ConfigError([f"{name} does not exist{told}"])
    return ours[name]


def read_suite(path: Path) -> dict[str, Any]:
    """The content of a suite file, or of the one in a suite's folder.

    Raises:
        ConfigError: a file that is not one, with everything that is wrong with it.
    """
    file = path / "suite.yaml" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError([f"{file} does not exist"])
    try:
        data = load_yaml(file.read_text())
    except Exception as error:  # any parser error means the same to the reader
        raise ConfigError([f"{file} is not a suite: {error}"]) from None
    if not isinstance(data, dict):
        raise ConfigError([f"{file} must hold a mapping with {', '.join(KEYS)}, got {type(data).__name__}"])
    suite = {str(key): value for key, value in data.items()}
    problems = [f"{file}: {key} is not a part of a suite{did_you_mean(key, KEYS)}" for key in suite if key not in KEYS]
    if not isinstance(suite.get("grid", {}), dict):
        problems.append(f"{file}: grid must be a mapping from options to lists of values")
    elif empty := [key for key, values in suite.get("grid", {}).items() if _listed(values) == []]:
        problems.append(f"{file}: {empty[0]} of grid must have a value")
    if not any(suite.get(key) for key in ("grid", "variants", "overrides")):
        problems.append(f"{file} must say something of what to train: grid, variants or overrides")
    if not _are_texts(suite.get("overrides", [])):
        problems.append(f"{file}: overrides must be a list of key=value texts")
    try:
        _axes(suite.get("variants"))
    except ConfigError as error:
        problems += [f"{file}: {problem}" for problem in error.problems]
    if not isinstance(suite.get("out", ""), str):
        problems.append(f"{file}: out must be a folder")
    if problems:
        raise ConfigError(problems)
    return suite


def suite_of(arguments: Sequence[str]) -> dict[str, Any]:
    """A suite from arguments in which an option may have several values: ``seed=0,1,2`` or any sweep of Hydra's.

    Raises:
        ConfigError: arguments that cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Transformer
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    suite: dict[str, Any] = {"grid": {}, "overrides": []}
    problems = []
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if sign and key == "out":
            suite["out"] = text
            continue
        try:
            override = parser.parse_override(argument)
        except HydraException as error:
            problems.append(f"argument {argument!r} cannot be read: {str(error).splitlines()[0]}")
            continue
        if argument == EVERY_MIXER:
            suite["grid"]["mixer"] = ["all"]
        elif override.is_sweep_override():
            values = override.sweep_iterator(transformer=Transformer.identity)
            suite["grid"][override.key_or_group] = [_value(value) for value in values]
        else:
            suite["overrides"].append(argument)
    if problems:
        raise ConfigError(problems)
    return suite


def cells_of(suite: Mapping[str, Any]) -> list[Cell]:
    """The runs of a suite, each composed and checked.

    Raises:
        ConfigError: every problem of every cell, once, with the cells that have it.
    """
    grid = {
        str(key): [as_argument(str(key), value) for value in _listed(values)]
        for key, values in (suite.get("grid") or {}).items()
    }
    if every := EVERY_MIXER in grid.get("mixer", ()):
        grid["mixer"] = [f"mixer={name}" for name in MIXERS]
    axes = _axes(suite.get("variants"))
    axes += [[Point("", [argument], [argument]) for argument in values] for values in grid.values()]
    common = list(suite.get("overrides") or [])
    problems: dict[str, list[str]] = {}
    cells: list[Cell] = []
    for points in itertools.product(*axes):
        arguments = (*common, *(argument for point in points for argument in point.options))
        name = _joined(points)
        found = [f"{argument}: a suite decides {argument.split('=')[0]} itself" for argument in arguments
                 if argument.split("=")[0].lstrip("+") in FORBIDDEN]  # fmt: skip
        try:
            config = compose(arguments)
        except ConfigError as error:
            found += error.problems
        others = [problem for problem in found if not re.match(r"mixer=\w+ needs model\.causal=", problem)]
        if every and found:
            if not others:
                continue
            found = others
        for problem in found:
            problems.setdefault(problem, []).append(name)
        if not found:
            group = _joined(points, without="seed=") or config.experiment
            cells.append(Cell(name or config.experiment, group, arguments, config))
    for first, second in itertools.combinations(cells, 2):
        if first.config == second.config:
            problems.setdefault("these cells are the same run", []).extend([first.name, second.name])
    if problems:
        raise ConfigError([f"{problem} ({_some(names)})" for problem, names in problems.items()])
    return _with_distinct_names(cells)


def _axes(variants: Any) -> list[list[Point]]:
    """The points of each kind of variant; one with an option of several values is several of them.

    Raises:
        ConfigError: no such thing.
    """
    kinds = variants.values() if isinstance(variants, dict) else [variants or [[]]]
    axes: list[list[Point]] = []
    for kind in kinds:
        named = kind.items() if isinstance(variants, dict) and isinstance(kind, dict) else None
        if named is None and (isinstance(variants, dict) or not isinstance(kind, list)):
            raise ConfigError(["variants must be a list, or a mapping of kinds to names and their options"])
        if not kind:
            raise ConfigError(["variants must have an entry of each kind"])
        axes.append([])
        for name, options in named or [("", options) for options in kind]:
            if not isinstance(name, str):  # YAML 1.1: no, on, 1.0
                raise ConfigError([f"the name of a variant must be a text, in quotes if need be, got {name!r}"])
            if not _are_texts(options := _listed(options)) or not re.fullmatch(r"(\w[\w.+-]*)?", name):
                raise ConfigError([f"a variant must be a list of key=value texts, its name letters, digits and ._+-, "
                                   f"got {f'{name}: ' * bool(name)}{options}"])  # fmt: skip
            for values in itertools.product(*map(_values, options)):
                swept = [value for value, option in zip(values, options, strict=True) if value != option]
                axes[-1].append(Point(name, [*values], swept if name else [*values]))
    return axes


def _values(argument: str) -> list[str]:
    """An argument, or of one with several values (``seed=0,1,2``) one for each."""
    if "," not in argument:
        return [argument]
    key, values = next(iter(suite_of([argument])["grid"].items()), ("", []))
    return [as_argument(key, value) for value in values] or [argument]


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _joined(points: Sequence[Point], without: str = "\0") -> str:
    """What a cell is called: names, then options that no name speaks for, but for those that begin `without`."""
    unnamed = [a for point in points for a in point.unnamed if not a.startswith(without)]
    return "_".join(part for part in (*(point.name for point in points), _name(unnamed)) if part)


def _name(arguments: Sequence[str]) -> str:
    """A folder name that says the options: ``digits_taylor_seed0``; the name of a group's choice speaks for itself."""
    parts = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        plain = re.sub(r"[^\w.+-]+", "-", value).strip("-")
        parts.append(plain if key in GROUPS or key == "experiment" else f"{key.split('.')[-1]}{plain}")
    return "_".join(part for part in parts if part)


def _with_distinct_names(cells: list[Cell]) -> list[Cell]:
    """Two options may be spelled alike once their signs are gone: later ones get a number."""
    seen: dict[str, int] = {}
    out = []
    for cell in cells:
        seen[cell.name] = seen.get(cell.name, 0) + 1
        number = "" if seen[cell.name] == 1 else f"_{seen[cell.name]}"
        out.append(cell._replace(name=cell.name + number, group=cell.group + number))
    return out


def _value(element: Any) -> Any:
    """A value of a sweep as plain data, without Hydra's marks of how it was quoted."""
    if isinstance(element, list):
        return [_value(item) for item in element]
    return getattr(element, "text", element)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _some(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
