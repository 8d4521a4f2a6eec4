"""Tasks of images: which rows are where, what a row is, and how far trivial rules get."""

import json
from pathlib import Path

import image_cases as cases
import numpy as np
import pytest
import torch

from tsla.tasks import images
from tsla.tasks.base import SPLITS, Task, TaskSpec
from tsla.tasks.cifar import CLASSES, Labelled, to_grey
from tsla.tasks.image_sources import FASHION_CLASSES
from tsla.tasks.images import Images, reference_lines, resized
from tsla.tasks.loading import Rows
from tsla.tasks.pixel_orders import pixel_order


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """Fashion-MNIST as if installed, and beside it the user's own files."""
    monkeypatch.chdir(tmp_path)
    cases.installed(monkeypatch, tmp_path)
    cases.write_idx(tmp_path / "idx")


def rows(task, split, column="input_ids"):
    data = task.split(split).with_format("numpy")[:]
    return np.stack(data[column]), data["label"]


def numbers(task, split):
    """Which images of the files a split holds, in its order."""
    part, seed = ("test", 1) if split == "test" else ("train", 0)
    whole = cases.pixels(cases.TEST if part == "test" else cases.TRAIN, 28, 28, seed=seed).reshape(-1, 784)
    places = {bytes(row): number for number, row in enumerate(whole)}
    return [places[bytes((row - 1).astype(np.uint8))] for row in rows(task, split)[0]]


def test_the_splits_share_out_the_images_once():
    task: Task = Images(name="smnist", path="idx")
    found = {split: numbers(task, split) for split in SPLITS}
    assert sorted(found["train"] + found["val"]) == list(range(100)) and sorted(found["test"]) == list(range(20))
    assert len(found["val"]) == 10 and found["train"] != sorted(found["train"])
    for split in SPLITS:
        assert rows(task, split)[1].tolist() == [number % 10 for number in found[split]]
    assert sorted(rows(task, "val")[1].tolist()) == list(range(10))  # stratified
    manifest = json.loads((task.folder / "manifest.json").read_text())
    assert manifest["rows"] == {"train": 90, "val": 10, "test": 20} and manifest["labels"]["test"] == [2] * 10
    assert manifest["length"]["max"] == 784 and manifest["task"] == "smnist" and manifest["seconds"] >= 0


def test_the_seed_draws_the_validation_and_nothing_else():
    first, other = Images(name="fashion"), Images(name="fashion", seed=1)
    assert set(numbers(first, "val")) != set(numbers(other, "val"))
    assert numbers(first, "test") == numbers(other, "test")
    assert numbers(first, "val") == numbers(Images(name="fashion", path="idx"), "val")


def test_few_rows_are_the_first_of_all_of_them():
    whole, few = Images(name="fashion"), Images(name="fashion", train_rows=30, eval_rows=7)
    for split, count in (("train", 30), ("val", 7), ("test", 7)):
        assert numbers(few, split) == numbers(whole, split)[:count]
    assert Images(name="fashion", train_rows=90, eval_rows=10).manifest["rows"] == {"train": 90, "val": 10, "test": 10}
    with pytest.raises(ValueError, match=r"^train_rows \(91\) must be at most 90, the rows of the train split$"):
        Images(name="fashion", train_rows=91).split("train")
    with pytest.raises(ValueError, match=r"^eval_rows \(11\) must be at most 10, the rows of the val split$"):
        Images(name="fashion", eval_rows=11).split("train")


@pytest.mark.parametrize("order", ["row", "snake", "hilbert", "permuted"])
@pytest.mark.parametrize(("name", "side"), [("fashion", 28), ("fashion", 14), ("image", 32)])
def test_rows_are_the_pixels_in_an_order(name, side, order):
    task = Images(name=name, side=side, order=order, order_seed=5)
    whole = resized(cases.pixels(cases.TEST, 28, 28, seed=1), side).reshape(cases.TEST, -1)
    expected = {bytes(row[pixel_order(order, side, 5)]) for row in whole}
    found, _ = rows(task, "test")
    assert found.min() >= 1 and {bytes((row - 1).astype(np.uint8)) for row in found} == expected
    assert task.spec.image == ((side, side) if order == "row" else ())


def test_sizes():
    picture = cases.pixels(1, 28, 28)
    assert np.array_equal(resized(picture, 28), picture)
    framed = resized(picture, 32)
    assert np.array_equal(framed[:, 2:30, 2:30], picture) and framed.sum() == picture.sum()
    small = np.array([[[0, 1, 255, 255], [0, 0, 255, 255], [1, 1, 9, 9], [0, 0, 9, 8]]], np.uint8)
    assert resized(small, 2).tolist() == [[[0, 255], [1, 9]]]  # means of 0.25, 255, 0.5 and 8.75


def test_specs_fit_the_rows():
    task = Images(name="fashion", side=14)
    assert task.spec == TaskSpec("fashion", "tokens", "class", 10, 196, 257, names=FASHION_CLASSES, image=(14, 14))
    for split in SPLITS:
        data = task.split(split)
        assert str(data.features["input_ids"].feature.dtype) == "uint16" and data.features["label"].dtype == "int64"
        loaded = Rows(data, task.spec)
        values = loaded.inputs[0].joined(range(len(loaded)))
        assert set(loaded.lengths) == {196} and values.min() >= 1 and values.max() <= 256
    assert Images(name="smnist", path="idx").spec.names == ()


def test_a_series_is_standardised_by_the_training_pixels():
    task = Images(name="fashion", kind="series", train_rows=50)
    train = rows(task, "train", "values")[0]
    assert train.dtype == np.float32 and np.array_equal(train + 1, rows(Images(name="fashion"), "train")[0][:50])
    assert task.spec.input_mean == pytest.approx((train.astype(float).mean(),))
    assert task.spec.input_std == pytest.approx((train.astype(float).std(),))
    assert (task.spec.inputs, task.spec.vocab_size, task.spec.channels) == ("series", None, 1)
    batch = Rows(task.split("train"), task.spec).__getitems__(list(range(50)))
    assert batch.inputs.shape == (50, 784, 1) and abs(batch.inputs.mean()) < 1e-5
    assert batch.inputs.std(correction=0) == pytest.approx(1, abs=1e-5)


def test_a_single_grey_can_be_standardised(tmp_path):
    for name, count in (("train", cases.TRAIN), ("t10k", cases.TEST)):
        blank = np.full((count, 28, 28), 7, np.uint8)
        (tmp_path / "idx" / f"{name}-images-idx3-ubyte.gz").write_bytes(cases.idx(blank))
    task = Images(name="fashion", path="idx", kind="series")
    assert (task.spec.input_mean, task.spec.input_std) == ((7.0,), (1.0,))


def test_names_tell_a_substitute():
    cases.write_cifar(Path("cifar"))
    cases.write_hub(Path("hub"))
    assert Images(name="image").spec.name == "image_fashion" and Images(name="image").spec.names == FASHION_CLASSES
    for real in (Images(name="image", source="lra", path="cifar"), Images(name="image", source="hub", hub_id="hub")):
        assert real.spec.name == "image" and real.spec.names == CLASSES and real.spec.image == (32, 32)
    assert Images(name="smnist", path="idx").spec.name == "smnist" and Images(name="smnist").spec.name == "smnist_5k"
    assert Images(name="image").folder.parent.name == "image_fashion"


@pytest.mark.parametrize("protocol", ["lra", "s4"])
def test_protocols_say_which_images_validate(protocol):
    cases.write_cifar(Path("cifar"))
    task = Images(name="image", source="lra", path="cifar", protocol=protocol)
    whole = np.concatenate([to_grey(cases.colours(batch)) for batch in range(5)]).reshape(100, -1)
    places = {bytes(row): number for number, row in enumerate(whole)}
    found = {s: [places[bytes((row - 1).astype(np.uint8))] for row in rows(task, s)[0]] for s in ("train", "val")}
    if protocol == "lra":
        assert sorted(found["val"]) == list(range(90, 100))
    else:
        drawn = torch.utils.data.random_split(range(100), (90, 10), generator=torch.Generator().manual_seed(42))
        assert [sorted(found["train"]), sorted(found["val"])] == [sorted(part.indices) for part in drawn]
    assert sorted(found["train"] + found["val"]) == list(range(100))
    series = Images(name="image", source="lra", path="cifar", protocol=protocol, kind="series").spec
    if protocol == "s4":
        assert (series.input_mean, series.input_std) == ((122.6,), (61.0,))
    else:
        assert series.input_mean == pytest.approx((whole[:90].mean(),))


def test_reference_lines_are_those_of_the_rules():
    """Six dark images and two bright ones, whose class is another; a test image between them is nearer the dark."""
    pixels = np.zeros((8, 2), np.uint8)
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    pixels[6:, 0] = 255
    test = Labelled(np.array([[0, 0], [255, 0], [250, 0], [120, 0]], np.uint8), np.array([0, 1, 1, 1]))
    lines = reference_lines(Labelled(pixels, labels), test)
    assert lines["majority"] == 0.25 and lines["linear"] == 0.75 and list(lines.values()) == sorted(lines.values())
    assert lines["3-NN"] == 0.75
    alone = Labelled(pixels[:2], labels[:2])
    assert reference_lines(alone, test) == {"majority": 0.25}


def test_reference_lines_learn_from_so_many_rows(monkeypatch):
    train = Labelled(np.array([[0], [0], [255], [255]], np.uint8), np.array([0, 1, 1, 1]))
    monkeypatch.setattr(images, "LINEAR_ROWS", 2)
    monkeypatch.setattr(images, "NEIGHBOUR_ROWS", 3)
    seen = {}
    for rule in (images.RidgeClassifier, images.KNeighborsClassifier):
        fit = rule.fit
        monkeypatch.setattr(
            rule, "fit", lambda s, x, y, f=fit: (seen.update({type(s).__name__: len(x)}), f(s, x, y))[1]
        )
    reference_lines(train, train)
    assert seen == {"RidgeClassifier": 2, "KNeighborsClassifier": 3}


def test_references_are_kept_with_the_rows():
    task = Images(name="fashion")
    lines = task.references()
    assert set(lines) == {"majority", "linear", "3-NN"} and lines["majority"] == 0.1
    assert lines == task.manifest["references"] == Images(name="fashion").references()


@pytest.mark.parametrize(
    "change",
    [{"side": 14}, {"kind": "series"}, {"order": "snake"}, {"order": "permuted"},
     {"order": "permuted", "order_seed": 1}, {"seed": 1}, {"train_rows": 5}, {"eval_rows": 5}, {"path": "idx"}],
)  # fmt: skip
def test_every_option_has_a_folder_of_its_own(change):
    assert Images(name="fashion", **change).folder != Images(name="fashion").folder


def test_a_new_version_is_built_anew(monkeypatch):
    before = Images(name="fashion").folder
    assert Images(name="fashion").folder == before
    monkeypatch.setattr(images, "VERSION", images.VERSION + 1)
    assert Images(name="fashion").folder != before


def test_nothing_is_read_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("tsla.tasks.image_sources.package_file", None)
    monkeypatch.setattr("tsla.tasks.image_sources.ROOT", Path("nowhere"))
    assert Images(name="fashion").spec.max_length == 784 and Images(name="image").spec.max_length == 1024
    assert Images(name="smnist", side=14).spec.vocab_size == 257
    assert not Path("data").exists()


WRONG = [
    ({"name": "cifar"}, "name ('cifar') must be one of image, fashion, smnist"),
    ({"kind": "bytes"}, "kind ('bytes') must be one of tokens, series"),
    ({"order": "column"}, "order ('column') must be one of row, snake, hilbert, permuted"),
    ({"side": 20}, "side (20) must be one of None, 28, 14"),
    ({"name": "image", "side": 28}, "side (28) must be one of None, 32"),
    ({"protocol": "mega"}, "protocol ('mega') must be one of default, lra, s4"),
    ({"protocol": "s4"}, "protocol ('s4') must be 'default' for all but the images of Long Range Arena"),
    ({"name": "image", "protocol": "lra"}, "protocol ('lra') must be 'default' for all but"),
    ({"source": "web"}, "source ('web') must be one of offline, lra, hub"),
    ({"source": "hub"}, "source ('hub') belongs to image"),
    ({"name": "image", "source": "lra"}, "path (None) must be given for source='lra'"),
    ({"name": "image", "path": "idx"}, "path (idx) must be given for source='lra', and for no other, got 'offline'"),
    ({"train_rows": 0}, "train_rows (0) must be at least 1, or None for all"),
    ({"eval_rows": -1}, "eval_rows (-1) must be at least 1"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_go_together_is_refused(change, message):
    with pytest.raises(ValueError) as caught:
        Images(**{"name": "fashion", **change})
    assert message in str(caught.value)


def test_a_folder_without_files_is_refused_before_any_work():
    with pytest.raises(FileNotFoundError, match=r"^path \(data\) must hold train-images-idx3-ubyte"):
        Images(name="smnist", path="data")
    with pytest.raises(FileNotFoundError, match=r"^path \(idx\) must hold data_batch_1\.bin"):
        Images(name="image", source="lra", path="idx")
    with pytest.raises(ValueError, match=r"^split \('dev'\) must be one of train, val, test$"):
        Images(name="fashion").split("dev")
