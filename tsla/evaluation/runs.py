"""Run directories as they lie on disk, read for a report. What they hold is untrusted: it is checked and cleaned here.

Imports no torch: a report needs a second, not the ten that loading a model takes.
"""

import csv
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_NAME, LONGEST_TEXT = 80, 4000  # characters of a name, and of a command, a path or an option
LARGEST = 1e18  # of any number in a result: no count or score of ours comes near
MOST_CLASSES = 20  # a larger confusion matrix is not read: nobody could read it on a page either
BYTES = {  # at most
    "config.yaml": 2**20,
    "distill.yaml": 2**20,
    "result.json": 2**23,
    "metrics.csv": 2**28,
    "confusion.csv": 2**20,
}

TOLD_ALREADY = ("mixer", "seed", "out", "rows", "finetune_")  # options of distill.yaml, by config.yaml or by nothing

TEXTS = ("task", "mixer", "monitor", "command")  # of result.json, and the others by their types
COUNTS = ("seed", "params", "steps", "state_bytes", "peak_memory_bytes", "best_step")
NUMBERS = ("seconds", "train_tokens_per_second")
SCORES = ("metrics", "references")


class Curve(NamedTuple):
    """One column of metrics.csv: `values` at optimiser `steps`, both in the file's order; NaN where not finite."""

    steps: list[int]
    values: list[float]


class Confusion(NamedTuple):
    """Items of the test split, by true class (rows) and predicted class (columns)."""

    labels: list[str]
    counts: list[list[int]]


class Run(NamedTuple):
    """One run directory.

    path: as it was given or found.
    config: every option as text, by its dotted key.
    result: the checked content of result.json; None while the run is unfinished.
    metrics: the columns of metrics.csv by name, without `step` and `epoch`.
    confusion: None where there is none, or one of more than `MOST_CLASSES` classes.
    """

    path: Path
    config: dict[str, str]
    result: dict[str, Any] | None
    metrics: dict[str, Curve]
    confusion: Confusion | None


class Unfinished(NamedTuple):
    """A run without a result: `step` is its latest, `val` its latest validation ``name value``."""

    path: str
    task: str
    mixer: str
    seed: str
    step: int
    of_steps: str
    val: str
    command: str


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs at `paths`, each once: a run directory itself, or all below a folder such as that of a suite.

    Raises:
        ValueError: a path without any run, or a damaged file, by its name.
    """
    found: dict[Path, Run] = {}
    for path in paths:
        places = [path] if (path / "config.yaml").is_file() else sorted(_below(path))
        runs = [_read_run(place, searched=place is not path) for place in places]
        if not any(runs):
            raise ValueError(f"{path} holds no run: a run directory has a config.yaml that `tsla train` wrote")
        for run in filter(None, runs):
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def clean(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` on one line, without control, formatting and invisible characters, and cut at `longest`."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " * c.isspace() for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def numbered(texts: Sequence[str], longest: int) -> list[str]:
    """`texts` cut at `longest`; of those that look the same then, the second ends in (2), the third in (3)."""
    out: list[str] = []
    for text in texts:
        cut, place = clean(text, longest), 2
        while cut in out:
            ending = f" ({place})"
            cut, place = clean(text, longest - len(ending)) + ending, place + 1
        out.append(cut)
    return out


def unfinished(run: Run) -> Unfinished:
    """How far a run without a result is, and what goes on with it."""
    scores = {name: curve for name, curve in run.metrics.items() if name.startswith("val/") and name != "val/loss"}
    name, curve = next(iter(scores.items()), ("", None))
    earlier = "pretraining" if (run.path / "pretrain" / "metrics.csv").exists() else "none yet"
    path = clean(str(run.path), LONGEST_TEXT)
    verb = "distill" if (run.path / "distill.yaml").exists() else "train"
    return Unfinished(
        path=path,
        task=clean(run.config["task.name"]),
        mixer=clean(run.config["mixer.name"]),
        seed=clean(run.config.get("seed", "?")),
        step=max((curve.steps[-1] for curve in run.metrics.values()), default=0),
        of_steps=clean(run.config.get("trainer.max_steps", "null").replace("null", "?")),
        val=f"{name} {curve.values[-1]:.3f}" if curve else earlier,
        command=shlex.join(["tsla", verb, f"resume={path}"]),
    )


def confusion_of(runs: Sequence[Run]) -> Confusion | None:
    """The counts of all `runs` together; None if there are none, or of different classes."""
    tables = [run.confusion for run in runs if run.confusion]
    if not tables or any(table.labels != tables[0].labels for table in tables):
        return None
    counts = [
        [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*(t.counts for t in tables), strict=True)
    ]
    return Confusion(tables[0].labels, counts)


def _below(folder: Path) -> Iterator[Path]:
    """Folders under `folder` with a config.yaml; none is looked for inside another."""
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files:
            yield Path(path)
            folders.clear()


def _read_run(path: Path, *, searched: bool) -> Run | None:
    """The run at `path`; None if it was only come across and is of some other tool."""
    config = _read_config(path / "config.yaml")
    if not {"task.name", "mixer.name"} <= config.keys():
        if searched:
            return None
        raise ValueError(f"{path / 'config.yaml'} is not the config of a run: it has no task.name or no mixer.name")
    config = _with_newer(config)
    if (path / "distill.yaml").exists():  # which asked for what config.yaml does not tell
        asked = _read_config(path / "distill.yaml")
        config |= {f"distill.{key}": value for key, value in asked.items() if not key.startswith(TOLD_ALREADY)}
    return Run(
        path=path,
        config=config,
        result=_read_result(path / "result.json") if (path / "result.json").exists() else None,
        metrics=_read_metrics(path / "metrics.csv") if (path / "metrics.csv").exists() else {},
        confusion=_read_confusion(path / "confusion.csv") if (path / "confusion.csv").exists() else None,
    )


# config.yaml ----------------------------------------------------------------------------------------------------------


def _read_config(path: Path) -> dict[str, str]:
    """Every option by its dotted key. Not checked against today's options: an old run can be reported too."""
    from tsla.config.compose import load_yaml

    text = _text(path)
    try:
        data = load_yaml(text)
    except Exception:  # any parser error means the same to the reader
        raise ValueError(f"{path} is damaged: it is not YAML") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it must hold a mapping of options")
    return _flat(data)


def _with_newer(config: dict[str, str]) -> dict[str, str]:
    """`config` with the options it is too old to have: it stands beside runs that have them at their default."""
    from tsla.config.schema import GROUPS, members

    found: dict[str, str] = {}
    for group in GROUPS:
        if (member := members(group).get(config.get(f"{group}.name", ""))) is not None:
            defaults = member()
            found |= {f"{group}.{one.name}": _spelled(getattr(defaults, one.name)) for one in fields(member)}
    return {"pretrain.name": "none", **found, **config}


def _flat(data: Mapping[Any, Any], path: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, value in data.items():
        name = path + clean(str(key))
        if isinstance(value, dict):
            out |= _flat(value, f"{name}.")
        else:
            out[name] = _spelled(value)
    return out


def _spelled(value: Any) -> str:
    """A value as the command line takes it."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return clean(f"[{','.join(map(_spelled, value))}]", LONGEST_TEXT)
        case _:
            return clean(str(value), LONGEST_TEXT)  # the end of a path or of a list tells data sets apart


# result.json ----------------------------------------------------------------------------------------------------------


def _read_result(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply to be ours
        raise ValueError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is damaged: it must hold a mapping")
    try:
        return _checked(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise ValueError(clean(f"{path} is damaged: {what}", LONGEST_TEXT)) from None


def _checked(data: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of result.json that a report uses, each of its type."""
    result: dict[str, Any] = {key: _name(key, data[key]) for key in TEXTS if key != "command"}
    result["command"] = _name("command", data["command"], LONGEST_TEXT)
    result |= {key: int(_number(key, data[key], whole=True)) for key in COUNTS}
    result |= {key: _number(key, data[key]) for key in NUMBERS}
    for key in SCORES:
        result[key] = {clean(name): _number(f"{key} {name}", value) for name, value in _mapping(key, data[key]).items()}
    for split in ("test", "val"):
        result["metrics"][f"{split}/{result['monitor']}"]  # a KeyError that names it
    result["slices"] = {clean(name): _parts(name, parts) for name, parts in _mapping("slices", data["slices"]).items()}
    scored = data.get("slice_score")  # which older runs do not have
    result["slice_score"] = result["monitor"] if scored is None else _name("slice_score", scored)
    result["git_sha"] = None if data["git_sha"] is None else _name("git_sha", data["git_sha"])
    for key in ("versions", "host"):
        result[key] = {clean(str(k)): clean(str(v)) for k, v in _mapping(key, data[key]).items() if v is not None}
    return result


def _parts(name: str, parts: Any) -> list[dict[str, Any]]:
    """The values of one slice."""
    if not isinstance(parts, list):
        raise TypeError(f"slice {name} must be a list")
    return [
        {
            "value": _name("value of a slice", part["value"]),
            "items": int(_number("items of a slice", part["items"], whole=True)),
            "score": _number("score of a slice", part["score"]),
        }
        for part in parts
    ]


def _name(key: str, value: Any, longest: int = LONGEST_NAME) -> str:
    cleaned = clean(value, longest).strip() if isinstance(value, str) else ""
    if not cleaned:
        raise TypeError(f"{key} must be a text")
    return cleaned


def _number(key: str, value: Any, *, whole: bool = False) -> float:
    """A number; of a run gone astray an infinite one, or the null that JSON has for it, is told as NaN."""
    if value is None and not whole:
        return math.nan
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise TypeError(f"{key} must be a {'whole ' * whole}number")
    if math.isinf(value):
        return math.nan
    if abs(value) > LARGEST or (whole and value < 0):
        raise ValueError(f"{key} must be at most {LARGEST:g}{' and not negative' * whole}")
    return float(value)


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{key} must be a mapping")
    return value


# metrics.csv, confusion.csv -------------------------------------------------------------------------------------------


def _read_metrics(path: Path) -> dict[str, Curve]:
    """The columns of metrics.csv; a last row cut short (a kill while it was written) is left out."""
    names, *rows = _table(path) or [["step"]]
    if "step" not in names:
        raise ValueError(f"{path} is damaged: it has no column step")
    at = names.index("step")
    columns = {clean(name): (place, Curve([], [])) for place, name in enumerate(names) if name not in ("step", "epoch")}
    for line, row in enumerate(rows, start=2):
        try:
            step, values = int(row[at]), [float(cell) if cell else None for cell in row]
            if len(row) != len(names) or not 0 <= step <= LARGEST:
                raise ValueError
        except ValueError:
            if line == len(rows) + 1:
                break
            raise ValueError(f"{path} is damaged: line {line} does not fit its columns") from None
        for place, curve in columns.values():
            if (value := values[place]) is not None:
                curve.steps.append(step)
                curve.values.append(value if abs(value) <= LARGEST else math.nan)
    return {name: curve for name, (_, curve) in columns.items() if curve.steps}


def _read_confusion(path: Path) -> Confusion | None:
    (_, *labels), *rows = _table(path) or [[""]]
    if len(labels) > MOST_CLASSES:
        return None
    try:
        counts = [[int(cell) for cell in cells] for _, *cells in rows]
        if not labels or len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
            raise ValueError
        if not all(0 <= count <= LARGEST for row in counts for count in row):
            raise ValueError
    except ValueError:
        raise ValueError(f"{path} is damaged: it must hold a square table of counts") from None
    return Confusion([clean(label) for label in labels], counts)


def _table(path: Path) -> list[list[str]]:
    try:
        return [row for row in csv.reader(_text(path).splitlines(keepends=True)) if row]
    except csv.Error:
        raise ValueError(f"{path} is damaged: it is not CSV") from None


def _text(path: Path) -> str:
    """The text of a file of a run, which must be a plain one of a sensible size."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    if path.stat().st_size > BYTES[path.name]:
        raise ValueError(f"{path} is damaged: it is larger than {BYTES[path.name] >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is damaged: it is not UTF-8 text") from None
