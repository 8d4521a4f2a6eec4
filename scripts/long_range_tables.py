"""Writes the tables of docs/results/long_range.md, each between its marks, from the result.json files beside it.

python scripts/long_range_tables.py [NAME SUITE_DIR]

With the name of a folder of docs/results and a finished suite, the suite's results are copied there first, unchanged,
and for several tasks the figure of a report on it.
"""

import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from tsla.config.grid import Cell, cells_of, read_suite
from tsla.evaluation.report import write_report

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = RESULTS / "long_range.md"
SUITES = {"lra_mini": ROOT / "configs/suite/lra_mini.yaml", "listops": ROOT / "scripts/listops.yaml"}

Found = dict[str, list[dict[str, Any]]]  # results of a group's seeds, by its name


def results(name: str) -> Found:
    """The committed results of a suite, by group, in the order of its cells, each with how many seeds are asked for."""
    found: Found = {}
    cells = cells_of(read_suite(SUITES[name]))
    for cell in cells:
        file = RESULTS / name / f"{cell.name}.json"
        if file.exists():
            asked = sum(other.group == cell.group for other in cells)
            found.setdefault(cell.group, []).append({**json.loads(file.read_text()), "asked": asked})
    return found


def score(runs: list[dict[str, Any]]) -> str:
    """Test score, mean and sample standard deviation over seeds, and how many there are if some are missing."""
    values = [run["metrics"][f"test/{run['monitor']}"] for run in runs]
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    missing = f" ({len(runs)} of {runs[0]['asked']})" if len(runs) < runs[0]["asked"] else ""
    return f"{statistics.mean(values):.3f}{spread}{missing}"


def minutes(runs: list[dict[str, Any]]) -> str:
    """Of training, median over seeds."""
    return f"{statistics.median(run['seconds'] for run in runs) / 60:.1f}"


def tasks(suite: str) -> list[str]:
    """A row for each model, a column for each task; then trivial rules, and minutes of training."""
    found, kinds = results(suite), read_suite(SUITES[suite])["variants"]
    columns = {task: {model: found.get(f"{task}_{model}", []) for model in kinds["model"]} for task in kinds["task"]}
    rows: dict[str, list[str]] = {model: [] for model in kinds["model"]}
    rules: dict[str, list[str]] = {"*lowest rule*": [], "*best rule*": [], "*minutes*": []}
    for column in columns.values():
        finished = {model: runs for model, runs in column.items() if runs}
        top = max((score(runs).split()[0] for runs in finished.values()), default="")
        for model, runs in column.items():
            told = score(runs) if runs else ""
            rows[model].append(f"**{told}**" if told and told.split()[0] == top else told)
        any_of = next(iter(finished.values()), [{"references": {}}])[0]
        known = sorted((value, name) for name, value in any_of["references"].items())
        spans = sorted((minutes(runs) for runs in finished.values()), key=float)
        for name, cells in (("*lowest rule*", known[:1]), ("*best rule*", known[1:][-1:])):
            rules[name].append(" ".join(f"{value:.3f} {rule}" for value, rule in cells))
        rules["*minutes*"].append(f"{spans[0]}-{spans[-1]}" if spans else "")
    lines = [f"| | {' | '.join(f'`{task}`' for task in columns)} |", f"|---|{'---:|' * len(columns)}"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in (rows | rules).items()]


def listops(suite: str) -> list[str]:
    """A row for each recipe: accuracy, the plateau it is on, and accuracy by length."""
    found = results(suite)
    lengths = list(dict.fromkeys(part["value"] for runs in found.values() for part in runs[0]["slices"]["length"]))
    lines = [f"| recipe | accuracy | on the plateau of | {' | '.join(f'{length} tokens' for length in lengths)} "
             "| parameters | minutes |", f"|---|---:|---|{'---:|' * (len(lengths) + 2)}"]  # fmt: skip
    for name, runs in sorted(found.items(), key=lambda item: score(item[1]), reverse=True):
        parts = {part["value"]: f"{part['score']:.3f}" for part in runs[0]["slices"]["length"]}
        cells = [score(runs), runs[0]["plateau"] or "", *(parts.get(length, "") for length in lengths),
                 f"{runs[0]['params']:,}", minutes(runs)]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rules = next(iter(found.values()))[0]["references"] if found else {}
    blank = " |" * (len(lengths) + 3)
    lines += [f"| *{rule}* | {value:.3f} |{blank}" for rule, value in sorted(rules.items(), key=lambda rule: -rule[1])]
    return lines


TABLES = {"lra_mini": tasks, "listops": listops}


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        inside = "\n".join([marks[0], *make(name), marks[1]])
        text = re.sub(f"{marks[0]}.*?{marks[1]}", lambda _, inside=inside: inside, text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def collect(name: str, suite: Path) -> None:
    """Copy what a suite has finished."""
    cells: list[Cell] = cells_of(read_suite(SUITES[name]))
    (RESULTS / name).mkdir(exist_ok=True)
    for cell in cells:
        if (file := suite / cell.name / "result.json").exists():
            shutil.copyfile(file, RESULTS / name / f"{cell.name}.json")
    if len({cell.config.task.name for cell in cells}) > 1:
        write_report([suite], suite / "report")
        shutil.copyfile(suite / "report" / "figures" / "overview.png", RESULTS / name / "overview.png")


def main() -> None:
    if len(sys.argv) == 3:
        collect(sys.argv[1], Path(sys.argv[2]))
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
