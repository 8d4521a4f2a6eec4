"""The task: generated rows, rows of a user's own folder in every form it has, and what is refused."""

import json
import shutil
import struct
import zlib

import numpy as np
import pytest
import torch
from native_cases import needs_compiler
from pathfinder_cases import write, write_hub
from PIL import Image

from tsla.compiler import NativeError
from tsla.tasks import pathfinder_files
from tsla.tasks.base import Task
from tsla.tasks.packages import Unavailable
from tsla.tasks.pathfinder import Pathfinder

SMALL = {"name": "pathfinder", "contour": 6, "train_rows": 30, "eval_rows": 10}
INNER = "curv_contour_length_14"


def rows(task, name, column="input_ids"):
    return np.array(task.split(name)[column])


# Generated ------------------------------------------------------------------------------------------------------------


@needs_compiler
def test_generated_rows(tmp_path):
    task: Task = Pathfinder(**SMALL, cache_dir=tmp_path)
    spec = task.spec
    assert spec.name == "pathfinder_6_generated" and spec.image == (32, 32)
    assert (spec.inputs, spec.target, spec.outputs, spec.vocab_size, spec.max_length) == (
        "tokens",
        "class",
        2,
        257,
        1024,
    )
    assert [len(task.split(name)) for name in ("train", "val", "test")] == [30, 10, 10]
    for name in ("train", "val", "test"):
        ids = rows(task, name)
        assert ids.shape[1] == 1024 and ids.min() == 1 and (ids.max(1) == 256).all()
        assert set(rows(task, name, "label")) <= {0, 1}
    everything = np.concatenate([rows(task, name) for name in ("train", "val", "test")])
    assert len({row.tobytes() for row in everything}) == 50
    lines = task.references()
    assert set(lines) == {"majority", "linear", "marker distance"} and list(lines.values()) == sorted(lines.values())
    commonest = np.bincount(rows(task, "train", "label")).argmax()
    assert lines["majority"] == np.mean(rows(task, "test", "label") == commonest)


@needs_compiler
def test_fewer_rows_are_the_first_ones(tmp_path, monkeypatch):
    many = Pathfinder(**SMALL, cache_dir=tmp_path, workers=1)
    monkeypatch.setattr("tsla.tasks.pathfinder.PART", 7 * 1024)
    few = Pathfinder(**SMALL | {"train_rows": 20, "eval_rows": 4}, cache_dir=tmp_path, workers=3)
    for name, count in (("train", 20), ("val", 4), ("test", 4)):
        assert np.array_equal(rows(few, name), rows(many, name)[:count])
    other = Pathfinder(**SMALL | {"seed": 1}, cache_dir=tmp_path)
    assert not np.array_equal(rows(other, "train"), rows(many, "train"))


@needs_compiler
def test_easier_rows_are_trained_on_and_nothing_else_changes(tmp_path, monkeypatch):
    plain = Pathfinder(**SMALL, cache_dir=tmp_path)
    eased = Pathfinder(**SMALL, easier=["3/0/20", "6/9/5"], cache_dir=tmp_path, workers=3)
    assert plain.folder != eased.folder and plain.spec == eased.spec
    assert plain.references() == eased.references()
    assert plain.manifest["tries_per_image"] == eased.manifest["tries_per_image"]
    assert eased.manifest["rows"]["train"] == plain.manifest["rows"]["train"] + 25
    for split in ("val", "test"):
        assert eased.split(split).to_list() == plain.split(split).to_list()
    trained = eased.split("train").to_list()
    assert [row.pop("stage") for row in trained] == [3] * 30 + [1] * 20 + [2] * 5
    assert trained[:30] == plain.split("train").to_list()
    own, easy, harder = ((rows(eased, "train")[part] > 1).sum(1) for part in (slice(30), slice(30, 50), slice(50, 55)))
    assert own.mean() > harder.mean() > easy.mean() and easy.max() < own.min()  # pixels that are not black
    assert [(one.name, one.found) for one in plain.statistics()] == [
        (one.name, one.found) for one in eased.statistics()
    ]


@needs_compiler
def test_a_series_has_the_same_pixels(tmp_path):
    tokens, series = (Pathfinder(**SMALL, kind=kind, cache_dir=tmp_path) for kind in ("tokens", "series"))
    values = rows(series, "train", "values")
    assert values.dtype == np.int64 and np.array_equal(values, rows(tokens, "train") - 1)
    assert str(series.split("train").features["values"].feature.dtype) == "uint8"
    assert (series.spec.channels, series.spec.vocab_size) == (1, None)
    assert series.spec.input_mean[0] == pytest.approx(values.mean())
    assert series.spec.input_std[0] == pytest.approx(values.std())


def test_without_a_compiler(tmp_path, no_native):
    task = Pathfinder(**SMALL, cache_dir=tmp_path)
    with pytest.raises(NativeError, match=r"there is none: TSLA_NATIVE=0 .*compiler.*task\.source=lra task\.path="):
        task.split("train")
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "pathy"}, "name ('pathy') must be one of pathfinder, pathfinder_64, pathx"),
        ({"name": "pathx"}, "contour (6) must be 14 for 128 x 128 pixels"),
        ({"kind": "bytes"}, "kind ('bytes') must be one of tokens, series"),
        ({"source": "web"}, "source ('web') must be one of offline, lra, hub"),
        ({"source": "hub"}, "hub_id (None) must be given for source=hub, and for no other"),
        ({"hub_id": "x"}, "hub_id (x) must be given for source=hub, and for no other"),
        ({"seed": 1, "source": "hub", "hub_id": "x"}, "seed (1) must be 0 for source=hub, whose split is fixed"),
        ({"protocol": "lra"}, "protocol ('lra') must be 'default' for source=offline, whose data are others"),
        ({"protocol": "s4", "source": "lra", "path": "x"}, "protocol ('s4') needs kind=series: of tokens it is the"),
        ({"protocol": "mega"}, "protocol ('mega') must be one of default, lra, s4"),
        ({"source": "lra"}, "path (None) must be given for source=lra"),
        ({"path": "x"}, "path (x) must be given for source=lra, and for no other: source is offline"),
        ({"seed": -1}, "seed (-1) must be at least 0"),
        ({"seed": 1, "source": "lra", "path": "x"}, "seed (1) must be 0 for source=lra, whose split is fixed"),
        ({"train_rows": 0}, "train_rows (0) must be from 1 to 160000"),
        ({"eval_rows": 20_001}, "eval_rows (20001) must be from 1 to 20000"),
        ({"workers": 0}, "workers (0) must be at least 1"),
        ({"easier": ["3/0"]}, "easier ('3/0') must have the form contour/clutter/rows, such as 3/0/20000"),
        ({"easier": ["3/0/0"]}, "easier ('3/0/0') must have the form contour/clutter/rows"),
        ({"easier": ["3/-1/9"]}, "easier ('3/-1/9') must have the form contour/clutter/rows"),
        ({"easier": ["6/0/9", "2/0/9"]}, "contour (2) must be from 3 to 14"),
        ({"easier": ["3/21/9"]}, "clutter (21) must be from 0 to 20 for 32 x 32 pixels"),
    ],
)
def test_what_cannot_be_asked(change, message):
    with pytest.raises(ValueError) as caught:
        Pathfinder(**{**SMALL, **change})
    assert message in str(caught.value)
    with pytest.raises(ValueError, match="split"):
        Pathfinder(**SMALL | {"train_rows": 1, "eval_rows": 1}).split("dev")


# A user's own ---------------------------------------------------------------------------------------------------------


def own(path, cache, **options):
    return Pathfinder(**{"name": "pathfinder", "source": "lra", "path": path, "cache_dir": cache, **options})


@pytest.mark.parametrize(
    "layout",
    [
        f"lra_release/lra_release/pathfinder32/{INNER}", f"lra_release/pathfinder32/{INNER}",
        f"pathfinder/pathfinder32/{INNER}", f"pathfinder32/{INNER}", INNER, "",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("binary", "end"), [(False, "\n"), (False, "\r\n"), (True, "")])
def test_every_layout_and_both_kinds_of_metadata(tmp_path, layout, binary, end):
    images, labels = write(tmp_path / "own" / layout, binary=binary, end=end)
    task = own(tmp_path / "own", tmp_path / "cache")
    parts = torch.utils.data.random_split(range(33), [27, 3, 3], generator=torch.Generator().manual_seed(42))
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        assert np.array_equal(rows(task, name) - 1, images[list(part)].reshape(len(part), -1))
        assert np.array_equal(rows(task, name, "label"), labels[list(part)])
    assert task.spec.name == "pathfinder_own" and task.manifest["images"] == 33


def test_the_published_order_and_scale(tmp_path):
    images, labels = write(tmp_path / "own")
    flat = images.reshape(33, -1)
    plain, drawn, scaled = (
        own(tmp_path / "own", tmp_path / "cache", protocol=protocol, kind="series")
        for protocol in ("lra", "default", "s4")
    )
    for name, chosen in (("train", slice(27)), ("val", slice(27, 30)), ("test", slice(30, 33))):
        assert np.array_equal(rows(plain, name, "values"), flat[chosen])
        assert np.array_equal(rows(plain, name, "label"), labels[chosen])
        assert np.array_equal(rows(scaled, name, "values"), rows(drawn, name, "values"))
    assert not np.array_equal(rows(drawn, "test", "values"), flat[30:])
    assert (scaled.spec.input_mean, scaled.spec.input_std) == ((0.0,), (255.0,))
    assert plain.spec.input_mean[0] == pytest.approx(flat[:27].mean())
    assert drawn.spec.input_mean[0] == pytest.approx(rows(drawn, "train", "values").mean())


# Of the Hub -----------------------------------------------------------------------------------------------------------


def test_images_of_the_hub(tmp_path):
    images = write_hub(tmp_path / "hub")
    for protocol, order in (
        ("lra", np.arange(33)),
        ("default", np.concatenate([*pathfinder_files.split_rows(33).values()])),
    ):
        task = Pathfinder(name="pathfinder", source="hub", hub_id=str(tmp_path / "hub"), protocol=protocol,
                          cache_dir=tmp_path / "cache")  # fmt: skip
        found = np.concatenate([rows(task, name) for name in ("train", "val", "test")])
        assert np.array_equal(found - 1, images.reshape(33, -1)[order])
        assert rows(task, "train", "label").tolist() == [int(images[at, 0, 0]) % 2 for at in order[:27]]
        assert task.spec.name == "pathfinder_own" and not (task.folder / "fetched").exists()


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"rows": 9}, "9 images are too few to split; at least 10 are needed"),
        ({"size": 16}, "must have 32 x 32 pixels, got 16 x 16"),
        ({"image": "picture"}, "must have images in the column image and classes in label; it has picture, label"),
    ],
)
def test_other_data_of_the_hub_are_refused(tmp_path, form, message):
    write_hub(tmp_path / "hub", **form)
    with pytest.raises(ValueError) as caught:
        Pathfinder(name="pathfinder", source="hub", hub_id=str(tmp_path / "hub"), cache_dir=tmp_path).split("train")
    assert message in str(caught.value)


def test_a_hub_that_cannot_be_reached_says_what_else_there_is(tmp_path, monkeypatch):
    def refuse(name, *, revision, cache_dir):
        assert (name, revision) == ("some/images", "main")
        raise ConnectionError("no name\nand more")

    monkeypatch.setattr(pathfinder_files, "load_dataset", refuse)
    task = Pathfinder(name="pathx", source="hub", hub_id="some/images", hub_revision="main", cache_dir=tmp_path)
    with pytest.raises(Unavailable, match=r"not give some/images \(no name\)\. .*source=lra path.*source=offline"):
        task.references()


def test_of_two_copies_the_inner_one(tmp_path):
    write(tmp_path / "lra_release" / "pathfinder32" / INNER, per_batch=(10,))
    write(tmp_path / "lra_release" / "lra_release" / "pathfinder32" / INNER)
    for path in (tmp_path, tmp_path / "lra_release"):
        assert own(path, tmp_path / "cache").manifest["images"] == 33


def test_the_release_has_its_plain_name(tmp_path, monkeypatch):
    write(tmp_path / "own")
    monkeypatch.setattr("tsla.tasks.pathfinder.ALL", {"train": 27, "val": 3, "test": 3})
    assert own(tmp_path / "own", tmp_path / "cache").spec.name == "pathfinder"


@needs_compiler
def test_easier_rows_may_go_before_ones_own(tmp_path):
    write(tmp_path / "own")
    task = own(tmp_path / "own", tmp_path / "cache", easier=["3/0/4"])
    trained, plain = task.split("train"), own(tmp_path / "own", tmp_path / "cache").split("train")
    assert trained["stage"] == [2] * len(plain) + [1] * 4 and trained["input_ids"][: len(plain)] == plain["input_ids"]
    assert [one.found for one in task.statistics()]


def test_rows_of_ones_own(tmp_path):
    write(tmp_path / "own", size=128)
    everything = own(tmp_path / "own", tmp_path / "cache", name="pathx")
    few = own(tmp_path / "own", tmp_path / "cache", name="pathx", train_rows=5, eval_rows=2)
    assert everything.spec.image == (128, 128) and everything.spec.name == "pathx_own"
    assert np.array_equal(rows(few, "train"), rows(everything, "train")[:5])
    assert np.array_equal(rows(few, "test"), rows(everything, "test")[:2])
    with pytest.raises(ValueError, match=r"eval_rows \(4\) must be at most the rows of the val split, 3"):
        own(tmp_path / "own", tmp_path / "cache", name="pathx", eval_rows=4).split("train")


def test_an_empty_image_is_left_out(tmp_path):
    images, _ = write(tmp_path / "own")
    (tmp_path / "own" / "imgs" / "2" / "sample_3.png").write_bytes(b"")
    task = own(tmp_path / "own", tmp_path / "cache")
    assert (task.manifest["images"], task.manifest["empty"]) == (33, 1)
    found = {row.tobytes() for name in ("train", "val", "test") for row in rows(task, name).astype(np.uint8) - 1}
    assert found == {image.tobytes() for number, image in enumerate(images) if number != 12 + 3}


def test_what_changed_is_read_again(tmp_path):
    write(tmp_path / "own")
    first = own(tmp_path / "own", tmp_path / "cache").folder
    assert own(tmp_path / "own", tmp_path / "cache").folder == first
    shutil.rmtree(tmp_path / "own")
    write(tmp_path / "own", per_batch=(12, 11, 9))
    assert own(tmp_path / "own", tmp_path / "cache").folder != first


def drop(folder):
    for number in (3, 5):
        (folder / "imgs" / "10" / f"sample_{number}.png").unlink()


def damage(folder):
    (folder / "imgs" / "0" / "sample_0.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")


def resize(side):
    """Makes an image say that it has so many pixels each way."""

    def change(folder):
        file = folder / "imgs" / "0" / "sample_0.png"
        content = bytearray(file.read_bytes())
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        file.write_bytes(content)

    return change


def table(header):
    """Makes a file of the metadata one of numpy's with that header."""

    def change(folder):
        header_bytes = header.encode().ljust(117) + b"\n"
        start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header_bytes))
        (folder / "metadata" / "0.npy").write_bytes(start + header_bytes + bytes(99))

    return change


def edit(name, old, new):
    def change(folder):
        file = folder / "metadata" / name
        file.write_text(file.read_text().replace(old, new, 1))

    return change


def pickled(folder):
    np.save(folder / "metadata" / "0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)


def numbers(folder):
    np.save(folder / "metadata" / "0.npy", np.zeros((3, 11)))


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (drop, FileNotFoundError,
         "2 of the 33 images that the metadata name are missing, the first is imgs/10/sample_3.png"),
        (lambda folder: (folder / "metadata" / "2.npy").unlink(), ValueError,
         "the metadata name 22 images, but there are 33; the first of the others is imgs/2/sample_0.png"),
        (damage, ValueError, "sample_0.png must be a PNG image"),
        (lambda folder: Image.new("L", (32, 31)).save(folder / "imgs" / "0" / "sample_0.png"), ValueError,
         "must have 32 x 32 pixels, got 32 x 31"),
        (edit("2.npy", "sample_1.png", "sample_2.png"), ValueError,
         "1 of the 33 lines of the metadata name an image again"),
        (edit("0.npy", " 1 1\n", " 1\n"), ValueError, "0.npy, line 1: 10 fields, there must be 11"),
        (edit("0.npy", "imgs/0", "imgs/.."), ValueError, "must be one in a folder of imgs"),
        (edit("0.npy", "imgs/0 ", "/etc "), ValueError, "must be one in a folder of imgs"),
        (edit("0.npy", " 14 ", " 9 "), ValueError, "the contour length (9) must be 14"),
        (edit("0.npy", "png 0 ", "png 0 x"), ValueError, "the label ('x"),
        (lambda folder: (folder / "metadata" / "0.npy").rename(folder / "metadata" / "zero.npy"), ValueError,
         "zero.npy must have a number for a name"),
        (pickled, ValueError, "0.npy must be a table of texts: Object arrays cannot be loaded"),
        (numbers, ValueError, "0.npy must be a table of texts, got float64 of shape (3, 11)"),
        (table("{'descr': '<U9', 'fortran_order': False, 'shape': (3, 11"), ValueError, "0.npy must be a table of"),
        (table("{'descr': '<U9', 'fortran_order': False, 'shape': (999999999999999, 11), }"),
         ValueError, "0.npy must be a table of texts"),
        (resize(60_000), ValueError, "sample_0.png must be a PNG image"),
        (resize(9_000), ValueError, "sample_0.png must have 32 x 32 pixels, got 9000 x 9000"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole(tmp_path, harm, error, message):
    write(tmp_path / "own")
    harm(tmp_path / "own")
    with pytest.raises(error) as caught:
        own(tmp_path / "own", tmp_path / "cache").split("train")
    assert message in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_other_files_beside_the_batches(tmp_path):
    write(tmp_path / "own")
    (tmp_path / "own" / "imgs" / ".DS_Store").write_bytes(b"x")
    assert own(tmp_path / "own", tmp_path / "cache").manifest["images"] == 33


def test_a_folder_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold folders imgs and metadata, itself or in lra_release/"):
        own(tmp_path, tmp_path / "cache")
    write(tmp_path / "own", per_batch=(9,))
    with pytest.raises(ValueError, match="9 images are too few to split; at least 10 are needed"):
        own(tmp_path / "own", tmp_path / "cache").split("train")


def test_sizes_of_the_splits():
    found = pathfinder_files.split_rows(199_999)
    assert [len(part) for part in found.values()] == [160_001, 19_999, 19_999]
    assert len(np.unique(np.concatenate(list(found.values())))) == 199_999


@needs_compiler
def test_the_manifest_says_where_rows_are_from(tmp_path):
    made = json.loads((Pathfinder(**SMALL, cache_dir=tmp_path).folder / "manifest.json").read_text())
    assert made["source"] == "offline" and made["images"] == 50 and made["tries_per_image"] > 1
    write(tmp_path / "own")
    assert own(tmp_path / "own", tmp_path / "cache").manifest["source"] == str(tmp_path / "own")
