"""Files of the UCR and UEA archives of time series: `.ts`, as sktime and aeon define it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.encoding import shorten


class TsFile(NamedTuple):
    """Series of a file.

    series: one for each row, ``(steps, channels)`` float32.
    labels: the class of each row, an index of `classes`.
    classes: as the header lists them.
    missing: how many values the file left out.
    """

    series: list[NDArray[np.float32]]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    missing: int


def read_ts(file: Path) -> TsFile:
    """The series of a file whose rows have a class each.

    A row is one line: channels between colons, the values of each between commas, and the class last. A value that is
    missing (``?`` or ``NaN``) is put on the straight line between its neighbours in the channel, and at an end it
    repeats the nearest: so do rows that were padded with it to one length.

    Raises:
        ValueError: with the line; time stamps, real targets, channels of different lengths, and what is no such file.
    """
    with file.open(encoding="utf-8-sig", errors="replace") as lines:  # comments are in any encoding
        numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
        told = [(number, line) for number, line in numbered if line and not line.startswith("#")]
    head = next((at for at, (_, line) in enumerate(told) if line.lower() == "@data"), None)
    if head is None:
        raise ValueError(f"{file} has no line @data: it must be a .ts file")
    classes, channels = _header([line for _, line in told[:head]], file)
    series, labels, missing = [], [], 0
    for number, line in told[head + 1 :]:
        *parts, label = line.split(":")
        place = f"{file}, line {number}"
        if label.strip() not in classes:
            raise ValueError(f"{place}: class ({shorten(label.strip())}) must be one of {', '.join(classes)}")
        if len(parts) != (channels := channels or len(parts)):
            raise ValueError(f"{place}: {len(parts)} channels, where there must be {channels}")
        values = _values(parts, place)
        gaps = np.isnan(values)
        missing += int(gaps.sum())
        series.append(_filled(values, gaps, place).T.astype(np.float32))
        labels.append(classes.index(label.strip()))
    if not series:
        raise ValueError(f"{file} has no rows after @data")
    return TsFile(series, np.array(labels), classes, missing)


def _header(lines: list[str], file: Path) -> tuple[tuple[str, ...], int | None]:
    """Classes, and channels where the header says how many."""
    found = {}
    for line in lines:
        key, *values = line.split()
        if not key.startswith("@"):
            raise ValueError(f"{file}: line ({shorten(line)}) before @data must begin with @ or #")
        found[key.lower()] = values
    if "true" in map(str.lower, found.get("@timestamps", [])):
        raise ValueError(f"{file}: @timeStamps must be false: series are read as evenly spaced values")
    flag, *classes = found.get("@classlabel") or ["false"]
    if flag.lower() != "true" or not classes:
        raise ValueError(f"{file}: @classLabel must be true, with the classes after it; series with real targets or "
                         "none can be learnt by task=files from a table")  # fmt: skip
    if len(found.get("@dimensions", [])) == 1 and found["@dimensions"][0].isdecimal():
        return tuple(classes), int(found["@dimensions"][0])
    return tuple(classes), None


def _values(parts: list[str], place: str) -> NDArray[np.float64]:
    """The channels of a row, ``(channels, steps)``, NaN where a value is missing."""
    texts = [part.replace("?", "nan").split(",") for part in parts]
    lengths = sorted(set(map(len, texts)))
    if len(lengths) != 1:
        raise ValueError(f"{place}: channels must be of one length, got {' and '.join(map(str, lengths))} steps")
    try:
        values = np.array(texts, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{place}: {error}; values must be numbers between commas, or ?") from None
    if (np.abs(values) > np.finfo(np.float32).max).any():
        raise ValueError(f"{place}: numbers must be finite, and below 3.4e38")
    return values


def _filled(values: NDArray[np.float64], gaps: NDArray[np.bool_], place: str) -> NDArray[np.float64]:
    steps = np.arange(values.shape[1])
    for channel, gap in zip(values, gaps, strict=True):
        if gap.all():
            raise ValueError(f"{place}: a channel must have a value that is not missing")
        if gap.any():
            channel[gap] = np.interp(steps[gap], steps[~gap], channel[~gap])
    return values
