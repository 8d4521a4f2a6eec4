"""The learning curve of a run, drawn from its metrics.csv."""

import csv
from collections.abc import Mapping
from pathlib import Path


def draw_curves(metrics: Path, target: Path, monitor: str, references: Mapping[str, float], title: str) -> None:
    """Write a PNG with loss and the monitored score against steps, and the references as labelled lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def column(name: str) -> tuple[list[int], list[float]]:
        pairs = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        return [step for step, _ in pairs], [value for _, value in pairs]

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name in ((left, "loss"), (right, monitor)):
        steps, values = column(f"train/{name}")
        if values:  # not every score is told of training batches
            axis.plot(steps, values, color="#b9c7d6", linewidth=1)
            axis.plot(steps, _smooth(values), color="#2b5c8a", linewidth=1.8, label="train (smoothed)",
                      marker="o" if len(values) == 1 else None)  # fmt: skip
        axis.plot(*column(f"val/{name}"), color="#c8501e", linewidth=1.8, marker="o", markersize=3, label="validation")
        axis.set_xlabel("optimiser steps")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("loss" + " (nats)" * (monitor != "r2"))
    left.legend(frameon=False)
    right.set_ylabel(monitor)
    if monitor != "r2":  # which has no lowest value
        right.set_ylim(0, 1.02)
    for name, value in references.items():
        right.axhline(value, color="0.55", linewidth=0.9, linestyle="--")
        right.annotate(
            f"{name} {value:.2f}", (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, 2),
            textcoords="offset points", fontsize=8, color="0.35",
        )  # fmt: skip
    figure.suptitle(title)
    figure.savefig(target, dpi=130)
    plt.close(figure)


def _smooth(values: list[float], keep: float = 0.6) -> list[float]:
    """Running means from both ends, averaged, so that the line does not lag behind; their starts are not biased."""
    ahead, behind = _running(values, keep), _running(values[::-1], keep)[::-1]
    return [(x + y) / 2 for x, y in zip(ahead, behind, strict=True)]


def _running(values: list[float], keep: float) -> list[float]:
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(total / weight)
    return out
