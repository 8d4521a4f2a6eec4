"""The folder of a run: never overwritten, written whole, and what it says of machine and code."""

import json
import re
from pathlib import Path

import pytest

import tsla
from tsla.training.run_dir import RunDir, is_finished, new_run_dir, peak_memory_bytes, provenance, write_json


def test_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = new_run_dir(None, "digits"), new_run_dir(None, "digits")
    assert a != b and a.path.is_dir() and b.path.is_dir()
    assert re.fullmatch(r"runs/digits/\d{8}-\d{6}-[0-9a-f]{4}", str(a.path))


@pytest.mark.parametrize("name", ["a", "deep/er/still", "mit Leerzeichen", "läuft-日本", "[/b]", "a'b"])
def test_a_folder_with_a_name(tmp_path, name):
    run = new_run_dir(str(tmp_path / name), "digits")
    assert run == RunDir(tmp_path / name) and run.path.is_dir()
    assert new_run_dir(str(tmp_path / name), "digits") == run  # empty: nothing to lose


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / ".hidden").write_text("x")
    for name in ("file", "folder"):
        with pytest.raises(
            FileExistsError, match=rf"run_dir \(.*{name}\) exists: give another, or go on with it by res"
        ):
            new_run_dir(str(tmp_path / name), "digits")
    with pytest.raises(OSError, match="Not a directory"):
        new_run_dir(str(tmp_path / "file" / "below"), "digits")


def test_paths(tmp_path):
    run = RunDir(tmp_path)
    names = {name: getattr(run, name).name for name in ("config", "metrics", "result", "checkpoints", "model", "log")}
    assert names == {
        "config": "config.yaml", "metrics": "metrics.csv", "result": "result.json", "checkpoints": "checkpoints",
        "model": "model", "log": "log.txt",
    }  # fmt: skip


def test_json_is_whole_or_absent(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": [1, 2.5, None]})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}
    with pytest.raises(TypeError):
        write_json(path, {"a": 1, "b": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2.5, None]}


def test_provenance():
    facts = provenance()
    assert facts["versions"]["tsla"] == tsla.__version__ and facts["versions"].keys() >= {
        "python",
        "torch",
        "lightning",
    }
    assert facts["host"]["cores"] >= 1 and facts["host"]["system"] and facts["host"]["processor"]
    inside = (Path(tsla.__file__).resolve().parents[1] / ".git").exists()
    assert (facts["git_sha"] is not None) == inside
    assert not inside or re.fullmatch(r"[0-9a-f]{40}\+?", facts["git_sha"])
    json.dumps(facts)


def test_memory_is_in_bytes():
    assert 100e6 < peak_memory_bytes() < 100e9


def test_what_json_has_not_is_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": -float("inf")}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [1.5, None], "c": {"d": None}}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_run_is_finished_once_its_result_is_whole(tmp_path):
    assert not is_finished(tmp_path)
    for text in ("", "{", "[]", '{"a": 1'):
        (tmp_path / "result.json").write_text(text)
        assert not is_finished(tmp_path)
    write_json(tmp_path / "result.json", {"a": 1})
    assert is_finished(tmp_path)


def test_a_folder_of_a_run_that_never_trained_may_be_used_again(tmp_path):
    run = new_run_dir(str(tmp_path / "a"), "digits")
    for name in ("config.yaml", "log.txt", ".lock"):
        (run.path / name).touch()
    assert new_run_dir(str(tmp_path / "a"), "digits") == run
    run.metrics.touch()
    with pytest.raises(FileExistsError):
        new_run_dir(str(tmp_path / "a"), "digits")
