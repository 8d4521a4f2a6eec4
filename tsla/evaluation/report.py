"""What many runs say, as Markdown, CSV, figures and one page; every row has the command that makes it again."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tsla.evaluation.figures import Figure, draw_figures, looks_of
from tsla.evaluation.overview import Overview, make_overview
from tsla.evaluation.overview_figure import draw_overview
from tsla.evaluation.page import make_page
from tsla.evaluation.runs import Run, find_runs
from tsla.evaluation.tables import Group, Tables, TaskTable, columns_of, make_tables, notes_of, rows_of

RESULTS = ("params", "train_tokens_per_second", "peak_memory_bytes", "state_bytes", "steps", "best_step", "seconds")


def write_report(paths: Sequence[Path], out: Path) -> list[Path]:
    """Report on the runs at `paths`, run directories or folders of them; returns the files written, the page first.

    `out` gets report.html (all in one file), report.md (with figures/), report.csv (a row for each line of the tables)
    and runs.csv (a row for each run). An earlier report there is overwritten.

    Raises:
        ValueError: `out` is a file; a path without a run; a damaged file of a run.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out ({out}) must be a folder, got a file")
    runs = find_runs(paths)
    tables = make_tables(runs)
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(tables.tasks, folder) if tables.tasks else []
    looks, overview = looks_of(tables.tasks), None
    if len(tables.tasks) > 1:
        made = make_overview(tables.tasks)
        overview = made, draw_overview(made, tables.tasks, looks, folder)
    page, text = out / "report.html", out / "report.md"
    page.write_text(make_page(tables, figures, looks, overview), encoding="utf-8")
    text.write_text(make_markdown(tables, figures, overview), encoding="utf-8")
    _write_csv(out / "report.csv", _lines_of(tables))
    _write_csv(out / "runs.csv", _runs_of(tables))
    every = [*(overview[1:] if overview else ()), *(figure for task in figures for figure in task)]
    drawn = [path for figure in every for path in (figure.png, figure.svg)]
    return [page, text, out / "report.csv", out / "runs.csv", *drawn]


# Markdown -------------------------------------------------------------------------------------------------------------


def make_markdown(
    tables: Tables, figures: Sequence[Sequence[Figure]], overview: tuple[Overview, Figure] | None
) -> str:  # fmt: skip
    """The report as Markdown, whose pictures lie in figures/ beside it."""
    lines = ["# Report", "", plain(tables.summary) + ".", ""]
    if overview:
        made, figure = overview
        cells = [[row.label, *made.cells(row)] for row in made.rows]
        cells += [[f"{name} (reference)", *rule] for name, rule in made.rules]
        lines += ["## Overview", "", *_table(made.columns, cells), ""]
        lines += [f"- {plain(note)}" for note in made.notes]
        lines += ["", f"![{plain(figure.caption)}](figures/{figure.png.name})", ""]
    for table, drawn in zip(tables.tasks, figures, strict=True):
        lines += [f"## {plain(table.title)}", "", *_main_table(table), ""]
        lines += [f"- {plain(note)}" for note in notes_of(table)]
        for figure in drawn:
            lines += ["", f"![{plain(figure.caption)}](figures/{figure.png.name})"]
        for part in table.slices:
            rows_ = [
                [value, items, *cells] for value, items, cells in zip(part.values, part.items, part.cells, strict=True)
            ]
            names = [group.label for group in table.groups]
            lines += ["", f"{plain(part.heading)} by {plain(part.name)}:", ""]
            lines += _table([part.name, "items", *names], rows_)
        if table.confusion:
            rows_ = [[label, *map(str, row)] for label, row in zip(*table.confusion, strict=True)]
            lines += ["", f"True classes (rows) as predicted (columns) by {plain(table.best.label)}:", ""]
            lines += _table(["", *table.confusion.labels], rows_)
        lines += [""]
    if tables.unfinished:
        rows_ = [[run.path, run.task, run.mixer, run.seed, f"{run.step} of {run.of_steps}", run.val]
                 for run in tables.unfinished]  # fmt: skip
        head = ["run", "task", "mixer", "seed", "steps", "latest validation"]
        commands = [run.command for run in tables.unfinished]
        lines += ["## Without a result", "", *_table(head, rows_, ["goes on with", *commands]), ""]
    return "\n".join(lines)


def _main_table(table: TaskTable) -> list[str]:
    rows = rows_of(table)
    commands = [group.commands[0] if group else "" for _, group in rows]
    return _table(columns_of(table), [cells for cells, _ in rows], ["command (of the first seed)", *commands])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], code: Sequence[str] | None = None) -> list[str]:
    """Lines of a Markdown table; `code` is a last column of commands, its heading first."""
    last = [f" {plain(code[0])} |", *(f" {_code(text)} |" for text in code[1:])] if code else [""] * (1 + len(rows))
    numeric = [all(re.fullmatch(r"(nan|[-\d.,± ]*)", row[at]) for row in rows) for at in range(len(head))]
    rule = "|" + "".join(" ---: |" if right else " --- |" for right in numeric) + " --- |" * bool(code)
    lines = [
        "| " + " | ".join(map(plain, cells)) + " |" + more for cells, more in zip([head, *rows], last, strict=True)
    ]
    return [lines[0], rule, *lines[1:]]


def plain(text: str) -> str:
    """`text` as Markdown that shows it letter by letter, in a table too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*|\[\]~$#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", text)


def _code(text: str) -> str:
    """`text` as a span of code in a cell: its fence is longer than any row of backticks inside."""
    if not text:
        return ""
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    blank = " " * (len(fence) > 1)
    return f"{fence}{blank}{text}{blank}{fence}".replace("|", "\\|")


# CSV ------------------------------------------------------------------------------------------------------------------


def _lines_of(tables: Tables) -> Iterable[dict[str, Any]]:
    """The lines of all main tables; of several seeds, the runs and commands stand one a line in their cell."""
    for table in tables.tasks:
        for group in table.groups:
            yield {
                "kind": "runs", **_what(table, group), "seeds": " ".join(map(str, group.seeds)),
                "test_mean": group.score.mean, "test_std": "" if group.score.std is None else group.score.std,
                "val_mean": group.val, "params": group.params, "tokens_per_second_median": group.tokens_per_second,
                "peak_memory_bytes_max": group.peak_memory_bytes, "state_bytes": group.state_bytes,
                "steps": group.steps, "minutes_median": group.minutes,
                "runs": "\n".join(str(run.path) for run in group.runs), "commands": "\n".join(group.commands),
            }  # fmt: skip
        for name, score in table.references:
            yield {"kind": "reference", **_where(table), "mixer": name, "test_mean": score}
    for run in tables.unfinished:
        yield {
            "kind": "unfinished", "task": run.task, "mixer": run.mixer, "seeds": run.seed, "steps": run.step,
            "runs": run.path, "commands": run.command,
        }  # fmt: skip


def _runs_of(tables: Tables) -> Iterable[dict[str, Any]]:
    """One line for each finished run, with all its metrics."""
    for table in tables.tasks:
        for group in table.groups:
            for run in group.runs:
                yield {**_what(table, group), **_facts(run)}


def _where(table: TaskTable) -> dict[str, str]:
    return {"task": table.task, "table": table.title, "monitor": table.monitor}


def _what(table: TaskTable, group: Group) -> dict[str, Any]:
    return {**_where(table), "mixer": group.mixer, "variant": group.variant}


def _facts(run: Run) -> dict[str, Any]:
    result = run.result or {}
    return {
        "seed": result["seed"], **result["metrics"], **{key: result[key] for key in RESULTS},
        "git_sha": result["git_sha"] or "", "run": str(run.path), "command": result["command"],
    }  # fmt: skip


def _write_csv(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write the lines; their columns are all that any of them has, in order of appearance."""
    rows = list(lines)
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value
