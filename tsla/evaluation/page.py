"""The page of a report: one HTML file that needs nothing else, for wide and narrow windows, light and dark."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from tsla.evaluation.figures import Figure, Look
from tsla.evaluation.overview import Overview
from tsla.evaluation.runs import Confusion
from tsla.evaluation.tables import (
    Group,
    SliceTable,
    Tables,
    TaskTable,
    columns_of,
    notes_of,
    rows_of,
)

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --soft: #60676e; --line: #dfe3e6; --tint: #f5f7f8;
  --accent: #0b62a4; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181b; --ink: #e4e7ea; --soft: #9aa3ab; --line: #31373c; --tint: #1e2226; --accent: #79b8ea; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 88rem; padding: 2rem clamp(1rem, 2.5vw, 2.5rem) 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; letter-spacing: -.01em; }
h2 { margin: 3rem 0 .8rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); font-size: 1.3rem; }
h3 { margin: 1.6rem 0 .5rem; font-size: .95rem; }
h1, h2, h3, p, nav, li { overflow-wrap: anywhere; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-top: .6rem; }
p.lead, .notes, figcaption { color: var(--soft); }
.notes, figcaption { font-size: .85rem; }
.notes { margin: .6rem 0 0; }
ul.notes { padding-left: 1.1rem; }
.scroll { width: fit-content; max-width: 100%; overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
.side { display: flex; flex-wrap: wrap; gap: 0 1.5rem; align-items: flex-start; }
.side > section { min-width: 0; max-width: 100%; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
.main .scroll, figure .scroll, .main table { width: 100%; }
th, td { padding: .42rem .55rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line);
  vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
thead th { background: var(--tint); color: var(--soft); font-weight: 600; }
th.text, td.text { text-align: left; }
tbody th { text-align: left; font-weight: 600; background: var(--paper); }
tr > th:first-child { position: sticky; left: 0; text-align: left; }
.main tbody th { min-width: 9.5rem; max-width: 14rem; white-space: normal; overflow-wrap: anywhere; }
td.variant { white-space: normal; min-width: 8rem; max-width: 20rem; overflow-wrap: anywhere; }
tr.reference > * { color: var(--soft); font-weight: 400; font-style: italic; }
td.best { font-weight: 700; }
.dot { display: inline-block; width: .65em; height: .65em; margin-right: .5em; border-radius: 50%;
  outline: 1px solid color-mix(in srgb, var(--ink) 35%, transparent); }
td.command { width: 16rem; min-width: 7rem; max-width: 20rem; white-space: normal; }
code { font: .8rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
summary { cursor: pointer; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--accent); }
details[open] summary { color: var(--soft); }
td.command pre { margin: .4rem 0; padding: .45rem .6rem; border-radius: 6px; background: var(--tint);
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; }
figure { margin: 1.4rem 0 0; }
figure .scroll { background: #fff; padding: .4rem; }
figure img { display: block; width: 100%; min-width: 46rem; max-width: 72rem; margin: 0 auto; height: auto; }
figcaption { margin-top: .35rem; }
@media print { .scroll { overflow: visible; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
# Nothing may be loaded or run: the page's names come from files that anyone may have made.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def make_page(
    tables: Tables, figures: Sequence[Sequence[Figure]], looks: Mapping[tuple[str, str], Look],
    overview: tuple[Overview, Figure] | None,
) -> str:  # fmt: skip
    """The whole report as HTML; every figure is in it as SVG."""
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>tsla report: {escape(tables.summary)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        f'<header><h1>Report</h1><p class="lead">{escape(tables.summary)}</p>',
        _contents(tables),
        "</header>\n<main>",
    ]
    if overview:
        parts.append(_overview(*overview))
    for at, (table, drawn) in enumerate(zip(tables.tasks, figures, strict=True)):
        parts.append(_task(at, table, drawn, looks))
    if tables.unfinished:
        parts.append(_unfinished(tables))
    return "\n".join(parts) + "\n</main>\n</body>\n</html>\n"


def _contents(tables: Tables) -> str:
    links = [f'<a href="#task-{at}">{escape(table.title)}</a>' for at, table in enumerate(tables.tasks)]
    links += ['<a href="#unfinished">without a result</a>'] * bool(tables.unfinished)
    return f"<nav>{''.join(links)}</nav>" if len(links) > 1 else ""


def _overview(overview: Overview, figure: Figure) -> str:
    body = []
    for row in overview.rows:
        cells = [
            f'<td class="best">{escape(cell)}</td>' if best else f"<td>{escape(cell)}</td>"
            for cell, best in zip(overview.cells(row), overview.best(row), strict=True)
        ]
        body.append(f"<tr><th>{escape(row.label)}</th>{''.join(cells)}</tr>")
    for name, rule in overview.rules:
        cells = [f"<td>{escape(cell)}</td>" for cell in rule]
        body.append(f'<tr class="reference"><th>{escape(name)} (reference)</th>{"".join(cells)}</tr>')
    told = [*overview.notes, "Bold: the highest of a task."]
    notes = "".join(f"<li>{escape(note)}</li>" for note in told)
    return (
        f'<section class="main"><h2>Overview</h2>{_scrolling(_head(overview.columns, 1), body)}'
        f'<ul class="notes">{notes}</ul>{_figure(figure)}</section>'
    )


def _task(
    at: int, table: TaskTable, figures: Sequence[Figure], looks: Mapping[tuple[str, str], Look]
) -> str:  # fmt: skip
    parts = [f'<section id="task-{at}"><h2>{escape(table.title)}</h2>', _main_table(table, looks)]
    notes = [f"<li>{escape(note)}</li>" for note in notes_of(table)]
    parts.append(f'<ul class="notes">{"".join(notes)}</ul>')
    parts += map(_figure, figures)
    side = [_slices(table, part) for part in table.slices]
    if table.confusion:
        side.append(_confusion(table.confusion, table.best))
    return "\n".join([*parts, f'<div class="side">{"".join(side)}</div></section>'])


def _main_table(table: TaskTable, looks: Mapping[tuple[str, str], Look]) -> str:
    columns = columns_of(table)
    texts = 2 if "variant" in columns else 1
    score = columns.index(f"test {table.monitor}")
    body = []
    for (first, *cells), group in rows_of(table):
        color = looks[group.mixer, group.variant].color if group else ""
        dot = f'<span class="dot" style="background:{color}"></span>' if group else ""
        line = [f"<th>{dot}{escape(first)}</th>"]
        for place, cell in enumerate(cells, start=1):
            best = place == score and group is table.groups[0]
            kind = ' class="text variant"' if place < texts else ' class="best"' if best else ""
            line.append(f"<td{kind}>{escape(cell)}</td>")
        line.append(f'<td class="text command">{_commands(group) if group else ""}</td>')
        opening = "<tr>" if group else '<tr class="reference">'
        body.append(f"{opening}{''.join(line)}</tr>")
    return f'<div class="main">{_scrolling(_head(columns, texts, "command"), body)}</div>'


def _commands(group: Group) -> str:
    """The first command on one line, which opens to those of all seeds."""
    whole = "".join(f"<pre><code>{escape(command)}</code></pre>" for command in group.commands)
    return f"<details><summary><code>{escape(group.commands[0])}</code></summary>{whole}</details>"


def _figure(figure: Figure) -> str:
    """The figure as a picture: what is in a picture cannot run, nor clash with the names of another."""
    data = base64.b64encode(figure.svg.read_bytes()).decode()
    caption = escape(figure.caption)
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{caption}</figcaption></figure>'


def _slices(table: TaskTable, part: SliceTable) -> str:
    head = _head([part.name, "items", *(group.label for group in table.groups)], 1)
    body = [
        f"<tr><th>{escape(value)}</th><td>{items}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for value, items, cells in zip(part.values, part.items, part.cells, strict=True)
    ]
    return f"<section><h3>{escape(part.heading)} by {escape(part.name)}</h3>{_scrolling(head, body)}</section>"


def _confusion(confusion: Confusion, of: Group) -> str:
    """Each cell tinted by its share of its row."""
    labels, counts = confusion
    body = []
    for label, row in zip(labels, counts, strict=True):
        whole = max(sum(row), 1)
        cells = [
            f'<td style="background:rgb(0 114 178 / {0.55 * count / whole:.2f})">{count}</td>' if count else "<td></td>"
            for count in row
        ]
        body.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
    title = f"true classes (rows) as predicted (columns) by {of.label}" + ", all seeds" * (len(of.runs) > 1)
    return f"<section><h3>{escape(title)}</h3>{_scrolling(_head(['', *labels], 1), body)}</section>"


def _unfinished(tables: Tables) -> str:
    body = []
    for run in tables.unfinished:
        texts = (run.task, run.mixer, run.seed, f"{run.step} of {run.of_steps}", run.val)
        cells = "".join(f'<td class="text">{escape(text)}</td>' for text in texts)
        code = f"<details><summary><code>{escape(run.command)}</code></summary><pre><code>{escape(run.command)}"
        body.append(
            f'<tr><th>{escape(run.path)}</th>{cells}<td class="text command">{code}</code></pre></details></td></tr>'
        )
    head = _head(["run", "task", "mixer", "seed", "steps", "latest validation"], 6, "goes on with")
    return (
        f'<section id="unfinished"><h2>Without a result</h2><div class="main">{_scrolling(head, body)}</div></section>'
    )


def _head(names: Sequence[str], texts: int, command: str | None = None) -> str:
    """A row of headings, the first `texts` of them and that of the command over text."""
    kinds = [' class="text"' if at < texts else "" for at in range(len(names))]
    cells = [f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, names, strict=True)]
    return "".join(cells) + (f'<th class="text">{command}</th>' if command else "")


def _scrolling(head: str, body: Sequence[str]) -> str:
    rows = "\n".join(body)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
