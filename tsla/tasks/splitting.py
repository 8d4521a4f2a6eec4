"""Which rows train, which choose the best checkpoint, and which are looked at once: drawn, or as the data says."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tsla.tasks.base import SPLITS
from tsla.tasks.encoding import shorten
from tsla.tasks.tables import SPLIT_NAMES, nearest

Indices = NDArray[np.int64]


def assign(
    origins: Sequence[str], fractions: Mapping[str, float], *, classes: Sequence[str] | None, seed: int
) -> dict[str, Indices]:
    """The rows of each split, in rising order.

    Args:
        origins: the split each row is known to belong to, or ``""``: then it is shared out.
        fractions: of ``val`` and ``test``. One that no origin names is drawn from the rows that are to train.
        classes: of each row, which are then spread over drawn splits in proportion; None where there are none.
        seed: of what is drawn.

    Raises:
        ValueError: a split would have no rows.
    """
    known = np.array([name or "train" for name in origins])
    splits = {split: np.flatnonzero(known == split) for split in SPLITS}
    wanted = {split: fractions[split] for split in ("test", "val") if not len(splits[split])}
    splits["train"], drawn = _draw(splits["train"], wanted, classes, np.random.default_rng(seed))
    splits |= drawn
    for split, chosen in splits.items():
        if not len(chosen):
            counts = ", ".join(f"{name} {len(part)}" for name, part in splits.items())
            raise ValueError(f"the {split} split has no rows ({counts}): of {len(origins)} rows each split needs one")
    return splits


def fewer(rows: Indices, count: int | None) -> Indices:
    """The first `count` of a fixed shuffle of `rows`, in rising order, or all where there are no more; None: all."""
    if count is None or count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:count])


def by_name(cells: Sequence[object], place: str) -> list[str]:
    """The split that each cell of a column names: train, val or test, or another usual word for it.

    Raises:
        ValueError: another value, with its row.
    """
    found = []
    for number, cell in enumerate(cells, 1):
        name = SPLIT_NAMES.get(cell.strip().lower()) if isinstance(cell, str) else None
        if name is None:
            raise ValueError(f"{place}, row {number}: split ({shorten(cell)}) must be one of {', '.join(SPLIT_NAMES)}"
                             f"{nearest(str(cell), SPLIT_NAMES)}")  # fmt: skip
        found.append(name)
    return found


def _draw(
    rows: Indices, fractions: Mapping[str, float], classes: Sequence[str] | None, random: np.random.Generator
) -> tuple[Indices, dict[str, Indices]]:
    """What is left of `rows`, and the parts drawn from them: each takes rows at even steps through the classes."""
    order = random.permutation(rows)
    codes = np.zeros(len(rows), dtype=np.int64)
    if classes is not None:
        codes = np.unique([classes[row] for row in order], return_inverse=True)[1]
        by_class = np.argsort(codes, kind="stable")
        order, codes = order[by_class], codes[by_class]
    parts = np.full(len(order), "train", dtype="<U5")
    for split, fraction in fractions.items():
        (free,) = np.nonzero(parts == "train")
        count = min(max(1, round(fraction * len(rows))), max(len(free) - 1, 0))
        if count:
            steps = (np.arange(count) + random.random()) * len(free) / count
            parts[free[np.minimum(steps.astype(np.int64), len(free) - 1)]] = split
    for code in np.setdiff1d(codes, codes[parts == "train"]):  # what is never seen cannot be learnt
        parts[np.flatnonzero(codes == code)[0]] = "train"
    return np.sort(order[parts == "train"]), {split: np.sort(order[parts == split]) for split in fractions}
