"""The figures of `tsla bench crossover`, in the look of a report's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tsla.bench.heads import Heads
from tsla.evaluation.figures import HUES, plotting, save
from tsla.ops import taylor_crossover

DIRECTIONS = {False: "bidirectional", True: "causal"}
PASSES = {False: "forward", True: "forward and backward"}

Row = Mapping[str, Any]


def draw_crossover(rows: Sequence[Row], stem: Path) -> None:
    """Measured and counted crossovers against the width d, a hue for each e; a panel for each direction and pass."""
    kinds = list(dict.fromkeys((row["causal"], row["backward"]) for row in rows))
    with plotting():
        figure, axes = _panels(len(kinds), 3.2 if len(kinds) > 1 else 5.0, 3.4, legend=1.55)
        hues = dict(zip(sorted({row["e"] for row in rows}), HUES * 99, strict=False))
        for (causal, backward), axis in zip(kinds, axes, strict=True):
            own = [row for row in rows if (row["causal"], row["backward"]) == (causal, backward)]
            for place, (e, hue) in enumerate(hues.items()):
                aside = 1.05 ** (place - (len(hues) - 1) / 2)
                _lines(axis, sorted((row for row in own if row["e"] == e), key=lambda row: row["d"]), e, hue, aside)
            axis.set_title(f"{DIRECTIONS[causal]}, {PASSES[backward]}")
            axis.set(xscale="log", yscale="log")
            ticks(axis.xaxis, sorted({row["d"] for row in rows}))
            axis.set_xlabel("width d of queries and keys")
        limits = [axis.get_ylim() for axis in axes]
        for axis in axes:
            axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            ticks(axis.yaxis, _powers(*axis.get_ylim()))
        axes[0].set_ylabel("length (tokens)")
        _legend(figure, axes[-1], hues)
        save(figure, stem, "")


def _lines(axis: Any, rows: Sequence[Row], e: int, hue: str, aside: float) -> None:
    """One e: the measured crossover with direct, that with SDPA, and what counting says."""
    widths = [row["d"] for row in rows]
    low, high = min(widths), max(widths)
    smooth = sorted({low, high, *(round(low * (high / low) ** (at / 24)) for at in range(25))})
    for packed, dashes in ((True, (0, (5, 2))), (False, (0, (1.2, 1.5)))):
        counted = [taylor_crossover(d, value_dim=e, packed=packed) for d in smooth]
        axis.plot(smooth, counted, color=hue, linestyle=dashes, linewidth=0.9, alpha=0.75)
    for names, filled in ((("crossover", "direct_faster_at", "linear_faster_at"), True),
                          (("sdpa_crossover", "sdpa_faster_at", "linear_faster_than_sdpa_at"), False)):  # fmt: skip
        face = hue if filled else "white"
        points = [(row["d"], row[names[0]]) for row in rows if row[names[0]] is not None]
        style: dict[str, Any] = {"color": hue, "markerfacecolor": face, "markersize": 5.5, "zorder": 3}
        axis.plot(*zip(*points, strict=True) if points else ([], []), marker="o" if filled else "s",
                  linewidth=1.6 if filled else 0.8, **style)  # fmt: skip
        for row in rows:
            if row[names[0]] is None:  # beyond what was measured, that way; those of several e side by side
                up = row[names[2]] is None
                axis.plot(row["d"] * aside, row[names[1 if up else 2]], marker="^" if up else "v", **style)


def _legend(figure: Any, axis: Any, hues: Mapping[int, str]) -> None:
    from matplotlib.lines import Line2D

    def line(**style: Any) -> Any:
        return Line2D([], [], **{"color": "0.35", "linewidth": 1.2, "markersize": 5.5, **style})

    handles = {f"e = {e}": line(color=hue, linewidth=3) for e, hue in hues.items()}
    handles |= {
        "faster than direct": line(marker="o"),
        "faster than SDPA": line(marker="s", markerfacecolor="white", linewidth=0.8),
        "not up to here": line(marker="^", linestyle=""),
        "from here or less": line(marker="v", linestyle=""),
        "operations, packed": line(linestyle=(0, (5, 2)), linewidth=0.9),
        "operations, full": line(linestyle=(0, (1.2, 1.5)), linewidth=0.9),
    }
    axis.legend(handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False,
                fontsize=8, handlelength=2.4, borderaxespad=0)  # fmt: skip
    figure.suptitle("Length from which the linear form is faster", x=0.01, ha="left", fontsize=11.5, fontweight="bold")


def draw_heads(swept: Sequence[Heads], width: int, length: int, stem: Path) -> None:
    """Time, memory, state and operations of both forms against the number of heads."""
    kinds = (
        ("time (µs per token)", lambda one: 1e6 * one.seconds / one.length, True),
        ("peak memory (MiB)", lambda one: one.peak_bytes / 2**20, True),
        ("state (KiB; direct: all keys, values)", lambda one: one.state_bytes / 2**10, False),
        ("operations per token", lambda one: one.operations, False),
    )
    hues = {"direct": "#1a1a1a", "linear": HUES[0]}
    with plotting():
        figure, axes = _panels(len(kinds), 2.4, 3.2, legend=1.9)
        passes = sorted({one.backward for one in swept})
        for (title, value, by_pass), axis in zip(kinds, axes, strict=True):
            for form, hue in hues.items():
                for backward in passes if by_pass else passes[:1]:
                    own = [one for one in swept if (one.form, one.backward) == (form, backward)]
                    axis.plot([one.heads for one in own], [value(one) for one in own], color=hue, marker="o",
                              markersize=4, linewidth=1.6, linestyle=(0, (4, 2)) if backward else "-",
                              label=f"{form}" + f", {PASSES[backward]}" * by_pass)  # fmt: skip
                    if axis is axes[0]:
                        quartiles = [[1e6 * getattr(one, f"quartile_{q}") / length for one in own] for q in (1, 3)]
                        axis.fill_between([one.heads for one in own], *quartiles, color=hue, alpha=0.15, linewidth=0)
            axis.set_title(title)
            axis.set(xscale="log", yscale="log")
            axis.yaxis.set_major_formatter(plain)
            axis.yaxis.set_minor_formatter("")
            ticks(axis.xaxis, sorted({one.heads for one in swept}))
            axis.set_xlabel("heads")
        axes[-1].legend(*axes[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1.03, 1.02),
                        frameon=False, fontsize=8, borderaxespad=0, handlelength=3)  # fmt: skip
        title = f"Heads at width {width}, {length} tokens, {DIRECTIONS[swept[0].causal]}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")
        save(figure, stem, "")


def _panels(count: int, width: float, height: float, *, legend: float) -> tuple[Any, list[Any]]:
    """A row of panels with room for a legend at the right, in inches."""
    from matplotlib.figure import Figure

    left, gap, whole = 0.65, 0.55, 0.65 + count * (width + 0.55) + legend
    figure = Figure(figsize=(whole, height + 1.0))
    bottom, share = 0.5 / (height + 1.0), height - 0.1
    axes = [
        figure.add_axes(((left + at * (width + gap)) / whole, bottom, width / whole, (share - 0.1) / (height + 1.0)))
        for at in range(count)
    ]
    return figure, axes


def ticks(axis: Any, ticks: Sequence[int]) -> None:
    """Powers of two, or what was measured, as plain numbers."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.FixedLocator(list(ticks)))
    axis.set_major_formatter(plain)
    axis.set_minor_locator(ticker.NullLocator())


def plain(value: float, _place: int | None = None) -> str:
    """A tick's number as it is spoken: 0.1, 512, 4096, 1 M."""
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.10g}" if value >= 1e4 else f"{value:g}"


def _powers(low: float, high: float) -> list[int]:
    return [2**power for power in range(1, 21) if low <= 2**power <= high]
