"""Options of where data come from, which go together or are refused."""

import pytest

from tsla.config import ConfigError, compose

PROBLEMS = {
    ("text", "source=lra"): "task.path must be given for task.source=lra",
    ("text", "path=x"): "task.path (x) needs task.source=lra, got offline",
    ("text", "source=hub", "path=x"): "task.path (x) needs task.source=lra, got hub",
    ("text", "hub_id=x"): "task.hub_id (x) needs task.source=hub, got offline",
    ("text", "source=web"): "task.source ('web') must be one of offline, lra, hub",
    ("text", "protocol=s4"): "task.protocol ('s4') must be one of default, lra",
    ("text", "train_rows=0"): "task.train_rows (0) must be at least 1",
    ("retrieval", "source=lra", "path=x", "hub_revision=y"): "task.hub_revision (y) needs task.source=hub, got lra",
    ("retrieval", "source=lra", "path=x", "seed=1"): "task.seed (1) changes nothing for task.source=lra",
    ("r8", "source=hub"): "task.source is not an option",
}  # fmt: skip


@pytest.mark.parametrize("options", PROBLEMS, ids=" ".join)
def test_problems_are_told(options):
    task, *others = options
    with pytest.raises(ConfigError) as caught:
        compose([f"experiment={task}", *(f"task.{option}" for option in others)])
    (problem,) = caught.value.problems
    assert PROBLEMS[options] in problem


@pytest.mark.parametrize(
    "options",
    [
        ["text", "source=lra", "path='a b'", "seed=1"],
        ["text", "source=hub", "hub_id=x", "hub_revision=y"],
        ["retrieval", "source=lra", "path=x", "seed=1", "eval_rows=5"],
        ["retrieval", "seed=1"],
    ],
)
def test_what_goes_together(options):
    task, *others = options
    assert compose([f"experiment={task}", *(f"task.{option}" for option in others)]).task.name == task
