"""Rows on disk: what is written is read, part by part, mapped and not copied."""

from pathlib import Path

import numpy as np
import pytest

from tsla.tasks.store import PART, describe, load_split, read_manifest, save_split, write_manifest


def test_parts_of_any_size_are_read_as_they_were_written(tmp_path):
    random = np.random.default_rng(0)
    rows = [random.integers(0, 256, random.integers(0, 9)).astype(np.uint8) for _ in range(PART + 30)]
    labels = random.integers(0, 10, len(rows))
    given = []

    def parts():
        for part in (slice(5), slice(5, PART + 20), slice(PART + 20, None)):
            given.append(part)
            yield {"input_ids": rows[part], "label": labels[part]}

    save_split(tmp_path, "val", parts())
    data = load_split(tmp_path, "val")
    assert len(given) == 3 and data.cache_files[0]["filename"] == str(tmp_path / "val.arrow")
    assert str(data.features["input_ids"].feature.dtype) == "uint8" and data.features["label"].dtype == "int64"
    read = data.with_format("numpy")[:]
    assert [row.tolist() for row in read["input_ids"]] == [row.tolist() for row in rows]
    assert read["label"].tolist() == labels.tolist()


def test_a_split_is_one_of_three(tmp_path):
    with pytest.raises(ValueError, match=r"^split \('dev'\) must be one of train, val, test$"):
        load_split(tmp_path, "dev")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-200])


def scramble_offsets(file):
    """Makes the second row end far behind the file."""
    content = file.read_bytes()
    offsets = np.array([0, 3, 6, 9], np.int32).tobytes()
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, np.array([0, 3, 2**30, 9], np.int32).tobytes()))


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_bytes(b""), truncate, scramble_offsets])
def test_a_damaged_split_says_what_to_remove(tmp_path, harm):
    save_split(tmp_path, "val", [{"input_ids": [np.arange(3, dtype=np.uint8)] * 3, "label": np.arange(3)}])
    assert len(load_split(tmp_path, "val")) == 3
    harm(tmp_path / "val.arrow")
    with pytest.raises(ValueError, match=r"val\.arrow is damaged \(.+\): remove .*, and its rows are made anew$"):
        load_split(tmp_path, "val")


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_text("{"), lambda file: file.write_text("[]")])
def test_a_damaged_manifest_says_what_to_remove(tmp_path, harm):
    write_manifest(tmp_path, {"rows": 3})
    harm(tmp_path / "manifest.json")
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(.+\): remove .*, and its rows are made anew$"):
        read_manifest(tmp_path)


def test_a_manifest_counts_rows_labels_and_lengths(tmp_path):
    lengths = {"train": np.array([1, 2, 3]), "test": np.array([6])}
    write_manifest(tmp_path, describe(lengths, {"train": np.array([0, 2, 2]), "test": np.array([1])}, 3))
    found = read_manifest(tmp_path)
    assert found["rows"] == {"train": 3, "test": 1} and found["labels"] == {"train": [1, 0, 2], "test": [0, 1, 0]}
    assert found["length"] | {"percentiles": 0} == {"min": 1, "max": 6, "mean": 3.0, "sd": 1.87, "percentiles": 0}
    assert found["length"]["percentiles"]["50"] == 2.5
