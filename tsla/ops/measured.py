"""Crossovers measured on this machine: the file that `tsla bench crossover` writes, and what it says of a call.

The file is one for a user, and may be shared by machines and versions: a table holds for one torch version, number of
threads and processor, and is not looked at elsewhere. It is data, checked through and through; one that is damaged is
ignored, with a warning. A process reads it once.

Between the measured widths d and e, and beyond them, what is interpolated is the ratio of measured to counted length,
linearly in log d and log e; beyond, the ratio at the edge holds.
"""

import json
import os
import stat
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tsla.machine import cache_folder, processor
from tsla.ops.crossover import taylor_crossover

FORMAT = 2
LARGEST = 2**20  # bytes of a file; also of any width or length in it
LONGEST_TEXT = 200


class Machine(NamedTuple):
    """What a table holds for; native: the compiled kernels' forms were measured, else torch's."""

    torch: str
    threads: int
    processor: str
    native: bool


class Measured(NamedTuple):
    """Where the linear form of order 2 overtakes the direct one, for heads of width d (queries, keys) and e (values).

    heads: heads of the measurement.  backward: forward and backward pass, else forward alone.
    direct: the longest length at which the direct form was faster; 0 if it never was.
    linear: the shortest above it at which the linear form was faster; None if it never was, up to `direct`.
    length: the crossover, between the two; None where one of them is missing.
    """

    d: int
    e: int
    heads: int
    causal: bool
    backward: bool
    direct: int
    linear: int | None
    length: float | None

    @property
    def threshold(self) -> float:
        """The length from which to take the linear form.

        Where the linear form was never faster: the counted length, but no length at which it has been seen to be
        slower. Where it always was: the shortest length that was measured.
        """
        if self.linear is None:
            return max(taylor_crossover(self.d), float(self.direct))
        return float(self.linear) if self.length is None else self.length


class Table(NamedTuple):
    """The measurements on one machine, and the day of the last."""

    date: str
    entries: tuple[Measured, ...]


Tables = Mapping[Machine, Table]


def table_file() -> Path:
    """``$TSLA_CACHE/crossover.json``; without the variable in ``$XDG_CACHE_HOME/tsla``, or ``~/.cache/tsla``."""
    return cache_folder() / "crossover.json"


def this_machine(*, native: bool = False) -> Machine:
    """The machine, torch and threads of this process."""
    return Machine(str(torch.__version__), torch.get_num_threads(), _processor(), native)


def measured_crossover(d: int, e: int, *, causal: bool, backward: bool, native: bool = False) -> float | None:
    """The crossover of order 2 by the table of this machine; None if there is none of such calls."""
    return _looked_up(_folders(), torch.get_num_threads(), native, d, e, causal, backward)


def auto_crossover(
    d: int, e: int, *, order: int, causal: bool, backward: bool, device: str, native: bool = False
) -> float:
    """The length from which ``impl="auto"`` takes the linear form: measured here, or by `taylor_crossover`.

    Measured are order 2 and the CPU; the meta device, on which costs are counted, stands for it. The compiled kernels'
    time goes into operations, so that these are counted with the true width of values, and the half of the pairs that
    causal attention leaves out.
    """
    found = None
    if order == 2 and device in ("cpu", "meta"):
        found = measured_crossover(d, max(e, 1), causal=causal, backward=backward, native=native)
    return _counted(d, e, order, causal, native) if found is None else found


@lru_cache(maxsize=256)
def _counted(d: int, e: int, order: int, causal: bool, native: bool) -> float:
    if not native:
        return taylor_crossover(d, order=order)
    return taylor_crossover(d, value_dim=e, order=order) * (2 if causal else 1)


# A compiled graph takes the number as a constant. This is what torch.compiler.assume_constant_result does, which would
# load the compiler, for a second, whenever tsla is imported.
auto_crossover._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forget() -> None:
    """Read the file again when it is next needed."""
    _tables.cache_clear()
    _looked_up.cache_clear()


def _folders() -> tuple[str | None, str | None]:
    """All that decides over `table_file`, without the time that making a path takes: it is asked for in every call."""
    return os.environ.get("TSLA_CACHE"), os.environ.get("XDG_CACHE_HOME")


@lru_cache(maxsize=4096)
def _looked_up(
    folders: tuple[str | None, str | None], threads: int, native: bool, d: int, e: int, causal: bool, backward: bool
) -> float | None:
    """`folders`, by which `table_file` goes, is here for the cache alone."""
    table = _tables(table_file()).get(Machine(str(torch.__version__), threads, _processor(), native))
    fitting = [m for m in table.entries if (m.causal, m.backward) == (causal, backward)] if table else []
    return interpolate(fitting, d, e) if fitting else None


@lru_cache(maxsize=16)
def _tables(path: Path) -> Tables:
    try:
        return read_tables(path)
    except (OSError, ValueError) as error:
        warnings.warn(f"impl='auto' goes without the measured crossovers of {path}: {error}. Delete the file, or "
                      "measure again with `tsla bench crossover`", stacklevel=2)  # fmt: skip
        return {}


@lru_cache(maxsize=1)
def _processor() -> str:
    return processor()


def interpolate(entries: Iterable[Measured], d: int, e: int) -> float:
    """The crossover of widths d and e, from measurements of one kind at some widths, at least one."""
    rows: dict[int, list[tuple[float, float]]] = {}
    for entry in entries:
        rows.setdefault(entry.d, []).append((log(entry.e), log(entry.threshold / taylor_crossover(entry.d))))
    by_d = [(log(own), _between(log(e), row)) for own, row in rows.items()]
    return taylor_crossover(d) * exp(_between(log(d), by_d))


def _between(x: float, known: Sequence[tuple[float, float]]) -> float:
    """The line through known points; outside them, the value of the nearest."""
    points = sorted(known)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * ((x - x0) / (x1 - x0)) if x1 > x0 else y0
    return points[0][1] if x < points[0][0] else points[-1][1]


# The file -------------------------------------------------------------------------------------------------------------


def read_tables(path: Path) -> dict[Machine, Table]:
    """All tables of a file; none where there is no file.

    Raises:
        ValueError: a file that `render` did not write, with what is wrong.
        OSError: one that cannot be read.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:  # a pipe would be waited for
        raise ValueError(f"it is not a file of at most {LARGEST >> 20} MiB")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):  # RecursionError: nested too deeply to be ours
        raise ValueError("it is not JSON") from None
    return parse(data)


def merged(tables: Tables, machine: Machine, new: Table) -> dict[Machine, Table]:
    """`tables` with new measurements in place of older ones of the same kind on the same machine."""
    old = tables[machine].entries if machine in tables else ()
    kept = {_kind(entry): entry for entry in (*old, *new.entries)}
    return {**tables, machine: Table(new.date, tuple(sorted(kept.values(), key=_kind)))}


def _kind(entry: Measured) -> tuple[int, int, bool, bool]:
    return entry.d, entry.e, entry.causal, entry.backward


def render(tables: Tables) -> str:
    """The text of a file."""
    listed = [
        machine._asdict() | {"date": table.date, "measured": [entry._asdict() for entry in table.entries]}
        for machine, table in tables.items()
    ]
    return json.dumps({"format": FORMAT, "tables": listed}, indent=1) + "\n"


def parse(data: Any) -> dict[Machine, Table]:
    """The tables of a file's data.

    Raises:
        ValueError: something that `render` does not write.
    """
    content = _exactly(data, {"format", "tables"})
    if _whole("format", content["format"]) != FORMAT:
        raise ValueError(f"its format ({content['format']}) must be {FORMAT}")
    tables = {}
    for item in _list("tables", content["tables"]):
        own = _exactly(item, {*Machine._fields, "date", "measured"})
        machine = Machine(_text("torch", own["torch"]), _whole("threads", own["threads"], low=1),
                          _text("processor", own["processor"]), _flag("native", own["native"]))  # fmt: skip
        entries = [_measured(entry) for entry in _list("measured", own["measured"])]
        tables[machine] = Table(_text("date", own["date"]), tuple(entries))
    return tables


def _measured(data: Any) -> Measured:
    own = _exactly(data, set(Measured._fields))
    widths = [_whole(key, own[key], low=1) for key in ("d", "e", "heads")]
    flags = [_flag(key, own[key]) for key in ("causal", "backward")]
    direct = _whole("direct", own["direct"])
    linear = None if own["linear"] is None else _whole("linear", own["linear"], low=direct + 1)
    length = own["length"]
    if (length is None) != (linear is None or direct == 0):
        raise ValueError(f"length ({length}) does not fit direct ({direct}) and linear ({linear})")
    if length is not None:
        if not isinstance(length, float | int) or isinstance(length, bool) or not abs(length) <= LARGEST:
            raise ValueError(f"length ({str(length)[:40]}) must be a number of at most {LARGEST}")
        if linear is not None and not direct <= length <= linear:
            raise ValueError(f"length ({length}) must be between direct ({direct}) and linear ({linear})")
    if linear is None and direct == 0:
        raise ValueError("direct (0) and linear (null) say nothing")
    return Measured(widths[0], widths[1], widths[2], flags[0], flags[1], direct, linear,
                    None if length is None else float(length))  # fmt: skip


def _exactly(data: Any, keys: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or data.keys() != keys:
        raise ValueError(f"it lacks a mapping of exactly {', '.join(sorted(keys))}")
    return data


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list")
    return value


def _whole(key: str, value: Any, low: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= LARGEST:
        raise ValueError(f"{key} ({str(value)[:40]}) must be a whole number from {low} to {LARGEST}")
    return value


def _flag(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{key} ({str(value)[:40]}) must be true or false")
    return value


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST_TEXT:
        raise ValueError(f"{key} must be a text of at most {LONGEST_TEXT} characters")
    return value
