"""`tsla bench mixers`: one layer of every mechanism by itself, forward and both passes, against the length."""

import copy
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from tsla.bench.curves import Curve, draw_curves
from tsla.bench.exact import relative_error
from tsla.bench.judge import TOLERANCE, timed
from tsla.bench.memory import peak_extra_bytes
from tsla.bench.model import CHECKED, Size, by_name
from tsla.bench.options import MixersOptions
from tsla.bench.timing import Timing
from tsla.bench.writing import (
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
from tsla.build_mixer import Place
from tsla.config.mixers import MIXERS
from tsla.mixers import Mixer

PASSES = {False: "forward", True: "both passes"}
CAPTION = """\
One layer with its projections, of the same width, heads and batch for all, with its default options: its output, and
in both passes the gradients of its input and weights too. Errors are of the output and of the input's gradient at
{checked} tokens, against the same weights in float64, the largest difference over the largest value. Memory is the peak
of a call in a fresh process, beyond weights and what the call returns. A call expected to take more than {once} s is
timed once only.\
"""


class Layered(NamedTuple):
    """A layer of one mechanism at one length; problem: why it has no time, or ""."""

    size: Size
    name: str
    backward: bool
    problem: str = ""
    error: float | None = None
    time: Timing | None = None
    extra_bytes: int | None = None


def bench_mixers(options: MixersOptions, console: Console) -> int:
    """Measure, print, and write tables and figures; returns the exit status.

    Raises:
        ConfigError: `only` names what is not there.
        OSError: folders that cannot be written.
    """
    names = chosen(options.only, {name: name for name in MIXERS if name != "none"})  # which does nothing
    make_room(options.out, "mixers")
    layered: list[Layered] = []
    with using(options.threads):
        machine = told(console)
        for length in sorted(options.length):
            size = Size(options.dim, 1, options.heads, 0, options.batch, options.causal, length)
            for backward in PASSES:
                with console.status(f"{length} tokens, {PASSES[backward]}"):
                    layered += measure(size, names, backward, layered, options)
    lines = [columns(one, layered) for one in layered]
    print_table(console, "a layer", lines, left=2)
    caption = CAPTION.format(checked=CHECKED, once=options.once)
    text = f"# Layers of all mixers\n\n{machine}.\n\n{caption}\n\n{markdown(lines)}\n"
    points = [
        Curve(PASSES[one.backward], one.name, one.size.length, one.time, one.extra_bytes) for one in layered if one.time
    ]
    figures = []
    if len(options.length) > 1 and points:
        title = f"A layer of width {options.dim}, {options.heads} heads" + ", causal" * options.causal
        figures = [draw_curves(points, "tokens", title, options.out / "mixers", thick={"taylor"})]
    write_tables(options.out, {"mixers": [_row(one) for one in layered]}, {"mixers": text}, figures, console)
    return 0


def measure(
    size: Size, names: list[str], backward: bool, before: list[Layered], options: MixersOptions
) -> list[Layered]:
    """Every mechanism at one length: checked, timed in turns or once, and its memory in a process of its own."""
    found: dict[str, Layered] = {}
    calls: dict[str, Callable[[], list[Tensor]]] = {}
    times: dict[str, Timing] = {}
    for name in names:
        try:
            error = error_of(name, size, backward)
            if not error <= TOLERANCE["float32"]:
                raise ValueError(f"wrong: off by {error:.2g}, no time")
            found[name] = Layered(size, name, backward, "", error)
            call = call_of(name, size, backward)
            if expected_seconds(name, size, backward, before) > options.once:
                start = time.perf_counter()
                call()
                took = time.perf_counter() - start
                times[name] = Timing(took, took, took, 1)
            else:
                calls[name] = call
        except (ValueError, RuntimeError, ImportError) as problem:  # of one mixer; the others go on
            found[name] = Layered(size, name, backward, str(problem).strip().split("\n")[0])
    times |= timed(calls, options.seconds)
    return [
        one._replace(
            time=times[name],
            extra_bytes=peak_extra_bytes(partial(call_of, name, size, backward)) if options.memory else None,
        )
        if name in times else one
        for name, one in found.items()
    ]  # fmt: skip


def expected_seconds(name: str, size: Size, backward: bool, before: list[Layered]) -> float:
    """What a call may take, if its time grows with the square of the length; 0 where no shorter one is measured."""
    known = [one for one in before if (one.name, one.backward) == (name, backward) and one.time]
    if not known or known[-1].time is None:
        return 0.0
    return known[-1].time.median * (size.length / known[-1].size.length) ** 2


def layer_of(name: str, size: Size) -> Mixer:
    """The mixer, with the same weights at each call."""
    torch.manual_seed(0)
    return by_name(name, size, Place(0, 1, size.length, {}))


def call_of(name: str, size: Size, backward: bool) -> Callable[[], list[Tensor]]:
    """The call that is measured, of a layer that has run once on a few tokens."""
    layer = layer_of(name, size).eval()
    _run(layer, _tokens(size._replace(length=min(size.length, CHECKED))), backward)
    return partial(_run, layer, _tokens(size), backward)


def error_of(name: str, size: Size, backward: bool) -> float:
    """Output and the input's gradient on a few tokens, against the same weights in float64."""
    size = size._replace(length=min(size.length, CHECKED))
    layer, x = layer_of(name, size).eval(), _tokens(size)
    exact = copy.deepcopy(layer).double()
    found, right = _run(layer, x, backward), _run(exact, x.double(), backward)
    return max(relative_error(*pair) for pair in zip(found[:2], right[:2], strict=True))


def _run(layer: Mixer, x: Tensor, backward: bool) -> list[Tensor]:
    """The output; in both passes also the gradients of the input and of the weights."""
    if not backward:
        with torch.no_grad():
            return [layer(x)]
    x = x.detach().requires_grad_()
    out, _, aux = layer.mix(x)
    results = [out] if aux is None else [out, aux]  # a loss of its own is part of the work
    slopes = torch.autograd.grad(results, [x, *layer.parameters()], [torch.ones_like(y) for y in results])
    return [out.detach(), *slopes]


def _tokens(size: Size) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size.batch, size.length, size.dim, generator=generator)


# What is shown and written --------------------------------------------------------------------------------------------


def _row(one: Layered) -> dict[str, Any]:
    """A line of mixers.csv."""
    own, took = one.size, one.time
    return {
        "mixer": one.name, "length": own.length, "backward": one.backward, "dim": own.dim, "heads": own.heads,
        "batch": own.batch, "causal": own.causal, "problem": one.problem, "error": one.error,
        "seconds": took and took.median, "quartile_1": took and took.low, "quartile_3": took and took.high,
        "rounds": took and took.rounds, "extra_bytes": one.extra_bytes,
    }  # fmt: skip


def columns(one: Layered, layered: list[Layered]) -> dict[str, str]:
    """A line of the table, as text; `× taylor` is the time over that of Taylor attention."""
    same = [other for other in layered if (other.size, other.backward) == (one.size, one.backward)]
    ours = next((other.time for other in same if other.name == "taylor"), None)
    return {
        "mixer": one.name, "passes": PASSES[one.backward], "tokens": str(one.size.length),
        "error": number(one.error, ".0e"), "time": duration(one.time),
        "× taylor": number(ours and one.time and one.time.median / ours.median, ".2f"),
        "MiB": mebibytes(one.extra_bytes), PROBLEM: one.problem,
    }  # fmt: skip
