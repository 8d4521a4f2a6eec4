"""Options of your own data that do not go together."""

import pytest

from tsla.config import ConfigError, compose

PROBLEMS = {
    (): "task.path must be given: a CSV",
    ("path=a", "label=[]"): "task.label () must name one column",
    ("path=a", "label=[b,b]"): "task.label (b, b) must name one column, or several different ones",
    ("path=a", "label=[b,c]"): "task.label (b, c) must be one column for task.target=class",
    ("path=a", "label=[text]"): "task.input (text) must not be in task.label (text)",
    ("path=a", "slices=[b,b]"): "task.slices (b, b) must be different columns",
    ("path=a", "slices=[label]"): "none called input_ids, values, label or length",
    ("path=a", "val_fraction=0.5", "test_fraction=0.5"): "their sum must be below 1",
    ("path=a", "split=file"): "task.split=file needs task.val_path, task.test_path or both",
    ("path=a", "test_path=b"): "task.test_path (b) needs task.split=file, got fraction",
    ("path=a", "split=column", "val_path=b"): "task.val_path (b) needs task.split=file, got column",
    ("path=a", "split_column=b"): "task.split_column (b) needs task.split=column, got fraction",
    ("path=a", "split=colum"): "task.split ('colum') must be one of fraction, column, file (did you mean 'column'?)",
    ("path=a", "kind=text"): "task.kind ('text') must be one of bytes, tokens, series",
    ("path=a", "val_fraction=0"): "task.val_fraction (0.0) must be above 0",
    ("path=a", "max_length=0"): "task.max_length (0) must be at least 1",
}


@pytest.mark.parametrize("options", PROBLEMS, ids=" ".join)
def test_problems_are_told(options):
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=files", *(f"task.{option}" for option in options)])
    (problem,) = caught.value.problems
    assert PROBLEMS[options] in problem


@pytest.mark.parametrize(
    "options",
    [
        ["label=[b,c]", "target=labels"],
        ["split=file", "val_path=b"],
        ["split=column", "split_column=b"],
        ["slices=[b]"],
    ],
)
def test_what_goes_together(options):
    config = compose(["experiment=files", "task.path='some where/a.csv'", *(f"task.{option}" for option in options)])
    assert config.task.path == "some where/a.csv" and config.model.pool == "attention"
