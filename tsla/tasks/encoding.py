"""From one raw input, such as a cell of a table, to a row of a task; and from a row back to what people read."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.base import TaskSpec
from tsla.tasks.characters import ids_of, text_of
from tsla.tasks.listops import SYMBOLS
from tsla.tasks.listops_grammar import evaluate, to_text

Array = NDArray[Any]
SHOWN = 40  # characters of a wrong value that an error tells
COMMA_WITHIN = re.compile(r",(?!\s)|(?<=\s),")  # one that is not followed, as in a list, by a space


def encode(spec: TaskSpec, value: object, *, max_length: int | None = None) -> Array:
    """The row of one raw input, by `spec.inputs`.

    ==============  ========================================================  ======================================
    inputs          value                                                     row
    ==============  ========================================================  ======================================
    ``bytes``       a text, taken as UTF-8, or bytes                          each byte + 1: ``(n,)`` uint16
    ``characters``  the same                                                  ids by `spec.alphabet`, see `characters`
    ``tokens``      a list of whole numbers from 0 to ``vocab_size - 2``, or  each + 1: ``(n,)`` int64
                    a text of them between spaces or commas
    ``listops``     a text such as ``[MAX 4 [MIN 2 9 ] ]``                    ids of its tokens: ``(n,)`` uint8
    ``series``      a list of numbers (one channel), a list of lists (steps   ``(n, channels)`` float64
                    by channels), or a text of them: channels between spaces
                    or commas, steps between semicolons or on lines
    ==============  ========================================================  ======================================

    A series may be of any width where `spec.channels` is None. Of more than `max_length` steps the first are kept,
    and the end that `spec.end` asks for.

    Raises:
        ValueError: another value, or an empty one, with what is allowed.
    """
    make: dict[str, Callable[[TaskSpec, object], Array]] = {
        "bytes": _bytes, "characters": _characters, "tokens": _tokens, "listops": _listops, "series": _series,
    }  # fmt: skip
    if isinstance(value, bytes) and spec.inputs != "bytes":
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"input ({shorten(value)}) must be UTF-8: {error.reason}") from None
    row = make[spec.inputs](spec, value)
    if not len(row):
        raise ValueError(f"input ({shorten(value)}) is empty: a row needs at least one step")
    if not spec.end:
        return row if max_length is None else row[:max_length]
    return np.append(row if max_length is None else row[: max_length - 1], row.dtype.type(spec.end))


def encode_inputs(spec: TaskSpec, value: object, *, max_length: int | None = None) -> list[Array]:
    """The one input of a raw row as `encode` makes it, or the two of a pair.

    A pair is a list of two, or a text in which a tab stands between them.

    Raises:
        ValueError: as `encode`; what should be a pair and is none.
    """
    if not spec.pairs:
        return [encode(spec, value, max_length=max_length)]
    parts: Any = value
    if isinstance(value, str | bytes):
        parts = value.split("\t") if isinstance(value, str) else value.split(b"\t")
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError(f"input ({shorten(value)}) must be two: a list of two, or a text with one tab between them")
    return [encode(spec, part, max_length=max_length) for part in parts]


def decode(spec: TaskSpec, row: Array) -> str:
    """A row as a text to read: what `encode` was given, or as near as its kind allows.

    Args:
        spec: of the row's task.
        row: ids ``(n,)``, or numbers ``(n, channels)``, not standardised.
    """
    if spec.end and len(row) and row[-1] == spec.end:
        row = row[:-1]
    match spec.inputs:
        case "characters":
            return text_of(row.tolist(), spec.alphabet)
        case "bytes":
            return (row.astype(np.int64) - 1).astype(np.uint8).tobytes().decode("utf-8", errors="replace")
        case "tokens":
            return " ".join(map(str, (row.astype(np.int64) - 1).tolist()))
        case "listops":
            return to_text(row.tolist())
        case _:
            return "; ".join(" ".join(f"{x:.4g}" for x in step) for step in row)


def numbers(value: object) -> list[float]:
    """The real numbers of a regression target: one, a list, or a text of one or more.

    A text of several has them in square brackets, or between spaces or semicolons: ``1,118`` is often one number.

    Raises:
        ValueError: anything else, and numbers that are not finite in float32.
    """
    single = isinstance(value, int | float) and not isinstance(value, bool)
    found = _real([value] if single else value)
    if isinstance(value, str) and not value.strip().startswith("[") and COMMA_WITHIN.search(value.strip()):
        raise ValueError(f"value ({shorten(value)}) has a comma, which may stand within a number: write one number as "
                         "1118 or 3.5, and several as [1, 118]")  # fmt: skip
    if not found.size or found.shape[1] != 1:
        raise ValueError(f"value ({shorten(value)}) must be one number, or a list of numbers")
    return found[:, 0].tolist()


def shorten(value: object, length: int = SHOWN) -> str:
    """A value as an error tells it: its repr, cut in the middle of nowhere."""
    if isinstance(value, str | bytes):
        value = value[: length + 1]  # the repr of a book is a book
    elif isinstance(value, list | tuple | np.ndarray):
        value = list(value[:length])
    text = repr(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _bytes(spec: TaskSpec, value: object) -> Array:
    if isinstance(value, str):
        try:
            value = value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"input ({shorten(value)}) must be a text that UTF-8 can hold: {error.reason}") from None
    if not isinstance(value, bytes):
        raise ValueError(f"input ({shorten(value)}) must be a text or bytes, got {type(value).__name__}")
    return np.frombuffer(value, np.uint8) + np.uint16(1)


def _characters(spec: TaskSpec, value: object) -> Array:
    if not isinstance(value, str):
        raise ValueError(f"input ({shorten(value)}) must be a text, got {type(value).__name__}")
    return ids_of(value, spec.alphabet)


def _tokens(spec: TaskSpec, value: object) -> Array:
    assert spec.vocab_size is not None
    allowed = f"whole numbers from 0 to {spec.vocab_size - 2}"
    if isinstance(value, str):
        text = value
        try:
            value = [int(piece) for piece in _pieces(text)]
        except ValueError:
            raise ValueError(
                f"input ({shorten(text)}) must be {allowed}, between spaces or commas: {_stranger(text, int)}"
            ) from None
    ids = _array(value)
    if ids is None or ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        if not isinstance(value, list | tuple) or not all(type(x) is int for x in value):  # huge ones are of no dtype
            raise ValueError(f"input ({shorten(value)}) must be a list of {allowed}, got {_kind(value)}")
        ids = np.asarray(value, dtype=object)
    if ids.size and (ids.min() < 0 or ids.max() > spec.vocab_size - 2):
        wrong = next(x for x in ids.tolist() if not 0 <= x <= spec.vocab_size - 2)
        raise ValueError(f"token ({shorten(wrong)}) must be one of the {allowed}")
    return ids.astype(np.int64) + 1


def _listops(spec: TaskSpec, value: object) -> Array:
    if not isinstance(value, str):
        raise ValueError(f"input ({shorten(value)}) must be a text such as '[MAX 4 [MIN 2 9 ] ]'")
    pieces = value.replace("(", " ").replace(")", " ").split()  # round ones only say how others made the tree binary
    unknown = [piece for piece in pieces if piece not in SYMBOLS]
    if unknown:
        raise ValueError(f"token ({shorten(unknown[0])}) must be one of {' '.join(SYMBOLS)}")
    tokens = bytes(SYMBOLS[piece] for piece in pieces)
    if tokens:
        try:
            evaluate(tokens)
        except ValueError as error:
            raise ValueError(f"input ({shorten(value)}) must be one complete expression: {error}") from None
    return np.frombuffer(tokens, np.uint8)


def _series(spec: TaskSpec, value: object) -> Array:
    series = _real(value)
    if spec.channels is not None and len(series) and series.shape[1] != spec.channels:
        raise ValueError(f"input ({shorten(value)}) has {series.shape[1]} channels, {spec.channels} are needed")
    return series


def _real(value: object) -> NDArray[np.float64]:
    """Numbers that are finite in float32 too, as ``(steps, channels)``, not rounded to it: see `Task`."""
    given = value
    if isinstance(value, str):
        value = _parse_series(value)
    found = _array(value)
    if found is None or found.ndim not in (1, 2) or (found.dtype.kind not in "iuf" and found.size):
        told = "a list of numbers, or of lists of one length"
        raise ValueError(f"value ({shorten(given)}) must be {told}, got {_kind(value)}")
    series = found.astype(np.float64)
    with np.errstate(over="ignore"):
        finite = np.isfinite(series.astype(np.float32))
    if not finite.all():
        wrong = found[~finite][0]
        raise ValueError(f"number ({wrong}) in {shorten(given)} must be finite, and below 3.4e38")
    return series.reshape(-1, 1) if series.ndim == 1 else series


def _parse_series(text: str) -> object:
    """The numbers of a text; several steps where it has lines or semicolons, else one number a step."""
    if text.lstrip().startswith("[["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"value ({shorten(text)}) must be numbers, or lists of numbers in JSON") from None
    steps = [step for step in text.strip().removesuffix(";").replace("\n", ";").split(";") if step.strip()]
    try:
        rows = [[float(piece) for piece in _pieces(step)] for step in steps]
    except ValueError:
        raise ValueError(
            f"value ({shorten(text)}) must be numbers between spaces or commas: {_stranger(text, float)}"
        ) from None
    return rows[0] if len(rows) == 1 else rows


def _pieces(text: str) -> list[str]:
    """What stands between spaces and commas, inside of square brackets if there are any."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    return text.replace(",", " ").split()


def _stranger(text: str, kind: Callable[[str], object]) -> str:
    """The first piece of a text that is no number of this kind."""
    for piece in _pieces(text.replace(";", " ")):
        try:
            kind(piece)
        except ValueError:
            return f"{shorten(piece)} is none"
    return "it has none"


def _array(value: object) -> Array | None:
    """Value as an array; None if it is no list, or a ragged one."""
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    try:
        return np.asarray(value)
    except ValueError:
        return None


def _kind(value: object) -> str:
    """What a value is, in a word or two."""
    if isinstance(value, list | tuple | np.ndarray):
        kinds = sorted({type(item).__name__ for item in value})
        return f"a list of {' and '.join(kinds)}" if kinds else "an empty list"
    return "nothing" if value is None else type(value).__name__
