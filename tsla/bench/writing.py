"""What the `tsla bench` commands share around their measurements: choosing, threads, folders, and tables as text."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tsla.bench.timing import Timing, matmul_rate
from tsla.config.options import ConfigError, did_you_mean
from tsla.ops.measured import this_machine
from tsla.training.run_dir import write_text
from tsla.training.terminal import PLAIN

PROBLEM, COMPUTES = "problem", "computes"  # columns: of what stands below a table, of what is left out if narrow
ENDS = (".csv", ".md", ".png", ".svg")
NOTHING = "–"  # in a table, where nothing was measured

Named = TypeVar("Named")


def chosen(only: Sequence[str], every: Mapping[str, Named]) -> list[Named]:
    """Those that `only` names, in their own order; all, if it names none.

    Raises:
        ConfigError: names that are not there.
    """
    if unknown := [name for name in only if name not in every]:
        raise ConfigError([f"only ({name!r}) must be of {', '.join(every)}{did_you_mean(name, every)}"
                           for name in unknown])  # fmt: skip
    return [one for name, one in every.items() if name in only or not only]


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """So many threads of torch; as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def told(console: Console, text: str | None = None) -> str:
    """The machine in words, printed: by `text`, or else processor, torch, threads, and what torch.mm does here."""
    if text is None:
        machine = this_machine()
        text = (f"{machine.processor}, torch {machine.torch}, {machine.threads} threads; "
                f"torch's matmul: {matmul_rate() / 1e9:.0f} GFLOP/s")  # fmt: skip
    console.print(text, highlight=False)
    return text


def make_room(out: Path, *names: str, others: Sequence[Path] = ()) -> None:
    """Make the folders, and see that nothing stands in the way, before minutes go into what could not be kept.

    Raises:
        NotADirectoryError, IsADirectoryError: a file where a folder should be, or the other way round.
    """
    for file in (*(out / f"{name}{end}" for name in names for end in ENDS), *others):
        for folder in reversed(file.parents):
            if folder.exists() and not folder.is_dir():
                raise NotADirectoryError(f"{folder} is in the way of {file}: it is not a folder")
        if file.is_dir():
            raise IsADirectoryError(f"{file} is in the way: it is a folder")
        file.parent.mkdir(parents=True, exist_ok=True)


def write_tables(
    out: Path, files: Mapping[str, Sequence[Mapping[str, Any]]], pages: Mapping[str, str], figures: Sequence[Path],
    console: Console,
) -> None:  # fmt: skip
    """Write rows as CSV and pages as Markdown, each file at once, and say where everything is."""
    written = []
    for name, rows in files.items():
        written.append(out / f"{name}.csv")
        write_text(written[-1], as_csv(rows))
    for name, text in pages.items():
        written.append(out / f"{name}.md")
        write_text(written[-1], text)
    console.print(" ".join(map(str, [*written, *figures])), **PLAIN)


# Text -----------------------------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one kind, as text."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of rows of one kind; the first column left, the others right; problems as a list below."""
    names = [name for name in rows[0] if name != PROBLEM]
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *([row[name] for name in names] for row in rows)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return "\n\n".join([table, *(["\n".join(f"- {note}" for note in notes)] if (notes := notes_of(rows)) else [])])


def print_table(console: Console, title: str, rows: Sequence[Mapping[str, str]], left: int = 1) -> None:
    """What was measured, on the terminal, without what it `computes`; so many columns left, the others right."""
    names = [name for name in rows[0] if name not in (PROBLEM, COMPUTES)]
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", padding=(0, 1))
    for place, name in enumerate(names):
        table.add_column(name, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        if not row[PROBLEM]:
            table.add_row(*(escape(row[name]) for name in names))
    console.print(table)
    for note in notes_of(rows):
        console.print(f"  {note}", style="dim", **PLAIN)


def notes_of(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """What is not measured, and why, once each."""
    return list(dict.fromkeys(f"{next(iter(row.values()))}: {row[PROBLEM]}" for row in rows if row[PROBLEM]))


def number(value: float | None, form: str, unit: str = "") -> str:
    """A number, or a dash where there is none."""
    return NOTHING if value is None else f"{value:{form}}{unit}"


def duration(time: Timing | None) -> str:
    """Median and quartiles in milliseconds."""
    if time is None:
        return NOTHING
    digits = 4 if time.median < 1e-4 else 3 if time.median < 0.01 else 1 if time.median < 1 else 0
    median, low, high = (f"{1e3 * x:.{digits}f}" for x in time[:3])
    return f"{median} ms [{low}, {high}]"


def mebibytes(size: int | None) -> str:
    """Bytes, as MiB."""
    return number(None if size is None else size / 2**20, ".1f")
