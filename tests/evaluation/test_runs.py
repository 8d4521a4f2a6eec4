"""Reading run directories: found, checked, cleaned; what is damaged is named."""

import json
import math

import pytest
import report_runs

from tsla.evaluation.runs import clean, find_runs


def test_a_run_is_read(tmp_path):
    (run,) = find_runs([report_runs.with_confusion(report_runs.write(tmp_path / "a", options={"model.depth": 4}))])
    assert run.path == tmp_path / "a"
    assert run.config["model.depth"] == "4" and run.config["model.causal"] == "false"
    assert run.config["mixer.impl"] == "null" and run.config["model.layers"] == "[]"
    assert run.result["metrics"]["test/accuracy"] == 0.9 and run.result["params"] == 12345
    assert run.metrics["val/accuracy"].steps == [10, 20, 30, 40]
    assert run.metrics["train/loss"].values[0] == pytest.approx(2.3 - (1 - math.exp(-10 / 15)))
    assert run.confusion.labels == ["a", "b", "c"] and run.confusion.counts[0] == [9, 1, 0]


def test_runs_are_found_below_a_folder_once_and_not_inside_each_other(tmp_path):
    for name in ("suite/x/a", "suite/b", "c"):
        report_runs.write(tmp_path / name)
    report_runs.write(tmp_path / "suite/b/wandb/inner")
    (tmp_path / "suite/other").mkdir()
    (tmp_path / "suite/other/config.yaml").write_text("wandb_version: 1\n")  # of another tool
    found = find_runs([tmp_path / "suite", tmp_path / "suite/b", tmp_path / "c"])
    assert [str(run.path.relative_to(tmp_path)) for run in found] == ["suite/b", "suite/x/a", "c"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("")])
def test_no_run_at_all(tmp_path, make):
    make(tmp_path / "nothing")
    with pytest.raises(ValueError, match="nothing holds no run"):
        find_runs([report_runs.write(tmp_path / "a"), tmp_path / "nothing"])


def test_a_folder_of_another_tool_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("wandb_version: 1\n")
    with pytest.raises(ValueError, match=r"config\.yaml is not the config of a run"):
        find_runs([tmp_path])


def test_an_unfinished_run(tmp_path):
    (run,) = find_runs([report_runs.write(tmp_path / "a", finished=False)])
    assert run.result is None and run.metrics["val/loss"].steps[-1] == 40
    (tmp_path / "a/metrics.csv").unlink()
    assert find_runs([tmp_path / "a"])[0].metrics == {}


@pytest.mark.parametrize("torn", ["50,0,1", "50,0,1.5,2,3,x", "5x", "50"])
def test_a_last_row_cut_short_is_left_out(tmp_path, torn):
    path = report_runs.write(tmp_path / "a") / "metrics.csv"
    path.write_text(path.read_text() + torn)
    assert find_runs([tmp_path])[0].metrics["val/accuracy"].steps == [10, 20, 30, 40]


def test_infinite_values_are_gaps(tmp_path):
    path = report_runs.write(tmp_path / "a") / "metrics.csv"
    path.write_text(path.read_text() + "50,0,inf,nan,1e300,0.5\n")
    metrics = find_runs([tmp_path])[0].metrics
    assert math.isnan(metrics["train/loss"].values[-1]) and math.isnan(metrics["val/loss"].values[-1])
    assert metrics["val/accuracy"].values[-1] == 0.5


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("metrics.csv", "step,epoch,a\n1,0,x\n2,0,1\n", "line 2 does not fit"),
        ("metrics.csv", "step,epoch,a\n1,0\n2,0,1\n", "line 2 does not fit"),
        ("metrics.csv", "step,epoch,a\n-1,0,1\n2,0,1\n", "line 2 does not fit"),
        ("metrics.csv", "a,b\n1,2\n", "no column step"),
        ("metrics.csv", b"\xff\xfe\x00", "not UTF-8"),
        ("config.yaml", "a: [", "not YAML"),
        ("config.yaml", "[1, 2]", "must hold a mapping"),
        ("config.yaml", b"\xff\xfe\x00", "not UTF-8"),
        ("confusion.csv", "x,a,b\na,1,2\n", "square table"),
        ("confusion.csv", "x,a,b\na,1,2\nb,1,many\n", "square table"),
        ("confusion.csv", "x,a,b\na,1,2\nb,1,-4\n", "square table"),
        ("confusion.csv", "", "square table"),
        ("result.json", "", "not JSON"),
        ("result.json", "{", "not JSON"),
        ("result.json", "[" * 100_000, "not JSON"),
        ("result.json", '{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("result.json", "[]", "must hold a mapping"),
        ("result.json", "{}", "task is missing"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_line(tmp_path, name, content, what):
    path = report_runs.write(tmp_path / "a") / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=what) as caught:
        find_runs([tmp_path / "a"])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("task", 5, "task must be a text"),
        ("task", "\n", "task must be a text"),
        ("command", None, "command must be a text"),
        ("params", "many", "params must be a whole number"),
        ("params", True, "params must be a whole number"),
        ("params", 1.5, "params must be a whole number"),
        ("params", -1, "params must be at most"),
        ("seconds", 1e300, "seconds must be at most"),
        ("params", 10**400, "damaged"),
        ("metrics", {}, "test/accuracy is missing"),
        ("metrics", {"test/accuracy": 0.5}, "val/accuracy is missing"),
        ("metrics", {"test/accuracy": "0.5", "val/accuracy": 1}, "metrics test/accuracy must be a number"),
        ("metrics", [], "metrics must be a mapping"),
        ("references", {"a\nb": "x"}, "references a b must be a number"),
        ("slices", {"length": {}}, "slice length must be a list"),
        ("slices", {"length": [5]}, "damaged"),
        ("slices", {"length": [{"value": "a", "items": 1}]}, "score is missing"),
        ("versions", None, "versions must be a mapping"),
        ("git_sha", 5, "git_sha must be a text"),
        ("slice_score", 5, "slice_score must be a text"),
    ],
)
def test_a_result_of_wrong_parts_is_named_in_one_line(tmp_path, key, value, what):
    report_runs.write(tmp_path / "a", changes={key: value})
    with pytest.raises(ValueError, match=what) as caught:
        find_runs([tmp_path])
    assert str(tmp_path / "a/result.json") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", sorted(set(report_runs.result("t", "m", 0, 0.5, "f1")) - {"experiment", "flops_per_token"})
)
def test_a_result_without_a_part(tmp_path, key):
    path = report_runs.write(tmp_path / "a") / "result.json"
    data = json.loads(path.read_text())
    del data[key]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"{key} is missing"):
        find_runs([tmp_path])


def test_the_name_of_the_score_of_slices_may_be_absent(tmp_path):
    report_runs.write(tmp_path / "a", monitor="f1")
    report_runs.write(tmp_path / "b", monitor="f1", changes={"slice_score": "label\n accuracy"})
    assert [run.result["slice_score"] for run in find_runs([tmp_path])] == ["f1", "label  accuracy"]


def test_infinite_scores_are_nan(tmp_path):
    report_runs.write(tmp_path / "a", changes={"seconds": math.inf, "references": {"x": math.nan}})
    (run,) = find_runs([tmp_path])
    assert math.isnan(run.result["seconds"]) and math.isnan(run.result["references"]["x"])


def test_large_confusion_matrices_are_not_read(tmp_path):
    names = "".join(map(chr, range(65, 65 + 21)))
    report_runs.with_confusion(report_runs.write(tmp_path / "a"), names[:20])
    report_runs.with_confusion(report_runs.write(tmp_path / "b"), names)
    small, large = find_runs([tmp_path])
    assert len(small.confusion.labels) == 20 and large.confusion is None


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a b", "a b"), ("a\nb\tc", "a b c"), ("\x1b[31mred\x00", "[31mred"), ("a\u202eb\u200bc", "abc"),
        ("\ud800", ""),        ("ä–λ", "ä–λ"), ("x" * 80, "x" * 80), ("x" * 81, "x" * 79 + "…"), ("a\u2028b", "a b"),
    ],
)  # fmt: skip
def test_cleaning(text, cleaned):
    assert clean(text) == cleaned


def test_names_are_cleaned_as_they_are_read(tmp_path):
    nasty = report_runs.NASTY
    changes = {key: nasty for key in ("task", "mixer", "command")} | {"references": {nasty: 0.5}}
    report_runs.write(tmp_path / "a", changes=changes, options={"model.kind": nasty})
    (run,) = find_runs([tmp_path])
    texts = [
        *run.result["references"],
        *(run.result[key] for key in ("task", "mixer", "command")),
        *run.config.values(),
    ]
    assert all(text.isprintable() for text in texts)
