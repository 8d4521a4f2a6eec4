"""Writes the tables of docs/results/long_range.md, each between its marks, from the result.json files beside it.

python scripts/long_range_tables.py [NAME SUITE_DIR]

With the name of a folder of docs/results and a finished suite, the suite's results are copied there first, unchanged,
and if the page shows it the figure of a report on it.
"""

import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tsla.config.grid import Cell, cells_of, read_suite
from tsla.evaluation.report import write_report
from tsla.training.run_dir import is_finished

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
PAGE = RESULTS / "long_range.md"
SUITES = {
    "lra_mini": ROOT / "configs/suite/lra_mini.yaml",
    **{name: ROOT / f"scripts/{name}.yaml" for name in ("hour", "listops", "listops_dense")},
}

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


def recipes(suite: str, by: tuple[str, ...]) -> list[str]:
    """A row for each recipe of ListOps: accuracy, the plateau it is on, and accuracy by length, depth or operator."""
    found = results(suite)
    told = {"length": "{} tokens", "depth": "depth {}", "operator": "{}"}
    parts = {name: {told[kind].format(part["value"]): part["score"] for kind in by for part in runs[0]["slices"][kind]}
             for name, runs in found.items()}  # fmt: skip
    columns = list(dict.fromkeys(column for own in parts.values() for column in own))
    lines = [f"| recipe | accuracy | on the plateau of | {' | '.join(columns)} | parameters | minutes |",
             f"|---|---:|---|{'---:|' * (len(columns) + 2)}"]  # fmt: skip
    for name, runs in sorted(found.items(), key=lambda item: score(item[1]), reverse=True):
        own = [f"{parts[name][column]:.3f}" if column in parts[name] else "" for column in columns]
        cells = [score(runs), runs[0]["plateau"] or "", *own, f"{runs[0]['params']:,}", minutes(runs)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rules = next(iter(found.values()))[0]["references"] if found else {}
    blank = " |" * (len(columns) + 3)
    lines += [f"| *{rule}* | {value:.3f} |{blank}" for rule, value in sorted(rules.items(), key=lambda rule: -rule[1])]
    return lines


TABLES: dict[str, Callable[[str], list[str]]] = {
    "lra_mini": tasks,
    "hour": tasks,
    "listops": partial(recipes, by=("length",)),
    "listops_dense": partial(recipes, by=("operator", "depth")),
}


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, make in TABLES.items():
        marks = f"<!-- {name} -->", f"<!-- /{name} -->"
        inside = "\n".join([marks[0], *make(name), marks[1]])
        text = re.sub(f"{marks[0]}.*?{marks[1]}", lambda _, inside=inside: inside, text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def is_suite(folder: str) -> bool:
    return Path(folder, "suite.yaml").is_file()


def collect(name: str, suite: Path) -> None:
    """Copy what a suite has finished."""
    cells: list[Cell] = cells_of(read_suite(SUITES[name]))
    (RESULTS / name).mkdir(exist_ok=True)
    for cell in cells:
        if is_finished(suite / cell.name):
            shutil.copyfile(suite / cell.name / "result.json", RESULTS / name / f"{cell.name}.json")
    if f"{name}/overview.png" in PAGE.read_text():
        write_report([suite], suite / "report")
        shutil.copyfile(suite / "report" / "figures" / "overview.png", RESULTS / name / "overview.png")


def main() -> None:
    if len(sys.argv) not in (1, 3) or not {*sys.argv[1:2]} <= SUITES.keys() or not all(map(is_suite, sys.argv[2:])):
        sys.exit(f"usage: long_range_tables.py [NAME SUITE_DIR], NAME one of {', '.join(SUITES)}; got {sys.argv[1:]}")
    if len(sys.argv) == 3:
        collect(sys.argv[1], Path(sys.argv[2]))
    PAGE.write_text(page(PAGE.read_text()))


if __name__ == "__main__":
    main()
