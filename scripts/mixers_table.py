"""Writes the table of docs/mixers.md, between its two marks, from the CSV files of docs/results/mixers.

python scripts/mixers_table.py

suite.csv, causal.csv and seeds.csv are the results.csv of scripts/mixers.yaml, mixers_causal.yaml and
mixers_seeds.yaml; model.csv and causal/model.csv are what `tsla bench model` writes.
"""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results" / "mixers"
PAGE = ROOT / "docs" / "mixers.md"
MARKS = "<!-- suite -->", "<!-- /suite -->"
TASKS = ("digits", "listops_short", "mqar")
JUDGES = ("mqar", "listops_short")  # by which a mechanism counts as trained
CAUSAL = " (causal)"  # where the other rows of the column are not
CONTROL = "none"

Row = dict[str, str]
Scores = dict[tuple[str, str], list[float]]  # of a mixer on a task, one for each seed


def rows(name: str) -> list[Row]:
    """A CSV file."""
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(whole: list[Row], seeds: list[Row]) -> Scores:
    """Accuracies of both suites; of three seeds the mean, least and largest tell each one."""
    found: Scores = {}
    for row in (*whole, *seeds):
        low, mean, high = (float(row[name]) for name in ("min", "mean", "max"))
        own = {1: [mean], 2: [low, high], 3: [low, 3 * mean - low - high, high]}[int(row["seeds"])]
        found.setdefault((row["mixer"], row["task"]), []).extend(own)
    return found


def score(row: Row | None) -> str:
    """Mean accuracy, and the standard deviation over seeds if there are several."""
    if row is None:
        return "–"
    return f"{float(row['mean']):.3f}" + (f" ± {float(row['std']):.3f}" if row["std"] else "")


def table(whole: list[Row], causal: list[Row], steps: list[Row]) -> str:
    """Accuracies, the state, and a training step's tokens/s and memory."""
    found = {(row["mixer"], row["task"]): row for row in whole}
    found |= {(row["mixer"] + CAUSAL, row["task"]): row for row in causal}
    costs = {row["mixer"] + CAUSAL * (row["causal"] == "True"): row for row in steps}
    names = sorted({mixer for mixer, _ in found}, key=lambda name: (CAUSAL in name, -best(found, name), name))
    names = [name for name in names if name + CAUSAL not in names or (name, "digits") in found]
    heads = ["mixer", *(f"`{task}`" for task in TASKS), "state at 64 tokens", "tokens/s", "memory of a step"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name in names:
        plain = name.removesuffix(CAUSAL)
        own = [found.get((name, task)) or (found.get((plain, "mqar")) if task == "mqar" else None) for task in TASKS]
        state = next(int(row["state_bytes"]) for row in (own[0], own[2]) if row)
        cost = costs.get(name, {})
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


def spread(found: Scores, task: str) -> float:
    """The most by which two seeds of a mixer differ there."""
    return max(max(own) - min(own) for (_, where), own in found.items() if where == task)


def near(found: Scores, task: str) -> list[str]:
    """The mixers that are no further above the control row there than seeds are apart."""
    limit = max(found[CONTROL, task]) + spread(found, task)
    return sorted(
        mixer
        for (mixer, where), own in found.items()
        if where == task and mixer != CONTROL and sum(own) / len(own) <= limit
    )


def untrained(found: Scores) -> list[str]:
    """The mixers that neither task tells from the control row."""
    trained = {mixer for mixer, task in found if task in JUDGES and mixer not in near(found, task)}
    return sorted({mixer for mixer, _ in found} - trained - {CONTROL})


def verdict(found: Scores) -> str:
    """In words, which mixers count as trained."""
    parts = []
    for task in JUDGES:
        parts.append(
            f"On `{task}` the best seed of `{CONTROL}` has {max(found[CONTROL, task]):.3f}, and two seeds of a mixer "
            f"differ by {spread(found, task):.3f} at most: {_but(near(found, task), 'are')} further above it."
        )
    return " ".join([*parts, f"So {_but(untrained(found), 'count')} as trained."])


def _but(left: list[str], verb: str) -> str:
    names = ", ".join(f"`{name}`" for name in left)
    return f"all but {names} {verb}" if left else f"all {verb}"


def written(page: str, text: str) -> str:
    """The page with the text between its marks."""
    start, end = MARKS
    return re.sub(f"{start}.*?{end}", lambda _: f"{start}\n{text}\n{end}", page, flags=re.DOTALL)


def section() -> str:
    """The table and the verdict."""
    whole, causal, seeds = rows("suite"), rows("causal"), rows("seeds")
    found = scores([*whole, *(row for row in causal if row["mixer"] == "rfa_gate")], seeds)
    return f"{table(whole, causal, rows('model') + rows('causal/model'))}\n\n{verdict(found)}"


def main() -> None:
    """See the top of this file."""
    PAGE.write_text(written(PAGE.read_text(), section()))


if __name__ == "__main__":
    main()
