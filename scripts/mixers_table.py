"""Writes the table of docs/mixers.md, between its two marks, from the CSV files of docs/results/mixers.

python scripts/mixers_table.py
"""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "mixers"
PAGE = ROOT / "docs" / "mixers.md"
MARKS = "<!-- suite -->", "<!-- /suite -->"
TASKS = ("digits", "listops_short", "mqar")
CAUSAL = " (causal)"  # where the other rows of the column are not

Row = dict[str, str]


def rows(name: str) -> list[Row]:
    """A CSV file."""
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def score(row: Row | None) -> str:
    """Mean accuracy, and the standard deviation over seeds if there are several."""
    if row is None:
        return "–"
    return f"{float(row['mean']):.3f}" + (f" ± {float(row['std']):.3f}" if row["std"] else "")


def table(whole: list[Row], causal: list[Row], steps: list[Row]) -> str:
    """Accuracies, the state, and a training step's tokens/s and memory."""
    found = {(row["mixer"], row["task"]): row for row in whole}
    found |= {(row["mixer"] + CAUSAL, row["task"]): row for row in causal}
    costs = {row["mixer"]: row for row in steps}
    names = sorted({mixer for mixer, _ in found}, key=lambda name: (CAUSAL in name, -best(found, name)))
    heads = ["mixer", *(f"`{task}`" for task in TASKS), "state at 64 tokens", "tokens/s", "memory of a step"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name in names:
        plain = name.removesuffix(CAUSAL)
        own = [found.get((name, task)) or (found.get((plain, "mqar")) if task == "mqar" else None) for task in TASKS]
        state = next(int(row["state_bytes"]) for row in (own[0], own[2]) if row)
        cost = costs.get(plain, {})
        speed = f"{float(cost['tokens_per_second']):,.0f}" if cost.get("tokens_per_second") else "–"
        memory = f"{int(cost['extra_bytes']) / 2**20:,.0f} MiB" if cost.get("extra_bytes") else "–"
        lines.append(
            [f"`{plain}`{CAUSAL * (plain != name)}", *map(score, own), f"{state / 1024:,.1f} KiB", speed, memory]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def best(found: dict[tuple[str, str], Row], name: str) -> float:
    """Accuracy on recall, or on digits."""
    row = found.get((name, "mqar")) or found.get((name, "digits"))
    return float(row["mean"]) if row else 0.0


def written(page: str, text: str) -> str:
    """The page with the text between its marks."""
    start, end = MARKS
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL)


def main() -> None:
    """See the top of this file."""
    text = table(rows("suite"), rows("causal"), rows("model"))
    PAGE.write_text(written(PAGE.read_text(), text))


if __name__ == "__main__":
    main()
