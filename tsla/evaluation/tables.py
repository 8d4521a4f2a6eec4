"""The tables of a report: runs that differ in their seed alone are one row, rows stand by task and fall by score."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from tsla.evaluation.plateau import NEAR, plateau_of
from tsla.evaluation.runs import Confusion, Run, Unfinished, clean, confusion_of, numbered, unfinished

# Options that name a run or say where it lies; runs that differ in these alone are the same experiment.
NOT_THE_CONFIG = ("seed", "run_dir", "data_dir", "experiment", "dry_run", "frozen", "logger.")
NOT_THE_DATA = ("task.name", "task.seed", "task.max_length", "task.slices")  # the other task options make a data set
SHORTENED = ("mixer.", "model.", "optim.", "trainer.")  # groups whose name a label can do without
MOST_VALUES = 40  # rows of a slice table
FIRST = ("task.path", "task.label")  # in a title
MOST_TOLD = 6  # values of an option in a note

Options = tuple[tuple[str, str], ...]
Key = tuple[str, str, Options]  # task, monitor, and the options of the data: what has a table of its own


class Spread(NamedTuple):
    """A score over seeds: their mean, and the sample standard deviation (None of a single one)."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.std is None else f" ± {self.std:.3f}")


class Group(NamedTuple):
    """Runs of one config, over seeds: one row of a table.

    runs: finished ones, by seed.
    variant: the options in which the groups of one mixer differ, ``key=value ...``, told by all rows of a table.
    label: mixer and variant in few words, different from the other groups of the table.
    score, val: test score of the best checkpoint, and its score on validation (the best of the run).
    tokens_per_second, minutes: medians; peak_memory_bytes and steps: the largest.
    """

    mixer: str
    variant: str
    label: str
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
    def commands(self) -> list[str]:
        """What makes each of the runs again."""
        return [run.result["command"] for run in self.runs if run.result]

    @property
    def seeds(self) -> list[int]:
        """The seeds, each once."""
        return sorted({run.result["seed"] for run in self.runs if run.result})


class SliceTable(NamedTuple):
    """Scores by the values of one slice: a row for each of `values`, a column for each group of the task.

    items: how many there are, a range where the test splits of the runs differ.
    """

    name: str
    heading: str
    values: list[str]
    items: list[str]
    scores: list[list[float | None]]

    @property
    def cells(self) -> list[list[str]]:
        """The scores as text."""
        return [["" if score is None else f"{score:.3f}" for score in row] for row in self.scores]


class TaskTable(NamedTuple):
    """All that was measured on one task and data set.

    title: the name of the task; where several tables share it, with what tells their data apart.
    data: then all options of the task in which these tables differ, ``key=value ...``.
    groups: by falling score, NaN last.
    references: scores of trivial rules, by falling score; a name has several where its runs tell several.
    differing: options beside the mixer's own, and steps, that are not the same in all groups.
    best: the run of the best validation score, whose confusion matrix is shown if it has one.
    setups: machine and versions of the runs, and their commits; speeds compare within one setup only.
    """

    task: str
    title: str
    data: str
    monitor: str
    groups: list[Group]
    references: list[tuple[str, float]]
    slices: list[SliceTable]
    differing: list[str]
    best: Group
    confusion: Confusion | None
    setups: list[str]
    commits: list[str]


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


def make_tables(runs: Sequence[Run]) -> Tables:
    """Group `runs` into the tables of a report."""
    by_data: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        if run.result:
            data = {key: value for key, value in run.config.items() if key.startswith("task.")}
            told = tuple(sorted((key, value) for key, value in data.items() if key not in NOT_THE_DATA))
            by_data[run.result["task"], run.result["monitor"], told].append(run)
    keys = sorted(by_data)
    titles = zip(keys, numbered([_title(key, keys) for key in keys], 160), strict=True)
    return Tables(
        [_task_table(key, title, _data(key, keys), by_data[key]) for key, title in titles],
        sorted(unfinished(run) for run in runs if run.result is None),
    )


def notes_of(table: TaskTable) -> list[str]:
    """What a reader should know of the main table: how it was made, and what in it does not compare."""
    notes = ["Scores are of the checkpoint best on validation, mean ± sample standard deviation over seeds."]
    rules = [(group.label, plateau_of(group.score.mean, dict(table.references))) for group in table.groups]
    if stuck := [f"{label} ({rule})" for label, rule in rules if rule is not None]:
        notes.append(f"On the plateau of a trivial rule, within {NEAR}: {', '.join(stuck)}.")
    if table.differing:
        notes.append(f"Unequal runs: rows differ in more than the mixer. {' | '.join(table.differing)}.")
    if table.data:
        notes.append(f"Data of this table: {table.data}.")
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
    return [row[1:] for row in sorted(rows, key=lambda row: falling(row[0]))]


def _numbers(group: Group) -> list[str]:
    seeds, runs = len(group.seeds), len(group.runs)
    return [
        str(seeds) if seeds == runs else f"{seeds} ({runs} runs)", str(group.score), f"{group.val:.3f}",
        f"{group.params:,}", f"{group.tokens_per_second:,.0f}", f"{group.peak_memory_bytes / 2**20:,.0f}",
        f"{group.state_bytes / 2**10:,.0f}", f"{group.steps:,}", f"{group.minutes:,.1f}",
    ]  # fmt: skip


# What tables are called ----------------------------------------------------------------------------------------------


def _title(key: Key, keys: Sequence[Key]) -> str:
    """The task, and where others of `keys` have the same, as few options as tell them apart, path and label first."""
    task, monitor, data = key
    others = [(other[1], dict(other[2])) for other in keys if other[0] == task]
    if len(others) == 1:
        return task
    told: list[str] = []
    differing = unlike([options for _, options in others])
    for name in sorted(differing, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        apart = [len({(m, *map(o.get, names)) for m, o in others}) for names in (told, [*told, name])]
        if name in FIRST or apart[0] < apart[1]:
            told.append(name)
    parts = [_part(name, dict(data).get(name), {o.get(name) for _, o in others}) for name in told]
    return f"{task}: {', '.join(parts)} ({monitor})" if parts else f"{task} ({monitor})"


def _part(key: str, value: str | None, values: set[str | None]) -> str:
    """An option in a title; of a path as much of its end as differs from those of the others."""
    name = key.removeprefix("task.")
    if value is None or value == "null":
        return f"{name} absent" if value is None else f"no {name}"
    if name == "path":
        ends: dict[str, str] = {}
        for parts in range(1, 10):
            ends = {path: "/".join(path.rstrip("/").split("/")[-parts:]) for path in filter(None, values)}
            if len(set(ends.values())) == len(ends):
                break
        return clean(ends[value])
    single = re.fullmatch(r"\[([^,]*)\]", value)
    return clean(f"{name} {single[1] if single else value}", 40)


def _data(key: Key, keys: Sequence[Key]) -> str:
    """All options of the data in which the tables of one task differ."""
    differing = unlike([dict(options) for task, _, options in keys if task == key[0]])
    return clean(" ".join(f"{name}={dict(key[2]).get(name, 'absent')}" for name in differing), 1000)


# One task -------------------------------------------------------------------------------------------------------------


def _task_table(key: Key, title: str, data: str, runs: list[Run]) -> TaskTable:
    task, monitor, _ = key
    sets: dict[tuple[str, Options], list[Run]] = defaultdict(list)
    for run in runs:
        sets[_result(run, "mixer"), tuple(sorted(options_of(run).items()))].append(run)
    names = _names([mixer for mixer, _ in sets], [dict(options) for _, options in sets])
    groups = [
        _group(mixer, variant, label, monitor, members)
        for ((mixer, _), members), variant, label in zip(sets.items(), *names, strict=True)
    ]
    groups.sort(key=lambda group: (falling(group.score.mean), group.label))
    told = [(name, value) for run in runs for name, value in _result(run, "references").items()]
    references = {(name, f"{value:.3f}"): (name, value) for name, value in told}  # once, if they look the same
    best = min(groups, key=lambda group: falling(group.val))
    return TaskTable(
        task=task,
        title=title,
        data=data,
        monitor=monitor,
        groups=groups,
        references=sorted(references.values(), key=lambda row: (falling(row[1]), row[0])),
        slices=_slices(groups),
        differing=differing_of(groups),
        best=best,
        confusion=confusion_of(best.runs),
        setups=sorted({_setup(run) for run in runs}),
        commits=sorted({_result(run, "git_sha") or "unknown" for run in runs}),
    )


def _group(mixer: str, variant: str, label: str, monitor: str, runs: list[Run]) -> Group:
    runs = sorted(runs, key=lambda run: (_result(run, "seed"), str(run.path)))

    def all_of(key: str) -> list[float]:
        return [_result(run, key) for run in runs]

    return Group(
        mixer=mixer,
        variant=variant,
        label=label,
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


def _names(mixers: Sequence[str], configs: Sequence[Mapping[str, str]]) -> tuple[list[str], list[str]]:
    """The variant and the label of each row: the options that are not the same for all rows of some one mixer.

    An option that tells the rows of one mixer apart stands by all rows, but for the mixer options that a mixer lacks.
    """
    own = {mixer: [config for name, config in zip(mixers, configs, strict=True) if name == mixer] for mixer in mixers}
    keys = sorted({key for rows in own.values() for key in unlike(rows)})
    last = Counter(key.rpartition(".")[2] for key in keys)
    variants, labels = [], []
    for mixer, config in zip(mixers, configs, strict=True):
        told = [key for key in keys if not key.startswith("mixer.") or any(key in row for row in own[mixer])]
        values = {key: clean(config.get(key, "absent")) for key in told}
        variants.append(" ".join([mixer, *(f"{key}={value}" for key, value in values.items())]))
        short = {key: key.rpartition(".")[2] for key in told if key.startswith(SHORTENED) and key[-5:] != ".name"}
        names = {key: short[key] if key in short and last[short[key]] == 1 else key for key in told}
        labels.append(", ".join([mixer, *(f"{names[key]}={value}" for key, value in values.items())]))
    variants = [text[len(mixer) :].strip() for mixer, text in zip(mixers, numbered(variants, 280), strict=True)]
    return variants, numbered(labels, 280)


def unlike(configs: Sequence[Mapping[str, str]]) -> list[str]:
    """The options that are not the same in all `configs`."""
    keys = sorted({key for config in configs for key in config})
    return [key for key in keys if len({config.get(key) for config in configs}) > 1]


def differing_of(groups: Sequence[Group]) -> list[str]:
    """The mixer's own options aside, what is not the same in all `groups`, as ``key: value (mixer, ...); ...``."""
    configs = [options_of(group.runs[0]) for group in groups]
    one = len({group.mixer for group in groups}) == 1
    out = []
    for key in unlike(configs):
        mixers: dict[str, dict[str, None]] = defaultdict(dict)
        for group, config in zip(groups, configs, strict=True):
            mixers[config.get(key, "absent")][group.mixer] = None
        told = [clean(value, 40) + f" ({', '.join(sorted(own))})" * (not one) for value, own in mixers.items()]
        if not key.startswith("mixer."):
            out.append(f"{key}: " + ("; ".join(told) if len(told) <= MOST_TOLD else f"{len(told)} values"))
    low, high = min(group.steps for group in groups), max(group.steps for group in groups)
    return out + [f"steps made: {low:,} to {high:,}"] * (low < high)


def _slices(groups: Sequence[Group]) -> list[SliceTable]:
    """Tables of the slices that have several values, each value's score a mean over seeds."""
    runs = [run for group in groups for run in group.runs]
    tables = []
    for name in dict.fromkeys(name for run in runs for name in _result(run, "slices")):
        scored = sorted({_result(run, "slice_score") for run in runs if name in _result(run, "slices")})
        items: dict[str, set[int]] = defaultdict(set)
        columns: list[dict[str, list[float]]] = []
        for group in groups:
            columns.append(defaultdict(list))
            for part in (part for run in group.runs for part in _result(run, "slices").get(name, [])):
                items[part["value"]].add(part["items"])
                columns[-1][part["value"]].append(part["score"])
        if 1 < len(items) <= MOST_VALUES:
            values = _in_order(items)
            counts = ["-".join(f"{count:,}" for count in sorted({min(items[v]), max(items[v])})) for v in values]
            scores = [[spread(column[value]).mean if column[value] else None for column in columns] for value in values]
            tables.append(SliceTable(name, f"test {' or '.join(scored)}", values, counts, scores))
    return tables


def _in_order(values: Iterable[str]) -> list[str]:
    """By the number that each begins with, as 4, 16-31; by letters if one begins with none."""
    numbers = {value: re.match(r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?", value) for value in values}
    if all(numbers.values()):
        return sorted(numbers, key=lambda value: (float(numbers[value][0]), value))  # type: ignore[index]
    return sorted(numbers)


def _setup(run: Run) -> str:
    host, versions = _result(run, "host"), _result(run, "versions")
    where = host.get("gpu") or f"{host.get('processor', 'unknown processor')}, threads: {host.get('threads', '?')}"
    return f"{where}, torch {versions.get('torch', '?')}, tsla {versions.get('tsla', '?')}"


def options_of(run: Run) -> dict[str, str]:
    """What makes the run's experiment, as it was asked for: what a run has frozen was null."""
    frozen = run.config.get("frozen", "[]").strip("[]").split(",")
    return {
        key: "null" if key in frozen else value
        for key, value in run.config.items()
        if not key.startswith(NOT_THE_CONFIG)
    }


def _result(run: Run, key: str) -> Any:
    assert run.result is not None  # only finished runs come into a table
    return run.result[key]


def falling(score: float) -> tuple[bool, float]:
    """Sorting key: falling, NaN last."""
    return (math.isnan(score), 0.0 if math.isnan(score) else -score)
