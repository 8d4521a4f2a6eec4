"""Statistics of generated rows: those of ours are what they should be, and each kind of harm shows in its own line."""

import numpy as np
import pytest
from listops_cases import task as short_task
from native_cases import needs_compiler

from tsla import cli
from tsla.tasks import listops_statistics, pathfinder_statistics
from tsla.tasks.expected import Statistic, exactly, near, widened
from tsla.tasks.listops_grammar import CLOSER, DIGIT, OPENER, Grammar, shard
from tsla.tasks.pathfinder import Pathfinder
from tsla.tasks.pathfinder_generator import Generator
from tsla.tasks.pathfinder_statistics import find_markers
from tsla.tasks.store import save_split

LRA = Grammar(500, 2000, 10, 10)


def off(found):
    return {one.name for one in found if not one.right}


def test_ranges():
    assert near("a", 1.4, 1, 0.5).right and not near("a", 1.6, 1, 0.5).right and not near("a", 0.4, 1, 0.5).right
    assert exactly("a", 3, 3).right and not exactly("a", 3.001, 3).right
    assert near("a", 1, 1, 0.5) == Statistic("a", 1.0, 0.5, 1.5)
    assert not near("a", float("nan"), 1, 0.5).right
    assert widened(5000, 5000) == widened(9000, 5000) == 1 and widened(1250, 5000) == 2


# --- ListOps ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lra():
    """Some hundreds of rows of Long Range Arena's length."""
    rows = []
    for index in range(12):
        rows += shard(LRA, 0, index)
    return rows


def told(rows, acceptance=0.083):
    return off(listops_statistics.statistics(rows, LRA, acceptance))


def test_rows_of_listops_are_as_they_should_be(lra):
    assert len(lra) > 800 and told(lra) == set()
    assert len(listops_statistics.statistics(lra, LRA, 0.083)) > len(listops_statistics.statistics(lra, LRA, None)) > 60


def swapped(rows, old, new):
    return [(tokens.replace(bytes([old]), bytes([new])), label) for tokens, label in rows]


def relabelled(rows):
    tokens, label = rows[7]
    return [*rows[:7], (tokens, (label + 1) % 10), *rows[8:]]


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (relabelled, {"rows whose label is not their value"}),
        (lambda rows: [(tokens, 5) for tokens, _ in rows], {"share of label 5", "label 0 of roots [MIN"}),
        (lambda rows: swapped(rows, OPENER, OPENER + 1), {"share of roots [MIN", "share of tokens [MAX"}),
        (lambda rows: swapped(rows, DIGIT, DIGIT + 1), {"share of tokens 0", "share of tokens 1"}),
        (lambda rows: [row for row in rows if len(row[0]) < 900], {"mean length", "length, 50 %"}),
        (lambda rows: [(tokens[:-1], label) for tokens, label in rows], {"rows whose label is not their value"}),
        (lambda rows: [*rows, (bytes([OPENER, DIGIT, CLOSER]), 0)], {"shortest row"}),
        (lambda rows: [row for row in rows if row[0][0] == OPENER + 3], {"share of roots [SM"}),
        (lambda rows: [row for index in range(40) for row in shard(Grammar(500, 2000, 10, 8), 0, index)],
         {"share of operators with 9 arguments", "mean number of arguments"}),
        (lambda rows: [row for index in range(12) for row in shard(Grammar(500, 2000, 9, 10), 0, index)],
         {"share of rows with a digit at depth 10"}),
    ],
)  # fmt: skip
def test_harm_to_listops_shows(lra, harm, names):
    assert names <= told(harm(lra))


def test_acceptance_is_known_for_three_lengths(lra):
    assert told(lra, acceptance=0.09) == {"share of trees kept"}
    known = [s.name for s in listops_statistics.statistics(lra, Grammar(100, 3000, 10, 10), 0.5)]
    assert "share of trees kept" not in known and "mean length" not in known


def test_verify_tells_what_is_off(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["data", "verify", "listops_short", "train_rows=300", "eval_rows=20"]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "rows whose label is not their value              0  expected 0\n" in text and "OFF" not in text
    source = short_task(tmp_path)
    (folder,) = (path.parent for path in (tmp_path / "data" / "listops_short").glob("*/manifest.json"))
    rows = source.split("train")
    ids = [np.array(row, np.uint8) for row in rows["input_ids"]]
    labels = np.array(rows["label"][:])
    save_split(folder, "train", [{"input_ids": ids, "label": np.roll(labels, 1)}])  # each occurs as often as before
    assert cli.main(arguments) == 1
    text = capsys.readouterr().out
    assert "listops_short: as it was built" in text and text.count("OFF") == 1
    assert text.endswith("listops_short: 1 of 9 statistics are off\n")


# --- Pathfinder -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return Generator(32, 14, (2,)).make(0, 300, 2)


def seen(pixels, labels, contour=14, tries=330.0):
    return off(pathfinder_statistics.statistics(pixels, labels.astype(np.int64), contour, tries))


@needs_compiler
def test_images_are_as_they_should_be(images):
    assert seen(images.pixels, images.labels) == set()


@needs_compiler
@pytest.mark.parametrize("contour", [6, 9])
def test_shorter_snakes_are_known_too(images, contour):
    made = Generator(32, contour, (2,)).make(0, 300, 2)
    assert seen(made.pixels, made.labels, contour, float(made.tries.mean())) == set()
    assert "mean grey, 0 to 1" in seen(images.pixels, images.labels, contour)


@needs_compiler
@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (lambda x: np.ascontiguousarray(x[:, :, ::-1]), {"light up and left of markers in the middle"}),
        (lambda x: np.ascontiguousarray(x[:, ::-1]), {"light up and left of markers in the middle"}),
        (lambda x: 255 - x, {"share of pixels that are 0", "mean grey, 0 to 1"}),
        (lambda x: x // 2, {"share of images whose lightest pixel is 255", "median grey of a marker's middle"}),
        (lambda x: np.maximum(x, 1), {"share of images whose darkest pixel is 0", "pixels above 0 of an image"}),
        (lambda x: np.roll(x, 4, 2), {"mean grey of ring 1 from the edge"}),
        (lambda x: np.where(x > 64, 255, 0).astype(np.uint8), {"sd of greys", "share of pixels above 0.9"}),
    ],
)
def test_harm_to_images_shows(images, harm, names):
    assert names <= seen(harm(images.pixels), images.labels)


@needs_compiler
def test_labels_that_the_distance_gives_away(images):
    first, last = images.markers.swapaxes(0, 1)
    far = np.linalg.norm(first - last, axis=1) > 12.9
    assert {"difference of these distances"} <= seen(images.pixels, far)
    assert {"share of label 1"} <= seen(images.pixels, np.ones(300))
    assert seen(images.pixels, images.labels, tries=39.0) == {"snakes begun for an image"}


@needs_compiler
@pytest.mark.parametrize(("size", "count", "least"), [(32, 300, 0.99), (64, 10, 1), (128, 10, 1)])
def test_markers_are_found(size, count, least):
    images = Generator(size, 14, (5,)).make(0, count, 2)
    found = [sorted(map(tuple, pair)) for pair in find_markers(images.pixels).tolist()]
    told = [sorted(map(tuple, pair)) for pair in images.markers.tolist()]
    assert np.mean([a == b for a, b in zip(found, told, strict=True)]) >= least


@needs_compiler
@pytest.mark.parametrize("kind", ["tokens", "series"])
def test_the_task_tells_of_its_training_rows(tmp_path, kind):
    task = Pathfinder(name="pathfinder", contour=6, train_rows=60, eval_rows=10, kind=kind, cache_dir=tmp_path)
    found = task.statistics()
    pixels = np.array(task.split("train")["values" if kind == "series" else "input_ids"]) - (kind == "tokens")
    light = next(one.found for one in found if one.name == "mean grey, 0 to 1")
    assert light == pytest.approx(pixels.mean() / 255) and not off(found)


@needs_compiler
def test_a_limit_of_the_distance_is_a_reference(tmp_path, monkeypatch):
    task = Pathfinder(name="pathfinder", contour=6, train_rows=300, eval_rows=200, cache_dir=tmp_path / "a")
    assert 0.4 < task.references()["marker distance"] < 0.62
    make = Generator.make

    def near_ones(self, *arguments):
        images = make(self, *arguments)
        apart = np.linalg.norm(images.markers[:, 0] - images.markers[:, 1], axis=1)
        return images._replace(labels=(apart < 12).astype(np.uint8))

    monkeypatch.setattr(Generator, "make", near_ones)
    task = Pathfinder(name="pathfinder", contour=6, train_rows=300, eval_rows=200, cache_dir=tmp_path / "b")
    assert task.references()["marker distance"] > 0.97
