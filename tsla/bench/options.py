"""The options of the `tsla bench` commands, read without torch; all problems are told at once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tsla.config.options import ConfigError, did_you_mean

SHORTEST = 16  # the length that the search of `crossover` begins with

Options = TypeVar("Options", bound=tuple[Any, ...])


class CrossoverOptions(NamedTuple):
    """What to measure.

    d, e: head dims of queries and keys, and of values.  heads: of every measurement but the sweep over heads.
    causal, backward: directions, and forward alone or forward and backward.  max_length: the longest to try.
    threads: of torch; None as it is.  width, length: of the sweep over heads; width 0: without it.
    out: folder of tables and figures.  write: whether `auto` is to use what was measured.
    """

    d: tuple[int, ...] = (8, 16, 32)
    e: tuple[int, ...] = (16, 32, 64)
    heads: int = 8
    causal: tuple[bool, ...] = (False, True)
    backward: tuple[bool, ...] = (False, True)
    max_length: int = 4096
    threads: int | None = None
    width: int = 256
    length: int = 1024
    out: Path = Path("crossover")
    write: bool = True


class AttentionOptions(NamedTuple):
    """What to measure: attention of given queries, keys and values, beside the field's packages.

    d, e: head dims, in pairs: d=16,32 e=64,32 are two shapes; a single one goes with all of the other.
    heads, kv_heads, batch: kv_heads None is heads.  length, causal, backward: every combination is measured.
    device: ``"cpu"`` or ``"cuda"``.  dtype: of the inputs; None is float32 on the CPU, bfloat16 on a GPU.
    only: implementations; none means all.  compile: lengths at which the peers are measured under `torch.compile` too.
    memory: also the memory of a call, on the CPU in a process of its own.
    long: length of the longest of ours against ours, 0: without these.  seconds: of rounds, at least, for each table.
    threads: of torch; None as it is.  out: folder of tables and figures.
    """

    d: tuple[int, ...] = (16,)
    e: tuple[int, ...] = (64,)
    heads: int = 8
    kv_heads: int | None = None
    batch: int = 1
    length: tuple[int, ...] = (1024, 4096)
    causal: tuple[bool, ...] = (False,)
    backward: tuple[bool, ...] = (False, True)
    device: str = "cpu"
    dtype: str | None = None
    only: tuple[str, ...] = ()
    compile: tuple[int, ...] = (4096,)
    memory: bool = True
    long: int = 16384
    seconds: int = 2
    threads: int | None = None
    out: Path = Path("bench")

    @property
    def input_type(self) -> str:
        """The type of the inputs, by its name."""
        return self.dtype or ("float32" if self.device == "cpu" else "bfloat16")


class ModelOptions(NamedTuple):
    """What to measure: a training step of the same encoder with different mixers.

    dim, depth, heads, head_dim, batch, causal: of every encoder.  length: tokens of a row, one table for each.
    only, seconds, threads, out: as in `AttentionOptions`.  memory: of a step, in a process of its own.
    loop: steps of a `fit` that is held against the same steps without Lightning; 0: without it.
    """

    dim: int = 128
    depth: int = 4
    heads: int = 8
    head_dim: int = 16
    batch: int = 1
    length: tuple[int, ...] = (2048, 4096)
    causal: bool = False
    only: tuple[str, ...] = ()
    memory: bool = True
    loop: int = 10
    seconds: int = 2
    threads: int | None = None
    out: Path = Path("bench")


class MixersOptions(NamedTuple):
    """What to measure: a layer of every mixer by itself, forward and both passes.

    dim, heads, batch, causal: of every layer.  length: tokens of a row.
    once: seconds; a call expected to take longer is timed once only.
    only, seconds, memory, threads, out: as in `AttentionOptions`; seconds are of each length and pass.
    """

    dim: int = 64
    heads: int = 4
    batch: int = 1
    length: tuple[int, ...] = (256, 1024, 4096, 16384)
    causal: bool = False
    only: tuple[str, ...] = ()
    memory: bool = True
    once: int = 5
    seconds: int = 5
    threads: int | None = None
    out: Path = Path("bench")


class DecodeOptions(NamedTuple):
    """What to measure: one more token after a context, ours from its state, softmax from all keys and values.

    width: of a token; a head of values, and of softmax's keys, has width / heads.  d: width of our queries and keys.
    context: tokens before, one table for each.  batch, only, seconds, threads, out: as in `AttentionOptions`.
    """

    width: int = 512
    heads: int = 8
    d: int = 16
    batch: int = 1
    context: tuple[int, ...] = (1024, 4096, 16384, 65536, 102400)
    only: tuple[str, ...] = ()
    seconds: int = 1
    threads: int | None = None
    out: Path = Path("bench")


# How values are read --------------------------------------------------------------------------------------------------


class Whole(NamedTuple):
    """A whole number, or `many` with commas; `missing`: nothing at all is allowed too."""

    low: int
    high: int
    many: bool = False
    missing: bool = False
    distinct: bool = True


class Flag(NamedTuple):
    """true or false, or `many` with a comma."""

    many: bool = False


class Choice(NamedTuple):
    """One of some words."""

    words: tuple[str, ...]


class Words(NamedTuple):
    """Any words, with commas."""


class Folder(NamedTuple):
    """A path."""


Rule = Whole | Flag | Choice | Words | Folder

HEADS, THREADS, WIDTH = Whole(1, 1024), Whole(1, 1024, missing=True), Whole(1, 2**14)
CPU_TYPES = ("float32", "bfloat16")
LENGTHS, SECONDS = Whole(1, 2**20, many=True), Whole(0, 3600)
COMMON: Mapping[str, Rule] = {
    "heads": HEADS, "batch": Whole(1, 4096), "only": Words(), "seconds": SECONDS, "threads": THREADS, "out": Folder(),
    "memory": Flag(),
}  # fmt: skip
RULES: Mapping[type[tuple[Any, ...]], Mapping[str, Rule]] = {
    CrossoverOptions: {
        **COMMON, "d": Whole(1, 1024, many=True), "e": Whole(1, 4096, many=True), "causal": Flag(many=True),
        "backward": Flag(many=True), "max_length": Whole(1, 2**20), "width": Whole(0, 2**14),
        "length": Whole(1, 2**16), "write": Flag(),
    },
    AttentionOptions: {
        **COMMON, "d": Whole(1, 1024, many=True, distinct=False), "e": Whole(1, 4096, many=True, distinct=False),
        "kv_heads": Whole(1, 1024, missing=True), "length": LENGTHS, "causal": Flag(many=True),
        "backward": Flag(many=True), "device": Choice(("cpu", "cuda")), "dtype": Choice((*CPU_TYPES, "float16")),
        "compile": Whole(1, 2**20, many=True, missing=True), "long": Whole(0, 2**20),
    },
    ModelOptions: {
        **COMMON, "dim": WIDTH, "depth": Whole(1, 64), "head_dim": Whole(1, 1024), "length": LENGTHS, "causal": Flag(),
        "loop": Whole(0, 1000),
    },
    MixersOptions: {**COMMON, "dim": WIDTH, "length": LENGTHS, "causal": Flag(), "once": SECONDS},
    DecodeOptions: {**COMMON, "width": WIDTH, "d": Whole(1, 1024), "context": LENGTHS},
}  # fmt: skip


def parse_crossover(arguments: Sequence[str]) -> CrossoverOptions:
    """The options that `key=value` arguments give.

    Raises:
        ConfigError: every problem, each naming the value and what is allowed.
    """

    def together(options: CrossoverOptions) -> list[str]:
        short = options.max_length < 2 * SHORTEST
        return [f"max_length ({options.max_length}) must be at least {2 * SHORTEST}"] * short

    return _parse("crossover", CrossoverOptions, arguments, together)


def parse_attention(arguments: Sequence[str]) -> AttentionOptions:
    """The same for `tsla bench attention`."""

    def together(options: AttentionOptions) -> list[str]:
        d, e, problems = options.d, options.e, []
        if len(d) != len(e) and 1 not in (len(d), len(e)):
            problems.append(f"d ({len(d)} values) and e ({len(e)}) go in pairs: as many of one as of the other, or one")
        if options.kv_heads and options.heads % options.kv_heads:
            problems.append(f"kv_heads ({options.kv_heads}) must divide heads ({options.heads})")
        if options.device == "cpu" and options.input_type not in CPU_TYPES:
            problems.append(f"dtype ({options.dtype!r}) must be one of {', '.join(CPU_TYPES)} on the CPU")
        if options.long and options.long < 4 * options.heads:
            problems.append(f"long ({options.long}) must be 0, or at least 4 x heads ({4 * options.heads})")
        return problems

    return _parse("attention", AttentionOptions, arguments, together)


def parse_model(arguments: Sequence[str]) -> ModelOptions:
    """The same for `tsla bench model`."""
    return _parse("model", ModelOptions, arguments, partial(_heads_divide, "dim"))


def parse_mixers(arguments: Sequence[str]) -> MixersOptions:
    """The same for `tsla bench mixers`."""
    return _parse("mixers", MixersOptions, arguments, partial(_heads_divide, "dim"))


def parse_decode(arguments: Sequence[str]) -> DecodeOptions:
    """The same for `tsla bench decode`."""
    return _parse("decode", DecodeOptions, arguments, partial(_heads_divide, "width"))


def _heads_divide(name: str, options: Any) -> list[str]:
    """What is wrong if heads have no width of their own in the option of that name."""
    width = getattr(options, name)
    return [f"heads ({options.heads}) must divide {name} ({width})"] * bool(width % options.heads)


def _parse(
    name: str, kind: type[Options], arguments: Sequence[str], together: Callable[[Options], list[str]]
) -> Options:
    names: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    problems: list[str] = []
    values: dict[str, object] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or key not in names:
            known = ", ".join(f"{each}=" for each in names)
            problems.append(f"there is no option {key!r}{did_you_mean(key, names)}: bench {name} takes {known}")
        elif key in values:
            problems.append(f"{key} is given twice; several values take commas")
        else:
            values[key] = _value(key, text, RULES[kind][key], problems)
    options = kind(**values)
    problems += together(options) if not problems else []
    if problems:
        raise ConfigError(problems)
    return options


def _value(key: str, text: str, rule: Rule, problems: list[str]) -> object:
    words = text.split(",")
    match rule:
        case Whole(many=many, missing=True) if not text:
            return () if many else None
        case Whole(many=True, distinct=distinct):
            numbers = tuple(_whole(key, word, rule, problems) for word in words)
            return tuple(dict.fromkeys(numbers)) if distinct else numbers
        case Whole():
            return _whole(key, text, rule, problems)
        case Flag(many=True):
            return tuple(dict.fromkeys(_flag(key, word, rule, problems) for word in words))
        case Flag():
            return _flag(key, text, rule, problems)
        case Choice(choices):
            if text not in choices:
                problems.append(f"{key} ({text!r}) must be one of {', '.join(choices)}{did_you_mean(text, choices)}")
            return text
        case Words():
            return tuple(dict.fromkeys(word for word in words if word))
        case Folder():
            if not text:
                problems.append(f"{key} must name a folder")
            return Path(text)


def _whole(key: str, text: str, rule: Whole, problems: list[str]) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not rule.low <= int(text) <= rule.high:
        problems.append(f"{key} ({text!r}) must be a whole number from {rule.low} to {rule.high}"
                        + ", or several with commas" * rule.many)  # fmt: skip
        return 1
    return int(text)


def _flag(key: str, text: str, rule: Flag, problems: list[str]) -> bool:
    if text not in ("true", "false"):
        problems.append(f"{key} ({text!r}) must be true or false" + ", or both with a comma" * rule.many)
    return text == "true"
