"""The strand of a gene: windows inside of genes, in one split each, and rules that count words of bases."""

from collections import Counter
from math import log

import numpy as np
import pytest
from data_files import genbank, write_genbank

from tsla.tasks import dna
from tsla.tasks.base import SPLITS, Task
from tsla.tasks.dna import CODON, DnaStrand, Windows, cut
from tsla.tasks.genbank import Gene, Record, read_genbank
from tsla.tasks.packages import Unavailable

SMALL = {"length": 20, "min_gene": 60}


def made(file, tmp_path, **options) -> DnaStrand:
    return DnaStrand(path=file, cache_dir=tmp_path / "cache", **{**SMALL, **options})


@pytest.fixture
def genome(tmp_path):
    return write_genbank(tmp_path / "genome.gbk")


def rows(task, split):
    return [(bytes(row["input_ids"]), row["label"]) for row in task.split(split)]


def record(size, genes, seed=0):
    """Random bases, so that any 20 of them stand at one place only."""
    return Record("x", np.random.default_rng(seed).integers(1, 5, size).astype(np.uint8), genes, 0)


def test_windows_lie_within_genes_and_leave_out_the_outer_codons():
    genes = [Gene(10, 80, False), Gene(80, 150, True), Gene(200, 259, False), Gene(300, 366, True)]
    starts = set()
    for seed in range(200):
        made = record(400, genes)
        windows = cut([made], 20, 60, np.random.default_rng(seed))
        places = [made.bases.tobytes().index(row.tobytes()) for row in windows.bases]
        assert windows.strands.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]  # the third gene is too short
        for gene, own in ((genes[0], places[:3]), (genes[1], places[3:6]), (genes[3], places[6:])):
            assert gene.start + CODON <= own[0] and own[-1] + 20 <= gene.end - CODON
            assert np.diff(own).tolist() == [20, 20]
        starts.add(places[0])
        assert places[6] == 303  # where there is no room
    assert starts == set(range(13, 18))


def test_no_base_is_in_two_splits(tmp_path, monkeypatch):
    monkeypatch.setattr(dna, "REGION", 110)
    letters = {n: "".join("ACGT"[x - 1] for x in record(1000, [], n).bases) for n in range(3)}
    locations = [f"{at + 1}..{at + 77}" for at in range(0, 900, 77)]
    file = tmp_path / "x.gbk"
    file.write_text("".join(genbank(f"c{n}", text, locations) for n, text in letters.items()))
    task = made(file, tmp_path)
    texts = [bytes(found.bases) for found in read_genbank(file)]
    owner = {}
    for split in SPLITS:
        for bases, label in rows(task, split):
            ((contig, at),) = [(n, text.index(bases)) for n, text in enumerate(texts) if bases in text]
            assert label == 0 and at // 110 == (at + 19) // 110
            for base in range(at, at + 20):
                assert owner.setdefault((contig, base), split) == split
            assert owner.setdefault((contig, at // 110, "region"), split) == split
    assert set(owner.values()) == set(SPLITS)


def test_the_task(genome, tmp_path):
    task: Task = made(genome, tmp_path)
    spec = task.spec
    assert (spec.name, spec.target, spec.outputs, spec.vocab_size, spec.max_length) == ("dna_strand", "class", 2, 6, 20)
    assert spec.names == ("forward", "reverse")
    assert str(task.split("train").features["input_ids"]) == "List(Value('uint8'))"
    assert sum(len(task.split(name)) for name in SPLITS) == 8 * 3 * 4
    for split in SPLITS:  # a forward gene is of A and G mostly
        for bases, label in rows(task, split):
            assert (bases.count(1) + bases.count(3) < 10) == label
    assert task.manifest["records"] == task.manifest["regions"] == 8 and task.manifest["bases"] == 2400
    assert task.manifest["genes"] == 24 and task.references()["naive Bayes of 1-mers"] == 1


@pytest.mark.parametrize("k", [1, 3])
def test_naive_bayes_is_what_it_says(genome, tmp_path, k):
    """Counts plus one, as logarithms, by a loop; on windows that the rule does not know for sure."""
    letters = ["".join(np.random.default_rng(n).choice(list("ACGTR"), 300)) for n in range(8)]
    places = ["1..100", "complement(101..200)", "complement(201..300)"]
    genome.write_text("".join(genbank(f"c{n}", bases, places) for n, bases in enumerate(letters)))
    task = made(genome, tmp_path)
    train, test = rows(task, "train"), rows(task, "test")

    def words(bases):
        return [bases[at : at + k] for at in range(len(bases) - k + 1)]

    counts = [Counter(word for bases, label in train if label == strand for word in words(bases)) for strand in (0, 1)]
    prior = [1 + sum(label == strand for _, label in train) for strand in (0, 1)]
    right = 0
    for bases, label in test:
        score = [log(prior[s]) + sum(log((counts[s][word] + 1) / (counts[s].total() + 5**k)) for word in words(bases))
                 for s in (0, 1)]  # fmt: skip
        right += (score[1] > score[0]) == label
    lines = task.references()
    assert lines[f"naive Bayes of {k}-mers"] == right / len(test) != lines["majority"]
    assert lines["majority"] == sum(label for _, label in test) / len(test)
    assert list(lines.values()) == sorted(lines.values())


def test_words_that_were_never_seen_count_once():
    """C is twice as likely forwards, with one added to each count, and G seven times as likely backwards."""
    known, asked = [[1, 1, 1, 1, 1, 2], [3] * 6], [[2, 2, 2, 2, 3, 3], [2, 2, 2, 2, 2, 3]]
    windows = Windows(np.array([*known, *asked], dtype=np.uint8), np.array([0, 1, 1, 0]), np.zeros(4, dtype=np.int64))
    assert dna.reference_lines(windows, np.array([0, 1]), np.array([2, 3]))["naive Bayes of 1-mers"] == 1


def test_options_choose_the_rows(genome, tmp_path):
    whole = made(genome, tmp_path)
    assert (
        rows(whole, "train") == rows(made(genome, tmp_path), "train") != rows(made(genome, tmp_path, seed=1), "train")
    )
    few = made(genome, tmp_path, train_rows=5, eval_rows=3)
    assert [len(few.split(name)) for name in SPLITS] == [5, 3, 3]
    assert set(rows(few, "train")) <= set(rows(whole, "train"))
    wide = made(genome, tmp_path, val_fraction=0.25, test_fraction=0.5)
    assert [len(wide.split(name)) for name in SPLITS] == [24, 24, 48]
    assert len(rows(made(genome, tmp_path, length=40), "train")[0][0]) == 40
    before = whole.fingerprint
    genome.write_text(genome.read_text() + genbank("more", "ACGT", []))
    assert made(genome, tmp_path).fingerprint != before


def test_the_package_is_asked_for_the_file(genome, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        dna, "package_file", lambda package, member, folder: asked.append((package.name, member)) or genome
    )
    task = DnaStrand(**SMALL, cache_dir=tmp_path)
    assert not asked  # before it is used
    assert len(task.split("test")) and task.fingerprint is None
    assert asked == [("any2fasta-examples", "usr/share/doc/any2fasta/examples/test.gbk.gz")]

    def unavailable(*_):
        raise Unavailable("no apt-get")

    monkeypatch.setattr(dna, "package_file", unavailable)
    with pytest.raises(Unavailable, match=r"^no apt-get; or give task\.path, a GenBank file$"):
        DnaStrand(**SMALL, seed=1, cache_dir=tmp_path).split("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 5}, "length (5) must be from 6 to 10000"),
        ({"length": 10_001, "min_gene": 20_000}, "length (10001) must be from 6"),
        ({"length": 595}, "min_gene (600) must be at least length + 6 (601)"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "val_fraction (0.5) and test_fraction (0.5) must be above 0"),
        ({"test_fraction": 0}, "test_fraction (0) must be above 0"),
        ({"train_rows": 0}, "train_rows (0) must be at least 1, or None for all"),
        ({"eval_rows": 0}, "eval_rows (0) must be at least 1"),
    ],
)
def test_what_cannot_be_made(change, message):
    with pytest.raises(ValueError) as caught:
        DnaStrand(**change)
    assert message in str(caught.value)


def test_too_little_to_split(tmp_path):
    with pytest.raises(FileNotFoundError, match="must be a GenBank file"):
        made(tmp_path / "nowhere", tmp_path)
    file = write_genbank(tmp_path / "x.gbk", records=2)
    with pytest.raises(ValueError, match="in 3 regions of 10000 bases, got 2"):
        made(file, tmp_path).split("train")
    (tmp_path / "y.gbk").write_text("no record\n")
    with pytest.raises(ValueError, match="in 3 regions of 10000 bases, got 0"):
        made(tmp_path / "y.gbk", tmp_path).split("train")
