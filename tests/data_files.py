"""Tiny files of the formats that tasks read: a pair of `.ts` files, and a GenBank file."""

from pathlib import Path

import numpy as np


def write_ts(file: Path | str, rows, *, header=(), classes=("a", "b")) -> Path:
    """`rows` as texts after the usual header, with the lines of `header` in it."""
    lines = ["# a comment: 1,2", "@problemName tiny", "@timeStamps false", *header,
             f"@classLabel true {' '.join(classes)}", "@data", *rows]  # fmt: skip
    Path(file).write_text("".join(line + "\n" for line in lines))
    return Path(file)


def write_series(folder: Path | str, name="tiny", *, rows=20, test_rows=10, channels=2) -> Path:
    """Series of 3 to 8 steps that rise (class a) or fall (class b), channel after channel; gives the training file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, count in (("TEST", test_rows), ("TRAIN", rows)):
        texts = []
        for row in range(count):
            steps = np.arange(random.integers(3, 9)) * (1 if row % 2 else -1)
            values = [steps + random.normal(size=len(steps)) for _ in range(channels)]
            texts.append(":".join(",".join(f"{x:.4f}" for x in channel) for channel in values) + f":{'ba'[row % 2]}")
        file = write_ts(folder / f"{name}_{part}.ts", texts)
    return file


def genbank(name: str, bases: str, locations, *, features="") -> str:
    """A record with a coding sequence at each location."""
    lines = [f"LOCUS       {name} {len(bases)} bp    DNA     linear   CON 23-NOV-2017", "DEFINITION  Nothing real.",
             "FEATURES             Location/Qualifiers", f"     source          1..{len(bases)}", features]  # fmt: skip
    for location in locations:
        first, *others = location.split()
        lines += [f"     gene            {location.replace(' ', '')}", f"     CDS             {first}"]
        lines += [" " * 21 + other for other in others]
        lines += [" " * 21 + '/note="at 1..2, or complement(3..4)"', " " * 21 + '/translation="MACGT"']
    lines += ["ORIGIN      "]
    for at in range(0, len(bases), 60):
        row = bases[at : at + 60].lower()
        lines.append(f"{at + 1:9} " + " ".join(row[part : part + 10] for part in range(0, len(row), 10)))
    return "\n".join(line for line in lines if line) + "\n//\n"


def write_genbank(file: Path | str, *, records=8, genes=3, size=100, seed=0) -> Path:
    """Genes end to end, on both strands; a forward one is of two letters mostly, a reverse one of the other two."""
    random = np.random.default_rng(seed)
    texts = []
    for record in range(records):
        bases, locations = "", []
        for gene in range(genes):
            forward = (record + gene) % 2
            start, chances = len(bases) + 1, [0.45, 0.05, 0.45, 0.05] if forward else [0.05, 0.45, 0.05, 0.45]
            bases += "".join(random.choice(list("ACGT"), size, p=chances))
            where = f"{start}..{len(bases)}"
            locations.append(where if forward else f"complement({where})")
        texts.append(genbank(f"contig{record}", bases, locations))
    Path(file).write_text("".join(texts))
    return Path(file)
