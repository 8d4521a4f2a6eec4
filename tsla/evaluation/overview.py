"""All tasks of a report in one table: a row for each mixer or variant, beside trivial rules, with LRA's averages."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from tsla.evaluation.tables import Group, TaskTable, differing_of, falling, options_of, unlike

LRA = ("listops", "text", "retrieval", "image", "pathfinder")  # of arXiv 2011.04006, whose average leaves out Path-X
FAILED = 0.5  # what papers since S4 (arXiv 2111.00396) count for a Path-X that was not learnt, or not tried
NEAR_CHANCE = 0.02
HELPED = {
    "task.supervision": "root",
    "task.easier": "[]",
    "task.contour": "14",
    "task.train_rows": "null",
    "task.eval_rows": "null",
}  # options of the data, and what they are where figures may be averaged


class OverviewRow(NamedTuple):
    """A mixer, or one of its variants: its group of each task, None where it has none, and its averages."""

    label: str
    groups: list[Group | None]
    averages: list[str]


class Overview(NamedTuple):
    """The table.

    headings: of the tasks; averages: names of the columns after them.
    rows: of mixers.  rules: rows of trivial rules, each with its name and its cells.
    notes: what a reader should know.
    """

    headings: list[str]
    averages: list[str]
    rows: list[OverviewRow]
    rules: list[tuple[str, list[str]]]
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        """All headings."""
        return ["mixer", *self.headings, *self.averages]

    def cells(self, row: OverviewRow) -> list[str]:
        """Scores and averages as text."""
        return [*(str(group.score) if group else "" for group in row.groups), *row.averages]

    def best(self, row: OverviewRow) -> list[bool]:
        """Whether each score is the highest of its task."""
        columns = zip(*(one.groups for one in self.rows), strict=True)
        tops = [max((g.score.mean for g in column if g and not math.isnan(g.score.mean)), default=math.nan)
                for column in columns]  # fmt: skip
        found = [group is not None and group.score.mean == top for group, top in zip(row.groups, tops, strict=True)]
        return found + [False] * len(row.averages)


def make_overview(tables: Sequence[TaskTable]) -> Overview:
    """The overview of several tasks."""
    chosen, left_out = _chosen(tables)
    averages = ["avg5", "avg6"] if _lra(tables) else []
    rows = [OverviewRow(label, groups, _averages(tables, groups) if averages else [])
            for label, groups in chosen.items()]  # fmt: skip
    notes = ["Test scores, mean ± standard deviation over seeds."]
    if left_out:
        notes.append(f"Of several variants of {' and '.join(left_out)}, the one best on validation.")
    if averages:
        notes.append(f"avg5: the mean of {', '.join(LRA)}; avg6: with pathx, which counts {FAILED} where it is absent "
                     "or at chance. Of the data of Long Range Arena alone.")  # fmt: skip
    columns = [[group for group in column if group] for column in zip(*chosen.values(), strict=True)]
    for table, groups in zip(tables, columns, strict=True):
        if told := differing_of(groups):
            notes.append(f"Unequal runs: on {heading(table)} mixers differ in more than themselves. "
                         f"{' | '.join(told)}.")  # fmt: skip
    return Overview([heading(table) for table in tables], averages, rows, _rules(tables, len(averages)), notes)


def heading(table: TaskTable) -> str:
    """What a column of this task is called."""
    return f"{table.task} ({table.monitor})" if table.title == table.task else table.title


def _rules(tables: Sequence[TaskTable], further: int) -> list[tuple[str, list[str]]]:
    """The lowest and the best rule of each task, by name."""
    found = [[f"{score:.3f} {name}" for name, score in table.references] for table in tables]
    rows = [
        ("lowest rule", [told[-1] if told else "" for told in found]),
        ("best rule", [told[0] if len(told) > 1 else "" for told in found]),
    ]
    return [(name, cells + [""] * further) for name, cells in rows if any(cells)]


# Rows -----------------------------------------------------------------------------------------------------------------


def _chosen(tables: Sequence[TaskTable]) -> tuple[dict[str, list[Group | None]], list[str]]:
    """For each row its group of each table; and the mixers of whose variants only the best on validation has a row.

    Variants have rows of their own where all tables with the mixer have the same ones.
    """
    chosen: dict[str, list[Group | None]] = {}
    left_out = []
    for mixer in sorted({group.mixer for table in tables for group in table.groups}):
        own = [[group for group in table.groups if group.mixer == mixer] for table in tables]
        sets = {tuple(sorted(group.variant for group in groups)) for groups in own if groups}
        if len(sets) == 1 and len(*sets) > 1:
            (variants,) = sets
            labels = _labels(mixer, next(groups for groups in own if groups))
            for variant in sorted(variants, key=lambda variant: (len(labels[variant]), labels[variant])):
                chosen[labels[variant]] = [next((g for g in gs if g.variant == variant), None) for gs in own]
        else:
            left_out += [mixer] * any(len(groups) > 1 for groups in own)
            chosen[mixer] = [min(groups, key=lambda g: falling(g.val), default=None) for groups in own]
    return chosen, left_out


def _labels(mixer: str, groups: Sequence[Group]) -> dict[str, str]:
    """Of each variant the options in which it is not as most are."""
    configs = {group.variant: options_of(group.runs[0]) for group in groups}
    keys = unlike([*configs.values()])
    usual = {}
    for key in keys:
        (value, count), *_ = Counter(config.get(key, "absent") for config in configs.values()).most_common(1)
        usual[key] = value if 2 * count > len(configs) else None
    labels = {
        variant: ", ".join([mixer, *(f"{key.rpartition('.')[2]}={config.get(key, 'absent')}" for key in keys
                                     if config.get(key, "absent") != usual[key])])
        for variant, config in configs.items()
    }  # fmt: skip
    distinct = len(set(labels.values())) == len(labels)
    return labels if distinct else {group.variant: group.label for group in groups}


# Averages of Long Range Arena -----------------------------------------------------------------------------------------


def _lra(tables: Sequence[TaskTable]) -> dict[str, int]:
    """Which tables are those of Long Range Arena, on its own data and whole; empty unless the five are there once."""
    found: dict[str, list[int]] = {}
    for place, table in enumerate(tables):
        config = table.groups[0].runs[0].config
        whole = all(config.get(key, usual) == usual for key, usual in HELPED.items())
        if config.get("task.source") in ("lra", "hub") and whole:
            found.setdefault(config["task.name"], []).append(place)
    once = {name: places[0] for name, places in found.items() if len(places) == 1}
    return once if {*LRA} <= {*once} else {}


def _averages(tables: Sequence[TaskTable], groups: Sequence[Group | None]) -> list[str]:
    """avg5 and avg6 of a row; empty where it lacks one of the five."""
    places = _lra(tables)
    scores = [group.score.mean for name in LRA if (group := groups[places[name]]) is not None]
    if len(scores) < len(LRA) or any(map(math.isnan, scores)):
        return ["", ""]
    group = groups[places["pathx"]] if "pathx" in places else None
    last = FAILED if group is None or not group.score.mean > FAILED + NEAR_CHANCE else group.score.mean
    return [f"{sum(scores) / 5:.3f}", f"{(sum(scores) + last) / 6:.3f}"]
