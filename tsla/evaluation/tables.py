"""The tables of a report: runs that differ in their seed alone are one row, rows stand by task and fall by score."""

import math
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from tsla.evaluation.runs import Confusion, Run, clean

# Options that name a run or say where it lies; runs that differ in these alone are the same experiment.
NOT_THE_CONFIG = ("seed", "run_dir", "data_dir", "experiment", "dry_run", "logger.")
MOST_VALUES = 40  # rows of a slice table


class Spread(NamedTuple):
    """A score over seeds: their mean, and the sample standard deviation (None of a single one)."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


class Group(NamedTuple):
    """Runs of one config, over seeds: one row of a table.

    runs: finished ones, by seed.
    variant: the options in which it differs from the other groups of its task and mixer, ``key=value ...``.
    score, val: test score of the best checkpoint, and its score on validation (the best of the run).
    tokens_per_second, minutes: medians; peak_memory_bytes and steps: the largest.
    """

    mixer: str
    variant: str
    runs: list[Run]
    score: Spread
    val: float
    params: int
    tokens_per_second: float
    peak_memory_bytes: int
    state_bytes: int
    steps: int
    minutes: float

    @property
    def label(self) -> str:
        """Mixer and variant."""
        return f"{self.mixer} {self.variant}".strip()

    @property
    def commands(self) -> list[str]:
        """What makes each of the runs again."""
        return [run.result["command"] for run in self.runs if run.result]

    @property
    def seeds(self) -> list[int]:
        """The seeds, each once."""
        return sorted({run.result["seed"] for run in self.runs if run.result})


class SliceTable(NamedTuple):
    """Scores by the values of one slice: a row for each of `values`, a column for each group of the task."""

    name: str
    heading: str
    values: list[str]
    items: list[int]
    scores: list[list[float | None]]

    @property
    def cells(self) -> list[list[str]]:
        """The scores as text."""
        return [["" if score is None else f"{score:.3f}" for score in row] for row in self.scores]


class TaskTable(NamedTuple):
    """All that was measured on one task.

    groups: by falling score, NaN last.
    references: scores of trivial rules, by falling score; a name has several where its runs tell several.
    differing: options beside the mixer's own that differ from one mixer to the next, as ``key: mixer value, ...``.
    best: the run of the best validation score, whose confusion matrix is shown if it has one.
    setups: machine and versions of the runs, and their commits; speeds compare within one setup only.
    """

    task: str
    monitor: str
    groups: list[Group]
    references: list[tuple[str, float]]
    slices: list[SliceTable]
    differing: list[str]
    best: Group
    confusion: Confusion | None
    setups: list[str]
    commits: list[str]


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


class Tables(NamedTuple):
    """A whole report: a table for each task, and the runs that have no result yet."""

    tasks: list[TaskTable]
    unfinished: list[Unfinished]

    @property
    def summary(self) -> str:
        """How much there is, in one line."""
        runs = sum(len(group.runs) for table in self.tasks for group in table.groups)
        mixers = {group.mixer for table in self.tasks for group in table.groups}
        told = [(runs, "finished run"), (len(self.tasks), "task"), (len(mixers), "mixer")]
        line = ", ".join(f"{count} {name}{'s' * (count != 1)}" for count, name in told)
        return line + (f"; {len(self.unfinished)} without a result" if self.unfinished else "")


class OverviewRow(NamedTuple):
    """A mixer's scores on all tasks; `best` tells the highest of each task."""

    mixer: str
    cells: list[str]
    best: list[bool]


def make_tables(runs: Sequence[Run]) -> Tables:
    """Group `runs` into the tables of a report."""
    by_task: dict[tuple[str, str], list[Run]] = defaultdict(list)
    unfinished = []
    for run in runs:
        if run.result is None:
            unfinished.append(_unfinished(run))
        else:
            by_task[run.result["task"], run.result["monitor"]].append(run)
    return Tables([_task_table(*key, by_task[key]) for key in sorted(by_task)], sorted(unfinished))


def overview(tables: Sequence[TaskTable]) -> tuple[list[str], list[OverviewRow]]:
    """Headings of tasks, and each mixer's score on them: of several variants, the one best on validation."""
    chosen: dict[str, list[Group | None]] = {}
    for mixer in sorted({group.mixer for table in tables for group in table.groups}):
        own = [[group for group in table.groups if group.mixer == mixer] for table in tables]
        chosen[mixer] = [min(groups, key=lambda g: _falling(g.val), default=None) for groups in own]
    tops = [
        max((g.score.mean for g in column if g and not math.isnan(g.score.mean)), default=math.nan)
        for column in zip(*chosen.values(), strict=True)
    ]
    rows = [
        OverviewRow(
            mixer,
            [str(group.score) if group else "" for group in groups],
            [group is not None and group.score.mean == top for group, top in zip(groups, tops, strict=True)],
        )
        for mixer, groups in chosen.items()
    ]
    return [f"{table.task} ({table.monitor})" for table in tables], rows


def notes_of(table: TaskTable) -> list[str]:
    """What a reader should know of the main table: how it was made, and what in it does not compare."""
    notes = ["Scores are of the checkpoint best on validation, mean ± sample standard deviation over seeds."]
    if table.differing:
        notes.append(f"Mixers differ in more than themselves: {' | '.join(table.differing)}.")
    commits = [sha.rstrip("+")[:10] + "+" * sha.endswith("+") for sha in table.commits]
    notes.append(f"Made on {'; '.join(table.setups)}. Commit {', '.join(commits)}.")
    if len(table.setups) > 1:
        notes.append(f"These are {len(table.setups)} different setups: speeds and memory do not compare between them.")
    if any(sha.endswith("+") for sha in table.commits):
        notes.append("A + marks a commit whose files had been changed.")
    return notes


COLUMNS = (
    "mixer", "variant", "seeds", "score", "best val", "params", "tokens/s", "peak MiB", "state KiB", "steps", "minutes",
)  # fmt: skip


def columns_of(table: TaskTable) -> list[str]:
    """Headings of the task's main table: `COLUMNS`, with the name of the score, and `variant` only where there is one.

    The command comes after them; how it is shown depends on the page.
    """
    names = [name for name in COLUMNS if name != "variant" or any(group.variant for group in table.groups)]
    return [f"test {table.monitor}" if name == "score" else name for name in names]


def rows_of(table: TaskTable) -> list[tuple[list[str], Group | None]]:
    """The task's main table as text, groups and references in one order of falling score; None stands by references."""
    variants = any(group.variant for group in table.groups)
    rows: list[tuple[float, list[str], Group | None]] = [
        (group.score.mean, [group.mixer, *[group.variant] * variants, *_numbers(group)], group)
        for group in table.groups
    ]
    blank = [""] * (1 + variants)
    rows += [
        (score, [f"{name} (reference)", *blank, f"{score:.3f}", *[""] * 7], None) for name, score in table.references
    ]
    return [row[1:] for row in sorted(rows, key=lambda row: _falling(row[0]))]


def _numbers(group: Group) -> list[str]:
    seeds, runs = len(group.seeds), len(group.runs)
    return [
        str(seeds) if seeds == runs else f"{seeds} ({runs} runs)", str(group.score), f"{group.val:.3f}",
        f"{group.params:,}", f"{group.tokens_per_second:,.0f}", f"{group.peak_memory_bytes / 2**20:,.0f}",
        f"{group.state_bytes / 2**10:,.0f}", f"{group.steps:,}", f"{group.minutes:,.1f}",
    ]  # fmt: skip


# One task -------------------------------------------------------------------------------------------------------------


def _task_table(task: str, monitor: str, runs: list[Run]) -> TaskTable:
    sets: dict[tuple[str, tuple[tuple[str, str], ...]], list[Run]] = defaultdict(list)
    for run in runs:
        options = {key: value for key, value in run.config.items() if not key.startswith(NOT_THE_CONFIG)}
        sets[_result(run, "mixer"), tuple(sorted(options.items()))].append(run)
    by_mixer: dict[str, list[dict[str, str]]] = defaultdict(list)
    for mixer, options_of in sets:
        by_mixer[mixer].append(dict(options_of))
    groups = [
        _group(mixer, _variant(dict(options_of), by_mixer[mixer]), monitor, members)
        for (mixer, options_of), members in sets.items()
    ]
    groups.sort(key=lambda group: (_falling(group.score.mean), group.label))
    told = [(name, value) for run in runs for name, value in _result(run, "references").items()]
    references = {(name, f"{value:.3f}"): (name, value) for name, value in told}  # once, if they look the same
    best = min(groups, key=lambda group: _falling(group.val))
    shown = [run.confusion for run in best.runs if run.confusion]
    return TaskTable(
        task=task,
        monitor=monitor,
        groups=groups,
        references=sorted(references.values(), key=lambda row: (_falling(row[1]), row[0])),
        slices=_slices(groups, monitor),
        differing=_differing(by_mixer),
        best=best,
        confusion=_sum(shown),
        setups=sorted({_setup(run) for run in runs}),
        commits=sorted({_result(run, "git_sha") or "unknown" for run in runs}),
    )


def _group(mixer: str, variant: str, monitor: str, runs: list[Run]) -> Group:
    runs = sorted(runs, key=lambda run: (_result(run, "seed"), str(run.path)))

    def all_of(key: str) -> list[float]:
        return [_result(run, key) for run in runs]

    return Group(
        mixer=mixer,
        variant=variant,
        runs=runs,
        score=spread([_result(run, "metrics")[f"test/{monitor}"] for run in runs]),
        val=spread([_result(run, "metrics")[f"val/{monitor}"] for run in runs]).mean,
        params=int(max(all_of("params"))),
        tokens_per_second=median(all_of("train_tokens_per_second")),
        peak_memory_bytes=int(max(all_of("peak_memory_bytes"))),
        state_bytes=int(max(all_of("state_bytes"))),
        steps=int(max(all_of("steps"))),
        minutes=median(all_of("seconds")) / 60,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; NaN where a value is."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None)
    return Spread(mean, math.sqrt(sum((value - mean) * (value - mean) for value in values) / (len(values) - 1)))


def _variant(options: Mapping[str, str], others: list[dict[str, str]]) -> str:
    """The options that are not the same in all groups of a task and mixer, without a group's name where that is all."""
    keys = sorted({key for other in others for key in other})
    told = [key for key in keys if len({other.get(key) for other in others}) > 1]
    return clean(" ".join(f"{key}={options.get(key, 'absent')}" for key in told), 200)


def _differing(by_mixer: Mapping[str, list[dict[str, str]]]) -> list[str]:
    """Options, the mixer's own aside, that each mixer has one value of, but not all mixers the same."""
    keys = sorted({key for configs in by_mixer.values() for config in configs for key in config})
    out = []
    for key in keys:
        values = {mixer: {config.get(key, "absent") for config in configs} for mixer, configs in by_mixer.items()}
        one_each = all(len(own) == 1 for own in values.values())  # else the variants tell
        if one_each and not key.startswith("mixer.") and len(set().union(*values.values())) > 1:
            mixers: dict[str, list[str]] = defaultdict(list)
            for mixer, (value,) in values.items():
                mixers[value].append(mixer)
            out.append(f"{key}: " + "; ".join(f"{value} ({', '.join(sorted(own))})" for value, own in mixers.items()))
    return out


def _slices(groups: Sequence[Group], monitor: str) -> list[SliceTable]:
    """Tables of the slices that have several values, each value's score a mean over seeds."""
    names = dict.fromkeys(name for group in groups for run in group.runs for name in _result(run, "slices"))
    tables = []
    for name in names:
        items: dict[str, int] = {}
        columns: list[dict[str, list[float]]] = []
        for group in groups:
            columns.append(defaultdict(list))
            for part in (part for run in group.runs for part in _result(run, "slices").get(name, [])):
                items[part["value"]] = max(part["items"], items.get(part["value"], 0))
                columns[-1][part["value"]].append(part["score"])
        if 1 < len(items) <= MOST_VALUES:
            heading = "mean absolute error" if monitor == "r2" else f"test {monitor}"  # numbers are not right or wrong
            scores = [[spread(column[value]).mean if column[value] else None for column in columns] for value in items]
            tables.append(SliceTable(name, heading, list(items), list(items.values()), scores))
    return tables


def _sum(tables: Sequence[Confusion]) -> Confusion | None:
    """The counts of all seeds together; None if there are none, or of different classes."""
    if not tables or any(table.labels != tables[0].labels for table in tables):
        return None
    counts = [
        [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*(t.counts for t in tables), strict=True)
    ]
    return Confusion(tables[0].labels, counts)


def _setup(run: Run) -> str:
    host, versions = _result(run, "host"), _result(run, "versions")
    where = host.get("gpu") or f"{host.get('processor', 'unknown processor')}, threads: {host.get('threads', '?')}"
    return f"{where}, torch {versions.get('torch', '?')}, tsla {versions.get('tsla', '?')}"


def _unfinished(run: Run) -> Unfinished:
    scores = {name: curve for name, curve in run.metrics.items() if name.startswith("val/") and name != "val/loss"}
    name, curve = next(iter(scores.items()), ("", None))
    path = clean(str(run.path), 4000)
    return Unfinished(
        path=path,
        task=run.config["task.name"],
        mixer=run.config["mixer.name"],
        seed=run.config.get("seed", "?"),
        step=max((curve.steps[-1] for curve in run.metrics.values()), default=0),
        of_steps=run.config.get("trainer.max_steps", "null").replace("null", "?"),
        val=f"{name} {curve.values[-1]:.3f}" if curve else "none yet",
        command=shlex.join(["tsla", "train", f"resume={path}"]),
    )


def _result(run: Run, key: str) -> Any:
    assert run.result is not None  # only finished runs come into a table
    return run.result[key]


def _falling(score: float) -> tuple[bool, float]:
    """Sorting key: falling, NaN last."""
    return (math.isnan(score), 0.0 if math.isnan(score) else -score)
