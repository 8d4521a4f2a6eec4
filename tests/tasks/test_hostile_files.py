"""Files that are broken, strange or of another kind: one line each says what is wrong, and where."""

from pathlib import Path

import pytest

from tsla.tasks.files import Files


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def task(path, **options) -> Files:
    return Files(path=str(path), cache_dir="cache", **options)


HOSTILE = {
    "empty": ("a.csv", b"", {}, r"a\.csv is empty: a line of column names is needed"),
    "header only": ("a.csv", b"text,label\r\n", {}, r"a\.csv has 0 rows after"),
    "open quote": ("a.csv", b'text,label\na,b\n"a,b\nc,d\n', {}, r"a\.csv, line 4: unexpected end of data"),
    "text after a quote": ("a.csv", b'text,label\n"a"b,c\n', {}, r"a\.csv, line 2: .* in quotes"),
    "too many cells": ("a.csv", b"text,label\na,b\na,b,c\n", {}, r"a\.csv, line 3: 3 cells, but there are 2 columns"),
    "too few cells": ("a.csv", b"text,label\na\n", {}, r"a\.csv, line 2: 1 cells"),
    "all rows shifted": ("a.csv", b"text,label\n1,a,b\n2,c,d\n", {}, r"line 2: 3 cells"),
    "two columns of a name": ("a.csv", b"text,text\na,b\n", {}, r"2 columns are called 'text'"),
    "no name": ("a.csv", b"text,\na,b\n", {}, "line 1: column 2 has no name"),
    "not UTF-8": ("a.csv", b"text,label\ncaf\xe9,b\n", {}, r"a\.csv is not UTF-8 text: byte 0xe9 at position 14"),
    "UTF-16": ("a.csv", "text,label\na,b\n".encode("utf-16"), {}, "is not UTF-8 text: byte 0xff at position 0"),
    "other column": ("a.csv", b"texts,label\na,b\n", {},
                     r"input \('text'\) must be a column of a.csv \(did you mean 'texts'\?\); it has 'texts', 'label'"),
    "other label": ("a.csv", b"text,class\na,b\n", {}, r"label \('label'\) must be a column"),
    "empty text": ("a.csv", b"text,label\na,b\n,b\n", {}, r"a.csv, column 'text', row 2: input \(''\) is empty"),
    "empty label": ("a.csv", b"text,label\na,b\nc,\n", {}, r"column 'label', row 2: label \(''\) must be a class"),
    "one class": ("a.csv", b"text,label\na,b\nc,b\nd,b\ne,b\n", {}, r"one class only, 'b': two are needed"),
    "too few rows": ("a.csv", b"text,label\na,b\n", {}, r"split has no rows \(train 1, val 0, test 0\): of 1 rows"),
    "broken line": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', {}, r"a\.jsonl, line 2: no JSON"),
    "no object": ("a.jsonl", b'{"text": "a"}\n\n7\n', {}, r"a\.jsonl, line 3: must be an object .*, got int"),
    "missing key": ("a.jsonl", b'{"text": "a", "label": 1}\n{"label": 1}\n', {}, r"row 2: input \(None\) must be"),
    "deep": ("a.jsonl", b"[" * 100_000, {}, "no JSON"),
    "empty jsonl": ("a.jsonl", b"\n\n", {}, "has 0 rows"),
    "number for text": ("a.jsonl", b'{"text": 5, "label": 1}\n', {}, "must be a text or bytes, got int"),
    "huge token": ("a.jsonl", b'{"text": [1, 1000000000000000000000], "label": 1}\n', {"kind": "tokens"},
                   r"row 1: token \(1000000000000000000000\) must be one of the whole numbers from 0 to 999999"),
    "NaN in a series": ("a.jsonl", b'{"text": [1, NaN], "label": 1}\n', {"kind": "series"}, "row 1: number .nan"),
    "ragged steps": ("a.jsonl", b'{"text": [[1, 2], [3]], "label": 1}\n', {"kind": "series"}, "lists of one length"),
    "other channels": ("a.jsonl", b'{"text": [[1, 2]], "label": 1}\n{"text": [1], "label": 1}\n', {"kind": "series"},
                       "row 2 has 1 channels, row 1 has 2"),
    "words for numbers": ("a.csv", b"text,label\na,1\nb,two\n", {"target": "numbers"}, "row 2: value .'two'. must be"),
    "infinite target": ("a.csv", b"text,label\na,1\nb,inf\n", {"target": "numbers"}, "row 2: number .inf.* finite"),
    "no target": ("a.csv", b"text,label\na,1\nb,\n", {"target": "numbers"}, "row 2: value .''. must be one number"),
    "thousands": ("a.csv", b'text,label\na,2\nb,"1,118"\n', {"target": "numbers"},
                  r"column 'label', row 2: value \('1,118'\) has a comma"),
    "ragged targets": ("a.jsonl", b'{"text": "a", "label": [1, 2]}\n{"text": "b", "label": 1}\n' * 9,
                       {"target": "numbers"}, "row 2 has 1 numbers to learn, row 1 has 2"),
    "too few to score": ("a.csv", b"text,label\n" + b"a,1\n" * 9, {"target": "numbers"}, "r2 needs at least 2"),
    "no labels at all": ("a.csv", b"text,label\n" + b"a,\n" * 9, {"target": "labels"}, "no training row has a label"),
    "label 2": ("a.csv", b"text,p,q\na,1,2\n", {"target": "labels", "label": ["p", "q"]}, r"label \('2'\) must be"),
    "two classes": ("a.csv", b"text,p,q\na,1,2\n", {"label": ["p", "q"]}, r"label \(p, q\) must be one column"),
    "unknown split": ("a.csv", b"text,label,split\na,1,trian\n", {"split": "column"},
                      r"row 1: split \('trian'\) must be one of .*\(did you mean 'train'\?\)"),
    "unseen class": ("a.csv", b"text,label,split\na,1,train\nb,2,train\nc,3,val\nd,1,test\n", {"split": "column"},
                     "the val split has classes that no training row has: '3'"),
    "unseen label": ("a.csv", b"text,label,split\na,1,train\nb,2,train\nc,1,val\nd,1;4,test\n",
                     {"split": "column", "target": "labels"}, "the test split has labels that .*: '4'"),
    "no training rows": ("a.csv", b"text,label,split\na,1,test\nb,2,val\n", {"split": "column"}, "the train split has"),
    "not parquet": ("a.parquet", b"text,label\n", {}, "is no Parquet file"),
    "another ending": ("a.xlsx", b"PK", {}, r"ends in '\.xlsx', which must be one of \.csv"),
    "revision of a file": ("a.csv", b"text,label\na,b\n", {"revision": "main"}, "belongs to a data set of the Hub"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name):
    file, content, options, message = HOSTILE[name]
    Path(file).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        task(file, **options).folder  # noqa: B018
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.csv", r"path \(none\.csv\) does not exist"), ("./none", "does not exist"), ("a/b/c", "does not exist")],
)
def test_no_such_path(path, message):
    with pytest.raises(FileNotFoundError, match=message):
        task(path).folder  # noqa: B018


def test_folders_of_something_else():
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="empty must hold a data set"):
        task("empty").folder  # noqa: B018
    Path("odd/a").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"odd/a holds no \.txt files"):
        task("odd").folder  # noqa: B018
    Path("shards").mkdir()
    Path("shards/part-1.csv").write_text("text,label\na,b\n")
    with pytest.raises(ValueError, match=r"shards holds part-1\.csv: tables in a folder must be called"):
        task("shards").folder  # noqa: B018


def test_what_is_no_file_in_a_class_is_no_text():
    for name in "ab":
        Path("texts", name).mkdir(parents=True)
        for i in range(9):
            Path("texts", name, f"{i}.txt").write_text(f"{name} {i}")
    Path("texts/a/x.txt").mkdir()
    Path("texts/a/self.txt").symlink_to("self.txt")
    Path("texts/b/gone.txt").symlink_to("nowhere.txt")
    Path("texts/b/linked.txt").symlink_to("8.txt")
    Path("texts/self").symlink_to("self")
    made = task("texts")
    assert made.spec.names == ("a", "b") and sum(made.manifest["rows"].values()) == 19
    Path("bare/a/x.txt").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"bare/a holds no \.txt files"):
        task("bare").folder  # noqa: B018
