"""The options of `tsla bench crossover`, read without torch; all problems are told at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tsla.config.options import ConfigError, did_you_mean

LARGEST = {"d": 1024, "e": 4096, "heads": 1024, "threads": 1024, "max_length": 2**20, "width": 2**14, "length": 2**16}
SHORTEST = 16  # the length that the search begins with


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


def parse_crossover(arguments: Sequence[str]) -> CrossoverOptions:
    """The options that `key=value` arguments give.

    Raises:
        ConfigError: every problem, each naming the value and what is allowed.
    """
    problems: list[str] = []
    values: dict[str, object] = {}
    for argument in arguments:
        key, sign, text = argument.partition("=")
        if not sign or key not in CrossoverOptions._fields:
            known = ", ".join(f"{name}=" for name in CrossoverOptions._fields)
            problems.append(f"there is no option {key!r}{did_you_mean(key, CrossoverOptions._fields)}: "
                            f"bench crossover takes {known}")  # fmt: skip
        elif key in values:
            problems.append(f"{key} is given twice; several values take commas")
        else:
            values[key] = _value(key, text, problems)
    options = CrossoverOptions(**values)  # type: ignore[arg-type]
    if not problems and options.max_length < 2 * SHORTEST:
        problems.append(f"max_length ({options.max_length}) must be at least {2 * SHORTEST}")
    if problems:
        raise ConfigError(problems)
    return options


def _value(key: str, text: str, problems: list[str]) -> object:
    words = text.split(",")
    match key:
        case "d" | "e":
            return tuple(dict.fromkeys(_whole(key, word, 1, problems) for word in words))
        case "causal" | "backward":
            return tuple(dict.fromkeys(_flag(key, word, problems) for word in words))
        case "write":
            return _flag(key, text, problems)
        case "out":
            if not text:
                problems.append("out must name a folder")
            return Path(text)
        case "threads" if not text:
            return None
        case _:
            return _whole(key, text, 0 if key == "width" else 1, problems)


def _whole(key: str, text: str, low: int, problems: list[str]) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not low <= int(text) <= LARGEST[key]:
        problems.append(f"{key} ({text!r}) must be a whole number from {low} to {LARGEST[key]}"
                        + ", or several with commas" * (key in ("d", "e")))  # fmt: skip
        return 1
    return int(text)


def _flag(key: str, text: str, problems: list[str]) -> bool:
    if text not in ("true", "false"):
        problems.append(f"{key} ({text!r}) must be true or false" + ", or both with a comma" * (key != "write"))
    return text == "true"
