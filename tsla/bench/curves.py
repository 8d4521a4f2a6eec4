"""Time and memory against a length, log-log: the figure of `tsla bench attention`, `model` and `decode`."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tsla.bench.figures import plain, ticks
from tsla.bench.timing import Timing
from tsla.evaluation.figures import DASHES, HUES, MARKERS, USUAL, plotting, save

WIDTH, HEIGHT, LEFT, GAP_X, GAP_Y, TOP, BOTTOM = 3.0, 3.2, 0.85, 0.55, 0.95, 0.85, 0.8  # inches, of panels and around
NAME, SIZE = 0.13, 7.5  # the height of a line's name, in inches, and the points of its letters


class Curve(NamedTuple):
    """One point: of which panel and which line, at which length; a name's part after a + makes a variant of it."""

    panel: str
    line: str
    length: int
    time: Timing | None
    extra_bytes: int | None


class End(NamedTuple):
    """Where a line ends, and in which hue."""

    line: str
    hue: str
    length: int
    value: float


def draw_curves(
    points: Sequence[Curve], along: str, title: str, stem: Path, *, thick: AbstractSet[str], memory: str = "memory"
) -> Path:
    """Times above, memory below where it was measured, a column for each kind (side by side if one); returns the PNG.

    Args:
        points: in any order.
        along: what the lengths count.
        title: of the figure.
        stem: path of the files, without their ends.
        thick: the lines that are drawn thick: ours.
        memory: what the numbers of bytes are.
    """
    kinds = list(dict.fromkeys(point.panel for point in points))
    lines = list(dict.fromkeys(point.line for point in points))
    rows = {"time (ms)": {(*point[:3],): 1e3 * point.time.median for point in points if point.time}}
    if held := {(*point[:3],): point.extra_bytes / 2**20 for point in points if point.extra_bytes}:
        rows[f"{memory} (MiB)"] = held
    with plotting():
        names = 0.35 + 0.07 * max(map(len, lines))
        if len(kinds) > 1:
            figure, axes = _grid(len(rows), len(kinds), names=names)
        else:  # side by side
            figure, (across,) = _grid(1, len(rows), names=names)
            axes = [[axis] for axis in across]
        for (label, values), across in zip(rows.items(), axes, strict=True):
            for kind, axis in zip(kinds, across, strict=True):
                _panel(axis, {key[1:]: value for key, value in values.items() if key[0] == kind}, lines, thick)
                ticks(axis.xaxis, sorted({point.length for point in points}))
                axis.tick_params(axis="x", labelrotation=30)
                axis.set_title(kind)
                axis.set_xlabel(along)
            across[0].set_ylabel(label)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        return save(figure, stem, "").png


def _panel(axis: Any, values: dict[tuple[Any, ...], float], lines: Sequence[str], thick: AbstractSet[str]) -> None:
    """Every line through its points, and its name at its end."""
    from matplotlib import ticker

    bases = list(dict.fromkeys(line.partition("+")[0] for line in lines))
    free = [hue for hue in HUES if hue not in [USUAL[line] for line in lines if line in USUAL]]
    ends: list[End] = []
    for line in lines:
        own = sorted((length, value) for (name, length), value in values.items() if name == line)
        if not own:
            continue
        place, whole, ours = bases.index(line.partition("+")[0]), "+" not in line, line in thick
        hue = USUAL.get(line, free[place % len(free)])
        ends.append(End(line, hue, *own[-1]))
        axis.plot(*zip(*own, strict=True), color=hue, marker=MARKERS[place % len(MARKERS)], markersize=5 if ours else 4,
                  markerfacecolor=hue if whole else "white", linewidth=2 if ours else 1.1, zorder=3 if ours else 2,
                  linestyle="-" if ours else DASHES[1 + place % (len(DASHES) - 1)])  # fmt: skip
    axis.set(xscale="log", yscale="log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter("")
    _name(axis, sorted(ends, key=lambda end: end.value))


def _name(axis: Any, ends: Sequence[End]) -> None:
    """The names of lines at the right, from the lowest end to the highest, as near to these as they fit."""
    from sklearn.isotonic import isotonic_regression

    if not ends:
        return
    to_panel = axis.transData + axis.transAxes.inverted()
    room = min(NAME / HEIGHT, 1 / len(ends)) * np.arange(len(ends))
    wanted = to_panel.transform([(end.length, end.value) for end in ends])[:, 1]
    for end, place in zip(ends, room + isotonic_regression(wanted - room, y_min=0, y_max=1 - room[-1]), strict=True):
        axis.annotate(end.line, (end.length, end.value), (1.1, place), textcoords="axes fraction", va="center",
                      fontsize=SIZE, color=end.hue, arrowprops={"arrowstyle": "-", "color": end.hue, "linewidth": 0.6,
                      "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3})  # fmt: skip


def _grid(rows: int, columns: int, *, names: float) -> tuple[Any, list[list[Any]]]:
    """Panels row by row, with room for names at the right of each, in inches."""
    from matplotlib.figure import Figure

    step = WIDTH + names + GAP_X
    width = LEFT + columns * step - GAP_X
    height = TOP + rows * (HEIGHT + GAP_Y) - GAP_Y + BOTTOM
    figure = Figure(figsize=(width, height))
    axes = [
        [
            figure.add_axes((
                (LEFT + column * step) / width,
                (BOTTOM + (rows - 1 - row) * (HEIGHT + GAP_Y)) / height, WIDTH / width, HEIGHT / height,
            ))
            for column in range(columns)
        ]
        for row in range(rows)
    ]  # fmt: skip
    return figure, axes
