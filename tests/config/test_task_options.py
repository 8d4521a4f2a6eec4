"""Options of the tasks of recall, series and DNA that do not go together."""

import pytest

from tsla.config import ConfigError, compose

PROBLEMS = {
    ("induction", "train=[256-9]"): "task.train ('256-9') must have the form length/rows, such as 256/1000",
    (
        "induction",
        "train=[2/10]",
    ): "task.train ('2/10') must have the form length/rows, such as 256/1000, the length at",
    ("induction", "val=[16/4/10]"): "task.val ('16/4/10') must have the form length/rows",
    ("induction", "test=[]"): "task.test ([]) must name at least one segment: length/rows",
    ("induction", "vocab_size=3"): "task.vocab_size (3) must be at least 4",
    ("selective_copy", "train=[256/8]"): "task.train ('256/8') must have the form length/data/rows, such as 256/8/1000",
    ("selective_copy", "val=[4/5/10]"): "task.val ('4/5/10') must have the form length/data/rows",
    ("selective_copy", "test=[4/0/10]"): "task.test ('4/0/10') must have the form",
    ("selective_copy", "vocab_size=65536"): "task.vocab_size (65536) must be at most 65535",
    ("series", "dataset=gunpoint"): "task.dataset ('gunpoint') must be one of ACSF1",
    ("series", "path=x", "dataset=GunPoint"): "task.dataset (GunPoint) is of the package: leave it out where task.path",
    ("series", "train_rows=0"): "task.train_rows (0) must be at least 1",
    ("dna_strand", "length=600"): "task.min_gene (600) must be at least task.length + 6 (606)",
    ("dna_strand", "val_fraction=0.5", "test_fraction=0.5"): "must leave regions to train: their sum must be below 1",
}


@pytest.mark.parametrize("options", PROBLEMS, ids=" ".join)
def test_problems_are_told(options):
    experiment, *others = options
    with pytest.raises(ConfigError) as caught:
        compose([f"experiment={experiment}", *(f"task.{option}" for option in others)])
    (problem,) = caught.value.problems
    assert PROBLEMS[options] in problem


@pytest.mark.parametrize("experiment", ["induction", "selective_copy"])
def test_scored_tokens_are_not_pooled(experiment):
    with pytest.raises(ConfigError, match=f"model.pool=attention changes nothing for task={experiment}"):
        compose([f"experiment={experiment}", "model.pool=attention"])


def test_what_goes_together():
    assert compose(["experiment=series", "task.path=x"]).task.path == "x"
    assert compose(["experiment=dna_strand", "task.length=594"]).task.length == 594
    assert compose(["experiment=selective_copy", "task.train=[8/8/10]", "model.causal=false"]).task.train == ["8/8/10"]
