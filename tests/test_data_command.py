"""`tsla data`: every task is listed, made ready, counted anew, and damage is seen."""

import json
from pathlib import Path

import pytest
import yaml

from tsla import cli
from tsla.config.compose import config_root, group_choices
from tsla.tasks.cache import NotBuilt, cached, only_built
from tsla.tasks.facts import FACTS

SMALL = ("train_rows=60", "eval_rows=10", "data_dir=data")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def told(capsys, *arguments, status=0):
    assert cli.main(["data", *arguments]) == status
    return capsys.readouterr().out


def test_every_task_has_its_facts(capsys):
    assert set(FACTS) == set(group_choices("task"))
    listed = told(capsys, "list")
    readme = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    for name, facts in FACTS.items():
        assert any(line.startswith(f"{name} ") and facts.source in line for line in listed.splitlines()), name
        assert f"`{name}`" in readme
    assert not list(Path().iterdir())  # nothing is built for a list


def test_sizes_are_those_of_the_options():
    for name in ("listops", "listops_medium", "listops_short"):
        given = yaml.safe_load((config_root() / "task" / f"{name}.yaml").read_text())
        least, most = given.get("min_length", 500) + 1, given.get("max_length", 2000) - 1
        assert FACTS[name].size == f"{given.get('train_rows', 96_000):,} x {least:,}-{most:,}"


def test_a_task_is_prepared_counted_and_scored(capsys):
    text = told(capsys, "prepare", "listops_short", *SMALL)
    assert text.startswith("listops_short  train 60  val 10  test 10 rows, ready in ")
    assert f"  in {Path('data/listops_short')}" in text and "majority" in text
    (folder,) = Path("data/listops_short").glob("*/")
    written = json.loads((folder / "manifest.json").read_text())
    assert told(capsys, "baselines", "listops_short", *SMALL).split()[:2] == [
        "majority", f"{written['references']['majority']:.3f}",
    ]  # fmt: skip
    counted = told(capsys, "verify", "listops_short", *SMALL)
    assert "\nlistops_short: as it was built\n" in counted and str(written["labels"]) in counted
    (folder / "manifest.json").write_text(json.dumps(written | {"rows": {"train": 61, "val": 10, "test": 10}}))
    changed = told(capsys, "verify", "listops_short", *SMALL, status=1)
    assert "the build wrote {'train': 61, 'val': 10, 'test': 10}" in changed
    assert "\nlistops_short: differs from its manifest\n" in changed


def test_the_list_shows_references_of_what_is_prepared(capsys):
    assert "majority 0.1" in next(line for line in told(capsys, "list").splitlines() if line.startswith("digits "))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "data takes: list | prepare TASK | verify TASK | baselines TASK, "),
        (("prepare",), "data takes: "),
        (("prepare", "listop"), "there is no task 'listop' (did you mean 'listops'?): `tsla data list` shows all"),
        (("verify", "digits", "sed=1"), "these options do not work:"),
    ],
)
def test_other_commands_are_told_what_there_is(capsys, arguments, message):
    assert cli.main(["data", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"tsla: {message}")


def test_nothing_is_built_where_nothing_is_to_be(tmp_path):
    with only_built(), pytest.raises(NotBuilt):
        cached(tmp_path, "task", {"a": 1}, lambda folder: None)
    assert not list(tmp_path.iterdir())
    folder = cached(tmp_path, "task", {"a": 1}, lambda folder: None)
    with only_built():
        assert cached(tmp_path, "task", {"a": 1}, lambda folder: None) == folder
