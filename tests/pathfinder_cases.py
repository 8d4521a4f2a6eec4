"""Images of Pathfinder, random ones, in the forms in which people have them."""

from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from image_cases import encoded
from numpy.typing import NDArray
from PIL import Image


def line(batch: int, number: int, label: int, contour: int = 14) -> str:
    return f"imgs/{batch} sample_{number}.png {number} {label} 1.0 {contour} 4 2 0.5 1 1"


def write(
    folder: Path, per_batch: tuple[int, ...] = (12, 11, 10), size: int = 32, binary: bool = False, contour: int = 14,
    end: str = "\n",
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:  # fmt: skip
    """A folder as the release has it; returns images and labels in the order of the metadata."""
    random = np.random.default_rng(0)
    images, labels = [], []
    (folder / "metadata").mkdir(parents=True)
    for batch, count in zip((0, 2, 10), per_batch, strict=False):  # in the order of their names, 10 comes before 2
        (folder / "imgs" / str(batch)).mkdir(parents=True)
        lines = []
        for number in range(count):
            image = random.integers(0, 256, (size, size), dtype=np.uint8)
            Image.fromarray(image).save(folder / "imgs" / str(batch) / f"sample_{number}.png")
            labels.append(int(random.integers(2)))
            images.append(image)
            lines.append(line(batch, number, labels[-1], contour))
        file = folder / "metadata" / f"{batch}.npy"
        if binary:
            np.save(file, np.array([text.split() for text in lines]))
        else:
            file.write_text("".join(text + end for text in lines), newline="")
    return np.stack(images), np.array(labels)


def write_hub(folder: Path, *, rows: int = 33, size: int = 32, seed: int = 0, **columns: str) -> NDArray[np.uint8]:
    """A data set as one of the Hub lies on a disk, in two parts; returns its images. `columns` renames some."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(seed).integers(0, 256, (rows, size, size), dtype=np.uint8)
    first, second = columns.get("image", "image"), columns.get("label", "label")
    for part, chosen in (("train", slice(0, rows - 5)), ("test", slice(rows - 5, rows))):
        pictures = [{"bytes": encoded(image), "path": None} for image in images[chosen]]
        data = {first: pictures, second: [int(image[0, 0]) % 2 for image in images[chosen]]}
        features = Features({first: ImageColumn(), second: Value("int64")})
        Dataset.from_dict(data, features=features).to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))
    return images
