"""ListOps: the distribution Long Range Arena defines, the splits, the reader and the reference lines."""

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import List, Value

from tsla.tasks.base import TaskSpec
from tsla.tasks.listops import ListOps, evaluate, to_text
from tsla.tasks.listops_grammar import TOKENS, TREES, Grammar, shard
from tsla.tasks.listops_references import arguments, reference_lines

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SHARDS = 20
DIGEST = (82, "ba965c2501edf1f0")


def ids(text: str) -> bytes:
    return bytes(TOKENS.index(token) for token in text.split())


def task(folder: Path, **changes: object) -> ListOps:
    """A small set of short rows, with changes."""
    rows = {"train_rows": 300, "val_rows": 20, "test_rows": 50}
    settings = {"name": "short", "min_length": 20, "max_length": 100, **rows, "cache_dir": folder}
    return ListOps(**(settings | changes))  # type: ignore[arg-type]


def rows(source: ListOps, split: str) -> list[tuple[bytes, int]]:
    data = source.split(split)
    return [(bytes(row["input_ids"]), row["label"]) for row in data]


class Parsed:
    """What a tree is made of, read off its row by a recursive descent of its own."""

    def __init__(self, tokens: bytes) -> None:
        self.tokens = [TOKENS[token] for token in tokens]
        self.arities: list[int] = []  # the root's first
        self.depth = 0  # of the deepest digit; the root is at depth 1
        self.value, end = self.node(0, 1)
        assert end == len(tokens)

    def node(self, at: int, depth: int) -> tuple[int, int]:
        operator = self.tokens[at]
        if operator.isdigit():
            self.depth = max(self.depth, depth)
            return int(operator), at + 1
        assert operator in OPERATORS
        place = len(self.arities)
        self.arities.append(0)
        values, at = [], at + 1
        while self.tokens[at] != "]":
            value, at = self.node(at, depth + 1)
            values.append(value)
        self.arities[place] = len(values)
        return self.apply(operator, values), at + 1

    @staticmethod
    def apply(operator: str, values: list[int]) -> int:
        if operator == "[SM":
            return sum(values) % 10
        return {"[MIN": min, "[MAX": max, "[MED": lambda values: int(np.median(values))}[operator](values)


@pytest.fixture(scope="module")
def long_rows() -> list[tuple[bytes, int]]:
    """About 7000 expressions of the published size."""
    return [row for index in range(SHARDS) for row in shard(Grammar(500, 2000, 10, 10), 0, index)]


@pytest.fixture(scope="module")
def parsed(long_rows) -> list[Parsed]:
    return [Parsed(tokens) for tokens, _ in long_rows[:1500]]


# --- values and text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[MIN 4 2 9 ]", 2),
        ("[MAX 4 2 9 ]", 9),
        ("[SM 4 2 9 ]", 5),
        ("[SM 9 9 9 9 9 9 9 9 9 9 ]", 0),
        ("[MED 9 0 4 ]", 4),
        ("[MED 7 2 ]", 4),  # 4.5, truncated
        ("[MED 1 9 2 3 ]", 2),  # 2.5
        ("[MED 0 1 ]", 0),
        ("[MED 8 8 8 9 9 9 ]", 8),
        ("[MED 5 ]", 5),
        ("[MAX 2 [MIN 9 [SM 8 7 ] 6 ] [MED 1 0 3 ] ]", 5),
        ("7", 7),
    ],
)
def test_value_of_an_expression(text, value):
    assert evaluate(ids(text)) == value
    assert evaluate(list(ids(text))) == value
    assert to_text(ids(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 open operators and 0 values are left"),
        ("[MIN 1 2", "1 open operators"),
        ("1 2", "2 values are left"),
        ("1 ]", "token 1 closes"),
        ("[MIN ]", "token 1 closes an operator without arguments"),
        ("[MIN 1 <pad> ]", r"token 2 \(0\) must be one of 6-20"),
    ],
)
def test_what_is_no_expression_has_no_value(text, message):
    with pytest.raises(ValueError, match=message):
        evaluate(ids(text))


def test_token_table_is_fixed():
    assert to_text([0, 1, 2, 3, 4, 5]) == "<pad> <unk> <bos> <eos> <cls> <mask>"
    assert to_text(range(6, 21)) == "0 1 2 3 4 5 6 7 8 9 [MIN [MAX [MED [SM ]"
    assert len(TOKENS) == 21


# --- the distribution (tolerances: three standard deviations of 5000 rows, and there are more) ------------------------


def test_acceptance_and_lengths(long_rows):
    assert len(long_rows) > 5000
    assert 0.25 * len(long_rows) / (SHARDS * TREES) == pytest.approx(0.0829, abs=0.004)
    lengths = np.array([len(tokens) for tokens, _ in long_rows])
    assert lengths.min() > 500 and lengths.max() < 2000
    assert lengths.mean() == pytest.approx(1037, abs=17)
    assert lengths.std() == pytest.approx(395, abs=12)
    quantiles = np.quantile(lengths, (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99))
    assert quantiles == pytest.approx([508, 538, 702, 958, 1313, 1800, 1954], rel=0.03)
    assert (lengths > 1024).mean() == pytest.approx(0.44, abs=0.02)


def test_labels(long_rows):
    labels = np.bincount([label for _, label in long_rows], minlength=10) / len(long_rows)
    assert labels == pytest.approx([0.170, 0.088, 0.078, 0.081, 0.089, 0.088, 0.077, 0.074, 0.083, 0.172], abs=0.016)


def test_labels_given_the_root(long_rows):
    roots = Counter(TOKENS[tokens[0]] for tokens, _ in long_rows)
    assert [roots[operator] / len(long_rows) for operator in OPERATORS] == pytest.approx([0.25] * 4, abs=0.02)
    given = {
        operator: np.bincount([label for tokens, label in long_rows if TOKENS[tokens[0]] == operator], minlength=10)
        / roots[operator]
        for operator in OPERATORS
    }
    assert given["[MIN"][0] == pytest.approx(0.567, abs=0.04)
    assert given["[MAX"][9] == pytest.approx(0.572, abs=0.04)
    assert given["[MED"][4:6] == pytest.approx([0.21, 0.21], abs=0.03) and given["[MED"].argmax() in (4, 5)
    assert given["[SM"] == pytest.approx([0.1] * 10, abs=0.025)


def test_tokens(long_rows):
    counts = np.bincount(np.frombuffer(b"".join(tokens for tokens, _ in long_rows), np.uint8), minlength=21)
    assert counts[:6].sum() == 0
    assert counts[16:20].sum() == counts[20]
    assert counts[6:] / counts.sum() == pytest.approx([0.0716] * 10 + [0.0356] * 4 + [0.1422], abs=0.001)


def test_trees(parsed, long_rows):
    assert [tree.value for tree in parsed] == [label for _, label in long_rows[: len(parsed)]]
    assert {tree.depth for tree in parsed} == {10}
    arities = np.bincount([arity for tree in parsed for arity in tree.arities], minlength=11)
    assert len(arities) == 11 and arities[:2].sum() == 0
    assert arities[2:] / arities.sum() == pytest.approx([1 / 9] * 9, abs=0.003)


def test_arity_of_the_root_is_size_biased(long_rows):
    counts = np.bincount([len(arguments(tokens)) for tokens, _ in long_rows[:3000]], minlength=11) / 3000
    assert counts[2:] == pytest.approx([0.043, 0.063, 0.084, 0.099, 0.115, 0.133, 0.145, 0.151, 0.166], abs=0.021)


def test_evaluator_agrees(long_rows):
    assert all(evaluate(tokens) == label for tokens, label in long_rows[-500:])


def plain_tree(rng: random.Random, depth: int, max_depth: int, max_args: int) -> list[str]:
    """The published definition, word for word."""
    if depth == max_depth or rng.random() > 0.25:
        return [str(rng.randrange(10))]
    children = [plain_tree(rng, depth + 1, max_depth, max_args) for _ in range(rng.randint(2, max_args))]
    return [rng.choice(OPERATORS), *(token for child in children for token in child), "]"]


def test_same_distribution_as_the_plain_definition():
    """Shares of many features of accepted rows, against a rejection sampler that does draw lone-digit roots."""
    low, high, depth, args = 6, 40, 5, 4
    rng = random.Random(0)
    trees = [plain_tree(rng, 1, depth, args) for _ in range(60_000)]
    plain = [bytes(map(TOKENS.index, tree)) for tree in trees if low < len(tree) < high]
    fast = [tokens for index in range(15) for tokens, _ in shard(Grammar(low, high, depth, args), 1, index)]
    accepted = 0.25 * len(fast) / (15 * TREES)
    assert accepted == pytest.approx(len(plain) / len(trees), rel=0.05)

    def features(sample: list[bytes]) -> tuple[Counter[object], int]:
        counts: Counter[object] = Counter()
        for tokens in sample:
            tree = Parsed(tokens)
            counts.update([("length", len(tokens)), ("depth", tree.depth), ("value", tree.value)])
            counts.update([("root", tree.tokens[0], tree.arities[0]), ("nodes", len(tree.arities))])
            counts.update([("second", tree.tokens[1]), ("last", tree.tokens[-2])])
        return counts, len(sample)

    (first, first_size), (second, second_size) = features(plain), features(fast)
    worst = 0.0
    for feature in first.keys() | second.keys():
        pooled = (first[feature] + second[feature]) / (first_size + second_size)
        deviation = (pooled * (1 - pooled) * (1 / first_size + 1 / second_size)) ** 0.5
        worst = max(worst, abs(first[feature] / first_size - second[feature] / second_size) / deviation)
    assert worst < 4.0


def test_smallest_trees_are_all_equally_likely():
    counts = Counter(tokens for index in range(30) for tokens, _ in shard(Grammar(3, 5, 2, 2), 0, index))
    expected = sum(counts.values()) / 400  # four operators, two digits
    assert len(counts) == 400
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared == pytest.approx(399, abs=4 * (2 * 399) ** 0.5)


def test_other_depths_and_arities():
    found = [Parsed(tokens) for tokens, _ in shard(Grammar(10, 60, 3, 7), 0, 0)]
    assert max(tree.depth for tree in found) == 3
    assert {arity for tree in found for arity in tree.arities} == set(range(2, 8))


def test_rows_of_a_seed_stay_what_they_are():
    """Whoever changes this digest changes everybody's data: raise `VERSION` in `listops.py` with it."""
    found = shard(Grammar(20, 100, 10, 10), 0, 0)
    digest = hashlib.sha256(b"".join(tokens + bytes([value]) for tokens, value in found)).hexdigest()
    assert (len(found), digest[:16]) == DIGEST


# --- the task ---------------------------------------------------------------------------------------------------------


def test_splits_and_storage(tmp_path, capfd):
    source = task(tmp_path)
    splits = {name: rows(source, name) for name in ("train", "val", "test")}
    assert [len(split) for split in splits.values()] == [300, 20, 50]
    everything = [tokens for split in splits.values() for tokens, _ in split]
    assert len(set(everything)) == 370, "rows are distinct, within a split and across splits"
    assert all(20 < len(tokens) < 100 for tokens in everything)
    assert all(evaluate(tokens) == label for split in splits.values() for tokens, label in split)
    features = source.split("train").features
    assert features == {"input_ids": List(Value("uint8")), "label": Value("int64")}
    assert source.split("train").column_names == ["input_ids", "label"]
    assert source.spec == TaskSpec("short", 21, 10, max(map(len, everything)))
    assert capfd.readouterr() == ("", ""), "no progress bars"


def test_manifest(tmp_path):
    source = task(tmp_path, train_rows=3000)
    everything = [row for name in ("train", "val", "test") for row in rows(source, name)]
    manifest = source.manifest
    assert manifest["rows"] == {"train": 3000, "val": 20, "test": 50}
    accepted = shards = 0
    while accepted < 3070:
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
    source = task(tmp_path, train_rows=900, val_rows=200, test_rows=200)
    assert all(front & {tokens for tokens, _ in rows(source, name)} for name in ("train", "val", "test"))


def test_rows_are_distinct_where_repeats_are_certain(tmp_path):
    tiny = {"min_length": 3, "max_length": 5, "max_depth": 2, "max_args": 2, "val_rows": 5, "test_rows": 5}
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
        ({"val_rows": -1}, r"val_rows \(-1\) must be at least 1"),
        ({"test_rows": 0}, r"test_rows \(0\) must be at least 1"),
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
        "source = ListOps(name='x', min_length=20, max_length=100, train_rows=6000, val_rows=9, test_rows=9,\n"
        f"                 workers=2, cache_dir={str(tmp_path)!r})\n"
        "print(source.split('train').num_rows)\n"
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": root}
    )
    assert (run.returncode, run.stdout.split()) == (0, ["begin", "6000"]), run.stderr


# --- a user's own files -----------------------------------------------------------------------------------------------


def binary(tokens: bytes) -> str:
    """A row as the release writes it: every node a pair, `( ( ( [MAX 4 ) 7 ) ] )`."""

    def node(at: int) -> tuple[str, int]:
        text, at = TOKENS[tokens[at]], at + 1
        if text.isdigit():
            return text, at
        while TOKENS[tokens[at]] != "]":
            argument, at = node(at)
            text = f"( {text} {argument} )"
        return f"( {text} ] )", at + 1

    return node(0)[0]


def write_files(folder: Path, splits: dict[str, list[tuple[bytes, int]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        lines = ["Source\tTarget", *(f"{binary(tokens)}\t{label}" for tokens, label in split)]
        (folder / f"basic_{name}.tsv").write_bytes("".join(line + "\r\n" for line in lines).encode())
    return folder


def expressions(*texts: str) -> list[tuple[bytes, int]]:
    return [(ids(text), evaluate(ids(text))) for text in texts]


FILES = {
    "train": expressions("[MAX 4 7 ]", "[MIN [SM 4 5 6 ] 9 ]", "[MED 1 2 ]", "[MAX 4 7 ]"),
    "val": expressions("[SM 9 9 ]"),
    "test": expressions("[MIN 3 [MAX 0 1 2 [MED 3 4 5 ] ] ]", "[SM 1 1 ]"),
}


def test_example_of_the_release():
    assert binary(ids("[MAX 4 7 [MIN 2 9 ] ]")) == "( ( ( ( [MAX 4 ) 7 ) ( ( ( [MIN 2 ) 9 ) ] ) ) ] )"


def test_files_round_trip(tmp_path):
    source = task(tmp_path / "cache", path=write_files(tmp_path / "listops-1000", FILES), train_rows=0, max_length=1)
    assert {name: rows(source, name) for name in FILES} == FILES
    assert source.spec == TaskSpec("short", 21, 10, 13)
    assert source.split("test").features == {"input_ids": List(Value("uint8")), "label": Value("int64")}
    assert "acceptance" not in source.manifest
    assert source.manifest["rows"] == {"train": 4, "val": 1, "test": 2}
    assert set(source.references()) == set(reference_lines(FILES["train"], FILES["test"]))


def test_generated_rows_survive_the_files(tmp_path):
    generated = task(tmp_path / "cache")
    splits = {name: rows(generated, name) for name in ("train", "val", "test")}
    read = task(tmp_path / "cache", path=write_files(tmp_path / "files", splits))
    assert {name: rows(read, name) for name in splits} == splits
    assert read.references() == generated.references()
    assert read.folder != generated.folder


@pytest.mark.parametrize(
    "layout", ["", "listops-1000", "lra_release/listops-1000", "lra_release/lra_release/listops-1000"]
)
def test_layouts(tmp_path, layout):
    write_files(tmp_path / "data" / layout, FILES)
    assert rows(task(tmp_path / "cache", path=tmp_path / "data"), "val") == FILES["val"]


def test_nested_copy_is_preferred(tmp_path):
    write_files(tmp_path / "data" / "lra_release" / "lra_release" / "listops-1000", FILES)
    write_files(tmp_path / "data" / "lra_release" / "listops-1000", FILES | {"val": expressions("[SM 1 9 ]")})
    assert rows(task(tmp_path / "cache", path=str(tmp_path / "data")), "val") == FILES["val"]


def test_changed_files_are_read_again(tmp_path):
    path = write_files(tmp_path / "files", FILES)
    before = task(tmp_path / "cache", path=path)
    assert rows(before, "val") == FILES["val"]
    write_files(path, {"val": expressions("[SM 9 8 ]")})  # of the same size
    os.utime(path / "basic_val.tsv", ns=(0, 0))
    after = task(tmp_path / "cache", path=path)
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
        task(tmp_path / "cache", path=path).split("train")


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
        task(tmp_path / "cache", path=path).split("train")


def test_line_ends_of_other_systems(tmp_path):
    path = write_files(tmp_path / "files", FILES)
    for file in path.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n").rstrip(b"\n"))
    assert rows(task(tmp_path / "cache", path=path), "train") == FILES["train"]


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path \(.*nowhere\) must hold basic_train.tsv, basic_val.tsv"):
        task(tmp_path / "cache", path=tmp_path / "nowhere")
    path = write_files(tmp_path / "files", FILES)
    (path / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"files must hold .*; it lacks basic_val.tsv"):
        task(tmp_path / "cache", path=path)


# --- reference lines --------------------------------------------------------------------------------------------------


def test_arguments_of_the_root():
    row = ids("[MAX 2 [MIN 9 [SM 8 7 ] 6 ] [MED 1 0 3 ] 4 ]")
    assert [to_text(part) for part in arguments(row)] == ["2", "[MIN 9 [SM 8 7 ] 6 ]", "[MED 1 0 3 ]", "4"]


def test_simple_references_are_those_of_the_rows():
    train = expressions("[MAX 9 1 ]", "[MAX 9 2 ]", "[MIN 0 1 ]", "[MAX 4 4 ]")
    test = expressions("[MAX 9 9 ]", "[MIN 3 0 ]", "[MIN 0 [MIN 8 9 ] ]", "[SM 9 0 ]")
    lines = reference_lines(train, test)
    assert lines["majority"] == 0.5  # 9
    assert lines["root operator"] == 0.75  # 9 for MAX, 0 for MIN, nothing known of SM


def test_rules_that_know_all_digits_are_right_where_there_is_nothing_else():
    flat = [(tokens, value) for tokens, value in shard(Grammar(3, 13, 2, 10), 0, 0)]
    assert len(flat) > 200 and all(len(part) == 1 for tokens, _ in flat for part in arguments(tokens))
    lines = reference_lines(flat, flat)
    assert lines["root + digits"] == lines["root + digits + child operators"] == 1.0
    assert lines["root operator"] < 0.8


def test_subtrees_take_the_values_they_have_in_train():
    """Every sub-tree is worth 0 under MIN and 9 under MAX, so its operator decides, and the mixture does not."""
    train = expressions(*["[SM 1 [MIN 0 5 ] [MAX 9 5 ] ]"] * 300, *["[SM 1 [MIN 0 5 ] ]"] * 300)
    test = expressions(*["[SM 2 [MAX 9 9 ] ]"] * 5, *["[SM 2 [MIN 0 0 ] ]"] * 5)
    lines = reference_lines(train, test)
    assert lines["root + digits + child operators"] == 1.0
    assert lines["root + digits"] == 0.5  # the sum with 0, which is the more frequent value


def test_references_of_the_short_rows():
    """The plateaus of 20 < length < 100 (16.0, 34.8, 54.9, 63.2 percent, each within a percent or so)."""
    drawn = [row for index in range(60) for row in shard(Grammar(20, 100, 10, 10), 0, index)]
    lines = reference_lines(drawn[:4000], drawn[4000:])
    assert list(lines) == ["majority", "root operator", "root + digits", "root + digits + child operators"]
    assert list(lines.values()) == pytest.approx([0.160, 0.348, 0.549, 0.632], abs=0.035)
    assert list(lines.values()) == sorted(lines.values())
    assert reference_lines(drawn[:4000], drawn[4000:]) == lines
