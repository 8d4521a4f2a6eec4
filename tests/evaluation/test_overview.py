"""All tasks in one table: which runs stand in it, what is averaged, and where a score is that of a trivial rule."""

import math

import pytest
import report_runs

from tsla.evaluation.figures import looks_of, plotting
from tsla.evaluation.overview import LRA, Overview, make_overview
from tsla.evaluation.overview_figure import _panels, draw_overview
from tsla.evaluation.plateau import plateau_of
from tsla.evaluation.runs import find_runs
from tsla.evaluation.tables import make_tables, notes_of

LISTOPS = {"majority": 0.171, "root operator": 0.365, "root + digits": 0.516, "root + digits + child operators": 0.616}


def overview(folder) -> Overview:
    return make_overview(make_tables(find_runs([folder])).tasks)


def cells(made: Overview) -> dict[str, list[str]]:
    return {row.label: made.cells(row) for row in made.rows}


def test_it_notes_only_what_it_shows(tmp_path):
    report_runs.write(tmp_path / "a", score=0.9)
    report_runs.write(tmp_path / "b", score=0.8, options={"optim.lr": 0.5}, changes={"steps": 7})
    report_runs.write(tmp_path / "c", mixer="softmax")
    report_runs.write(tmp_path / "d", task="text")
    table = make_tables(find_runs([tmp_path])).tasks[0]
    assert table.differing == ["optim.lr: 0.001 (softmax, taylor); 0.5 (taylor)", "steps made: 7 to 40"]
    assert overview(tmp_path).notes[1:] == ["Of several variants of taylor, the one best on validation."]


def test_of_variants_that_are_not_everywhere_the_best_on_validation_is_taken(tmp_path):
    report_runs.write(tmp_path / "a", score=0.8)
    lucky = {"metrics": {"test/accuracy": 0.95, "val/accuracy": 0.1}}
    report_runs.write(tmp_path / "b", options={"model.depth": 9}, changes=lucky)
    report_runs.write(tmp_path / "c", task="text", mixer="none")
    report_runs.write(tmp_path / "d", task="text")
    made = overview(tmp_path)
    assert made.columns == ["mixer", "digits (accuracy)", "text (accuracy)"]
    assert cells(made) == {"none": ["", "0.900"], "taylor": ["0.800", "0.900"]}
    assert [made.best(row) for row in made.rows] == [[False, True], [True, True]]


def variants(folder, tasks=("digits", "text")):
    """Three variants of taylor on each task, and a task where it has none."""
    decay = {"mixer.decay": "selective", "mixer.local_heads": 0, "mixer.local_window": 32}
    local = {"mixer.decay": "none", "mixer.local_heads": 4, "mixer.local_window": 16}
    plain = {"mixer.decay": "none", "mixer.local_heads": 0, "mixer.local_window": 32}
    for at, task in enumerate(tasks):
        for more, options in enumerate((plain, decay, local)):
            report_runs.write(folder / f"{task}{more}", task=task, score=(50 + 10 * at + more) / 100, options=options)
    report_runs.write(folder / "x", task="genes", mixer="none", score=math.nan)
    return folder


def test_variants_that_are_everywhere_have_rows_named_by_what_sets_them_apart(tmp_path):
    made = overview(variants(tmp_path))
    assert made.headings == ["digits (accuracy)", "genes (accuracy)", "text (accuracy)"]
    assert list(cells(made).items()) == [
        ("none", ["", "nan", ""]),
        ("taylor", ["0.500", "", "0.600"]),
        ("taylor, decay=selective", ["0.510", "", "0.610"]),
        ("taylor, local_heads=4, local_window=16", ["0.520", "", "0.620"]),
    ]
    assert made.notes == ["Test scores, mean ± standard deviation over seeds."]
    report_runs.write(tmp_path / "z", task="text", options={"mixer.decay": "fixed"})  # and now they are not
    made = overview(tmp_path)
    assert cells(made)["taylor"] == ["0.520", "", "0.900"] and len(made.rows) == 2


def test_variants_that_no_majority_sets_apart_have_their_whole_names(tmp_path):
    for task in ("digits", "text"):
        for depth in (1, 2):
            report_runs.write(tmp_path / f"{task}{depth}", task=task, options={"model.depth": depth})
    assert [*cells(overview(tmp_path))] == ["taylor, depth=1", "taylor, depth=2"]


def test_trivial_rules_stand_below_by_name(tmp_path):
    report_runs.write(tmp_path / "a")
    report_runs.write(tmp_path / "b", task="text", changes={"references": {"words": 0.25}})
    report_runs.write(tmp_path / "c", task="genes", changes={"references": {}})
    assert overview(tmp_path).rules == [
        ("lowest rule", ["0.100 majority", "", "0.250 words"]), ("best rule", ["0.950 linear", "", ""]),
    ]  # fmt: skip


# Averages of Long Range Arena -----------------------------------------------------------------------------------------


def lra(folder, mixer, pathx=None, **options):
    """Runs on its five tasks, 0.3 to 0.7, and one on Path-X."""
    for at, task in enumerate(LRA):
        told = {"task.source": "lra", **({"task.contour": 14} if task == "pathfinder" else {}), **options}
        report_runs.write(folder / mixer / task, task, mixer, score=(3 + at) / 10, options=told)
    if pathx is not None:
        report_runs.write(folder / mixer / "pathx", "pathx", mixer, score=pathx, options={"task.source": "lra"})


def test_averages_as_the_literature_has_them(tmp_path):
    lra(tmp_path, "none", 0.51)
    lra(tmp_path, "softmax")
    lra(tmp_path, "taylor", 0.8)
    (tmp_path / "taylor" / "text" / "result.json").unlink()
    lra(tmp_path, "window", 0.8)
    made = overview(tmp_path)
    assert made.columns[-2:] == ["avg5", "avg6"]
    assert {label: row[-2:] for label, row in cells(made).items()} == {
        "none": ["0.500", "0.500"],  # Path-X not learnt: 3.0 / 6
        "softmax": ["0.500", "0.500"],  # not tried
        "taylor": ["", ""],  # without text
        "window": ["0.500", "0.550"],  # 3.3 / 6
    }
    assert "avg5: the mean of listops, text, retrieval, image, pathfinder; avg6: with pathx" in " ".join(made.notes)
    assert [len(made.best(row)) for row in made.rows] == [8] * 4 and all(len(rule) == 8 for _, rule in made.rules)


@pytest.mark.parametrize(
    "options",
    [{"task.source": "offline"}, {"task.train_rows": 100}, {"task.eval_rows": 9}, {"task.supervision": "dense"},
     {"task.easier": ["20/100/5/9"]}, {"task.contour": 6}],
)  # fmt: skip
def test_no_average_of_other_data(tmp_path, options):
    lra(tmp_path, "taylor", 0.8, **options)
    assert overview(tmp_path).averages == [] and "avg5" not in " ".join(overview(tmp_path).notes)


# Plateaus -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("score", "rule"),
    [(0.369, "root operator"), (0.384, "root operator"), (0.386, None), (0.346, "root operator"), (0.45, None),
     (0.16, "majority"), (0.51, "root + digits"), (0.62, "root + digits + child operators"), (0.9, None)],
)  # fmt: skip
def test_the_plateau_that_a_score_is_on(score, rule):
    assert plateau_of(score, LISTOPS) == rule


def test_a_strong_rule_is_no_plateau():
    assert plateau_of(0.95, {"majority": 0.1, "linear": 0.95}) is None
    assert plateau_of(0.5, {}) is None and plateau_of(math.nan, LISTOPS) is None


def test_a_table_tells_who_is_on_a_plateau(tmp_path):
    for mixer, score in (("taylor", 0.5), ("softmax", 0.37), ("linear", 0.42)):
        report_runs.write(tmp_path / mixer, "listops", mixer, score=score, changes={"references": LISTOPS})
    (table,) = make_tables(find_runs([tmp_path])).tasks
    (note,) = (note for note in notes_of(table) if "plateau" in note)
    assert note == ("On the plateau of a trivial rule, within 0.02: taylor (root + digits), softmax (root operator).")


# The figure -----------------------------------------------------------------------------------------------------------


def test_the_figure_has_a_panel_for_each_task_and_a_point_for_each_score(tmp_path):
    tables = make_tables(find_runs([variants(tmp_path / "runs", ("digits", "text", "image", "a", "b"))])).tasks
    made = make_overview(tables)
    with plotting():
        figure = _panels(made, tables, looks_of(tables))
    assert len(figure.axes) == 6
    for place, (axis, table) in enumerate(zip(figure.axes, tables, strict=True)):
        points = [(x[0], y[0]) for x, y in (line.get_data() for line in axis.lines) if len(x) == 1]
        shown = [group for row in made.rows if (group := row.groups[place]) and not math.isnan(group.score.mean)]
        assert sorted(x for x, _ in points) == sorted(group.score.mean for group in shown)
        assert axis.texts[0].get_text() == made.headings[place]
        assert axis.texts[1].get_text() == "majority 0.100 · linear 0.950"
        low, high = axis.get_xlim()
        assert all(low < x < high for x, _ in points) and table.task in made.headings[place]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row.label for row in made.rows]
    drawn = draw_overview(made, tables, looks_of(tables), tmp_path)
    assert drawn.png == tmp_path / "overview.png" and drawn.png.stat().st_size > 5000 and drawn.svg.exists()


def test_no_title_runs_into_the_next_panel(tmp_path):
    names = ("a_task_with_a_name_longer_than_its_panel", "pathfinder_6_generated", "text")  # and genes
    tables = make_tables(find_runs([variants(tmp_path / "runs", names)])).tasks
    with plotting():
        figure = _panels(make_overview(tables), tables, looks_of(tables))
        figure.canvas.draw()
        edges = [axis.get_window_extent().x0 for axis in figure.axes[1:4]] + [figure.bbox.x1]
        titles = [axis.texts[0].get_window_extent() for axis in figure.axes]
    assert [title.x1 < edge for title, edge in zip(titles, edges, strict=True)] == [True] * 4
    sizes = [axis.texts[0].get_fontsize() for axis in figure.axes]
    assert max(sizes) == 9.5 and 7 <= min(sizes) < 8
