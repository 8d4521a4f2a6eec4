"""Grouping: what is one row, how it is called, in what order rows stand."""

import json
import math
from itertools import pairwise

import pytest
import report_runs

from tsla.evaluation.figures import _apart, _file_names, _short, looks_of
from tsla.evaluation.overview import make_overview
from tsla.evaluation.runs import find_runs, numbered
from tsla.evaluation.tables import columns_of, make_tables, notes_of, rows_of


def tables(path):
    return make_tables(find_runs([path]))


def test_seeds_of_one_config_are_one_row(tmp_path):
    for seed, score in enumerate([0.8, 0.9, 0.7]):
        options = {"data_dir": str(seed), "logger.name": f"l{seed}", "experiment": f"e{seed}"}
        report_runs.write(tmp_path / str(seed), seed=seed, score=score, options=options)
    (table,) = tables(tmp_path).tasks
    (group,) = table.groups
    assert group.seeds == [0, 1, 2] and group.variant == ""
    assert group.score.mean == pytest.approx(0.8) and group.score.std == pytest.approx(0.1)
    assert str(group.score) == "0.800 ± 0.100"
    assert group.val == pytest.approx(0.79)
    assert group.tokens_per_second == 1001.0 and group.minutes == pytest.approx(61 / 60)
    assert group.peak_memory_bytes == 102 * 2**20
    assert group.commands == [f"tsla train experiment=digits seed={seed}" for seed in range(3)]


def test_a_single_seed_has_no_spread(tmp_path):
    report_runs.write(tmp_path / "a")
    (group,) = tables(tmp_path).tasks[0].groups
    assert group.score.std is None and str(group.score) == "0.900"


def test_a_seed_run_twice_is_told(tmp_path):
    for name in "ab":
        report_runs.write(tmp_path / name, seed=4)
    table = tables(tmp_path).tasks[0]
    assert table.groups[0].seeds == [4]
    assert dict(zip(columns_of(table), rows_of(table)[1][0], strict=True))["seeds"] == "1 (2 runs)"


def test_a_variant_tells_what_differs_within_its_task_and_mixer_alone(tmp_path):
    report_runs.write(tmp_path / "a", options={"model.depth": 4, "optim.lr": 0.1})
    report_runs.write(tmp_path / "b", options={"optim.lr": 0.1})
    report_runs.write(tmp_path / "c", mixer="softmax", options={"model.depth": 9})
    report_runs.write(tmp_path / "d", task="text", options={"task.seed": 7, "model.new": True})
    digits, text = tables(tmp_path).tasks
    assert {(group.mixer, group.variant) for group in digits.groups} == {
        ("taylor", "model.depth=4"), ("taylor", "model.depth=2"), ("softmax", "model.depth=9"),
    }  # fmt: skip
    assert [group.variant for group in text.groups] == [""]
    assert "variant" in columns_of(digits) and "variant" not in columns_of(text)


def test_an_option_that_one_config_lacks(tmp_path):
    report_runs.write(tmp_path / "a", options={"model.new": "x"})
    report_runs.write(tmp_path / "b")
    assert {group.variant for group in tables(tmp_path).tasks[0].groups} == {"model.new=x", "model.new=absent"}


def test_a_run_from_before_an_option_had_its_default(tmp_path):
    """One config is of a version without some options: it is a seed of the same row, and stands in the same table."""
    newer = {"model.name": "encoder", "model.conv_residual": False, "task.packing": False}
    report_runs.write(tmp_path / "a", seed=1, options={"model.name": "encoder"})
    report_runs.write(tmp_path / "b", seed=2, options=newer)
    report_runs.write(tmp_path / "c", seed=3, options=newer | {"model.conv_residual": True})
    (table,) = tables(tmp_path).tasks
    assert sorted((group.variant, group.seeds) for group in table.groups) == [
        ("model.conv_residual=false", [1, 2]), ("model.conv_residual=true", [3]),
    ]  # fmt: skip


def test_a_run_from_before_there_was_pretraining_had_none(tmp_path):
    for name, options in (("a", {}), ("b", {"pretrain.name": "none"}), ("c", {"pretrain.name": "masked"})):
        report_runs.write(tmp_path / name, seed=ord(name), options=options)
    groups = {group.variant.split()[-1]: len(group.runs) for group in tables(tmp_path).tasks[0].groups}
    assert groups == {"pretrain.name=none": 2, "pretrain.name=masked": 1}


def test_what_differs_between_mixers_beside_themselves_is_noted(tmp_path):
    report_runs.write(tmp_path / "a", options={"optim.lr": 0.1, "mixer.heads": 3})
    report_runs.write(tmp_path / "b", mixer="softmax")
    (table,) = tables(tmp_path).tasks
    assert table.differing == ["optim.lr: 0.001 (softmax); 0.1 (taylor)"]
    assert any("optim.lr: 0.001 (softmax); 0.1 (taylor)" in note for note in notes_of(table))


def test_rows_fall_by_score_with_the_references_among_them_and_nan_last(tmp_path):
    for mixer, score in (("taylor", 0.5), ("softmax", 0.97), ("none", math.nan), ("window", 0.6)):
        report_runs.write(tmp_path / mixer, mixer=mixer, score=score)
    (table,) = tables(tmp_path).tasks
    assert [cells[0] for cells, _ in rows_of(table)] == [
        "softmax", "linear (reference)", "window", "taylor", "majority (reference)", "none",
    ]  # fmt: skip
    assert {len(cells) for cells, _ in rows_of(table)} == {len(columns_of(table))}
    assert table.best.mixer == "softmax"


def test_tasks_and_monitors_stand_apart(tmp_path):
    report_runs.write(tmp_path / "a", task="text")
    report_runs.write(tmp_path / "b", task="genes", monitor="f1")
    report_runs.write(tmp_path / "c", task="ett", monitor="r2", score=-0.5)
    report_runs.write(tmp_path / "d", task="text", monitor="f1")
    made = tables(tmp_path).tasks
    assert [(table.task, table.monitor) for table in made] == [
        ("ett", "r2"), ("genes", "f1"), ("text", "accuracy"), ("text", "f1"),
    ]  # fmt: skip
    assert [columns_of(table)[2] for table in made] == ["test r2", "test f1", "test accuracy", "test f1"]
    assert [table.title for table in made] == ["ett", "genes", "text (accuracy)", "text (f1)"]
    assert make_overview(made).headings == ["ett (r2)", "genes (f1)", "text (accuracy)", "text (f1)"]


def files(path, data="m.csv", label="stars", monitor="r2", mixer="taylor", **options):
    """A run of the task files; `options` are those of the task."""
    told = {"path": data, "label": [label] if label else None, **options}
    told = {f"task.{key}": value for key, value in told.items()}
    return report_runs.write(path, "files", mixer, monitor=monitor, options=told)


def test_data_sets_of_one_task_have_a_table_each(tmp_path):
    files(tmp_path / "a", "reviews/", "label", "accuracy", target="class")
    files(tmp_path / "b", target="numbers")
    files(tmp_path / "c", "series.jsonl", "", "accuracy", target="class")
    files(tmp_path / "d", target="numbers", mixer="softmax", seed=3, max_length=9, slices=["year"])
    report_runs.write(tmp_path / "e")
    made = tables(tmp_path).tasks
    assert [table.title for table in made] == [
        "digits", "files: reviews, label label (accuracy)", "files: series.jsonl, no label (accuracy)",
        "files: m.csv, label stars (r2)",
    ]  # fmt: skip
    assert [len(table.groups) for table in made] == [1, 1, 1, 2]
    assert {group.variant for group in made[3].groups} == {""}
    assert make_overview(made).headings == ["digits (accuracy)", *(table.title for table in made[1:])]
    assert any("task.label=[stars] task.path=m.csv task.target=numbers" in note for note in notes_of(made[3]))
    assert _file_names(made)[3] == "files-m-csv-label-stars-r2"


def test_a_title_tells_only_what_is_needed(tmp_path):
    files(tmp_path / "a", "/x/one/m.csv", target="numbers", val_fraction=0.1)
    files(tmp_path / "b", "/x/two/m.csv", target="numbers", val_fraction=0.2)
    assert [table.title for table in tables(tmp_path).tasks] == ["files: one/m.csv (r2)", "files: two/m.csv (r2)"]
    files(tmp_path / "c", "/x/two/m.csv", target="numbers", val_fraction=0.3)
    assert tables(tmp_path).tasks[2].title == "files: two/m.csv, val_fraction 0.3 (r2)"


def test_long_options_that_differ_in_their_end_alone_are_different_data(tmp_path):
    for name in "ab":
        files(tmp_path / name, f"/{'x' * 100}/{name}.csv")
    assert [table.title for table in tables(tmp_path).tasks] == ["files: a.csv (r2)", "files: b.csv (r2)"]


def test_titles_that_look_the_same_are_numbered(tmp_path):
    for at, path in enumerate(["data", "data/"]):
        files(tmp_path / str(at), path)
    made = tables(tmp_path).tasks
    assert [table.title for table in made] == ["files: data (r2)", "files: data (r2) (2)"]
    assert _file_names(made) == ["files-data-r2", "files-data-r2-2"]


@pytest.mark.parametrize(
    ("texts", "longest", "out"),
    [
        (["a", "b"], 5, ["a", "b"]), (["a", "a", "a"], 5, ["a", "a (2)", "a (3)"]),
        (["abcdefghij", "abcdefghik"], 8, ["abcdefg…", "abc… (2)"]), (["a", "a (2)", "a"], 5, ["a", "a (2)", "a (3)"]),
    ],
)  # fmt: skip
def test_texts_that_look_the_same_are_numbered(texts, longest, out):
    assert numbered(texts, longest) == out


def test_the_heading_of_slices_is_what_their_score_is(tmp_path):
    report_runs.write(tmp_path / "a", task="ett", monitor="r2", changes={"slice_score": "mean absolute error"})
    report_runs.write(tmp_path / "b", task="genes", monitor="f1", changes={"slice_score": "label accuracy"})
    report_runs.write(tmp_path / "c", task="old", monitor="r2")
    assert [table.slices[0].heading for table in tables(tmp_path).tasks] == [
        "test mean absolute error", "test label accuracy", "test r2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "order"),
    [
        (["72", "100"], ["70", "-9", "72"], ["-9", "70", "72", "100"]),
        (["64-127", "8-15"], ["16-31", "0"], ["0", "8-15", "16-31", "64-127"]),
        (["0.5", "1e2"], [".25"], [".25", "0.5", "1e2"]),
        (["b", "10"], ["a", "9"], ["10", "9", "a", "b"]),
    ],
)
def test_slice_rows_are_in_order_over_all_groups(tmp_path, first, second, order):
    for name, values in (("a", first), ("b", second)):
        parts = [{"value": value, "items": 3, "score": 0.5} for value in values]
        report_runs.write(tmp_path / name, mixer=name, changes={"slices": {"x": parts}})
    (part,) = tables(tmp_path).tasks[0].slices
    assert part.values == order and part.items == ["3"] * len(order)
    assert [[bool(cell) for cell in row] for row in part.cells] == [
        [value in first, value in second] for value in order
    ]


def test_items_that_differ_between_runs_are_a_range(tmp_path):
    for name, items in (("a", [1200, 5]), ("b", [7, 5]), ("c", [30, 5])):
        parts = [{"value": value, "items": count, "score": 0.5} for value, count in zip("xy", items, strict=True)]
        report_runs.write(tmp_path / name, mixer=name, changes={"slices": {"x": parts}})
    assert tables(tmp_path).tasks[0].slices[0].items == ["7-1,200", "5"]


def test_a_variant_is_told_by_all_rows_of_a_table_with_the_same_keys(tmp_path):
    report_runs.write(tmp_path / "a", options={"trainer.max_steps": 400, "mixer.head_dim": 4, "mixer.heads": 3})
    report_runs.write(tmp_path / "b", options={"trainer.max_steps": 60, "mixer.head_dim": 8, "mixer.heads": 3})
    report_runs.write(tmp_path / "c", mixer="none", options={"trainer.max_steps": 60})
    (table,) = tables(tmp_path).tasks
    assert {(group.mixer, group.variant, group.label) for group in table.groups} == {
        ("taylor", "mixer.head_dim=4 trainer.max_steps=400", "taylor, head_dim=4, max_steps=400"),
        ("taylor", "mixer.head_dim=8 trainer.max_steps=60", "taylor, head_dim=8, max_steps=60"),
        ("none", "trainer.max_steps=60", "none, max_steps=60"),
    }  # fmt: skip


def test_labels_keep_the_group_of_an_option_where_its_name_alone_says_too_little(tmp_path):
    report_runs.write(tmp_path / "a", options={"mixer.dim": 4, "model.dim": 8, "optim.name": "x", "task.seed": 1})
    report_runs.write(tmp_path / "b", options={"mixer.dim": 5, "model.dim": 9, "optim.name": "y", "task.seed": 2})
    first, _ = tables(tmp_path).tasks[0].groups
    assert first.label == "taylor, mixer.dim=4, model.dim=8, optim.name=x, task.seed=1"


def test_unequal_work_is_noted_by_the_table_and_the_overview(tmp_path):
    report_runs.write(tmp_path / "a", options={"trainer.max_steps": 400}, changes={"steps": 400})
    report_runs.write(tmp_path / "b", mixer="softmax", options={"trainer.max_steps": 60}, changes={"steps": 60})
    report_runs.write(tmp_path / "c", task="text", options={"mixer.heads": 5})
    report_runs.write(tmp_path / "d", task="text", mixer="softmax")
    made = tables(tmp_path).tasks
    told = "trainer.max_steps: 60 (softmax); 400 (taylor) | steps made: 60 to 400"
    assert [told in " ".join(notes_of(table)) for table in made] == [True, False]
    assert not any("Unequal" in note for note in notes_of(made[1]))
    assert make_overview(made).notes[1:] == [
        f"Unequal runs: on digits (accuracy) mixers differ in more than themselves. {told}."
    ]


def test_slices_are_means_over_seeds_and_of_one_value_left_out(tmp_path):
    report_runs.write(tmp_path / "a", score=0.9)
    report_runs.write(tmp_path / "b", score=0.7, seed=1)
    report_runs.write(tmp_path / "c", mixer="none", score=0.2, changes={"slices": {}})
    (part,) = tables(tmp_path).tasks[0].slices
    assert part.name == "length" and part.values == ["a", "b"] and part.items == ["5", "5"]
    assert part.cells == [["0.800", ""], ["0.700", ""]]


def test_the_confusion_matrix_is_that_of_the_best_on_validation_over_its_seeds(tmp_path):
    for seed in (0, 1):
        report_runs.with_confusion(report_runs.write(tmp_path / f"a{seed}", seed=seed))
    changes = {"metrics": {"test/accuracy": 0.99, "val/accuracy": 0.3}}
    report_runs.with_confusion(report_runs.write(tmp_path / "b", mixer="none", changes=changes), "xyz")
    (table,) = tables(tmp_path).tasks
    assert table.best.mixer == "taylor" and table.groups[0].mixer == "none"
    assert table.confusion.labels == ["a", "b", "c"] and table.confusion.counts[0] == [18, 2, 0]


def test_setups_are_told_apart(tmp_path):
    report_runs.write(tmp_path / "a")
    assert len(notes_of(tables(tmp_path).tasks[0])) == 3
    report_runs.write(tmp_path / "b", seed=1, changes={"host": {**report_runs.HOST, "gpu": "H100"}, "git_sha": None})
    notes = notes_of(tables(tmp_path).tasks[0])
    assert any("do not compare" in note for note in notes)
    assert any("8a9068e3c8+, unknown" in note and "H100" in note for note in notes)


def test_an_unfinished_run_tells_how_far_it_is(tmp_path):
    report_runs.write(tmp_path / "a b", finished=False, seed=3, steps=20)
    (tmp_path / "a b" / "metrics.csv").write_text("step,epoch,val/loss,val/f1\n10,0,1,0.5\n20,0,1,0.625\n")
    report_runs.write(tmp_path / "c", finished=False)
    (tmp_path / "c" / "metrics.csv").unlink()
    made = tables(tmp_path)
    first, second = made.unfinished
    assert (first.step, first.of_steps, first.seed, first.val) == (20, "40", "3", "val/f1 0.625")
    assert first.command == f"tsla train 'resume={tmp_path}/a b'"
    assert (second.step, second.val) == (0, "none yet")
    assert made.tasks == [] and made.summary == "0 finished runs, 0 tasks, 0 mixers; 2 without a result"


def test_looks_are_the_same_over_tasks_and_differ_between_mixers(tmp_path):
    mixers = ["taylor", "softmax", "none", "window", *(f"m{at}" for at in range(8))]
    for mixer in mixers:
        report_runs.write(tmp_path / mixer, mixer=mixer)
    report_runs.write(tmp_path / "x", task="text", mixer="m3")
    looks = looks_of(tables(tmp_path).tasks)
    assert len(looks) == 12 and len({look.color for look in looks.values()}) == 12
    assert looks["taylor", ""].color == "#d55e00"


def test_variants_differ_in_look(tmp_path):
    for depth in range(12):
        report_runs.write(tmp_path / f"a{depth}", options={"model.depth": depth})
    alone = looks_of(tables(tmp_path).tasks)
    report_runs.write(tmp_path / "b", mixer="none")
    beside = looks_of(tables(tmp_path).tasks)
    for looks in (alone, beside):
        own = [look for (mixer, _), look in looks.items() if mixer == "taylor"]
        assert len({(look.color, str(look.dashes)) for look in own}) == len({look.color for look in own}) == 12
    assert [variant for mixer, variant in beside if mixer == "taylor"][:3] == [f"model.depth={at}" for at in range(3)]


@pytest.mark.parametrize("values", [[], [0.5], [0.9, 0.5, 0.1], [0.5, 0.5, 0.49], [0.9, 0.52, 0.51, 0.5, 0.49, 0.1]])
def test_labels_are_moved_apart_and_no_more(values):
    places = _apart(values, 0.1)
    assert all(above - below > 0.0999 for above, below in pairwise(places))
    if all(above - below >= 0.1 for above, below in pairwise(values)):
        assert places == pytest.approx(values)
    assert sum(places) == pytest.approx(sum(values))


@pytest.mark.parametrize(
    ("value", "text"), [(0.25, "0.25"), (800, "800"), (9999, "9999"), (12000, "12k"), (1.5e6, "1.5M"), (2e9, "2G")]
)
def test_short_numbers(value, text):
    assert _short(value) == text


def test_tasks_whose_names_look_alike_have_different_files(tmp_path):
    for at, task in enumerate(["a b", "a-b", "a_b", "A-B-2", "../", "語"]):
        report_runs.write(tmp_path / str(at), task=task)
    names = _file_names(tables(tmp_path).tasks)
    assert len(set(names)) == 6 and all(name.replace("-", "").isalnum() and name.isascii() for name in names)


def test_students_of_other_teachers_or_other_ways_are_no_seeds_of_each_other(tmp_path):
    """And none of them is a run that was trained from the start."""
    for name, asked in {"a": {"lora": 0}, "b": {"lora": 8}, "c": {"lora": 8}, "d": None}.items():
        run = report_runs.write(tmp_path / name, mixer="hedgehog", seed=int(name == "c"))
        if asked is not None:
            told = {"teacher": "t", "mixer": ["mixer=hedgehog"], "seed": int(name == "c"), "out": name, **asked}
            (run / "distill.yaml").write_text(json.dumps(told))
    (table,) = make_tables(find_runs([tmp_path])).tasks
    found = {group.variant: [run.path.name for run in group.runs] for group in table.groups}
    assert found == {
        "distill.lora=0 distill.teacher=t": ["a"], "distill.lora=8 distill.teacher=t": ["b", "c"],
        "distill.lora=absent distill.teacher=absent": ["d"],
    }  # fmt: skip
