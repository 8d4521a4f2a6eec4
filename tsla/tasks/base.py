"""What every task offers: a spec, three splits of token rows, and reference lines to read an accuracy against."""

from typing import NamedTuple, Protocol

from datasets import Dataset

SPLITS = ("train", "val", "test")
PAD = 0  # the id every token table reserves for padding; it is never a real token


class TaskSpec(NamedTuple):
    """What a model has to know about a task.

    `vocab_size` counts the padding id; `max_length` is the longest row in tokens, over all splits.
    """

    name: str
    vocab_size: int
    num_classes: int
    max_length: int


class Task(Protocol):
    """A classification task over token rows.

    `split` returns a `datasets.Dataset` with the columns `input_ids` (list<uint8>, no padding, no id 0)
    and `label` (int64). `references` maps a short name to the test accuracy (0-1) of a trivial rule, in rising order.
    Both build what they need on first use and read it from disk afterwards.
    """

    @property
    def spec(self) -> TaskSpec: ...

    def split(self, name: str) -> Dataset: ...

    def references(self) -> dict[str, float]: ...
