"""`tsla bench crossover`: from which length the linear form is faster here, what SDPA does, and what heads change."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import product
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from tsla.bench.figures import draw_crossover, draw_heads
from tsla.bench.forms import Shape, calls, errors
from tsla.bench.heads import Heads, sweep
from tsla.bench.memory import free_bytes
from tsla.bench.options import SHORTEST, CrossoverOptions
from tsla.bench.search import Crossing, crossing, lengths_between, settled
from tsla.bench.timing import Timing, interleaved
from tsla.bench.writing import as_csv, make_room, told, using
from tsla.ops import native, taylor_crossover
from tsla.ops.measured import Measured, Table, forget, merged, read_tables, render, table_file, this_machine
from tsla.training.run_dir import write_text
from tsla.training.terminal import PLAIN

CHECKED = 96  # tokens at which forms are held against float64: more than a chunk, and not a multiple of one


class Found(NamedTuple):
    """What was found of one shape: where linear overtakes direct and SDPA, all times by length, and the errors."""

    shape: Shape
    direct: Crossing
    sdpa: Crossing
    times: Mapping[int, Mapping[str, Timing]]
    errors: Mapping[str, float]


def bench_crossover(options: CrossoverOptions, console: Console) -> int:
    """Measure, print, and write tables, figures and, if asked, what `auto` uses; returns the exit status.

    Every file is written at once and at the end: what is killed leaves what was there.

    Raises:
        ValueError: a form that does not compute what it should.
        OSError: folders that cannot be written.
    """
    times = options.out / "times.csv"
    make_room(options.out, "crossover", "heads", others=[times, *([table_file()] if options.write else [])])
    with using(options.threads):
        machine = this_machine()
        told(console)
        kernels = "compiled kernels" if native.ready() else "torch: there are no compiled kernels"
        console.print(f"both forms of Taylor attention by {kernels}", highlight=False)
        console.print("SDPA is torch's softmax attention, q, k and v padded to one width (its fast kernel's) untimed",
                      highlight=False)  # fmt: skip
        kinds = list(product(options.d, options.e, options.causal, options.backward))
        found = []
        for place, (d, e, causal, backward) in enumerate(kinds, 1):
            with console.status(f"shape {place} of {len(kinds)}: d={d} e={e}{' causal' * causal}"):
                shape = Shape(d, e, options.heads, causal, backward)
                found.append(measure(shape, options.max_length))
        with console.status(f"heads at width {options.width}"):
            swept = sweep(options.width, options.length, options.causal[0], options.backward) if options.width else []
    _report(found, swept, options, console)
    if options.write:
        tables = _known(console)
        for compiled in {one.shape.compiled for one in found}:
            entries = tuple(entry_of(one) for one in found if one.shape.compiled == compiled)
            own = machine._replace(native=compiled)
            tables = merged(tables, own, Table(f"{date.today()}", entries))
        write_text(table_file(), render(tables))
        forget()
        console.print(f"impl=auto goes by {table_file()}", **PLAIN)
    return 0


def measure(shape: Shape, max_length: int) -> Found:
    """Where the linear form overtakes the others, each checked before it is timed."""
    worst = errors(shape, min(CHECKED, max_length))
    times: dict[int, dict[str, Timing]] = {}

    def ratio(n: int, *others: str) -> float:
        """Time of the linear form over that of the first of the others, at a length."""
        run = calls(shape, n)
        measured = interleaved({name: run[name] for name in ("linear", *others)})
        times[n] = times.get(n, {}) | measured
        return measured["linear"].median / measured[others[0]].median

    counted = taylor_crossover(shape.d, value_dim=shape.e)
    short = lengths_between(SHORTEST, max(min(max_length, _longest_direct(shape)), 2 * SHORTEST))
    every = lengths_between(SHORTEST, max_length)
    direct = settled(lambda guess: crossing(lambda n: ratio(n, "direct", "sdpa"), short, guess), counted)
    sdpa = settled(lambda guess: crossing(lambda n: ratio(n, "sdpa"), every, guess), direct.about)
    return Found(shape, direct, sdpa, dict(sorted(times.items())), worst)


def entry_of(found: Found) -> Measured:
    """One line of the table that `auto` goes by."""
    return Measured(
        *found.shape[:2], heads=found.shape.heads, causal=found.shape.causal, backward=found.shape.backward,
        direct=found.direct.first, linear=found.direct.second, length=found.direct.length,
    )  # fmt: skip


def _longest_direct(shape: Shape) -> int:
    """The longest length whose n x n weights, some six of them at once, fit into half of the free memory."""
    return math.isqrt(int(min(free_bytes(), 2**50)) // (2 * 6 * 4 * shape.heads))


def _known(console: Console) -> Mapping[Any, Table]:
    """The tables of before, with those of other machines; a damaged file is replaced."""
    try:
        return read_tables(table_file())
    except (ValueError, OSError) as error:
        console.print(f"{table_file()} is replaced: {error}", style="yellow", **PLAIN)
        return {}


# What is shown and written --------------------------------------------------------------------------------------------


def _report(found: Sequence[Found], swept: Sequence[Heads], options: CrossoverOptions, console: Console) -> None:
    rows = [_row(one) for one in found]
    files = {"crossover.csv": rows, "times.csv": [row for one in found for row in _times(one)]}
    if swept:
        files["heads.csv"] = [one._asdict() for one in swept]
    for name, content in files.items():
        write_text(options.out / name, as_csv(content))
    console.print(_crossings(rows, options.max_length))
    draw_crossover(rows, options.out / "crossover")
    if swept:
        console.print(_heads(swept))
        draw_heads(swept, options.width, options.length, options.out / "heads")
    figures = [options.out / "crossover.png"] + [options.out / "heads.png"] * bool(swept)
    console.print(" ".join(map(str, [*(options.out / name for name in files), *figures])), **PLAIN)


def _row(found: Found) -> dict[str, Any]:
    """A line of crossover.csv; lengths that were not found are empty, and their bounds tell why."""
    d, e = found.shape.d, found.shape.e
    return {
        **found.shape._asdict(),
        "crossover": found.direct.length, "direct_faster_at": found.direct.first,
        "linear_faster_at": found.direct.second, "sdpa_crossover": found.sdpa.length,
        "sdpa_faster_at": found.sdpa.first, "linear_faster_than_sdpa_at": found.sdpa.second,
        "counted_packed": taylor_crossover(d, value_dim=e),
        "counted_full": taylor_crossover(d, value_dim=e, packed=False),
        **{f"error_{name}": worst for name, worst in found.errors.items()},
    }  # fmt: skip


def _times(found: Found) -> Iterator[dict[str, Any]]:
    for n, timed in found.times.items():
        for form, t in timed.items():
            yield {**found.shape._asdict(), "length": n, "form": form, "seconds": t.median, "quartile_1": t.low,
                   "quartile_3": t.high, "rounds": t.rounds, "error": found.errors[form]}  # fmt: skip


def _crossings(rows: Sequence[Mapping[str, Any]], longest: int) -> RichTable:
    table = RichTable("d", "e", "causal", "pass", title="length from which the linear form is faster", min_width=60)
    for heading in ("than direct", "by count", "than SDPA", "error"):
        table.add_column(heading, justify="right")
    for row in rows:
        worst = max(row[f"error_{name}"] for name in ("direct", "linear", "sdpa"))
        table.add_row(
            str(row["d"]), str(row["e"]), "yes" if row["causal"] else "no", pass_name(row["backward"]),
            _told(row["crossover"], row["direct_faster_at"], row["linear_faster_at"]), f"{row['counted_packed']:.0f}",
            _told(row["sdpa_crossover"], row["sdpa_faster_at"], row["linear_faster_than_sdpa_at"]), f"{worst:.0e}",
        )  # fmt: skip
    return table


def _told(length: float | None, first: int, second: int | None) -> str:
    if length is not None:
        return f"{length:.0f}"
    return f"above {first}" if second is None else f"below {second}"


def pass_name(backward: bool) -> str:
    """Forward alone, or both passes."""
    return "both" if backward else "forward"


def _heads(swept: Sequence[Heads]) -> RichTable:
    title = f"one layer's attention at width {swept[0].heads * swept[0].d}, {swept[0].length} tokens"
    table = RichTable("heads", "d", "form", "pass", title=title)
    for heading in ("µs/token", "peak MiB", "state KiB", "kop/token"):
        table.add_column(heading, justify="right")
    for one in swept:
        table.add_row(
            str(one.heads), str(one.d), one.form, pass_name(one.backward), f"{1e6 * one.seconds / one.length:.2f}",
            f"{one.peak_bytes / 2**20:.1f}", f"{one.state_bytes / 2**10:.0f}", f"{one.operations / 1e3:,.0f}",
        )  # fmt: skip
    return table
