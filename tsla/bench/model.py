"""`tsla bench model`: a training step of one encoder with different mixers, and Lightning's loop over a bare one."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tsla.bench.curves import Curve, draw_curves
from tsla.bench.exact import relative_error
from tsla.bench.judge import NOT_INSTALLED, TOLERANCE, timed
from tsla.bench.memory import peak_extra_bytes
from tsla.bench.options import ModelOptions
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
from tsla.build_mixer import Place, build_mixer
from tsla.config import members
from tsla.config.mixers import MIXERS, HeadsConfig, OwnHeadsConfig
from tsla.config.schema import EncoderConfig
from tsla.mixers import Mixer, TaylorAttention
from tsla.mixers.base import Mixed
from tsla.mixers.readers import read_taylor_series
from tsla.models import Encoder, SequenceClassifier

if TYPE_CHECKING:
    from tsla.bench.loop import Loops

CHECKED = 256  # tokens at which a model is checked
VOCABULARY, CLASSES, RATE = 256, 10, 1e-4
CAPTION = """\
A training step: forward, cross-entropy, backward, AdamW. All have the same embedding, feed-forward layers and head;
only the mixer differs. Errors are of logits and of the embedding's gradient, against the same weights in float64 with
the formula's n x n form, the largest difference over the largest value. Memory is the peak of a step in a fresh
process, beyond the weights, their gradients and the optimiser's state.\
"""


class Size(NamedTuple):
    """An encoder and a batch for it."""

    dim: int
    depth: int
    heads: int
    head_dim: int
    batch: int
    causal: bool
    length: int


class Stepped(NamedTuple):
    """A training step of one encoder; problem: why it has no time, or ""."""

    size: Size
    name: str
    problem: str = ""
    error: float | None = None
    time: Timing | None = None
    extra_bytes: int | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of the batch over the median."""
        return self.size.batch * self.size.length / self.time.median if self.time else None


class Series(Mixer):
    """The layer of taylor-series-linear-attention as a mixer of our encoder."""

    supports = frozenset({"bidirectional"})

    def __init__(self, dim: int, *, heads: int, head_dim: int, packed: bool) -> None:
        from taylor_series_linear_attention import TaylorSeriesLinearAttn

        super().__init__(dim, width=heads * head_dim, causal=False)
        self.layer = TaylorSeriesLinearAttn(dim, heads=heads, dim_head=head_dim, remove_even_power_dups=packed)

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        return Mixed(self.layer(x, mask=mask))


def bench_model(options: ModelOptions, console: Console) -> int:
    """Measure, print, and write tables and figures; returns the exit status.

    Raises:
        ConfigError: `only` names what is not there.
        OSError: folders that cannot be written.
    """
    names = chosen(options.only, {name: name for name in mixers()})
    make_room(options.out, "model", "loop")
    stepped: list[Stepped] = []
    with using(options.threads):
        machine = told(console)
        for length in options.length:
            size = _size(options, length)
            with console.status(f"training steps of {length} tokens"):
                stepped += measure(size, names, seconds=options.seconds, memory=options.memory)
        print_table(console, "a training step", [columns(one, stepped) for one in stepped])
        loops = _loops(options, names, console)
    lines = [columns(one, stepped) for one in stepped]
    text = f"# Training steps\n\n{machine}.\n\n{CAPTION}\n\n{markdown(lines)}\n"
    files: dict[str, list[dict[str, Any]]] = {"model": [_row(one) for one in stepped]}
    if loops is not None:
        files["loop"] = [loops._asdict()]
        text += f"\n{loops.told}.\n"
    points = [
        Curve(f"dim {options.dim}, depth {options.depth}", one.name, one.size.length, one.time, one.extra_bytes)
        for one in stepped if one.time
    ]  # fmt: skip
    figures = []
    if len(options.length) > 1 and points:
        figures = [draw_curves(points, "tokens", "A training step", options.out / "model", thick=set(_ours()))]
    write_tables(options.out, files, {"model": text}, figures, console)
    return 0


def _loops(options: ModelOptions, names: list[str], console: Console) -> "Loops | None":
    """Our `fit` over a bare loop, with the first of the mixers."""
    if not options.loop:
        return None
    from tsla.bench.loop import over_bare  # Lightning, which the processes that measure memory do without

    size = _size(options, options.length[0])
    with console.status(f"{options.loop} steps with and without Lightning"):
        loops = over_bare(partial(encoder, names[0], size), names[0], size.batch, size.length, options.loop)
    console.print(loops.told, highlight=False)
    return loops


def _size(options: ModelOptions, length: int) -> Size:
    return Size(options.dim, options.depth, options.heads, options.head_dim, options.batch, options.causal, length)


def mixers() -> Mapping[str, Callable[[Size, Place], Mixer]]:
    """Makers of every mixer by name, ours first, from a size and the place in a model."""

    def ours(impl: str, size: Size, place: Place) -> Mixer:
        return TaylorAttention(size.dim, heads=size.heads, head_dim=size.head_dim, causal=size.causal, impl=impl)

    def series(packed: bool, size: Size, place: Place) -> Mixer:
        if size.causal:
            raise ValueError("causal needs pytorch-fast-transformers (C++ and CUDA); without it the package exits")
        return Series(size.dim, heads=size.heads, head_dim=size.head_dim, packed=packed)

    return {
        **{name: partial(ours, impl) for name, impl in _ours().items()},
        "tsla-0.2.0": partial(series, False), "tsla-0.2.0-packed": partial(series, True),
        **{name: partial(by_name, name) for name in MIXERS if name != "taylor"},
    }  # fmt: skip


def by_name(name: str, size: Size, place: Place) -> Mixer:
    """A mixer with its default options, and so many heads if it has any.

    Raises:
        ValueError: it has no such direction.
    """
    config, direction = members("mixer")[name], "causal" if size.causal else "bidirectional"
    if direction not in config.directions:
        raise ValueError(f"{name} is {', '.join(config.directions)} only")
    chosen = config(heads=size.heads) if issubclass(config, HeadsConfig | OwnHeadsConfig) else config()
    return build_mixer(chosen, EncoderConfig(dim=size.dim, causal=size.causal), place)


def _ours() -> dict[str, str]:
    """Our mixer by each form, `taylor` for the one that is the default."""
    return {"taylor" if impl == "auto" else f"taylor-{impl}": impl for impl in OURS}


def encoder(name: str, size: Size) -> SequenceClassifier:
    """The classifier with this mixer, with the same weights at each call."""
    torch.manual_seed(0)
    shared: dict[str, nn.Module] = {}
    made = Encoder(
        vocab_size=VOCABULARY, dim=size.dim, depth=size.depth, causal=size.causal,
        mixer=lambda layer: mixers()[name](size, Place(layer, size.depth, size.length, shared)),
    )  # fmt: skip
    return SequenceClassifier(made, num_classes=CLASSES)


def measure(size: Size, names: list[str], *, seconds: float, memory: bool) -> list[Stepped]:
    """A step of every encoder: checked, timed in turns, and its memory in a process of its own."""
    found: dict[str, Stepped] = {}
    steps: dict[str, Callable[[], list[Tensor]]] = {}
    for name in names:
        try:
            error = error_of(name, size)
            if not error <= TOLERANCE["float32"]:
                raise ValueError(f"wrong: off by {error:.2g}, no time")
            steps[name], found[name] = step_of(name, size), Stepped(size, name, "", error)
        except ModuleNotFoundError:
            found[name] = Stepped(size, name, NOT_INSTALLED)
        except (ValueError, RuntimeError, ImportError) as problem:  # of one mixer; the others go on
            found[name] = Stepped(size, name, str(problem).strip().split("\n")[0])
    times = timed(steps, seconds)
    return [
        one._replace(time=times[name], extra_bytes=peak_extra_bytes(partial(step_of, name, size)) if memory else None)
        if name in times else one
        for name, one in found.items()
    ]  # fmt: skip


def step_of(name: str, size: Size) -> Callable[[], list[Tensor]]:
    """A training step, run once on a few tokens."""
    model = encoder(name, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)

    def step(tokens: Tensor, targets: Tensor) -> list[Tensor]:
        optimizer.zero_grad()
        logits, aux = model.run(tokens)
        loss = cross_entropy(logits, targets)
        loss = loss if aux is None else loss + aux
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    step(*_batch(size._replace(length=min(size.length, CHECKED))))
    return partial(step, *_batch(size))


def error_of(name: str, size: Size) -> float:
    """Logits and the embedding's gradient of the encoder, against its weights in float64 and the formula's own form."""
    tokens, targets = _batch(size._replace(length=min(size.length, CHECKED)))
    model = encoder(name, size)
    exact = copy.deepcopy(model).double()
    for block in exact.encoder.blocks:
        mixer: Any = block.mixer
        if isinstance(mixer, TaylorAttention):
            mixer.impl, mixer.crossover = "direct", None
        if isinstance(mixer, Series):
            weights = mixer.layer.state_dict()
            block.mixer = read_taylor_series(weights, heads=size.heads)
            block.mixer.impl = "direct"
    results = []
    for each in (model, exact):
        logits = each(tokens)
        cross_entropy(logits, targets).backward()
        results.append((logits.detach(), each.encoder.embedding.weight.grad))
    return max(relative_error(got, right) for got, right in zip(*results, strict=True))


def _batch(size: Size) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (size.batch, size.length), generator=generator)
    return tokens, torch.randint(CLASSES, (size.batch,), generator=generator)


# What is shown and written --------------------------------------------------------------------------------------------


def _row(one: Stepped) -> dict[str, Any]:
    """A line of model.csv."""
    time = one.time
    return {
        **one.size._asdict(), "mixer": one.name, "problem": one.problem, "error": one.error,
        "seconds": time and time.median, "quartile_1": time and time.low, "quartile_3": time and time.high,
        "rounds": time and time.rounds, "tokens_per_second": one.tokens_per_second, "extra_bytes": one.extra_bytes,
    }  # fmt: skip


def columns(one: Stepped, stepped: list[Stepped]) -> dict[str, str]:
    """A line of the table, as text; `× taylor` is the time over that of our mixer as it comes."""
    ours = next((other.time for other in stepped if (other.size, other.name) == (one.size, "taylor")), None)
    return {
        "mixer": one.name, "tokens": str(one.size.length), "error": number(one.error, ".0e"),
        "time": duration(one.time), "tokens/s": number(one.tokens_per_second, ",.0f"),
        "× taylor": number(ours and one.time and one.time.median / ours.median, ".2f"),
        "MiB": mebibytes(one.extra_bytes), PROBLEM: one.problem,
    }  # fmt: skip
