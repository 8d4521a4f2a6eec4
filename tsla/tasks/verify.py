"""What a task's rows are, counted anew from what lies on disk."""

from typing import Any

import numpy as np

from tsla.tasks.base import IGNORE, SPLITS, Task
from tsla.tasks.loading import Rows
from tsla.tasks.store import describe


def recount(task: Task) -> dict[str, Any]:
    """Rows, labels and lengths as `tsla.tasks.store.describe` tells them.

    Labels are those of targets that are classes; a row of two inputs is as long as the longer one.

    Raises:
        ValueError: an id of padding or above the vocabulary, or a class that there is not.
    """
    spec, lengths, labels = task.spec, {}, {}
    for split in SPLITS:
        rows = Rows(task.split(split), spec)
        lengths[split] = rows.padded // len(rows.inputs)
        if spec.vocab_size is not None:
            for piece in (piece for one in rows.inputs for piece in one.pieces if piece.size):
                if not 1 <= int(piece.min()) <= int(piece.max()) < spec.vocab_size:
                    raise ValueError(f"{split} has the ids {piece.min()} to {piece.max()}, they must be 1 to "
                                     f"{spec.vocab_size - 1}")  # fmt: skip
        if spec.target in ("class", "tokens"):
            found = rows.targets if spec.target == "class" else rows.targets.joined(range(len(rows)))
            labels[split] = found[found != IGNORE].astype(np.int64)
            if labels[split].size and not 0 <= labels[split].min() <= labels[split].max() < spec.outputs:
                raise ValueError(f"{split} has the classes {labels[split].min()} to {labels[split].max()}, they must "
                                 f"be 0 to {spec.outputs - 1}")  # fmt: skip
    return describe(lengths, labels, spec.outputs)
