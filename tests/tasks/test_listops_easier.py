"""Easier rows of ListOps: more to train on, generated within other bounds."""

import re

import pytest
from listops_cases import FILES, task, write_files

from tsla.tasks import listops
from tsla.tasks.listops import END, ListOps
from tsla.tasks.listops_grammar import Grammar, closings, shard


@pytest.mark.parametrize("supervision", ["root", "dense"])
def test_easier_rows_are_trained_on_and_nothing_else_changes(tmp_path, supervision):
    few = {"train_rows": 30, "eval_rows": 40, "min_length": 3, "max_length": 8, "supervision": supervision}
    plain, eased = task(tmp_path, **few), task(tmp_path, **few, easier=["3/7/2/300", "9/20/4/25"])
    assert plain.folder != eased.folder and plain.spec == eased.spec._replace(max_length=plain.spec.max_length)
    assert plain.manifest["references"] == eased.manifest["references"]
    assert [(one.name, one.found) for one in plain.statistics()] == [
        (one.name, one.found) for one in eased.statistics()
    ]
    for split in ("val", "test"):
        assert eased.split(split).to_list() == plain.split(split).to_list()
    trained = eased.split("train").to_list()
    expected = [3] * 30 + [1] * 300 + [2] * 25
    if supervision == "dense":  # of every sub-tree
        expected = [[stage] * len(row["depth"]) for stage, row in zip(expected, trained, strict=True)]
    assert [row.pop("stage") for row in trained] == expected
    assert trained[:30] == plain.split("train").to_list() and len(trained) == 355
    held = {bytes(row["input_ids"]) for split in ("val", "test") for row in eased.split(split)}
    easy, harder = ([bytes(row["input_ids"]) for row in part] for part in (trained[30:330], trained[330:]))
    assert all(3 < len(row) < 7 and closings(row)[-1].depth == 1 for row in easy) and len({*easy}) == 300
    assert all(9 < len(row) < 20 and closings(row)[-1].depth <= 3 for row in harder)
    assert not held & {*easy, *harder}  # some of the first few hundred short ones are among 80 held back
    drawn = Grammar(3, 7, 2, 10)
    assert held & {row for at in range(3) for row, _ in shard(drawn, 0, at)}


@pytest.mark.parametrize(
    ("easier", "message"),
    [
        ("20/100/5", "must have the form min_length/max_length/max_depth/rows"),
        ("20/100/5/0", "must have the form"),
        ("20/21/5/9", "easier ('20/21/5/9'): min_length (20) must be below max_length - 1 (20)"),
        ("50/90/2/9", "must be below 12, the longest row"),
        ("3/5/2/99999", "rows of easier, and such of validation and test (99999 and 0) must be at most what"),
    ],
)
def test_easier_rows_that_cannot_be(tmp_path, easier, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        _ = task(tmp_path, easier=[easier]).folder


def test_the_same_bounds_would_give_the_same_rows_again(tmp_path):
    own = task(tmp_path, min_length=5, max_length=20, max_depth=4).grammar
    for easier in (["3/5/2/9", "3/5/2/8"], [f"{own.min_length}/{own.max_length}/{own.max_depth}/7"]):
        with pytest.raises(ValueError, match=re.escape(f"easier ({', '.join(easier)}) must have bounds that differ")):
            task(tmp_path, min_length=5, max_length=20, max_depth=4, easier=easier)


@pytest.mark.parametrize("protocol", ["default", "s4"])
def test_easier_rows_may_go_before_rows_of_files(tmp_path, monkeypatch, protocol):
    """All rows of an operator and two digits, but for the two held back; with end tokens where others have them."""
    monkeypatch.setattr(listops, "ALL", {name: len(held) for name, held in FILES.items()})
    options = {"source": "lra", "path": write_files(tmp_path / "files", FILES), "protocol": protocol}
    plain, eased = (ListOps(**options, easier=easier, cache_dir=tmp_path) for easier in ([], ["3/5/2/398"]))
    assert plain.statistics() == eased.statistics() and plain.references() == eased.references()
    held = {bytes(row["input_ids"]) for name in ("val", "test") for row in eased.split(name)}
    trained, end = eased.split("train").to_list(), [END] * (protocol == "s4")
    assert [row.pop("stage") for row in trained] == [2] * 4 + [1] * 398
    assert trained[:4] == plain.split("train").to_list()
    easy = {bytes(row["input_ids"]) for row in trained[4:]}
    assert len(easy) == 398 and not easy & held and all(list(row[4:]) == end for row in easy)


def test_easier_rows_may_be_all_there_are(tmp_path):
    """Ten digits twice, and four operators: none of them is held back where rows are longer."""
    eased = task(tmp_path, min_length=5, max_length=9, train_rows=30, eval_rows=20, easier=["3/5/2/400"])
    easy = eased.split("train").to_list()[30:]
    assert len({bytes(row["input_ids"]) for row in easy}) == 400 and {len(row["input_ids"]) for row in easy} == {4}
