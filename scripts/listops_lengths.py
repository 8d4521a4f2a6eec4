"""How a run of ListOps does on longer rows than its own, by the depth of the trees: lengths.csv and a figure.

python scripts/listops_lengths.py RUN_DIR [docs/results/listops]

Of a run with dense supervision a score is that of sub-trees of a depth, wherever they stand: if those of depth 1 fail
in longer rows, it is parsing that fails; if they hold and deeper ones fall, composition does.
"""

import csv
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tsla import cli
from tsla.evaluation.figures import HUES, plotting, save

LENGTHS = ((20, 100), (100, 200), (200, 500), (500, 1000), (1000, 2000))
ROWS = ("task.train_rows=2000", "task.eval_rows=1000")  # so many of each length are generated for it
FEW = 30  # sub-trees that a score must be of to be drawn


def scores(run: Path, low: int, high: int) -> dict[str, Any]:
    """What `tsla eval` says of rows of these lengths."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        options = (f"task.min_length={low}", f"task.max_length={high}", "task.max_depth=10", "task.easier=[]", *ROWS)
        if status := cli.main(["eval", str(run), *options, f"out={out}"]):
            sys.exit(status)
        return dict(json.loads(out.read_text()))


def table(run: Path) -> list[dict[str, Any]]:
    """A line for whole rows of each length, and one for each depth of their trees."""
    lines = []
    for low, high in LENGTHS:
        found = scores(run, low, high)
        length = f"{low}-{high}"
        lines.append({"length": length, "depth": "row", "items": int(ROWS[1].split("=")[1]),
                      "score": found["metrics"][f"test/{found['monitor']}"]})  # fmt: skip
        lines += [{"length": length, "depth": int(part["value"]), "items": part["items"], "score": part["score"]}
                  for part in found["slices"]["depth"]]  # fmt: skip
    return lines


def draw(lines: list[dict[str, Any]], stem: Path) -> None:
    """Scores against depth, a line for each length, and of whole rows against their length."""
    from matplotlib.figure import Figure

    with plotting():
        figure = Figure(figsize=(9.5, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        names = [f"{low}-{high}" for low, high in LENGTHS]
        for name, color in zip(names, HUES, strict=False):
            own = [line for line in lines if line["length"] == name and line["depth"] != "row" and line["items"] >= FEW]
            own.sort(key=lambda line: line["depth"])
            left.plot([line["depth"] for line in own], [line["score"] for line in own], color=color, marker="o",
                      markersize=4, label=f"{name} tokens")  # fmt: skip
        left.set(xlabel="depth of the tree", ylabel="accuracy", ylim=(0, 1.02))
        left.legend(frameon=False)
        right.plot(names, [line["score"] for line in lines if line["depth"] == "row"], color="0.15", marker="o")
        right.set(xlabel="tokens of a row", ylabel="accuracy of whole rows", ylim=(0, 1.02))
        save(figure, stem, "")


def main() -> None:
    run, out = Path(sys.argv[1]), Path((*sys.argv[2:], "docs/results/listops")[0])
    out.mkdir(parents=True, exist_ok=True)
    lines = table(run)
    with (out / "lengths.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    draw(lines, out / "lengths")


if __name__ == "__main__":
    main()
