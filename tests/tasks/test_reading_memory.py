"""Memory of reading does not grow with the number of images or pairs; the scripts that measure it and the loader's."""

import re
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dump_cases import write_lines
from PIL import Image
from script_files import load_script

from tsla.build import build_task
from tsla.data_command import composed
from tsla.tasks import cifar, pairs, pathfinder, retrieval, text_references, text_sources
from tsla.tasks.base import SPLITS
from tsla.tasks.pathfinder import Pathfinder
from tsla.tasks.retrieval import Retrieval

SIDE = 128


def write_png(folder: Path, count: int) -> None:
    """Images of Path-X as the release has them."""
    (folder / "imgs" / "0").mkdir(parents=True)
    (folder / "metadata").mkdir()
    random = np.random.default_rng(0)
    for n in range(count):
        pixels = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "imgs" / "0" / f"sample_{n}.png")
    lines = (f"imgs/0 sample_{n}.png {n} {n % 2} 1.0 14 4 2 0.5 1 1\n" for n in range(count))
    (folder / "metadata" / "0.npy").write_text("".join(lines))


def write_dump(folder: Path, count: int) -> None:
    """The same as lines of numbers, eight of ten to train on."""
    random = np.random.default_rng(0)
    parts = {"train": count * 8 // 10, "val": count // 10, "test": count // 10}
    write_lines(
        {split: (random.integers(0, 256, (n, SIDE**2)), np.arange(n) % 2) for split, n in parts.items()}, folder
    )


def write_pairs(folder: Path, count: int) -> None:
    """Pairs of AAN, as many in each file."""
    folder.mkdir()
    for name in pairs.AAN_FILES.values():
        texts = (f"paper {n} " + "words " * (SIDE**2 // 6) for n in range(count))
        (folder / name).write_text("".join(f"{n % 2}.0\tP\tQ\t{text}\t{text}\n" for n, text in enumerate(texts)))


def peak(task: Pathfinder | Retrieval) -> int:
    """Bytes that are held at most while rows are made."""
    tracemalloc.start()
    try:
        assert task.folder.is_dir()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("write", [write_png, write_dump])
def test_images_are_read_a_few_at_a_time(tmp_path, monkeypatch, write):
    monkeypatch.setattr(pathfinder, "PART", 4 * SIDE**2)
    monkeypatch.setattr(pathfinder, "LINEAR_PIXELS", 4 * SIDE**2)
    found = []
    for count in (10, 20, 60):  # the first with what is imported and kept at the first time
        write(tmp_path / str(count), count)
        task = Pathfinder(name="pathx", source="lra", path=tmp_path / str(count), cache_dir=tmp_path / "cache")
        found.append(peak(task))
    assert found[2] - found[1] < 10 * SIDE**2, "bytes of 40 images more"


def test_pairs_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "PART", 4)
    monkeypatch.setattr(text_references, "PAIRS", 4)
    found = []
    for count in (10, 20, 60):
        write_pairs(tmp_path / str(count), count)
        monkeypatch.setattr(pairs, "AAN_ROWS", dict.fromkeys(SPLITS, count))
        task = Retrieval(source="lra", path=tmp_path / str(count), max_length=SIDE**2, cache_dir=tmp_path / "cache")
        found.append(peak(task))
    assert found[2] - found[1] < 10 * SIDE**2, "bytes of 40 pairs more"


def test_what_the_script_measures(tmp_path, monkeypatch, capsys):
    script = load_script("loading_memory")
    monkeypatch.setattr(script, "PIXELS", 64)
    script.write(tmp_path, 96)
    script.read(tmp_path, 3)
    told = capsys.readouterr().out
    assert told.startswith("48 of 96 rows in batches of 16: ")
    own, mapped, both = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) MiB", told))
    assert 0 < own < both and 0 < mapped < both


@pytest.mark.parametrize("name", ["text", "retrieval", "image", "pathfinder"])
def test_what_is_written_can_be_read(tmp_path, monkeypatch, name):
    script = load_script("reading_memory")
    for module, counts in ((text_sources, {"IMDB_ROWS": 40}), (pairs, {"AAN_ROWS": dict.fromkeys(SPLITS, 40)}),
                           (cifar, {"BATCH_ROWS": 20}), (script, {"IMAGES": 40, "BATCH": 20})):  # fmt: skip
        for constant, count in counts.items():
            monkeypatch.setattr(module, constant, count)
            monkeypatch.setattr(script, constant, count)
    script.write(name, tmp_path)
    task = build_task(
        composed(name, [*script.ALL_OF_IT.get(name, ()), "source=lra", f"path={tmp_path}", f"data_dir={tmp_path}/rows"])
    )
    assert len(task.split("train")) >= 32 and len(task.split("test")) >= 4


def test_memory_of_a_process():
    script = load_script("reading_memory")
    few, many = (script.measure([sys.executable, "-c", f"import time; a = bytearray({size} << 20); time.sleep(0.5)"])[0]
                 for size in (1, 301))  # fmt: skip
    assert 300 <= many - few < 310
