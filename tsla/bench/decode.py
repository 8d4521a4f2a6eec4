"""`tsla bench decode`: one more token after a context, ours from a state that never grows, softmax from all before."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tsla.bench.curves import Curve, draw_curves
from tsla.bench.exact import Exact, exponential, of_scores, relative_error, second_order
from tsla.bench.judge import TOLERANCE, timed
from tsla.bench.options import DecodeOptions
from tsla.bench.peers import OURS
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
from tsla.ops import taylor_attention

SDPA, SERIES = "sdpa", "tsla-0.2.0"
CAPTION = """\
Attention of one token after a context, without projections: ours from the state of all tokens before, whose next state
is made too; softmax by torch's SDPA over all keys and values, the new ones written into room that was there before.
Errors are against each row's own formula over the whole context in float64. State is what is kept between tokens.\
"""


class Setting(NamedTuple):
    """What is decoded: widths of queries and keys, and of values; heads, sequences, tokens before."""

    d: int
    e: int
    heads: int
    batch: int
    context: int


class Decoder(NamedTuple):
    """One token's step after a context: what is called, what it should give, and the bytes kept between tokens."""

    step: Callable[[], Tensor]
    right: Tensor
    state_bytes: int


class Decoded(NamedTuple):
    """One implementation after one context; problem: why it has no time, or ""."""

    setting: Setting
    name: str
    problem: str = ""
    error: float | None = None
    time: Timing | None = None
    state_bytes: int | None = None


def bench_decode(options: DecodeOptions, console: Console) -> int:
    """Measure, print, and write tables and figures; returns the exit status.

    Raises:
        ConfigError: `only` names what is not there.
        OSError: folders that cannot be written.
    """
    names = chosen(options.only, {name: name for name in decoders()})
    make_room(options.out, "decode")
    decoded: list[Decoded] = []
    with using(options.threads):
        machine = told(console)
        for context in options.context:
            setting = Setting(options.d, options.width // options.heads, options.heads, options.batch, context)
            with console.status(f"context of {context} tokens"):
                decoded += measure(setting, names, options.seconds)
    print_table(console, "one token after a context", [columns(one, decoded) for one in decoded])
    lines = [columns(one, decoded) for one in decoded]
    text = f"# Decoding\n\n{machine}.\n\n{CAPTION}\n\n{markdown(lines)}\n"
    points = [
        Curve(f"h={options.heads}, width {options.width}", one.name, one.setting.context, one.time, one.state_bytes)
        for one in decoded if one.time
    ]  # fmt: skip
    figures = []
    if len(options.context) > 1 and points:
        title = "One token after a context"
        figures = [draw_curves(points, "tokens before", title, options.out / "decode", thick=set(OURS),
                               memory="state")]  # fmt: skip
    write_tables(options.out, {"decode": [_row(one) for one in decoded]}, {"decode": text}, figures, console)
    return 0


def decoders() -> Mapping[str, Callable[[Setting], Decoder]]:
    """All implementations by name, ours first; direct keeps no features, so its step is that of linear."""
    ours = {impl: partial(_ours, impl) for impl in OURS if impl != "direct"}
    return {**ours, SDPA: _sdpa, SERIES: _series}


def measure(setting: Setting, names: list[str], seconds: float) -> list[Decoded]:
    """Every implementation after one context: checked, then timed in turns."""
    made: dict[str, Decoder] = {}
    found: dict[str, Decoded] = {}
    for name in names:
        try:
            made[name] = decoders()[name](setting)
            error = relative_error(made[name].step(), made[name].right)
            if not error <= TOLERANCE["float32"]:
                raise ValueError(f"wrong: off by {error:.2g}, no time")
            found[name] = Decoded(setting, name, "", error, None, made[name].state_bytes)
        except (ValueError, RuntimeError, ImportError) as error:  # of one implementation; the others go on
            made.pop(name, None)
            found[name] = Decoded(setting, name, str(error).strip().split("\n")[0])
    with torch.no_grad():
        times = timed({name: partial(_listed, one.step) for name, one in made.items()}, seconds)
    return [one._replace(time=times.get(one.name)) for one in found.values()]


# Implementations ------------------------------------------------------------------------------------------------------


def _ours(impl: str, setting: Setting) -> Decoder:
    q, k, v = _tokens(setting, setting.d)
    with torch.no_grad():
        past = (x[:, :, :-1] for x in (q, k, v))
        state = taylor_attention(*past, causal=True, return_state=True, impl=impl).state
    assert state is not None
    last = [x[:, :, -1:].contiguous() for x in (q, k, v)]

    def step() -> Tensor:
        with torch.no_grad():
            return taylor_attention(*last, causal=True, state=state, return_state=True, impl=impl).output

    size = sum(x.numel() * x.element_size() for x in state[:2])
    return Decoder(step, _right(of_scores(second_order, setting.d**-0.5, False), q, k, v), size)


def _sdpa(setting: Setting) -> Decoder:
    """Queries and keys as wide as values, as in a softmax model."""
    q, k, v = _tokens(setting, setting.e)
    last = [x[:, :, -1:].contiguous() for x in (q, k, v)]
    keys, values = k.clone(), v.clone()
    keys[:, :, -1], values[:, :, -1] = 0.0, 0.0

    def step() -> Tensor:
        with torch.no_grad():
            keys[:, :, -1:], values[:, :, -1:] = last[1], last[2]
            return scaled_dot_product_attention(last[0], keys, values)

    size = keys.numel() * keys.element_size() + values.numel() * values.element_size()
    return Decoder(step, _right(of_scores(exponential, setting.e**-0.5, False), q, k, v), size)


def _series(setting: Setting) -> Decoder:
    raise ValueError("causal needs pytorch-fast-transformers (C++ and CUDA); without it the package exits")


def _tokens(setting: Setting, d: int) -> list[Tensor]:
    """q, k and v of the context and the token after it, the same at each call."""
    generator = torch.Generator().manual_seed(setting.context)
    shape = (setting.batch, setting.heads, setting.context + 1)
    return [torch.randn(*shape, width, generator=generator) for width in (d, d, setting.e)]


def _right(exact: Exact, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The last token's output in float64; it sees all there is."""
    return exact(q[:, :, -1:].double(), k.double(), v.double(), torch.tensor([0]))


def _listed(step: Callable[[], Tensor]) -> list[Tensor]:
    return [step()]


# What is shown and written --------------------------------------------------------------------------------------------


def _row(one: Decoded) -> dict[str, Any]:
    """A line of decode.csv."""
    time = one.time
    return {
        **one.setting._asdict(), "implementation": one.name, "problem": one.problem, "error": one.error,
        "seconds": time and time.median, "quartile_1": time and time.low, "quartile_3": time and time.high,
        "rounds": time and time.rounds, "state_bytes": one.state_bytes,
    }  # fmt: skip


def columns(one: Decoded, decoded: list[Decoded]) -> dict[str, str]:
    """A line of the table, as text; `sdpa ×` is how many times as long SDPA takes."""
    softmax = next((other.time for other in decoded if (other.setting, other.name) == (one.setting, SDPA)), None)
    return {
        "implementation": one.name, "context": str(one.setting.context),
        "error": number(one.error, ".0e"), "time": duration(one.time),
        "sdpa ×": number(softmax and one.time and softmax.median / one.time.median, ".2f"),
        "state MiB": mebibytes(one.state_bytes), PROBLEM: one.problem,
    }  # fmt: skip
