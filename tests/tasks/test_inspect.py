"""What `tsla data inspect` says of data, before and after its options are known."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from tsla import cli
from tsla.config import compose
from tsla.config.options import as_argument
from tsla.inspect_data import inspect as inspect_config
from tsla.inspect_data import look
from tsla.tasks import tables
from tsla.tasks.digits import Digits
from tsla.tasks.files import Files
from tsla.tasks.guess import kind_of
from tsla.tasks.inspect import inspect, printable, train_command

NASTY = "[bold]a[/]\x1b[31m\tb\nc"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(rows, name="data.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def fields(text: str, first: str) -> list[str]:
    """The words of the line that begins so."""
    return next(line for line in text.splitlines() if line.startswith(first)).split()


def test_classes_of_texts():
    rows = [{"text": NASTY + "x" * i, "label": "[red]" if i % 4 else "b",
             "split": "train" if i < 38 else "val" if i < 39 else "test"} for i in range(40)]  # fmt: skip
    rows.append({"text": NASTY, "label": "b", "split": "test"})
    made = Files(path=write(rows), split="column", cache_dir="cache")
    text = inspect(made, ["path=data.jsonl", "split=column"])
    assert "\x1b" not in text and all(line == line.rstrip() for line in text.splitlines())
    assert fields(text, "train") == ["train", "38", f"{sum(len(NASTY) + i for i in range(38)):,}",
                                     "19", "20", "37", "54", "56"]  # fmt: skip
    assert fields(text, "[red]") == ["[red]", "28", "1", "1", "73.7%"]
    assert f"{len(set(NASTY)) + 1} of 256 bytes occur" in text
    assert "note: 1 inputs stand in train and in test" in text and "train and in val" not in text
    assert r"  b: [bold]a[/]\x1b[31m\tb\nc" in text.splitlines()
    assert "  tsla train experiment=files task.path=data.jsonl task.split=column trainer.batch_tokens=2048" in text


def test_numbers_of_series():
    rows = [{"text": [i, 2.0], "label": float(i)} for i in range(40)]
    text = inspect(Files(path=write(rows), kind="series", target="numbers", cache_dir="cache"))
    assert "channel" in text and "deviation" in text and "of 256" not in text
    label = fields(text, "label")
    assert {float(label[5]), float(label[7])} <= set(range(40)) and min(map(float, label[3::2])) == 0


def test_labels_and_truncation():
    rows = [{"text": f"{i:04}", "label": f"l{i % 25}; all" if i % 3 else ""} for i in range(200)]
    text = inspect(Files(path=write(rows), target="labels", max_length=3, cache_dir="cache", seed=1))
    assert fields(text, "all")[4] == f"{float(fields(text, 'all')[1]) / 160:.1%}" and "6 others" in text
    assert "200 rows were longer than max_length" in text and "(none)" in text


def test_any_task():
    text = inspect(Digits())
    assert fields(text, "train")[1] == "1,257" and "17 of 17 tokens occur" in text
    assert "tsla train experiment=digits trainer.batch_tokens=2048" in text


def test_one_class_rules():
    rows = [{"text": str(i), "label": "rare" if i % 20 == 0 else "common"} for i in range(200)]
    assert "95% of the training rows are of one class" in inspect(Files(path=write(rows), cache_dir="cache"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\tb", r"a\tb"), ("é日", "é日"), ("\x00\x7f\u202e", r"\x00\x7f\u202e"), ("x" * 71, "x" * 67 + "..."), ("", "")],
)
def test_printable(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        ([1] * 9, 2048),
        ([100] * 9, 4096),
        ([500] * 9, 16384),
        ([5000] * 9, 32768),
        ([10, 10, 60_000], 65536),
        ([1, 1, 3000], 4096),
    ],
)
def test_the_budget_holds_a_fair_batch(lengths, tokens):
    assert train_command("files", [], lengths) == f"tsla train experiment=files trainer.batch_tokens={tokens}"


# --- guesses ----------------------------------------------------------------------------------------------------------

GUESSES = {
    "the usual names": ([{"id": i, "text": f"t {i}", "label": i % 2} for i in range(30)], []),
    "other names": ([{"id": i, "Review": f"long text {i}", "stars": i % 5} for i in range(30)],
                    ["input=Review", "label=[stars]"]),
    "no names at all": ([{"a": f"{i}", "b": f"a long text {i}", "c": "xy"[i % 2]} for i in range(30)],
                        ["input=b", "label=[c]"]),
    "tokens": ([{"input_ids": [1, 2, i], "label": "ab"[i % 2]} for i in range(30)], ["input=input_ids", "kind=tokens"]),
    "series": ([{"values": [0.5, i], "target": i / 7} for i in range(30)],
               ["input=values", "label=[target]", "kind=series", "target=numbers"]),
    "labels": ([{"text": f"t {i}", "labels": ["a"] * (i % 2)} for i in range(30)], ["label=[labels]", "target=labels"]),
    "many whole numbers": ([{"text": f"t {i}", "label": i} for i in range(30)], ["target=numbers"]),
    "a split": ([{"text": f"t {i}", "label": i % 2, "split": ["train", "test"][i % 3 % 2]} for i in range(30)],
                ["split=column"]),
    "another split": ([{"text": f"t {i}", "label": i % 2, "fold": ["train", "dev"][i % 3 % 2]} for i in range(30)],
                                ["split=column", "split_column=fold"]),
}  # fmt: skip


@pytest.mark.parametrize("name", GUESSES)
def test_a_guess_can_be_typed(name):
    rows, options = GUESSES[name]
    text = look(write(rows, "my data.jsonl"))
    assert "my data.jsonl: 30 rows" in text and all(repr(column) in text for column in rows[0])
    (command,) = [line for line in text.splitlines() if "tsla train" in line]
    arguments = shlex.split(command)[2:]
    assert arguments[0] == "experiment=files" and arguments[2:] == [f"task.{option}" for option in options]
    config = compose(arguments)
    assert config.task.path == "my data.jsonl"
    assert "train on it with" in inspect_config(config)


def test_a_guess_needs_two_columns():
    assert "two are needed" in look(write([{"text": "a", "more": 1}] * 3))  # a constant is nothing to learn
    text = look(write([{"text": "a"}] * 3, "my new.jsonl"))
    assert text.splitlines()[-2:] == [
        "there is only one column ('text'): a label column is missing; to predict it:",
        "  tsla predict RUN_DIR 'my new.jsonl'",
    ]


def test_texts_in_folders_are_texts():
    for i in range(20):
        Path("texts", "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Path("texts", "ab"[i % 2], f"{i}.txt").write_bytes(f"é {i}".encode())
    text = look("texts")
    assert fields(text, "'text'") == ["'text'", "texts", "20", "of", "20", "'é", "0'"] and "b'" not in text
    Path("texts/a/0.txt").write_bytes(b"\xff")
    assert fields(look("texts"), "'text'")[:2] == ["'text'", "bytes"]


def test_a_guess_of_parts():
    Path("all").mkdir()
    for name, rows in (("train", 20), ("test", 10)):
        write([{"text": f"{name} {i}", "label": i % 2} for i in range(rows)], f"all/{name}.jsonl")
    text = look(Path("all"))
    assert "test 10 rows, train 20 rows" in text and "task.split=column" in text


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["a", "1"], "texts"), (["1", "2"], "whole numbers"), (["1", "2.5", ""], "numbers"),
        (["1 2", "3"], "whole numbers in a text"),
        (["0.5,1", "2"], "numbers in a text"), ([1, 2], "whole numbers"), ([1, 2.5, None], "numbers"),
        ([True], "true or false"), ([[1, 2]], "lists of whole numbers"), ([np.array([1.5])], "lists of numbers"),
        ([[[1]]], "lists of lists"), ([["a"]], "lists of texts"), ([b"a", b""], "texts"),
        ([b"a", b"\xff"], "bytes"), ([1, "a"], "a mix"), ([None, ""], "nothing"), ([{}], "dict"),
    ],
)  # fmt: skip
def test_kinds(cells, kind):
    assert kind_of(cells) == kind


@pytest.mark.parametrize(
    "path", ["a b", "it's", "a=b,c", "x\\'y", "end\\", "[a]", "1e5", "null", "a: b", "läuft", "$HOME"]
)
def test_arguments_are_read_back(path):
    config = compose(["experiment=files", as_argument("task.path", path), as_argument("task.label", [path, "b"]),
                      "task.target=labels"])  # fmt: skip
    assert config.task.path == path and config.task.label == [path, "b"]


def test_the_command(capsys):
    write([{"text": f"t {i}", "label": i % 2} for i in range(30)])
    assert cli.main(["data", "inspect", "data.jsonl"]) == 0
    assert "a guess at what to type" in capsys.readouterr().out
    assert cli.main(["data", "inspect", "data.jsonl", "max_length=3"]) == 0
    assert "task.path=data.jsonl task.max_length=3 trainer" in capsys.readouterr().out
    assert cli.main(["data", "inspect", "none.jsonl"]) == 1
    assert capsys.readouterr().err == "tsla: path (none.jsonl) does not exist\n"
    assert not tables.sources("none.jsonl")
