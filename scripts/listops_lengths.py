"""How a run of ListOps does on longer rows than its own, by depth and operator: lengths.csv and a figure.

Rows are of another seed than the run's own: none of those that are as long as its own was trained on.

python scripts/listops_lengths.py RUN_DIR [docs/results/listops_dense]

Of a run with dense supervision a score is that of sub-trees, wherever they stand: if those of depth 1 fail in longer
rows, it is parsing that fails; if they hold and deeper ones fall, composition does; if one operator falls alone, its
arithmetic.
"""

import csv
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tsla import cli
from tsla.config import read
from tsla.evaluation.figures import HUES, plotting, save

LENGTHS = ((20, 100), (100, 200), (200, 500), (500, 1000), (1000, 2000))
ROWS = ("task.train_rows=2000", "task.eval_rows=1000")  # so many of each length are generated for it
FEW = 30  # sub-trees that a score must be of to be drawn


def scores(run: Path, low: int, high: int, seed: int) -> dict[str, Any]:
    """What `tsla eval` says of rows of these lengths."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        options = (f"task.min_length={low}", f"task.max_length={high}", "task.max_depth=10", "task.easier=[]",
                   f"task.seed={seed}", *ROWS)  # fmt: skip
        if status := cli.main(["eval", str(run), *options, f"out={out}"]):
            sys.exit(status)
        return dict(json.loads(out.read_text()))


def table(run: Path) -> list[dict[str, Any]]:
    """A line for whole rows of each length, and one for each depth and operator of their trees."""
    lines, seed = [], read(run / "config.yaml").task.seed + 1  # type: ignore[attr-defined]
    for low, high in LENGTHS:
        found = scores(run, low, high, seed)
        length = f"{low}-{high}"
        lines.append({"length": length, "by": "row", "value": "", "items": int(ROWS[1].split("=")[1]),
                      "score": found["metrics"][f"test/{found['monitor']}"]})  # fmt: skip
        lines += [{"length": length, "by": by, "value": part["value"], "items": part["items"], "score": part["score"]}
                  for by in ("depth", "operator") for part in found["slices"][by]]  # fmt: skip
    return lines


def draw(lines: list[dict[str, Any]], stem: Path) -> None:
    """Scores of rows of each length: by depth, by operator, and of whole rows."""
    from matplotlib.figure import Figure

    with plotting():
        figure = Figure(figsize=(11, 3.3), layout="constrained")
        panels = dict(zip(("depth", "operator", "row"), figure.subplots(1, 3, sharey=True), strict=True))
        names = [f"{low}-{high}" for low, high in LENGTHS]
        for name, color in zip(names, HUES, strict=False):
            for by, line_style in (("depth", "-"), ("operator", "")):  # operators are in no order
                own = [line for line in lines if (line["length"], line["by"]) == (name, by) and line["items"] >= FEW]
                panels[by].plot([line["value"] for line in own], [line["score"] for line in own], color=color,
                                linestyle=line_style, marker="o", markersize=4, label=f"{name} tokens")  # fmt: skip
        whole = [line["score"] for line in lines if line["by"] == "row"]
        panels["row"].plot(names, whole, color="0.15", marker="o", markersize=4)
        panels["depth"].set(xlabel="depth of the tree", ylabel="accuracy", ylim=(0, 1.02))
        panels["operator"].set(xlabel="operator")
        panels["row"].set(xlabel="whole rows, tokens")
        panels["row"].tick_params(axis="x", rotation=30)
        panels["depth"].legend(frameon=False)
        save(figure, stem, "")


def main() -> None:
    if not 2 <= len(sys.argv) <= 3 or not (run := Path(sys.argv[1])).joinpath("config.yaml").is_file():
        sys.exit(f"usage: listops_lengths.py RUN_DIR [OUT_DIR], of a run of ListOps; got {' '.join(sys.argv[1:])!r}")
    out = Path((*sys.argv[2:], "docs/results/listops_dense")[0])
    lines = table(run)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lengths.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    draw(lines, out / "lengths")


if __name__ == "__main__":
    main()
