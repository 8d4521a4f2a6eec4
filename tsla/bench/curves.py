"""Time and memory against a length, log-log: the figure of `tsla bench attention`, `model` and `decode`."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from tsla.bench.figures import panels, plain, ticks
from tsla.bench.timing import Timing
from tsla.evaluation.figures import DASHES, HUES, MARKERS, plotting, save


class Curve(NamedTuple):
    """One point: of which panel and which line, at which length."""

    panel: str
    line: str
    length: int
    time: Timing | None
    extra_bytes: int | None


def draw_curves(
    points: Sequence[Curve],
    along: str,
    title: str,
    stem: Path,
    *,
    thick: AbstractSet[str],
    memory: str = "memory (MiB)",
) -> Path:
    """A panel of times and, where it was measured, one of memory, for each kind; returns the PNG.

    Args:
        points: in any order.
        along: what the lengths count.
        title: of the figure.
        stem: path of the files, without their ends.
        thick: the lines that are drawn thick: ours.
        memory: what the numbers of bytes are.
    """
    kinds = list(dict.fromkeys(point.panel for point in points))
    held = [kind for kind in kinds if any(point.extra_bytes for point in points if point.panel == kind)]
    lines = list(dict.fromkeys(point.line for point in points))
    with plotting():
        figure, axes = panels(len(kinds) + len(held), 2.9, 3.3, legend=2.3)
        wanted = [*((kind, True) for kind in kinds), *((kind, False) for kind in held)]
        for axis, (kind, is_time) in zip(axes, wanted, strict=True):
            for place, line in enumerate(lines):
                own = sorted((point for point in points if (point.panel, point.line) == (kind, line)),
                             key=lambda point: point.length)  # fmt: skip
                values = [
                    (
                        point.length,
                        point.time.median * 1e3 if is_time and point.time else (point.extra_bytes or 0) / 2**20,
                    )
                    for point in own
                    if point.time is not None and (is_time or point.extra_bytes)
                ]
                ours = line in thick
                axis.plot(*zip(*values, strict=True) if values else ([], []), label=line, color=HUES[place % len(HUES)],
                          marker=MARKERS[place % len(MARKERS)], markersize=5 if ours else 3.5,
                          linestyle="-" if ours else DASHES[1 + place % (len(DASHES) - 1)],
                          linewidth=2 if ours else 1.1, zorder=3 if ours else 2)  # fmt: skip
            axis.set(xscale="log", yscale="log")
            axis.set_title(f"{'time (ms)' if is_time else memory}\n{kind}", fontsize=8, loc="left")
            ticks(axis.xaxis, sorted({point.length for point in points}))
            axis.tick_params(axis="x", labelrotation=30)
            axis.yaxis.set_major_formatter(plain)
            axis.yaxis.set_minor_formatter("")
            axis.set_xlabel(along)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[-1].legend(handles, labels, loc="upper left", bbox_to_anchor=(1.03, 1.02), frameon=False, fontsize=8,
                        borderaxespad=0, handlelength=3)  # fmt: skip
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        return save(figure, stem, "").png
