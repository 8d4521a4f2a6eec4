"""The ListOps task: its splits and storage, and a user's own files."""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from datasets import List, Value
from listops_cases import FILES, binary, expressions, ids, rows, small, task, write_files

from tsla.tasks import sources
from tsla.tasks.base import IGNORE, TaskSpec
from tsla.tasks.encoding import decode, encode
from tsla.tasks.listops import ListOps, evaluate
from tsla.tasks.listops_grammar import CLOSER, OPENER, TOKENS, TREES, Grammar, closings, shard
from tsla.tasks.listops_references import reference_lines
from tsla.tasks.packages import Unavailable

COLUMNS = {"input_ids": List(Value("uint8")), "label": Value("int64"), "depth": Value("int64"),
           "operator": Value("string")}  # fmt: skip

# --- the task ---------------------------------------------------------------------------------------------------------


def test_splits_and_storage(tmp_path, capfd):
    source = task(tmp_path)
    splits = {name: rows(source, name) for name in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [300, 20, 20]
    everything = [tokens for split in splits.values() for tokens, _ in split]
    assert len(set(everything)) == 340, "rows are distinct, within a split and across splits"
    assert all(20 < len(tokens) < 100 for tokens in everything)
    assert all(evaluate(tokens) == label for split in splits.values() for tokens, label in split)
    assert source.split("train").features == COLUMNS and source.split("train").column_names == [*COLUMNS]
    roots = [TOKENS[tokens[0]] for tokens, _ in splits["val"]]
    assert [f"[{name}" for name in source.split("val")["operator"]] == roots and len(set(roots)) == 4
    assert source.spec == TaskSpec("listops_short", "listops", "class", 10, max(map(len, everything)), 21)
    assert capfd.readouterr() == ("", ""), "no progress bars"


@pytest.mark.parametrize("protocol", ["default", "s4"])
def test_dense_supervision_has_the_value_of_every_sub_tree(tmp_path, protocol):
    """At its closing bracket, as `evaluate` finds it for the tokens from its own opener on."""
    few = {"train_rows": 30, "eval_rows": 5, "protocol": protocol}
    few |= {"name": "listops", "min_length": 20, "max_length": 100} if protocol == "s4" else {}
    whole, dense = task(tmp_path, **few), task(tmp_path, **few, supervision="dense")
    assert dense.spec.name == f"{whole.spec.name}_dense" and dense.spec.target == "tokens" and dense.spec.final
    assert dense.manifest["references"] == whole.manifest["references"] and dense.folder != whole.folder
    for row, plain in zip(dense.split("train"), whole.split("train"), strict=True):
        tokens, targets = row["input_ids"], row["label"]
        depths, operators = iter(row["depth"]), iter(row["operator"])
        assert tokens == plain["input_ids"] and len(targets) == len(tokens)
        opened = []
        for place, token in enumerate(tokens):
            if OPENER <= token < CLOSER:
                opened.append(place)
            if token == CLOSER:
                part = tokens[opened.pop() : place + 1]
                assert targets[place] == evaluate(part) and f"[{next(operators)}" == TOKENS[part[0]]
                nested = [(t >= OPENER) - 2 * (t == CLOSER) for t in part]
                assert next(depths) == max(sum(nested[: end + 1]) for end in range(len(nested)))
            else:
                assert targets[place] == IGNORE
        assert [target for target in targets if target != IGNORE][-1] == plain["label"]
        assert max(row["depth"]) == plain["depth"] == row["depth"][-1] and row["operator"][-1] == plain["operator"]
    assert dense.statistics() == whole.statistics()
    with pytest.raises(ValueError, match=r"supervision \('some'\) must be one of root, dense"):
        task(tmp_path, supervision="some")


def test_closing_brackets():
    tokens = ids("[MAX 4 [MIN 2 9 ] 7 ]")
    assert closings(tokens) == [(5, 2, 1, TOKENS.index("[MIN")), (7, 7, 2, TOKENS.index("[MAX"))]
    with pytest.raises(ValueError, match="1 open operators"):
        closings(tokens[:-1])


def test_manifest(tmp_path):
    source = task(tmp_path, train_rows=3000)
    everything = [row for name in ("train", "val", "test") for row in rows(source, name)]
    manifest = source.manifest
    assert manifest["rows"] == {"train": 3000, "val": 20, "test": 20}
    accepted = shards = 0
    while accepted < 3040:
        accepted += len(shard(source.grammar, 0, shards))
        shards += 1
    assert manifest["acceptance"] == 0.25 * accepted / (shards * TREES) == pytest.approx(0.024, abs=0.0015)
    assert manifest["length"]["percentiles"]["50"] == statistics.median(len(tokens) for tokens, _ in everything)
    labels = Counter(label for _, label in rows(source, "train"))
    assert manifest["labels"]["train"] == [labels[label] for label in range(10)]
    assert manifest["seconds"] > 0
    assert manifest == json.loads((source.folder / "manifest.json").read_text())
    assert list(source.references().items()) == list(manifest["references"].items())


def digest(source: ListOps) -> str:
    return hashlib.sha256(repr([rows(source, name) for name in ("train", "val", "test")]).encode()).hexdigest()


def test_rows_depend_on_the_seed_and_not_on_the_workers(tmp_path):
    one = digest(task(tmp_path / "one", train_rows=900, workers=1))
    assert digest(task(tmp_path / "two", train_rows=900, workers=2)) == one
    assert digest(task(tmp_path / "three", train_rows=900, workers=3)) == one
    assert digest(task(tmp_path / "seed", train_rows=900, seed=1)) != one


def test_second_use_reads_what_the_first_built(tmp_path, monkeypatch):
    first = task(tmp_path)
    expected = digest(first)
    monkeypatch.setattr("tsla.tasks.listops.shard", None)
    again = task(tmp_path, workers=1)
    assert again.folder == first.folder and digest(again) == expected
    with pytest.raises(TypeError):  # other settings have to be built
        task(tmp_path, seed=3).split("train")


def test_splits_are_shuffled(tmp_path):
    """Rows in the order of drawing would put the first shard at the front of train."""
    front = {tokens for tokens, _ in shard(Grammar(20, 100, 10, 10), 0, 0)}
    source = task(tmp_path, train_rows=900, eval_rows=200)
    assert all(front & {tokens for tokens, _ in rows(source, name)} for name in ("train", "val", "test"))


def test_rows_are_distinct_where_repeats_are_certain(tmp_path):
    tiny = {"min_length": 3, "max_length": 5, "max_depth": 2, "max_args": 2, "eval_rows": 5}
    source = task(tmp_path, train_rows=385, **tiny)
    assert len({tokens for name in ("train", "val", "test") for tokens, _ in rows(source, name)}) == 395
    with pytest.raises(ValueError, match=r"\(401\) must be at most what these bounds yield, 400 distinct rows"):
        task(tmp_path, train_rows=391, **tiny).split("train")
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_length": 90, "max_length": 80}, r"min_length \(90\) must be below max_length - 1 \(79\)"),
        ({"min_length": 98, "max_length": 99}, r"min_length \(98\) must be below max_length - 1 \(98\)"),
        ({"min_length": 0}, r"min_length \(0\) must be at least 1"),
        ({"min_length": 1, "max_length": 4}, r"max_length \(4\) must be at least 5"),
        ({"max_depth": 1}, r"max_depth \(1\) must be at least 2"),
        ({"max_args": 1}, r"max_args \(1\) must be at least 2"),
        ({"max_depth": 2}, r"min_length \(20\) must be below 12, the longest row of max_depth 2 and max_args 10"),
        ({"train_rows": 0}, r"train_rows \(0\) must be at least 1"),
        ({"eval_rows": -1}, r"eval_rows \(-1\) must be at least 1"),
        ({"source": "web"}, r"source \('web'\) must be one of offline, lra, hub"),
        ({"source": "lra"}, r"path \(None\) must be given for source=lra"),
        ({"path": "x"}, r"path \(x\) must be given for source=lra, and for no other: source is offline"),
        ({"protocol": "mega"}, r"protocol \('mega'\) must be one of default, lra, s4"),
        ({"protocol": "s4"}, r"name \('listops_short'\) must be listops for source=offline and protocol=s4"),
        ({"seed": -1}, r"seed \(-1\) must be at least 0"),
        ({"workers": 0}, r"workers \(0\) must be at least 1"),
    ],
)
def test_impossible_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        task(tmp_path, **changes)


def test_bounds_that_no_tree_meets_end_in_an_error(tmp_path):
    with pytest.raises(ValueError, match="0 distinct rows in 262144 trees: min_length 4, max_length 7, max_depth 3"):
        task(tmp_path, min_length=4, max_length=7, max_depth=3, max_args=2).split("train")  # 4 or 7 tokens, never 5, 6


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match=r"split \('dev'\) must be one of train, val, test"):
        task(tmp_path).split("dev")


def test_a_script_without_a_main_guard(tmp_path):
    """Workers must not run the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('begin')\n"
        "from tsla.tasks.listops import ListOps\n"
        "source = ListOps(name='x', min_length=20, max_length=100, train_rows=6000, eval_rows=9,\n"
        f"                 workers=2, cache_dir={str(tmp_path)!r})\n"
        "print(source.split('train').num_rows)\n"
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": root}
    )
    assert (run.returncode, run.stdout.split()) == (0, ["begin", "6000"]), run.stderr


# --- a user's own files -----------------------------------------------------------------------------------------------


def own(folder: Path, path: Path | str, **options: object) -> ListOps:
    return ListOps(source="lra", path=path, cache_dir=folder, **options)  # type: ignore[arg-type]


def test_example_of_the_release():
    assert binary(ids("[MAX 4 7 [MIN 2 9 ] ]")) == "( ( ( ( [MAX 4 ) 7 ) ( ( ( [MIN 2 ) 9 ) ] ) ) ] )"


def test_files_round_trip(tmp_path):
    source = own(tmp_path / "cache", write_files(tmp_path / "listops-1000", FILES), max_length=1)
    assert {name: rows(source, name) for name in FILES} == FILES
    assert source.spec == TaskSpec("listops", "listops", "class", 10, 13, 21)
    assert source.split("test").features == COLUMNS
    assert "acceptance" not in source.manifest
    assert source.manifest["rows"] == {"train": 4, "val": 1, "test": 2}
    assert set(source.references()) == set(reference_lines(FILES["train"], FILES["test"]))


def test_generated_rows_survive_the_files(tmp_path):
    generated = task(tmp_path / "cache")
    splits = {name: rows(generated, name) for name in ("train", "val", "test")}
    read = own(tmp_path / "cache", write_files(tmp_path / "files", splits))
    assert {name: rows(read, name) for name in splits} == splits
    assert read.references() == generated.references()
    assert read.folder != generated.folder


@pytest.mark.parametrize(
    "layout", ["", "listops-1000", "lra_release/listops-1000", "lra_release/lra_release/listops-1000"]
)
def test_layouts(tmp_path, layout):
    write_files(tmp_path / "data" / layout, FILES)
    assert rows(own(tmp_path / "cache", tmp_path / "data"), "val") == FILES["val"]


def test_some_rows_of_the_files(tmp_path):
    many = {
        "train": [row for row in FILES["train"][:3] for _ in range(7)],
        "val": FILES["val"] * 9,
        "test": FILES["test"],
    }
    path = write_files(tmp_path / "files", many)
    few, more = (rows(own(tmp_path, path, train_rows=n, eval_rows=2), "train") for n in (5, 12))
    assert (len(few), len(more)) == (5, 12) and all(few.count(row) <= more.count(row) for row in few)
    assert more == sorted(more, key=FILES["train"].index), "in the order of the file"
    assert rows(own(tmp_path, path, train_rows=5, seed=1), "train") != few
    assert [len(rows(own(tmp_path, path, eval_rows=2), split)) for split in many] == [21, 2, 2]


@pytest.mark.parametrize(("protocol", "length", "end"), [("lra", 2000, b""), ("s4", 2048, b"\x03")])
def test_published_tokens_and_lengths(tmp_path, monkeypatch, protocol, length, end):
    path = write_files(tmp_path / "files", FILES)
    with pytest.raises(ValueError, match=rf"must have the 96000 rows of the release for protocol={protocol}, got 4"):
        own(tmp_path, path, protocol=protocol).split("train")
    small(monkeypatch)
    source = own(tmp_path, path, protocol=protocol)
    assert {name: rows(source, name) for name in FILES} == {
        name: [(tokens + end, label) for tokens, label in split] for name, split in FILES.items()
    }
    assert source.spec == TaskSpec("listops", "listops", "class", 10, length, 21, end=end[0] if end else 0)
    assert source.references() == own(tmp_path, path).references()
    generated, plain = (
        task(tmp_path, name="listops", train_rows=9, eval_rows=2, protocol=name) for name in (protocol, "default")
    )
    assert generated.spec.max_length == length and plain.spec.max_length < 100
    assert rows(generated, "train") == [(tokens + end, label) for tokens, label in rows(plain, "train")]
    assert encode(source.spec, "[MAX 4 7 ]").tobytes() == rows(source, "train")[0][0]
    assert decode(source.spec, encode(source.spec, "[MAX 4 7 ]")) == "[MAX 4 7 ]"
    assert len(encode(source.spec, "[MAX 4 7 ]", max_length=3)) == 3


def test_files_of_the_hub(tmp_path, monkeypatch):
    root = write_files(tmp_path / "clone", FILES)

    def fetch(name, *, repo_type, revision, allow_patterns, local_dir):
        assert (name, repo_type, revision) == ("OpenNLPLab/lra", "dataset", "main")
        assert allow_patterns == ["*basic_train.tsv", "*basic_val.tsv", "*basic_test.tsv"]
        shutil.copytree(root, local_dir / "any" / "folder")
        return str(local_dir)

    monkeypatch.setattr(sources, "snapshot_download", fetch)
    source = ListOps(source="hub", hub_revision="main", cache_dir=tmp_path)
    assert {name: rows(source, name) for name in FILES} == FILES
    assert not (source.folder / "fetched").exists() and source.spec == own(tmp_path, root).spec


def test_a_hub_that_cannot_be_reached_says_what_else_there_is(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no name\nand more")

    monkeypatch.setattr(sources, "snapshot_download", refuse)
    with pytest.raises(Unavailable, match=r"not give OpenNLPLab/lra \(no name\)\. .*source=lra path.*source=offline"):
        ListOps(source="hub", cache_dir=tmp_path).references()


def test_nested_copy_is_preferred(tmp_path):
    write_files(tmp_path / "data" / "lra_release" / "lra_release" / "listops-1000", FILES)
    write_files(tmp_path / "data" / "lra_release" / "listops-1000", FILES | {"val": expressions("[SM 1 9 ]")})
    assert rows(own(tmp_path / "cache", str(tmp_path / "data")), "val") == FILES["val"]


def test_changed_files_are_read_again(tmp_path):
    path = write_files(tmp_path / "files", FILES)
    before = own(tmp_path / "cache", path)
    assert rows(before, "val") == FILES["val"]
    write_files(path, {"val": expressions("[SM 9 8 ]")})  # of the same size
    os.utime(path / "basic_val.tsv", ns=(0, 0))
    after = own(tmp_path / "cache", path)
    assert after.folder != before.folder
    assert rows(after, "val") == expressions("[SM 9 8 ]")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("( ( ( [FIRST 4 ) 7 ) ] )\t4", r"line 3: token \('\[FIRST'\) must be one of 0 1 .* \[MIN"),
        ("( ( ( [MAX 4 ) 17 ) ] )\t4", r"line 3: token \('17'\)"),
        ("( ( ( [MAX 4 ) <pad> ) ] )\t4", r"line 3: token \('<pad>'\)"),
        ("( ( ( [MAX 4 ) é ) ] )\t4", r"line 3: token \('é'\)"),
        ("( ( ( [MAX 4 ) 7 ) ] )\t10", r"line 3: Target \('10'\) must be a digit 0-9"),
        ("( ( ( [MAX 4 ) 7 ) ] )\tx", r"line 3: Target \('x'\) must be a digit 0-9"),
        ("( ( ( [MAX 4 ) 7 ) ] )", r"line 3: Target \(''\) must be a digit 0-9"),
        ("( ( ( [MAX 4 ) 7 ) ] )\t7\t7", r"line 3: Target \('7\\t7'\) must be a digit 0-9"),
        ("( ( [MAX 4 ) 7 )\t7", "line 3: Source must be one operator"),
        ("( ( [MAX 4 ) ] ) ( ( [MAX 4 ) ] )\t4", "line 3: Source must be one operator"),
        ("( ( [MAX [MIN ] 4 ) ] )\t4", "line 3: Source must be one operator"),
        ("4\t4", "line 3: Source must be one operator"),
        ("\t4", "line 3: Source must be one operator"),
    ],
)
def test_bad_lines(tmp_path, line, message):
    path = write_files(tmp_path / "files", FILES)
    text = f"Source\tTarget\r\n( ( ( [MAX 4 ) 7 ) ] )\t7\r\n{line}\r\n"
    (path / "basic_val.tsv").write_bytes(text.encode())
    with pytest.raises(ValueError, match="basic_val.tsv, " + message):
        own(tmp_path / "cache", path).split("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"basic_test.tsv, line 1: the header \(''\) must be 'Source\\tTarget'"),
        (b"Target\tSource\r\n", r"basic_test.tsv, line 1: the header \('Target\\tSource'\)"),
        (b"Source\tTarget\r\n", "basic_test.tsv: 0 rows"),
    ],
)
def test_bad_headers(tmp_path, content, message):
    path = write_files(tmp_path / "files", FILES)
    (path / "basic_test.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        own(tmp_path / "cache", path).split("train")


def test_line_ends_of_other_systems(tmp_path):
    path = write_files(tmp_path / "files", FILES)
    for file in path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n"))
    assert rows(own(tmp_path / "cache", path), "train") == FILES["train"]


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path \(.*nowhere\) must hold basic_train.tsv, basic_val.tsv"):
        own(tmp_path / "cache", tmp_path / "nowhere")
    path = write_files(tmp_path / "files", FILES)
    (path / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"files must hold .*; it lacks basic_val.tsv"):
        own(tmp_path / "cache", path)
