"""GenBank files: bases, genes and strands, and what is refused with its line."""

import gzip

import pytest
from data_files import genbank

from tsla.tasks.genbank import Gene, read_genbank

BASES = "acgtnACGTUrykm" * 10


def read(tmp_path, text):
    (tmp_path / "x.gbk").write_text(text)
    return list(read_genbank(tmp_path / "x.gbk"))


def test_bases_and_genes(tmp_path):
    locations = ["1..12", "complement(20.. 31)", "<40..>51", "complement(<60..71)", "complement(60..>71)"]
    first, second = read(tmp_path, genbank("one", BASES, locations) + genbank("two", "ACGT", []))
    assert (first.name, second.name, first.skipped) == ("one", "two", 0)
    assert first.bases[:14].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 4, 5, 5, 5, 5] and len(first.bases) == 140
    assert first.genes == [Gene(0, 12, False), Gene(19, 31, True), Gene(39, 51, False), *[Gene(59, 71, True)] * 2]
    assert second.bases.tolist() == [1, 2, 3, 4] and second.genes == []


def test_genes_in_pieces_are_counted(tmp_path):
    locations = ["join(1..12,20..31)", "complement(join(1..12, 20..31))", "order(1..5,7..9)", "J00194.1:1..9", "4",
                 "12^13", "40..51"]  # fmt: skip
    (record,) = read(tmp_path, genbank("one", BASES, locations))
    assert record.genes == [Gene(39, 51, False)] and record.skipped == 6


def test_other_features_and_pages_before_the_first_record(tmp_path):
    features = "     tRNA            5..9\n     gene            complement(5..9)"
    text = "A release of 2018\n\n" + genbank("one", BASES, ["1..12"], features=features)
    (record,) = read(tmp_path, text.replace("\n", "\r\n"))
    assert record.genes == [Gene(0, 12, False)]


def test_a_gzipped_file(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(genbank("one", BASES, ["1..12"]).encode()))
    (record,) = read_genbank(tmp_path / "x.gz")
    assert len(record.bases) == 140 and len(record.genes) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.removesuffix("//\n"), "the last record must end with //"),
        (lambda text: "", "line 0: the last record must end with //"),
        (lambda text: ">fasta\nACGT\n", None),
        (lambda text: "//\n" + text, "line 1: a record must begin with LOCUS, a name and a length"),
        (lambda text: text.replace(" 140 bp", " many bp"), "a record must begin with LOCUS"),
        (lambda text: text.replace(" 140 bp", " 141 bp"), "one must have 141 bases after ORIGIN, as LOCUS says, got"),
        (lambda text: text.replace("ORIGIN", "CONTIG"), "one must have 140 bases after ORIGIN, as LOCUS says, got 0"),
        (lambda text: text.replace("CDS             1..12", "CDS             1..141"), "gene at 1..141 must lie"),
        (lambda text: text.replace("CDS             1..12", "CDS             12..1"), "gene at 12..1 must lie within"),
        (lambda text: text.replace("CDS             1..12", "CDS             0..12"), "gene at 0..12 must lie within"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, change, message):
    text = change(genbank("one", BASES, ["1..12"]))
    if message is None:
        assert read(tmp_path, text) == []
        return
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text)
    assert message in str(caught.value) and "x.gbk, line " in str(caught.value)
