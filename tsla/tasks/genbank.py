"""GenBank flat files, as far as coding sequences need them: records with their bases and where genes lie."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BASES = "ACGTN"  # ids 1 to 5; N stands for every code of several bases
PLAIN = re.compile(r"<?(\d+)\.\.>?(\d+)")
REVERSE = re.compile(r"complement\(<?(\d+)\.\.>?(\d+)\)")
KEY, VALUE = 5, 21  # columns of a feature table
CODES = np.full(256, BASES.index("N") + 1, dtype=np.uint8)
for _code, _letters in enumerate(("Aa", "Cc", "Gg", "TtUu"), 1):
    CODES[[ord(letter) for letter in _letters]] = _code


class Gene(NamedTuple):
    """A coding sequence in one piece, from `start` up to, not with, `end`, counted from 0; read backwards or not."""

    start: int
    end: int
    reverse: bool


class Record(NamedTuple):
    """One sequence of a file: its name, bases as ids ``(n,)`` uint8, genes, and how many are in several pieces."""

    name: str
    bases: NDArray[np.uint8]
    genes: list[Gene]
    skipped: int


def read_genbank(file: Path) -> Iterator[Record]:
    """The records of a file, gzipped or not. Genes that are joined of pieces, or lie elsewhere, are only counted.

    Raises:
        ValueError: with the line: no GenBank file, one that is cut off, or a gene beyond the end of its record.
    """
    with file.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
    with gzip.open(file, "rt", errors="replace") if zipped else file.open(errors="replace") as lines:
        record: list[str] = []
        number = 0
        for number, line in enumerate(lines, 1):
            if line.startswith("//"):
                yield _record(record, f"{file}, line {number}")
                record = []
            elif record or line.startswith("LOCUS"):  # some files begin with a page about the release
                record.append(line.rstrip())
    if record or not number:
        raise ValueError(f"{file}, line {number}: the last record must end with //")


def _record(lines: list[str], place: str) -> Record:
    locus = lines[0].split() if lines else []
    if len(locus) < 3 or not locus[2].isdecimal():
        raise ValueError(f"{place}: a record must begin with LOCUS, a name and a length")
    name, length = locus[1], int(locus[2])
    origin = next((at for at, line in enumerate(lines) if line.startswith("ORIGIN")), len(lines))
    text = "".join(re.sub("[^A-Za-z]", "", line) for line in lines[origin + 1 :])
    if len(text) != length:
        raise ValueError(f"{place}: {name} must have {length} bases after ORIGIN, as LOCUS says, got {len(text)}")
    genes, skipped = [], 0
    for location in _locations(lines[:origin]):
        match, reverse = PLAIN.fullmatch(location), REVERSE.fullmatch(location)
        found = match or reverse
        if found is None:
            skipped += 1
            continue
        start, end = int(found[1]) - 1, int(found[2])
        if not 0 <= start < end <= length:
            raise ValueError(f"{place}: a gene at {location} must lie within the {length} bases of {name}")
        genes.append(Gene(start, end, reverse is not None))
    return Record(name, CODES[np.frombuffer(text.encode(), np.uint8)], genes, skipped)


def _locations(lines: list[str]) -> Iterator[str]:
    """Where each coding sequence (CDS) lies, as its feature says, put together from its lines."""
    location = ""
    inside = False
    for line in lines:
        inside = line.startswith("FEATURES") or (inside and line.startswith(" "))
        if not inside:
            continue
        key, value = line[KEY : VALUE - 1].strip(), line[VALUE:].strip()
        if location and (key or value.startswith("/")):
            yield location
            location = ""
        if key == "CDS":
            location = value
        elif location:
            location += value
    if location:
        yield location
