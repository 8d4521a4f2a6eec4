"""Time and memory against a length, log-log: the figure of `tsla bench attention`, `model` and `decode`."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, NamedTuple

from tsla.bench.figures import plain, ticks
from tsla.bench.timing import Timing
from tsla.evaluation.figures import DASHES, HUES, MARKERS, USUAL, plotting, save

WIDTH, HEIGHT, LEFT, GAP_X, GAP_Y, TOP, BOTTOM = 3.0, 2.5, 0.75, 0.7, 0.95, 0.85, 0.8  # inches, of panels and around


class Curve(NamedTuple):
    """One point: of which panel and which line, at which length; a name's part after a + makes a variant of it."""

    panel: str
    line: str
    length: int
    time: Timing | None
    extra_bytes: int | None


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
        legend = 0.75 + 0.075 * max(map(len, lines))
        if len(kinds) > 1:
            figure, axes = _grid(len(rows), len(kinds), legend=legend)
        else:  # side by side
            figure, (across,) = _grid(1, len(rows), legend=legend)
            axes = [[axis] for axis in across]
        corner = axes[0][-1] if len(kinds) > 1 else axes[-1][0]
        for (label, values), across in zip(rows.items(), axes, strict=True):
            for kind, axis in zip(kinds, across, strict=True):
                _panel(axis, {key[1:]: value for key, value in values.items() if key[0] == kind}, lines, thick)
                ticks(axis.xaxis, sorted({point.length for point in points}))
                axis.tick_params(axis="x", labelrotation=30)
                axis.set_title(kind)
                axis.set_xlabel(along)
            across[0].set_ylabel(label)
        handles, labels = axes[0][0].get_legend_handles_labels()
        corner.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.04, 1.03), frameon=False, fontsize=8,
                           borderaxespad=0, handlelength=3)  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        return save(figure, stem, "").png


def _panel(axis: Any, values: dict[tuple[Any, ...], float], lines: Sequence[str], thick: AbstractSet[str]) -> None:
    """Every line through its points, under its name whether it has some or not."""
    from matplotlib import ticker

    bases = list(dict.fromkeys(line.partition("+")[0] for line in lines))
    for line in lines:
        place, whole, ours = bases.index(line.partition("+")[0]), "+" not in line, line in thick
        own = sorted((length, value) for (name, length), value in values.items() if name == line)
        hue = USUAL.get(line, HUES[place % len(HUES)])
        axis.plot(*zip(*own, strict=True) if own else ([], []), label=line, color=hue,
                  marker=MARKERS[place % len(MARKERS)], markersize=5 if ours else 4,
                  markerfacecolor=hue if whole else "white", linewidth=2 if ours else 1.1, zorder=3 if ours else 2,
                  linestyle="-" if ours else DASHES[1 + place % (len(DASHES) - 1)])  # fmt: skip
    axis.set(xscale="log", yscale="log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=12))
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter("")


def _grid(rows: int, columns: int, *, legend: float) -> tuple[Any, list[list[Any]]]:
    """Panels row by row, with room for a legend at the right, in inches."""
    from matplotlib.figure import Figure

    width = LEFT + columns * (WIDTH + GAP_X) - GAP_X + 0.15 + legend
    height = TOP + rows * (HEIGHT + GAP_Y) - GAP_Y + BOTTOM
    figure = Figure(figsize=(width, height))
    axes = [
        [
            figure.add_axes((
                (LEFT + column * (WIDTH + GAP_X)) / width,
                (BOTTOM + (rows - 1 - row) * (HEIGHT + GAP_Y)) / height, WIDTH / width, HEIGHT / height,
            ))
            for column in range(columns)
        ]
        for row in range(rows)
    ]  # fmt: skip
    return figure, axes
