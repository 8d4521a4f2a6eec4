"""The verb `tsla bench`: which measurement, with which options."""

from collections.abc import Callable, Sequence
from typing import Any

from tsla.bench.options import (
    AttentionOptions,
    DecodeOptions,
    MixersOptions,
    ModelOptions,
    parse_attention,
    parse_crossover,
    parse_decode,
    parse_mixers,
    parse_model,
)
from tsla.config.options import ConfigError, did_you_mean
from tsla.usage import UsageError, usage


def bench(arguments: list[str]) -> int:
    """Run `tsla bench` with these arguments; returns the exit status.

    Raises:
        UsageError: arguments that ask for something that is not there.
    """
    parsers: dict[str, Callable[[Sequence[str]], Any]] = {
        "attention": parse_attention, "model": parse_model, "mixers": parse_mixers, "decode": parse_decode,
        "crossover": parse_crossover,
    }  # fmt: skip
    match arguments:
        case [name, *rest] if name in parsers:
            pass
        case [name, *_]:
            raise UsageError(f"bench has no {name!r}{did_you_mean(name, parsers)}: it takes {', '.join(parsers)}")
        case _:
            raise UsageError(f"bench takes: {', '.join(parsers)} [key=value ...]")
    try:
        options = parsers[name](rest)
        return _measure(options)
    except ConfigError as error:
        raise usage("these options do not work:", error) from None
    except (NotADirectoryError, IsADirectoryError) as error:
        raise UsageError(str(error)) from None


def _measure(options: Any) -> int:
    """Run the command of these options."""
    from rich.console import Console

    from tsla.bench.attention import bench_attention
    from tsla.bench.crossover import bench_crossover
    from tsla.bench.decode import bench_decode
    from tsla.bench.mixers import bench_mixers
    from tsla.bench.model import bench_model

    console = Console()
    match options:
        case AttentionOptions():
            return bench_attention(options, console)
        case ModelOptions():
            return bench_model(options, console)
        case MixersOptions():
            return bench_mixers(options, console)
        case DecodeOptions():
            return bench_decode(options, console)
        case _:
            return bench_crossover(options, console)
