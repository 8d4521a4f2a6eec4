"""Memory of reading does not grow with the number of images; the script that measures the loader."""

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dump_cases import write_lines
from PIL import Image
from script_files import load_script

from tsla.tasks import pathfinder
from tsla.tasks.pathfinder import Pathfinder

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


def peak(folder: Path, cache: Path) -> int:
    """Bytes that are held at most while rows are made."""
    task = Pathfinder(name="pathx", source="lra", path=folder, cache_dir=cache)
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
    for count in (10, 20, 60):
        write(tmp_path / str(count), count)
    peak(tmp_path / "10", tmp_path / "cache")  # what is imported and kept at the first time
    few, many = (peak(tmp_path / str(count), tmp_path / "cache") for count in (20, 60))
    assert many - few < 10 * SIDE**2, "bytes of 40 images more"


def test_what_the_script_measures(tmp_path, monkeypatch, capsys):
    script = load_script("loading_memory")
    monkeypatch.setattr(script, "PIXELS", 64)
    script.write(tmp_path, 96)
    script.read(tmp_path, 3)
    told = capsys.readouterr().out
    assert told.startswith("48 of 96 rows in batches of 16: ")
    own, mapped, both = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) MiB", told))
    assert 0 < own < both and 0 < mapped < both
