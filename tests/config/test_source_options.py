"""Options of where data come from, which go together or are refused."""

import pytest

from tsla.config import ConfigError, compose

PROBLEMS = {
    ("text", "source=lra"): "task.source=lra needs task.path: an aclImdb folder, or one that holds it",
    ("text", "path=x"): "task.path (x) needs task.source=lra, got offline",
    ("text", "source=hub", "path=x"): "task.path (x) needs task.source=lra, got hub",
    ("text", "hub_id=x"): "task.hub_id (x) needs task.source=hub, got offline",
    ("text", "source=web"): "task.source ('web') must be one of offline, lra, hub",
    ("text", "protocol=mega"): "task.protocol ('mega') must be one of default, lra, s4",
    ("text", "protocol=s4"): "task.protocol=s4 is of Long Range Arena's data, and task.source=offline has others",
    ("retrieval", "protocol=lra"): "task.source lra or hub, or task.protocol=default",
    ("pathfinder", "protocol=lra"): "task.protocol=lra is of Long Range Arena's data",
    ("pathx", "source=hub"): "task.source=hub needs task.hub_id: the data set",
    ("pathx", "source=hub", "hub_id=x", "seed=1"): "task.seed (1) needs task.source=offline: the split of task.",
    ("pathx", "source=hub", "hub_id=x", "protocol=s4"): "task.protocol=s4 needs task.kind=series",
    ("listops", "path=x"): "task.path (x) needs task.source=lra, got offline",
    ("listops", "source=lra"): "task.source=lra needs task.path: the unpacked release of Long Range Arena, or",
    ("listops", "source=lra", "path=x", "max_length=9999"): "task.max_length (9999) needs task.source=offline: it is",
    ("listops", "source=hub", "seed=1"): "task.seed (1) changes nothing for task.source=hub, whose rows are given",
    ("listops", "val_rows=1"): "task.val_rows is not an option of task=listops (did you mean 'eval_rows'?)",
    ("listops_short", "protocol=s4"): "task.source=offline and task.protocol=s4 need task=listops, got listops_short",
    ("listops_short", "source=hub"): "task.source=hub and task.protocol=default need task=listops, got listops_short",
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
        ["listops", "protocol=s4"],
        ["listops", "source=hub", "protocol=lra", "train_rows=5", "seed=1"],
        ["pathx", "source=hub", "hub_id=x", "kind=series", "protocol=s4"],
        ["image", "source=hub", "protocol=s4", "train_rows=5"],
    ],
)
def test_what_goes_together(options):
    task, *others = options
    assert compose([f"experiment={task}", *(f"task.{option}" for option in others)]).task.name == task
