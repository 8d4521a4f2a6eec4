"""Dumps of Long Range Arena by others: their tasks, what is no row, and pickles that would run code."""

import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from dump_cases import COUNTS, images_of, write_lines, write_pickles

from tsla.tasks import image_sources, listops, pairs, text_sources
from tsla.tasks.images import Images
from tsla.tasks.listops import ListOps
from tsla.tasks.pathfinder import Pathfinder
from tsla.tasks.pickles import load_pickle, plain
from tsla.tasks.retrieval import Retrieval
from tsla.tasks.texts import TextClasses

DICTIONARY = ["]", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MAX", "[MIN", "[MED", "[SM", "("]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_sources, "DUMP_ROWS", COUNTS)
    monkeypatch.setattr(pairs, "AAN_ROWS", COUNTS)
    monkeypatch.setattr(listops, "ALL", COUNTS)
    monkeypatch.setattr(text_sources, "IMDB_ROWS", COUNTS["test"])


def padded(texts, length):
    rows = np.zeros((len(texts), length), np.int64)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)[:length].astype(np.int64) + 1
    return rows


def same(task, splits, shift=1):
    for split, (rows, labels) in splits.items():
        found = task.split(split)
        pairs = sorted((tuple(ids), label) for ids, label in zip(found["input_ids"], found["label"], strict=True))
        assert pairs == sorted((tuple((row + shift).tolist()), int(x)) for row, x in zip(rows, labels, strict=True))


def image(**options):
    return Images(name="image", source="lra", path="own", cache_dir="data", **options)


def pathfinder(**options):
    return Pathfinder(**{"name": "pathfinder", "source": "lra", "path": "own", "cache_dir": "data", **options})


# --- what there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_images_as_lines(flat, end):
    splits = images_of(classes=10)
    write_lines(splits, flat=flat, end=end)
    task = image()
    same(task, splits)
    assert task.spec.name == "image" and task.manifest["layout"] == "mega"
    assert task.folder != image(kind="series").folder


@pytest.mark.parametrize(("name", "size"), [("pathfinder", 32), ("pathx", 128)])
def test_pathfinder_as_lines_in_its_order(name, size):
    splits = images_of(size)
    write_lines(splits)
    task = pathfinder(name=name, train_rows=20)
    assert np.array_equal(np.array(task.split("train")["input_ids"]) - 1, splits["train"][0][:20])
    same(task, {split: splits[split] for split in ("val", "test")})
    assert task.spec.name == f"{name}_own" and (task.manifest["layout"], task.manifest["images"]) == ("mega", 44)
    with pytest.raises(ValueError, match=r"contour \(6\) must be 14 for the dump of mega"):
        pathfinder(contour=6)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("label", [np.int64, np.float32, int])
def test_images_as_pickles(protocol, label):
    splits = images_of(classes=10)
    write_pickles("image", splits, label=label, protocol=protocol)
    task = image(allow_pickle=True)
    same(task, splits)
    assert task.manifest["layout"] == "nystromformer"


@pytest.mark.parametrize(("contour", "stem"), [(6, "curv_baseline"), (14, "curv_contour_length_14")])
def test_pathfinder_as_pickles(contour, stem):
    splits = images_of()
    write_pickles(f"pathfinder32-{stem}", splits)
    same(pathfinder(contour=contour, allow_pickle=True), splits)


def test_reviews_as_pickles():
    texts = {split: [f"{split} review {n}".encode() for n in range(COUNTS["test"])] for split in COUNTS}
    splits = {split: (padded(own, 40), np.arange(len(own)) % 2) for split, own in texts.items()}
    write_pickles("text", splits)
    task = TextClasses(source="lra", path="own", protocol="lra", allow_pickle=True, cache_dir="data")
    for split in ("train", "test"):
        rows = zip(task.split(split)["input_ids"], task.split(split)["label"], strict=True)
        found = {bytes(byte - 1 for byte in ids): label for ids, label in rows}
        assert found == {text: n % 2 for n, text in enumerate(texts[split])}
    assert task.spec.name == "text" and task.manifest["layout"] == "nystromformer"


def test_papers_as_pickles():
    texts = {s: [(f"a{n}".encode(), f"{s} b{n}".encode()) for n in range(count)] for s, count in COUNTS.items()}
    write_pickles("retrieval", {
        s: (padded([a for a, _ in own], 20), padded([b for _, b in own], 20), np.arange(len(own)) % 2)
        for s, own in texts.items()
    }, label=np.float32)  # fmt: skip
    task = Retrieval(source="lra", path="own", allow_pickle=True, train_rows=11, cache_dir="data")
    found = [tuple(bytes(byte - 1 for byte in row[name]) for name in ("input_ids", "input_ids_2"))
             for row in task.split("test")]  # fmt: skip
    assert found == texts["test"] and len(task.split("train")) == 11
    assert task.spec.name == "retrieval" and task.manifest["layout"] == "nystromformer"


def test_listops_by_its_dictionary():
    text = "( [MAX 4 ( [MIN 2 9 ] 7 ]"
    row = np.array([4 + DICTIONARY.index(symbol) for symbol in text.split()] + [2])
    write_lines({split: (np.tile(row, (n, 1)), np.full(n, 7)) for split, n in COUNTS.items()})
    Path("own", "input", "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in DICTIONARY))
    task = listops_task()
    assert [listops.to_text(ids) for ids in task.split("val")["input_ids"]] == ["[MAX 4 [MIN 2 9 ] 7 ]"] * 6
    assert task.split("test")["label"][:] == [7] * 8 and task.manifest["layout"] == "mega"
    Path("own", "input", "dict.txt").write_text("".join(f"{symbol} 1\n" for symbol in ["word", *DICTIONARY]))
    with pytest.raises(ValueError, match=r"train.src, line 1: 4 \(word\) must stand for one of 0 1 "):
        ListOps(source="lra", path="own", cache_dir="other").split("train")


def listops_task():
    return ListOps(source="lra", path="own", cache_dir="data")


def test_listops_as_pickles_is_refused():
    write_pickles("listops", images_of())
    with pytest.raises(FileNotFoundError, match="cannot be read from pickles, which do not hold what their numbers"):
        listops_task()


# --- what there is not ------------------------------------------------------------------------------------------------


def test_pickles_need_leave():
    write_pickles("image", images_of(classes=10))
    with pytest.raises(
        ValueError, match=r"holds pickles, such as image\.train\.pickle: allow_pickle \(False\) must be"
    ):
        image()


def test_a_part_of_a_dump():
    write_lines(images_of())
    Path("own/label/valid.label").unlink()
    with pytest.raises(FileNotFoundError, match=r"a part of the dump of mega; it lacks label/valid\.label"):
        pathfinder()


@pytest.mark.parametrize("options", [{"protocol": "s4"}, {"seed": 1}])
def test_a_dump_says_which_images_validate(options):
    write_lines(images_of(classes=10))
    with pytest.raises(ValueError, match=r"must be 'default' and seed \(.\) 0 where path \(own\) says itself"):
        image(**options)


def edit(name, old, new):
    def change():
        file = Path("own", name)
        file.write_text(new + file.read_text().removeprefix(old))

    return change


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda: Path("own/label/valid.label").write_text("1\n" * 7), "must have as many lines as each other"),
        (edit("input/train.src", "", "1 2\n"), "line 1: must have 32 x 32 pixels, got 2"),
        (edit("input/train.src", "", "x\n"), "line 1: must hold whole numbers, got 'x"),
        (edit("input/train.src", "", "256 "), "line 1: must have 32 x 32 pixels, got 1025"),
        (edit("label/test.label", "", "10\n"), "line 1: the class (10) must be 0 to 9"),
        (edit("label/test.label", "", "1 "), "test.label, line 1: must hold one whole number, got '1 "),
    ],
)
def test_lines_that_are_no_rows(harm, message):
    write_lines(images_of(classes=10))
    harm()
    with pytest.raises(ValueError) as caught:
        image().split("train")
    assert message in str(caught.value)


def test_counts_are_those_of_the_release():
    splits = images_of(classes=10)
    write_lines(splits | {"val": tuple(part[:5] for part in splits["val"])})
    with pytest.raises(ValueError, match=r"valid\.src must have 6 rows, as in Long Range Arena, got 5"):
        image().split("train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": 1}, "cannot be read as a list of rows (ValueError('it holds a dict'))"),
        ([{"label": np.int64(1)}], "row 1: must be a dict of input_ids_0 and label"),
        ([{"input_ids_0": np.full(1024, 0.5), "label": 1}], "row 1: must be a dict of input_ids_0 and label, in whole"),
        ([{"input_ids_0": np.full(1024, 300), "label": 1}], "row 1: grey values must be 0 to 255, got 300 to 300"),
        ([[1, 2]], "row 1: must be a dict"),
        ([{"input_ids_0": [2**70] * 1024, "label": 1}], "row 1: must be a dict of input_ids_0 and label, in whole"),
        ([{"input_ids_0": [1] * 1024, "label": 2**70}], "row 1: must be a dict of input_ids_0 and label, in whole"),
        ([{"input_ids_0": [1] * 1024, "label": float("nan")}], "row 1: must be a dict of input_ids_0 and label"),
        ([{"input_ids_0": 1, "label": 1}], "row 1: must be a dict of input_ids_0 and label, in whole"),
        ([{"input_ids_0": np.ones((1024, 1), int), "label": 1}], "row 1: must be a dict of input_ids_0 and label"),
        ([{"input_ids_0": [1] * 1024, "input_ids_1": [1], "label": 1}], "row 1: must have one input, got 2"),
        ([{"input_ids_0": np.array([object()]), "label": 1}], "it asks for builtins.object, which is not allowed"),
        ([{"input_ids_0": np.array(["a"]), "label": 1}], "numbers of type 'U1', which must be one of b1,"),
    ],
)
def test_pickles_that_are_no_rows(rows, message):
    write_pickles("image", images_of(classes=10))
    Path("own/image.train.pickle").write_bytes(pickle.dumps(rows))
    with pytest.raises(ValueError) as caught:
        image(allow_pickle=True).split("train")
    assert message in str(caught.value)


class Hostile:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("call", [(Path.mkdir, Path("made")), (eval, "open('made', 'w').close()")])
def test_a_pickle_runs_nothing(call, protocol):
    write_pickles("image", images_of(classes=10))
    content = pickle.dumps([{"input_ids_0": Hostile(*call), "label": 1}], protocol=protocol)
    Path("own/image.train.pickle").write_bytes(content)
    with pytest.raises(ValueError, match=r"it asks for .*, which is not allowed"):
        image(allow_pickle=True).split("train")
    assert not Path("made").exists()
    pickle.loads(content)
    assert Path("made").exists(), "the pickle must be one that does harm"


@pytest.mark.parametrize("name", ["numpy ndarray", "numpy dtype", "numpy._core.multiarray scalar",
                                  "numpy._core.numeric _frombuffer"])  # fmt: skip
def test_a_pickle_changes_nothing_that_others_are_read_by(name):
    module, own = name.split()
    harm = f"c{module}\n{own}\n(N(dS'value'\ncnumpy\ndtype\nstb."  # the state of a class: its attribute `value`
    Path("harm").write_bytes(harm.encode())
    with suppress(Exception):
        load_pickle(Path("harm"))
    test_numbers_of_every_kind(np.float32(0.5))
    test_numbers_of_every_kind(np.arange(6))


@pytest.mark.parametrize("value", [np.arange(6, dtype=">i4").reshape(2, 3), np.float32(0.5), np.bool_(True), [1, "a"]])
def test_numbers_of_every_kind(value):
    Path("one").write_bytes(pickle.dumps(value))
    found = plain(load_pickle(Path("one")))
    assert np.array_equal(found, value) and type(found) is not np.float32
