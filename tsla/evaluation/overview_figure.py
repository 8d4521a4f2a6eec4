"""The overview as a figure: a panel for each task, a line in it for each mixer, and the trivial rules across."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tsla.evaluation.figures import Figure, Look, near, plain_ticks, plotting, save
from tsla.evaluation.overview import Overview
from tsla.evaluation.runs import clean, numbered
from tsla.evaluation.tables import TaskTable

WIDTH, LINE = 11.0, 0.21  # inches: of the figure, and of a line of a panel
LETTER, TOP, BOTTOM, GAP, RIGHT = 0.071, 0.62, 0.42, 0.28, 0.15  # inches: of a label's letter, and around panels
SMALL, BOLD = 0.054, 0.0086  # inches of a letter of the rules' line, and of a title's for each point of its size
TITLE = 9.5, 7.0  # points, and the least where one is long
COLUMNS = 4


def draw_overview(
    overview: Overview, tables: Sequence[TaskTable], looks: Mapping[tuple[str, str], Look], folder: Path
) -> Figure:  # fmt: skip
    """Draw it into `folder`, as overview.png and overview.svg."""
    with plotting():
        return save(_panels(overview, tables, looks), folder / "overview", _caption(overview))


def _panels(overview: Overview, tables: Sequence[TaskTable], looks: Mapping[tuple[str, str], Look]) -> Any:
    from matplotlib.figure import Figure as Canvas

    labels = numbered([row.label for row in overview.rows], 40)
    columns = min(COLUMNS, len(tables))
    deep = -(-len(tables) // columns)
    panel = LINE * max(len(labels), 3) + 0.1
    height = deep * (panel + TOP + BOTTOM)
    left = 0.25 + LETTER * max(map(len, labels))
    width = (WIDTH - left - RIGHT - (columns - 1) * GAP) / columns
    figure = Canvas(figsize=(WIDTH, height))
    for place, table in enumerate(tables):
        row, column = divmod(place, columns)
        bottom = height - (row + 1) * (panel + TOP + BOTTOM) + BOTTOM
        at = (left + column * (width + GAP)) / WIDTH, bottom / height, width / WIDTH, panel / height
        axis = figure.add_axes(at)
        _panel(axis, overview, place, table, looks, width + 0.6 * GAP)
        axis.set_yticks(range(len(labels)), labels if column == 0 else [])
    return figure


def _panel(
    axis: Any, overview: Overview, place: int, table: TaskTable, looks: Mapping[tuple[str, str], Look], room: float
) -> None:  # fmt: skip
    scores = []
    for line, row in enumerate(overview.rows):
        group = row.groups[place]
        if group is None or not np.isfinite(group.score.mean):
            continue
        look, std = looks[group.mixer, group.variant], group.score.std or 0.0
        scores += [group.score.mean - std, group.score.mean + std]
        axis.errorbar(
            group.score.mean, line, xerr=[[std], [std]] if std else None, color=look.color, marker=look.marker,
            markersize=6.5, markeredgecolor="white", markeredgewidth=0.6, elinewidth=1.1, capsize=2.5, zorder=3,
        )  # fmt: skip
    told, drawn = [], []
    for name, value, dashes in _rules(table):
        told.append((name, f"{value:.3f}"))
        if value in near([value], scores):
            axis.axvline(value, color="0.45", linewidth=1.0, linestyle=dashes, zorder=1)
            drawn.append(value)
    low, high = min([*scores, *drawn], default=0.0), max([*scores, *drawn], default=1.0)
    margin = max(0.07 * (high - low), 0.005)
    axis.set_xlim(low - margin, high + margin)
    axis.set_ylim(len(overview.rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    plain_ticks(axis.xaxis, 4)
    title = clean(overview.headings[place], int(room / (BOLD * TITLE[1])))
    size = min(TITLE[0], room / (BOLD * len(title)))
    axis.annotate(title, (0, 1), (0, 17), xycoords="axes fraction", textcoords="offset points", fontsize=size,
                  fontweight="bold", annotation_clip=False)  # fmt: skip
    axis.annotate(_told(told, int(room / SMALL)), (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points",
                  fontsize=7.2, color="0.35", annotation_clip=False)  # fmt: skip


def _told(rules: Sequence[tuple[str, str]], letters: int) -> str:
    """The rules with their scores, in so many letters: the names are cut, the longest first."""
    longest = max((len(name) for name, _ in rules), default=0)
    while True:
        told = " · ".join(f"{clean(name, longest)} {score}" for name, score in rules)
        if len(told) <= letters or longest <= 4:
            return told
        longest -= 1


def _rules(table: TaskTable) -> list[tuple[str, float, Any]]:
    """The lowest and the highest trivial rule, and how their lines are drawn."""
    found = [(name, value) for name, value in table.references if np.isfinite(value)]
    if not found:
        return []
    low = [(*found[-1], (0, (1, 2)))]
    return low + [(*found[0], (0, (4, 2)))] * (len(found) > 1)


def _caption(overview: Overview) -> str:
    return (
        f"Test scores on {len(overview.headings)} tasks; bars are one standard deviation over seeds. Dotted and "
        "dashed: the lowest and the highest trivial rule, where they are near the scores."
    )
