"""`tsla bench decode`: a token after a context, ours from a state that never grows, softmax from all before."""

from collections.abc import Callable, Iterable, Mapping
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
from tsla.mixers import TaylorAttention
from tsla.ops import taylor_attention

SDPA, SERIES, LAYER = "sdpa", "tsla-0.2.0", "auto-layer"
TOKENS = 16  # decoded in a row, as decoding does: each finds in the caches what the one before left there
CAPTION = """\
Time of a token, of 16 that follow a context one by one. Attention without projections: ours from the state of all
tokens before, whose next state is made too; softmax by torch's SDPA over all keys and values, the new ones written into
room that was there before. `auto-layer` is our mixer with its projections and checks, as a model calls it. Errors
are against each row's own formula over the whole context in float64 (the layer's: against itself on all tokens at
once). State is what is kept between tokens.\
"""


class Setting(NamedTuple):
    """What is decoded: widths of queries and keys, and of values; heads, sequences, tokens before."""

    d: int
    e: int
    heads: int
    batch: int
    context: int

    @property
    def width(self) -> int:
        return self.heads * self.e


class Decoder(NamedTuple):
    """`TOKENS` steps after a context, each from what the one before it left.

    steps: all outputs ``(b, h, TOKENS, e)``.  right: what they should be, in float64.  state_bytes: kept between steps.
    """

    steps: Callable[[], Tensor]
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
    print_table(console, f"a token after a context, of {TOKENS} in a row", [columns(one, decoded) for one in decoded])
    lines = [columns(one, decoded) for one in decoded]
    text = f"# Decoding\n\n{machine}.\n\n{CAPTION}\n\n{markdown(lines)}\n"
    points = [
        Curve(f"h={options.heads}, width {options.width}", one.name, one.setting.context, one.time, one.state_bytes)
        for one in decoded if one.time
    ]  # fmt: skip
    figures = []
    if len(options.context) > 1 and points:
        title = "A token after a context"
        figures = [draw_curves(points, "tokens before", title, options.out / "decode", thick=set(OURS),
                               memory="state")]  # fmt: skip
    write_tables(options.out, {"decode": [_row(one) for one in decoded]}, {"decode": text}, figures, console)
    return 0


def decoders() -> Mapping[str, Callable[[Setting], Decoder]]:
    """All implementations by name, ours first; direct keeps no features, so its step is that of linear."""
    ours = {impl: partial(_ours, impl) for impl in OURS if impl != "direct"}
    return {**ours, SDPA: _sdpa, LAYER: _layer, SERIES: _series}


def measure(setting: Setting, names: list[str], seconds: float) -> list[Decoded]:
    """Every implementation after one context: checked, then timed in turns."""
    made: dict[str, Decoder] = {}
    found: dict[str, Decoded] = {}
    for name in names:
        try:
            made[name] = decoders()[name](setting)
            error = relative_error(made[name].steps(), made[name].right)
            if not error <= TOLERANCE["float32"]:
                raise ValueError(f"wrong: off by {error:.2g}, no time")
            found[name] = Decoded(setting, name, "", error, None, made[name].state_bytes)
        except (ValueError, RuntimeError, ImportError) as error:  # of one implementation; the others go on
            made.pop(name, None)
            found[name] = Decoded(setting, name, str(error).strip().split("\n")[0])
    with torch.no_grad():
        times = timed({name: partial(_listed, one.steps) for name, one in made.items()}, seconds)
    return [one._replace(time=_of_one(times[one.name]) if one.name in times else None) for one in found.values()]


def _of_one(time: Timing) -> Timing:
    """The part of one token in the time of all."""
    return time._replace(median=time.median / TOKENS, low=time.low / TOKENS, high=time.high / TOKENS)


# Implementations ------------------------------------------------------------------------------------------------------


def _ours(impl: str, setting: Setting) -> Decoder:
    q, k, v = _tokens(setting, setting.d)
    past, new = _parted([q, k, v])
    with torch.no_grad():
        start = taylor_attention(*past, causal=True, return_state=True, impl=impl).state
    assert start is not None

    @torch.no_grad()
    def steps() -> Tensor:
        state, out = start, []
        for token in zip(*new, strict=True):
            attended = taylor_attention(*token, causal=True, state=state, return_state=True, impl=impl)
            assert attended.state is not None
            state = attended.state
            out.append(attended.output)
        return torch.cat(out, 2)

    return Decoder(steps, _right(of_scores(second_order, setting.d**-0.5, True), q, k, v), _bytes(start[:2]))


def _sdpa(setting: Setting) -> Decoder:
    """Queries and keys as wide as values, as in a softmax model."""
    q, k, v = _tokens(setting, setting.e)
    _, new = _parted([q, k, v])
    keys, values = (x.clone().index_fill_(2, _last(x), 0.0) for x in (k, v))

    @torch.no_grad()
    def steps() -> Tensor:
        out = []
        for at, (query, key, value) in enumerate(zip(*new, strict=True), setting.context):
            keys[:, :, at : at + 1], values[:, :, at : at + 1] = key, value
            out.append(scaled_dot_product_attention(query, keys[:, :, : at + 1], values[:, :, : at + 1]))
        return torch.cat(out, 2)

    return Decoder(steps, _right(of_scores(exponential, setting.e**-0.5, True), q, k, v), _bytes([keys, values]))


def _series(setting: Setting) -> Decoder:
    raise ValueError("causal needs pytorch-fast-transformers (C++ and CUDA); without it the package exits")


@torch.no_grad()
def _layer(setting: Setting) -> Decoder:
    """A mixer on vectors of a model."""
    torch.manual_seed(setting.context)
    layer = TaylorAttention(setting.width, heads=setting.heads, head_dim=setting.d, causal=True)
    x = torch.randn(setting.batch, setting.context + TOKENS, setting.width)
    _, start = layer.extend(x[:, :-TOKENS])

    @torch.no_grad()
    def steps() -> Tensor:
        state, out = start, []
        for token in x[:, -TOKENS:].split(1, dim=1):
            y, state = layer.extend(token, state)
            out.append(y)
        return torch.cat(out, 1)

    right = layer.double()(x.double())[:, -TOKENS:]
    layer.float()
    return Decoder(steps, right, layer.state_bytes(setting.context + TOKENS) * setting.batch)


def _tokens(setting: Setting, d: int) -> list[Tensor]:
    """q, k and v of the context and the tokens after it, the same at each call."""
    generator = torch.Generator().manual_seed(setting.context)
    shape = (setting.batch, setting.heads, setting.context + TOKENS)
    return [torch.randn(*shape, width, generator=generator) for width in (d, d, setting.e)]


def _parted(tensors: list[Tensor]) -> tuple[list[Tensor], list[list[Tensor]]]:
    """The context of each, and its tokens after it one by one."""
    new = [[token.contiguous() for token in x[:, :, -TOKENS:].split(1, dim=2)] for x in tensors]
    return [x[:, :, :-TOKENS] for x in tensors], new


def _last(x: Tensor) -> Tensor:
    """The places of the tokens after the context."""
    return torch.arange(x.shape[2] - TOKENS, x.shape[2])


def _right(exact: Exact, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Outputs of the tokens after the context, in float64."""
    return exact(q.double(), k.double(), v.double(), _last(q))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def _listed(steps: Callable[[], Tensor]) -> list[Tensor]:
    return [steps()]


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
