"""`tsla bench attention`: attention of given queries, keys and values, ours beside torch's and the field's packages."""

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from tsla.bench.cases import CUDA, Case, Implementation
from tsla.bench.cuda import check_gpu, described
from tsla.bench.curves import Curve, draw_curves
from tsla.bench.judge import Judged, judge
from tsla.bench.options import AttentionOptions
from tsla.bench.peers import implementations, ours
from tsla.bench.variants import Against, variants
from tsla.bench.writing import (
    COMPUTES,
    NOTHING,
    PROBLEM,
    chosen,
    duration,
    make_room,
    markdown,
    mebibytes,
    number,
    print_table,
    told,
    using,
    write_tables,
)

CAPTION = """\
Errors are against each row's own formula in float64, the largest of output and gradients over the largest value; what
is off by more has no time. Times are medians of rounds in turns with torch.mm, quartiles in brackets; rates count the
operations of Taylor attention with packed features, 4 f (e + 1) per token and head (f = C(d + 2, 2)), three times that
with the backward pass.\
"""
OF_A_PROCESS = "Memory is the peak of a fresh process beyond inputs, output and gradients."
OF_A_GPU = """\
Times are of events on the GPU, the L2 cache written over before each call: of the replay of a CUDA graph, or of calls
from Python where the call could not be captured, so that they hold what Python takes to launch it. Memory is the peak
of torch's allocator during a call beyond inputs, output and gradients.\
"""


def bench_attention(options: AttentionOptions, console: Console) -> int:
    """Measure, print, and write tables and figures; returns the exit status.

    Raises:
        ConfigError: `only` names what is not there, or there is no GPU for ``device=cuda``.
        OSError: folders that cannot be written.
    """
    if options.device == CUDA:
        check_gpu()
    wanted = chosen(options.only, implementations(options.device))
    shapes = dict.fromkeys((case.d, case.e) for case in cases_of(options))
    make_room(options.out, "attention", "variants", *stems(shapes))
    judged: list[Judged] = []
    with using(options.threads):
        machine = told(console, described(options.input_type) if options.device == CUDA else None)
        for case in cases_of(options):
            with console.status(case.named):
                at = [one for one in wanted if not one.compiled or case.length in options.compile]
                judged += judge(case, at, seconds=options.seconds, memory=options.memory)
            print_table(console, case.named, columns(judged[-len(at) :]))
        against = _ours(options, wanted, console)
    files = {"attention": [row_of(one) for one in judged]}
    if against:
        files["variants"] = [one._asdict() for one in against]
    pages = {"attention": page(judged, against, machine)}
    figures = draw(judged, options.out) if len(options.length) > 1 else []
    write_tables(options.out, files, pages, figures, console)
    return 0


def cases_of(options: AttentionOptions) -> list[Case]:
    """Every kind of call: shapes, directions, passes, lengths."""
    pairs = max(len(options.d), len(options.e))
    shapes = zip(*(x * (pairs if len(x) == 1 else 1) for x in (options.d, options.e)), strict=True)
    kv_heads = options.kv_heads or options.heads
    return [
        Case(d, e, options.heads, kv_heads, options.batch, length, causal, backward, options.input_type, options.device)
        for (d, e), causal, backward, length in product(
            dict.fromkeys(shapes), options.causal, options.backward, options.length
        )
    ]


def _ours(options: AttentionOptions, wanted: Sequence[Implementation], console: Console) -> list[Against]:
    """Ours against ours, where it is asked for and ours is measured at all."""
    first = next((one.name for one in wanted if one.name in ours(options.device)), None)
    if not options.long or first is None:
        return []
    found = []
    for backward in options.backward:
        base = cases_of(options)[0]._replace(length=max(options.length), causal=False, backward=backward)
        with console.status(f"ours against ours, {'both passes' if backward else 'forward'}"):
            found += variants(implementations(options.device)[first], base, options.long, options.seconds)
    print_table(console, "ours against ours", variant_columns(found), left=3)
    return found


# What is shown and written --------------------------------------------------------------------------------------------


def row_of(one: Judged) -> dict[str, Any]:
    """A line of attention.csv; what was not measured is empty."""
    time = one.time
    return {
        **one.case._asdict(), "implementation": one.name, "computes": one.computes, "problem": one.problem,
        "error": one.error, "seconds": time and time.median, "quartile_1": time and time.low,
        "quartile_3": time and time.high, "rounds": time and time.rounds, "gflops": one.rate and one.rate / 1e9,
        "of_matmul": one.of_matmul, "extra_bytes": one.extra_bytes, "by": one.by,
    }  # fmt: skip


def columns(judged: Sequence[Judged]) -> list[dict[str, str]]:
    """The lines of one case's table, as text; `x auto` is the time over that of our `impl="auto"`."""
    ours = next((one.time for one in judged if one.name == "auto"), None)
    return [
        {
            "implementation": one.name, COMPUTES: one.computes,
            "error": number(one.error, ".0e"), "time": duration(one.time),
            "× auto": number(one.time and ours and one.time.median / ours.median, ".2f"),
            "GFLOP/s": number(one.rate and one.rate / 1e9, ".1f"), "of mm": number(one.of_matmul, ".2f"),
            "MiB": mebibytes(one.extra_bytes), **({"by": one.by or NOTHING} if one.case.device == CUDA else {}),
            PROBLEM: one.problem,
        }
        for one in judged
    ]  # fmt: skip


def variant_columns(against: Sequence[Against]) -> list[dict[str, str]]:
    """The lines of the table of variants, as text."""
    return [
        {
            "of": one.what, "over": one.over, "pass": "both" if one.backward else "forward",
            "ratio": number(one.ratio, ".2f"), "time": number(one.seconds, ".3g", " s"),
            "time of the other": number(one.other_seconds, ".3g", " s"), PROBLEM: one.problem,
        }
        for one in against
    ]  # fmt: skip


def page(judged: Sequence[Judged], against: Sequence[Against], machine: str) -> str:
    """attention.md: a table for each case, and that of the variants."""
    cases: Mapping[Case, list[Judged]] = {one.case: [] for one in judged}
    for one in judged:
        cases[one.case].append(one)
    memory = OF_A_GPU if judged[0].case.device == CUDA else OF_A_PROCESS
    parts = [f"# Attention\n\n{machine}.\n\n{CAPTION} {memory}"]
    parts += [f"## {case.named}\n\n{markdown(columns(rows))}" for case, rows in cases.items()]
    if against:
        parts.append(f"## Ours against ours\n\n{markdown(variant_columns(against))}")
    return "\n\n".join(parts) + "\n"


def draw(judged: Sequence[Judged], out: Path) -> list[Path]:
    """Time and memory against the length, a figure for each shape: directions and passes side by side."""
    shapes = list(dict.fromkeys((one.case.d, one.case.e) for one in judged))
    drawn = []
    for (d, e), stem in zip(shapes, stems(shapes), strict=True):
        points = [
            Curve(one.case.passes, one.name, one.case.length, one.time, one.extra_bytes)
            for one in judged if one.time is not None and (one.case.d, one.case.e) == (d, e)
        ]  # fmt: skip
        if points:
            named = judged[0].case._replace(d=d, e=e)
            thick = set(ours(named.device))
            drawn.append(draw_curves(points, "tokens", f"Attention, {named.shape}", out / stem, thick=thick))
    return drawn


def stems(shapes: Collection[tuple[int, int]]) -> list[str]:
    """Names of the figures, without their ends."""
    return ["attention"] if len(shapes) == 1 else [f"attention-d{d}-e{e}" for d, e in shapes]
