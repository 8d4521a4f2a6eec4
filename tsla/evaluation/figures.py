"""The figures of a report, fit for a paper: learning curves, and scores against what they cost; two files per task."""

import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tsla.evaluation.runs import Curve, Run, clean, numbered
from tsla.evaluation.tables import Group, TaskTable

# Hues that the common kinds of colour-blindness tell apart, darkest contrasts first (after Okabe and Ito, and Tol).
HUES = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#332288", "#882255", "#999933", "#44aa99",
        "#7a5c3e", "#b0413e", "#117733", "#aa4499", "#6699cc", "#bfa100", "#1f3b73", "#e07b91", "#5f8a3a", "#8f6bb3",
        "#00838f")  # fmt: skip
USUAL = {"taylor": "#d55e00", "softmax": "#1a1a1a", "none": "#8c8c8c", "window": "#0072b2"}  # the same in all reports
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = "os^Dvp<h>dX"
POINTS = 80  # of a curve, at most: more cannot be seen, and cost time and bytes
WIDTH, HEIGHT = 11.0, 3.3  # inches, of a figure without its legend
LEFT, RIGHT, GAP = 0.7, 1.8, 0.6  # inches at the sides (at the right: names of references) and between panels
SETTINGS: Any = {
    "text.parse_math": False,  # a `$` in a name is a `$`
    "svg.hashsalt": "tsla",  # the same input makes the same file
    "svg.fonttype": "path",  # looks the same wherever it is opened
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.45",
    "axes.labelcolor": "0.2",
    "axes.titlesize": 9.5,
    "xtick.color": "0.35",
    "ytick.color": "0.35",
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "path.simplify_threshold": 0.5,
}

Floats = npt.NDArray[np.float64]


class Look(NamedTuple):
    """How a group is drawn, the same in all figures of a report: hue by mixer, dashes and marker by variant."""

    color: str
    dashes: Any
    marker: str


class Figure(NamedTuple):
    """A figure in both its formats, and what it shows in words."""

    png: Path
    svg: Path
    caption: str


def draw_figures(tables: Sequence[TaskTable], folder: Path) -> list[list[Figure]]:
    """Draw the two figures of every task into `folder` as PNG and SVG; returns those of each task, in order."""
    looks, names = looks_of(tables), _file_names(tables)
    with plotting():
        return [
            [
                save(_curves(table, looks), folder / f"{name}-curves", _curves_caption(table)),
                save(_costs(table, looks), folder / f"{name}-costs", _costs_caption(table)),
            ]
            for table, name in zip(tables, names, strict=True)
        ]


def looks_of(tables: Sequence[TaskTable]) -> dict[tuple[str, str], Look]:
    """The look of each (mixer, variant): a hue for each mixer, or for each variant where there is one mixer only.

    The variants of a mixer go from its full hue to a lighter one, in dashes that differ from one to the next.
    """
    mixers = sorted({group.mixer for table in tables for group in table.groups})
    hues = {mixer: USUAL[mixer] for mixer in mixers if mixer in USUAL}
    free = [hue for hue in HUES if hue not in hues.values()]
    others = [mixer for mixer in mixers if mixer not in hues]
    hues |= {mixer: free[at % len(free)] for at, mixer in enumerate(others)}
    looks: dict[tuple[str, str], Look] = {}
    for mixer in mixers:
        variants = {group.variant for table in tables for group in table.groups if group.mixer == mixer}
        named = len(variants - {""})  # where a task has one group of the mixer, that has no variant, and the full hue
        for place, variant in enumerate(sorted(variants, key=_natural), start=named - len(variants)):
            at = max(place, 0)
            if len(mixers) > 1:
                hue = _lighter(hues[mixer], 0.5 * at / max(named - 1, 1))
                dash = at + (mixer in others[5:])  # hues alone do not tell more than about eight lines apart
            else:
                hue, dash = HUES[at % len(HUES)], at // len(HUES)
            looks[mixer, variant] = Look(hue, DASHES[dash % len(DASHES)], MARKERS[len(looks) % len(MARKERS)])
    return looks


def _natural(text: str) -> list[tuple[float, str]]:
    """Sorting key by which depth=4 stands before depth=12."""
    return [(float(part), "") if part.isdecimal() else (-1.0, part) for part in re.split(r"([0-9]+)", text)]


def _lighter(color: str, share: float) -> str:
    """`color` with a share of white."""
    parts = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(part + share * (255 - part)):02x}" for part in parts)


# Learning curves ------------------------------------------------------------------------------------------------------


def _curves(table: TaskTable, looks: Mapping[tuple[str, str], Look]) -> Any:
    figure, (loss, steps, minutes) = _panels(table, looks, lines=True)
    for group in reversed(table.groups):  # the best on top
        look = looks[group.mixer, group.variant]
        _lines(loss, look, [_points(run, "train/loss") for run in group.runs])
        scored = [_points(run, f"val/{table.monitor}") for run in group.runs]
        _lines(steps, look, scored, marked=True)
        pace = _minutes_per_step(group)
        _lines(minutes, look, [(x * pace, y) for x, y in scored], marked=True)
    loss.set(title="training loss" + " (nats)" * (table.monitor != "r2"), xlabel="optimiser steps")
    steps.set(title=f"validation {table.monitor}", xlabel="optimiser steps")
    minutes.set(title=f"validation {table.monitor}", xlabel="minutes")
    for axis in (loss, steps, minutes):
        axis.set_xlim(left=0)
        plain_ticks(axis.xaxis, 5)
    values = [float(y) for line in steps.lines for y in line.get_ydata()]
    _score_axes([steps, minutes], table, values, [value for _, value in table.references])
    return figure


def _lines(axis: Any, look: Look, curves: list[tuple[Floats, Floats]], *, marked: bool = False) -> None:
    """Each seed as a thin line and their mean, as far as all of them go, as a thick one."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return
    if len(curves) > 1:
        for x, y in curves:
            axis.plot(x, y, color=look.color, linewidth=0.7, alpha=0.35)
    end = min(x[-1] for x, _ in curves)
    start = max(x[0] for x, _ in curves)
    grid = np.unique(np.concatenate([x for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    if len(grid) > POINTS:
        grid = np.linspace(start, end, POINTS)
    if len(grid):
        mean = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
        alone = len(grid) < (3 if marked else 2)  # too short for a line to show
        axis.plot(
            grid, mean, color=look.color, linestyle=look.dashes, linewidth=1.7,
            marker=look.marker if alone else "", markersize=4,
        )  # fmt: skip


def _points(run: Run, name: str) -> tuple[Floats, Floats]:
    """Steps and values of a column, as means over at most `POINTS` stretches."""
    curve = run.metrics.get(name, Curve([], []))
    x, y = np.array(curve.steps, dtype=np.float64), np.array(curve.values, dtype=np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    order = np.argsort(x, kind="stable")
    parts = min(POINTS, len(x))
    if parts < len(x):
        pieces = np.array_split(order, parts)
        return np.array([x[piece].mean() for piece in pieces]), np.array([y[piece].mean() for piece in pieces])
    return x[order], y[order]


def _minutes_per_step(group: Group) -> float:
    """Mean over a run, validation included (metrics.csv tells no times), and median over seeds."""
    paces = [run.result["seconds"] / 60 / max(run.result["steps"], 1) for run in group.runs if run.result]
    pace = float(np.median(paces))
    return pace if np.isfinite(pace) and pace > 0 else 0.0


# Costs ----------------------------------------------------------------------------------------------------------------


def _costs(table: TaskTable, looks: Mapping[tuple[str, str], Look]) -> Any:
    figure, axes = _panels(table, looks, lines=False)
    kinds = (
        ("training speed (tokens/s)", "train_tokens_per_second", 1.0),
        ("peak memory (MiB)", "peak_memory_bytes", 2.0**20),
        ("parameters", "params", 1.0),
    )
    for axis, (label, key, unit) in zip(axes, kinds, strict=True):
        every = []
        for group in reversed(table.groups):
            look = looks[group.mixer, group.variant]
            values = np.array([run.result[key] for run in group.runs if run.result], dtype=np.float64) / unit
            middle, std = float(np.median(values)), group.score.std or 0.0
            if not np.isfinite([middle, std, group.score.mean, *values]).all():
                continue
            every += values.tolist()
            axis.errorbar(
                middle, group.score.mean, yerr=[[std], [std]] if std else None,
                xerr=[[middle - values.min()], [values.max() - middle]] if np.ptp(values) else None,
                color=look.color, marker=look.marker, markersize=7, markeredgecolor="white", markeredgewidth=0.7,
                elinewidth=1, capsize=2.5,
            )  # fmt: skip
        _cost_scale(axis, every)
        axis.set_xlabel(label)
    axes[0].set_ylabel(f"test {table.monitor}")
    scores = [g.score.mean + sign * (g.score.std or 0.0) for g in table.groups for sign in (-1, 1)]
    _score_axes(axes, table, scores, near([value for _, value in table.references], scores))
    return figure


def near(references: Sequence[float], scores: Sequence[float]) -> list[float]:
    """The references that leave the scores apart from each other when both are seen; the others are only named."""
    finite = [score for score in scores if np.isfinite(score)]
    if len(finite) < 3:  # one group alone: nothing to keep apart
        return list(references)
    low, high = min(finite), max(finite)
    room = max(2 * (high - low), 0.05)
    return [value for value in references if low - room <= value <= high + room]


def _cost_scale(axis: Any, values: list[float]) -> None:
    """Logarithmic where the values span more than a factor of five, with room beside the outermost."""
    from matplotlib import ticker

    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low > 0 and high / low > 5:
        axis.set_xscale("log")
        axis.set_xlim(low / (high / low) ** 0.1, high * (high / low) ** 0.1)
        subs = (1, 2, 5) if high / low < 200 else (1,)
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=12))
        axis.xaxis.set_major_formatter(ticker.FuncFormatter(_short))
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    else:
        room = max(0.12 * (high - low), 0.05 * abs(high), 1e-9)
        axis.set_xlim(low - room, high + room)
        plain_ticks(axis.xaxis, 4)


# Shared ---------------------------------------------------------------------------------------------------------------


def _panels(table: TaskTable, looks: Mapping[tuple[str, str], Look], *, lines: bool) -> tuple[Any, list[Any]]:
    """A figure of three panels above a legend of the task's groups, of lines or of markers.

    Placed by hand: a layout engine takes seconds.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    labels = numbered([group.label for group in table.groups], 60)
    longest = max(map(len, labels)) * 0.078 + 0.55  # inches that an entry needs, about
    columns = max(1, min(len(labels), int(WIDTH / longest)))
    rows = -(-len(labels) // columns)
    legend = 0.17 * rows + 0.12
    height = HEIGHT + legend
    figure = Canvas(figsize=(WIDTH, height))
    width = (WIDTH - LEFT - RIGHT - 2 * GAP) / 3
    axes = [
        figure.add_axes(
            ((LEFT + at * (width + GAP)) / WIDTH, (legend + 0.55) / height, width / WIDTH, (HEIGHT - 1.15) / height)
        )
        for at in range(3)
    ]
    drawn = [looks[group.mixer, group.variant] for group in table.groups]
    handles = [
        Line2D([], [], color=look.color, linestyle=look.dashes, linewidth=1.7)
        if lines
        else Line2D([], [], color=look.color, linestyle="", marker=look.marker, markersize=6)
        for look in drawn
    ]
    figure.legend(
        handles, [f" {label}" for label in labels],  # the blank: a label that begins with _ would be left out
        loc="lower left", ncols=columns, frameon=False, bbox_to_anchor=(LEFT / WIDTH, 0), borderaxespad=0,
        borderpad=0.3, handlelength=2.6, handletextpad=0.4, columnspacing=1.6, labelspacing=0.25,
    )  # fmt: skip
    figure.suptitle(
        clean(table.title, 120),
        x=LEFT / WIDTH,
        y=1 - 0.1 / height,
        ha="left",
        va="top",
        fontsize=11.5,
        fontweight="bold",
    )
    return figure, axes


def _score_axes(axes: Sequence[Any], table: TaskTable, values: Sequence[float], shown: Sequence[float]) -> None:
    """One range of scores for all `axes`, which holds the references `shown`, as lines named at the right of the last.

    A reference out of the range is named at its edge, with an arrow.
    """
    final = [value for value in [*(g.score.mean for g in table.groups), *shown] if np.isfinite(value)] or [0.0, 1.0]
    finite = [value for value in values if np.isfinite(value)] + final
    high = max(finite)
    low = max(min(finite), min(final) - 0.5 * (high - min(final)) - 0.05)  # not down to where an untrained r2 may start
    room = max(0.06 * (high - low), 0.01)
    bottom, top = low - room, high + room
    references = [(name, value) for name, value in table.references if np.isfinite(value)]
    for axis in axes:
        axis.set_ylim(bottom, top)
        plain_ticks(axis.yaxis, 6)
        for _, value in references:
            if bottom <= value <= top:
                axis.axhline(value, color="0.5", linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
    edges = [min(max(value, bottom), top) for _, value in references]
    places = _apart(edges, 0.075 * (top - bottom))
    for (name, value), edge, place in zip(references, edges, places, strict=True):
        beyond = " ↓" * (value < bottom) + " ↑" * (value > top)
        axes[-1].annotate(
            f"{clean(name, 25)} {value:.2f}{beyond}", (1, edge), xycoords=("axes fraction", "data"),
            xytext=(1.04, place), textcoords=("axes fraction", "data"), fontsize=7.5, color="0.3", va="center",
            annotation_clip=False,
            arrowprops=None if beyond else {
                "arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0,
            },
        )  # fmt: skip


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """`values`, which fall, moved until neighbours are `gap` apart; each cluster stays about its own middle."""
    clusters: list[tuple[float, int]] = []  # (sum of values, count), from the top
    for value in values:
        clusters.append((value, 1))
        while len(clusters) > 1:
            (above, many), (below, few) = clusters[-2:]
            if above / many - below / few >= gap * (many + few) / 2:
                break
            clusters[-2:] = [(above + below, many + few)]
    return [total / count + gap * ((count - 1) / 2 - at) for total, count in clusters for at in range(count)]


def plain_ticks(axis: Any, most: int) -> None:
    """At most so many ticks at round numbers, written in few characters."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(ticker.FuncFormatter(_short))


def _short(value: float, _place: int | None = None) -> str:
    """A number of few characters: 0.25, 800, 12k, 1.5M."""
    for least, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def _curves_caption(table: TaskTable) -> str:
    return (
        f"{table.title}: training loss and validation {table.monitor} while training. Thin lines are seeds, thick ones "
        "their mean; minutes are steps at the median pace; dashed grey lines are references."
    )


def _costs_caption(table: TaskTable) -> str:
    return (
        f"{table.title}: test {table.monitor} against training speed, peak memory and parameters. Bars are one "
        "standard deviation of the score over seeds, and the range of speed and memory; "
        "dashed grey lines are references."
    )


def _file_names(tables: Sequence[TaskTable]) -> list[str]:
    """A plain and different name for each table, whatever it is called."""
    names: list[str] = []
    for table in tables:
        name = re.sub(r"[^A-Za-z0-9]+", "-", clean(table.title, 80)).strip("-").lower() or "task"
        places = itertools.chain([name], (f"{name}-{place}" for place in itertools.count(2)))
        names.append(next(place for place in places if place not in names))
    return names


def save(figure: Any, stem: Path, caption: str) -> Figure:
    """Write ``stem.png`` and ``stem.svg``; the same figure makes the same files."""
    png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    return Figure(png, svg, caption)


@contextmanager
def plotting() -> Iterator[None]:
    """Our settings, no window system, and no word of letters that the font does not have."""
    import matplotlib

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield
