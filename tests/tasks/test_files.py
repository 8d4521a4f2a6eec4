"""Your own data: every kind of file and column, what is kept of it, and where."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from files_cases import ROWS, TEXTS, everything, given, held, task, tiny, write_csv, write_json, write_texts

from tsla.tasks import tables
from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.loading import Rows
from tsla.tasks.targets import name_of


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- every kind of source ---------------------------------------------------------------------------------------------


def saved(rows) -> str:
    Dataset.from_list(rows).save_to_disk("saved")
    return "saved"


def parquet(rows) -> str:
    pq.write_table(pa.Table.from_pylist(rows), "data.parquet")
    return "data.parquet"


def json_list(rows) -> str:
    Path("data.json").write_text(json.dumps(rows))
    return "data.json"


SOURCES = {
    "csv": write_csv,
    "csv with LF and brackets in its name": lambda rows: write_csv(rows, "a[1]*.csv", ends="\n"),
    "tsv": lambda rows: write_csv(rows, "data.tsv", delimiter="\t"),
    "jsonl": write_json,
    "json list": json_list,
    "parquet": parquet,
    "saved data set": saved,
    "text folder": lambda rows: write_texts("folder", rows),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_rows_are_kept_byte_for_byte(kind, capfd):
    path = SOURCES[kind](ROWS)
    capfd.readouterr()
    made = task(path)
    assert sorted(everything(made)) == sorted(given())
    longest = max(len(text.encode()) for text in TEXTS)
    names = ("007", "=1+1", "NA", "nan")
    assert made.spec == TaskSpec("files", "bytes", "class", 4, longest, 257, None, names)
    features = {"input_ids": List(Value("uint8")), "label": Value("int64")}
    assert all(made.split(split).features == features for split in SPLITS)
    assert len(Rows(made.split("val"), made.spec)) == 4
    assert capfd.readouterr() == ("", "")


def series_of(rows):
    """All steps, as batches have them."""
    batch = rows.__getitems__(list(range(len(rows))))
    return batch.inputs[batch.mask].numpy()


def test_a_byte_order_mark_is_no_text():
    path = Path(write_csv(ROWS))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert sorted(everything(task(path))) == sorted(given())


def test_raw_bytes_need_no_encoding():
    for name in "ab":
        Path("folder", name).mkdir(parents=True)
        for i in range(9):
            Path("folder", name, f"{i}.txt").write_bytes(bytes([255, i, ord(name)]))
    made = task("folder", **tiny())
    data = [row["input_ids"] for split in SPLITS for row in made.split(split)]
    assert sorted(data) == sorted([256, i + 1, ord(name) + 1] for name in "ab" for i in range(9))


def test_class_labels_of_a_data_set_keep_their_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = {"text": TEXTS, "label": [i % 2 for i in range(40)]}
    Dataset.from_dict(rows, features=features).save_to_disk("saved")
    assert task("saved").spec.names == ("no", "yes")
    Dataset.from_dict(rows, features=features).to_parquet("data.parquet")
    assert task("data.parquet").spec.names == ("no", "yes")


def test_a_long_cell_and_a_nul_byte():
    long = "x" * 300_000
    rows = [{"text": long + "\0" + str(i), "label": i % 2} for i in range(8)]
    made = task(write_csv(rows), **tiny())
    assert made.spec.max_length == 300_002 and sorted(everything(made))[0] == (long + "\x000", "0")
    assert csv.field_size_limit() == 131072


def test_blank_lines_are_no_rows():
    text = write_csv(ROWS, ends="\n")
    Path(text).write_text(Path(text).read_text().replace("fr\n", "fr\n\n") + "\n\n")
    assert sorted(everything(task(text))) == sorted(given())


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([10, 9, 10, 9], ("9", "10")),
        ([1.0, 2.0, 1.0, 2.0], ("1", "2")),
        ([True, False, True, False], ("false", "true")),
        ([" b", "a ", "b", "a"], ("a", "b")),
        ([-1, 1, -1, 1], ("-1", "1")),
        (["10", "9", "x", "x"], ("10", "9", "x")),
    ],
)
def test_class_names(cells, names):
    rows = [{"text": f"{i}", "label": cells[i % 4]} for i in range(40)]
    assert task(write_json(rows)).spec.names == names


@pytest.mark.parametrize("cell", [None, "", "  ", 0.5, float("nan"), [1], {"a": 1}])
def test_what_is_no_class(cell):
    with pytest.raises(ValueError, match="must be a class"):
        name_of(cell)


LABELS = [{"a"}, {"b", "a"}, set(), {"c d", "b"}]


@pytest.mark.parametrize("how", ["lists", "semicolons", "commas", "columns"])
def test_many_labels(how):
    sets = [LABELS[i % 4] for i in range(40)]
    columns = ["label"]
    match how:
        case "lists":
            path = write_json([{"text": TEXTS[i], "label": sorted(names)} for i, names in enumerate(sets)])
        case "columns":
            columns = ["a", "b", "c d"]
            path = write_csv([{"text": TEXTS[i], **{c: int(c in s) for c in columns}} for i, s in enumerate(sets)])
        case _:
            sign = "; " if how == "semicolons" else ","
            path = write_csv([{"text": TEXTS[i], "label": sign.join(sorted(s))} for i, s in enumerate(sets)])
    made = task(path, target="labels", label=columns)
    assert made.spec.names == ("a", "b", "c d") and made.spec.outputs == 3
    found = {text: {made.spec.names[i] for i in np.flatnonzero(row)} for text, row in everything(made)}
    assert found == dict(zip(TEXTS, sets, strict=True))
    share = Rows(made.split("test"), made.spec).targets.mean(0)
    assert made.references() == {"all labels": pytest.approx(np.mean(2 * share / (1 + share)))}


def test_numbers_are_scaled_by_the_training_rows():
    rows = [{"text": f"{i}", "label": i * i, "b": 7, "split": "train" if i < 10 else "val" if i < 15 else "test"}
            for i in range(20)]  # fmt: skip
    made = task(write_csv(rows), target="numbers", label=["label", "b"], split="column")
    squares = np.arange(10) ** 2
    assert made.spec.names == ("label", "b") and made.spec.outputs == 2
    assert made.spec.target_mean == (squares.mean(), 7.0)
    assert made.spec.target_std == (pytest.approx(squares.std()), 1.0)
    assert held(made, "val")[0] == ("10", [100.0, 7.0])
    assert Rows(made.split("val"), made.spec).targets[0].tolist() == pytest.approx([(100 - 28.5) / squares.std(), 0])
    assert made.references() == {"mean": 0.0}


def test_numbers_and_series_far_from_0_are_scaled_before_they_are_rounded():
    rows = [{"text": [1.7e9 + x, 1.7e9 - x], "label": 1.7e9 + x} for x in range(40)]
    made = task(write_json(rows), kind="series", target="numbers")
    wide = List(Value("float64"))
    assert all(made.split(split).features == {"values": wide, "label": wide} for split in SPLITS)
    loaded = Rows(made.split("train"), made.spec)
    values = series_of(loaded)
    assert loaded.targets.dtype == values.dtype == np.float32
    assert loaded.targets.std() == pytest.approx(1, rel=1e-4) and values.std() == pytest.approx(1, rel=1e-4)
    assert len(set(loaded.targets[:, 0].tolist())) == len(loaded)
    assert sorted(y for split in SPLITS for (y,) in made.split(split)["label"]) == [row["label"] for row in rows]
    flat = task(write_json([{"text": [1.0], "label": 1.7e12 + i} for i in range(40)]), kind="series", target="numbers")
    assert flat.spec.target_std == flat.spec.input_std == (1.0,)  # differences that are rounding to such numbers


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_tokens():
    rows = [{"ids": [i, 300], "label": i % 2} for i in range(20)]
    made = task(write_json(rows), input="ids", kind="tokens", **tiny())
    assert made.spec.vocab_size == 302 and made.spec.max_length == 2 and made.spec.inputs == "tokens"
    assert sorted(everything(made)) == sorted((f"{i} 300", f"{i % 2}") for i in range(20))
    assert made.split("train").features["input_ids"] == List(Value("uint16"))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_series_are_scaled_by_the_training_rows(kind):
    rows = [
        {"x": [[i, 5], [i + 1, 5]], "y": float(i), "split": "train" if i < 6 else "dev" if i < 9 else "test"}
        for i in range(12)
    ]
    path = write_json(rows) if kind == "jsonl" else parquet(rows)
    made = task(path, input="x", label=["y"], kind="series", target="numbers", split="column")
    seen = [i + step for i in range(6) for step in (0, 1)]
    assert made.spec.channels == 2 and made.spec.vocab_size is None and made.spec.max_length == 2
    assert made.spec.input_mean == (np.mean(seen), 5.0)
    assert made.spec.input_std == (pytest.approx(np.std(seen)), 1.0)
    values = series_of(Rows(made.split("train"), made.spec))
    assert values[:, 0].std() == pytest.approx(1) and not values[:, 1].any()


def test_one_channel_in_parquet():
    rows = [{"text": [0.5 * i, -1.0], "label": i % 2} for i in range(20)]
    made = task(parquet(rows), kind="series", **tiny())
    assert sorted(everything(made)) == sorted((f"{0.5 * i:.4g}; -1", str(i % 2)) for i in range(20))


def test_long_rows_lose_their_end():
    made = task(write_csv(ROWS), max_length=6)
    assert {text[:5] for text, _ in everything(made)} == {"text "} and made.spec.max_length == 6
    assert made.manifest["truncated"] == 40


def test_slices():
    rows = [{**row, "n": i, "lang": row["lang"]} for i, row in enumerate(ROWS)]
    made = task(write_csv(rows), slices=["lang", "n"])
    languages = {row["text"]: row["lang"] for row in rows}
    for split in SPLITS:
        loaded = Rows(made.split(split), made.spec)
        assert loaded.slices["lang"] == [languages[text] for text, _ in held(made, split)]
        assert all(isinstance(n, int) for n in loaded.slices["n"])
    with pytest.raises(ValueError, match=r"column 'text' has 150 values, such as 'x0': a slice has 100 at most"):
        task(write_csv([{"text": f"x{i}", "label": i % 2} for i in range(150)]), slices=["text"]).folder  # noqa: B018
    with pytest.raises(ValueError, match=r"slices \(length\) must not"):
        task("data.csv", slices=["length"])


# --- the folder -------------------------------------------------------------------------------------------------------


def test_options_and_files_make_the_key():
    path = Path(write_csv(ROWS))
    first = task(path)
    changes = [{"input": "lang"}, {"max_length": 5}, {"val_fraction": 0.2}, {"test_fraction": 0.2}, {"seed": 1},
               {"slices": ["lang"]}, {"label": ["lang"]}, {"target": "labels"}]  # fmt: skip
    folders = {str(task(path, **change).folder) for change in changes}
    assert len(folders) == len(changes) and str(first.folder) not in folders
    assert task(path).folder == first.folder and task(path).spec == first.spec
    before = path.stat()
    path.write_text(path.read_text().replace("text 1", "TEXT 1"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert task(path).folder != first.folder and any(text[:4] == "TEXT" for text, _ in everything(task(path)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.write_text(path.read_text() + "longer,nan,de\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert task(path).folder != first.folder


def test_a_changed_file_among_texts_is_noticed():
    write_texts("folder", ROWS)
    first = task("folder").folder
    Path("folder", "nan", "new.txt").write_text("new")
    second = task("folder").folder
    assert second != first
    Path("elsewhere").mkdir()
    Path("elsewhere/a.txt").write_text("a")
    Path("folder", "linked").symlink_to("../elsewhere")
    Path("folder", "nan", "again.txt").symlink_to("new.txt")
    third = task("folder", val_fraction=0.2).folder
    Path("elsewhere/a.txt").write_text("another")
    fourth = task("folder", val_fraction=0.2).folder
    Path("folder", "nan", "more.txt").symlink_to("new.txt")
    assert len({second, third, fourth, task("folder", val_fraction=0.2).folder}) == 4


def changed(rows=ROWS, name="data.csv", **options) -> str:
    return task(write_csv(rows, name), **tiny(seed=3, **options)).fingerprint


def test_the_fingerprint_is_of_the_content():
    first = task(write_csv(ROWS), **tiny(seed=3))
    assert len(first.fingerprint) == 64 and int(first.fingerprint, 16) >= 0
    assert json.loads((first.folder / "manifest.json").read_text())["fingerprint"] == first.fingerprint
    os.utime("data.csv", (1, 1))
    touched = task("data.csv", **tiny(seed=3))
    assert touched.folder != first.folder and touched.fingerprint == first.fingerprint
    assert changed(name="other.csv") == changed() == first.fingerprint
    text = [{**row, "text": row["text"] + "!"} if i == 17 else row for i, row in enumerate(ROWS)]
    label = [{**row, "label": "NA"} if i == 0 else row for i, row in enumerate(ROWS)]
    named = [{**row, "label": row["label"].replace("NA", "NB")} for row in ROWS]
    swapped = [ROWS[4], *ROWS[1:4], ROWS[0], *ROWS[5:]]  # of one class, so that all labels stay
    pairs = [("ab", "c"), ("a", "bc")]  # the same bytes, cut elsewhere
    others = [changed(rows) for rows in (text, label, named, swapped, ROWS[:-1])]
    others += [changed(max_length=3), task("data.csv", **tiny(seed=4)).fingerprint]
    others += [changed([{"text": text, "label": i % 2} for i in range(20) for text in pair]) for pair in pairs]
    assert len({first.fingerprint, *others}) == 10


@pytest.mark.parametrize("target", ["numbers", "labels"])
def test_the_fingerprint_of_other_targets(target):
    rows = [{"text": [[i, 1], [2, 3]], "label": str(i % 3)} for i in range(40)]
    other = [{**row, "label": "2"} if i == 39 else row for i, row in enumerate(rows)]
    flat = [{**row, "text": [[x, y, *z]]} for row in rows for (x, y), z in [row["text"]]]  # the same numbers
    options = tiny(target=target, kind="series")
    found = {task(write_json(rows, f"{i}.jsonl"), **options).fingerprint for i, rows in enumerate((rows, other, flat))}
    assert len(found) == 3


def test_nothing_is_left_of_a_failure():
    path = write_csv([*ROWS, {"text": "", "label": "nan", "lang": "de"}])
    with pytest.raises(ValueError, match="row 41"):
        task(path).folder  # noqa: B018
    assert [file for file in Path("cache").rglob("*") if not file.name.endswith(".lock")] == [Path("cache/files")]


def test_a_damaged_spec_is_told():
    made = task(write_csv(ROWS))
    (made.folder / "spec.json").write_text('{"name": 3}')
    with pytest.raises(ValueError, match=r"spec\.json: task must have"):
        made.spec  # noqa: B018


# --- the Hub ----------------------------------------------------------------------------------------------------------


def test_the_hub_is_asked_for_an_id_and_its_revision(monkeypatch):
    asked = []

    def load(path, *, revision, cache_dir):
        asked.append((path, revision))
        Path(cache_dir, "downloads").mkdir()
        return DatasetDict({"train": Dataset.from_list(ROWS[:20]), "test": Dataset.from_list(ROWS[20:])})

    monkeypatch.setattr(tables, "load_dataset", load)
    made = task("owner/some-texts", revision="v1", split="column")
    assert held(made, "test") == given(ROWS[20:]) and asked == [("owner/some-texts", "v1")]
    assert not (made.folder / "download").exists()
    assert task("owner/some-texts", revision="v2", split="column").folder != made.folder


def test_without_a_network_three_ways_out_are_told(monkeypatch):
    def load(*arguments, **options):
        raise ConnectionError("Couldn't reach 'imdb' on the Hub\nand more")

    monkeypatch.setattr(tables, "load_dataset", load)
    with pytest.raises(ValueError, match=r"Couldn't reach 'imdb' on the Hub\).*CSV.*save_to_disk.*network") as caught:
        task("imdb").folder  # noqa: B018
    assert "\n" not in str(caught.value)
