"""Sequential digits: the 1797 handwritten 8x8 digits that come with scikit-learn, as 64 pixel tokens each."""

from functools import cached_property

import numpy as np
from datasets import Dataset, Features, List, Value
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from tsla.tasks.base import SPLITS, TaskSpec
from tsla.tasks.sources import split_limits

TEST_ROWS, VAL_ROWS = 360, 180


class Digits:
    """Which digit 64 pixels show. Token = grey value (0-16) + 1; rows are 1257 train, 180 val and 360 test, stratified.

    Args:
        train_rows, eval_rows: at most so many rows of the training split, and of each of the others; None takes all.
        seed: of the split.
    """

    def __init__(self, *, train_rows: int | None = None, eval_rows: int | None = None, seed: int = 0) -> None:
        self.limits, self.seed = split_limits(train_rows, eval_rows), seed

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(name="digits", inputs="tokens", target="class", outputs=10, max_length=64, vocab_size=18,
                        image=(8, 8))  # fmt: skip

    def split(self, name: str) -> Dataset:
        """The rows of ``train``, ``val`` or ``test``."""
        if name not in SPLITS:
            raise ValueError(f"split ({name!r}) must be one of {', '.join(SPLITS)}")
        pixels, labels = self._splits[name]
        features = Features({"input_ids": List(Value("uint8")), "label": Value("int64")})
        return Dataset.from_dict({"input_ids": list(pixels + 1), "label": labels}, features=features)

    def references(self) -> dict[str, float]:
        """Test accuracy of the commonest class, of a linear classifier on the pixels, and of the nearest three."""
        (pixels, labels), (test_pixels, test_labels) = self._splits["train"], self._splits["test"]
        lines = {"majority": float(np.mean(test_labels == np.bincount(labels).argmax()))}
        for name, rule in (("linear", RidgeClassifier()), ("3-NN", KNeighborsClassifier(3))):
            lines[name] = float(rule.fit(pixels.astype(float), labels).score(test_pixels.astype(float), test_labels))
        return dict(sorted(lines.items(), key=lambda line: line[1]))

    @cached_property
    def _splits(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        pixels, labels = load_digits(return_X_y=True)
        pixels = pixels.astype(np.uint8)
        rest, test = train_test_split(
            np.arange(len(labels)), test_size=TEST_ROWS, stratify=labels, random_state=self.seed
        )
        train, val = train_test_split(rest, test_size=VAL_ROWS, stratify=labels[rest], random_state=self.seed)
        taken = {name: rows[: self.limits[name]] for name, rows in zip(SPLITS, (train, val, test), strict=True)}
        return {name: (pixels[rows], labels[rows]) for name, rows in taken.items()}
