"""What every task offers: a spec, three splits of rows, and reference lines to read a score against."""

from typing import Any, NamedTuple, Protocol

from datasets import Dataset

SPLITS = ("train", "val", "test")
INPUTS = ("bytes", "characters", "tokens", "listops", "series")
TARGETS = ("class", "labels", "numbers", "tokens")
PAIRS = ("", "concat", "nli", "normed")
PAD = 0  # the id every token table reserves for padding; it is never a real token
IGNORE = -100  # the target of a token that is not scored


class TaskSpec(NamedTuple):
    """What a model, a loss and a reader of new inputs have to know of a task: plain data, kept beside the weights.

    name: of the task.
    inputs: how a raw input becomes a row (see `tsla.tasks.encoding`): ``"bytes"`` or ``"characters"`` of a text,
        ``"tokens"`` given as whole numbers from 0, ``"listops"``, or a ``"series"`` of real numbers.
    target: ``"class"``, one of them; ``"labels"``, any number of them; ``"numbers"``; ``"tokens"``, a class for each
        scored token; and, where a series asks for itself (see `tsla.tasks.pretext`), ``"values"`` of each scored step.
    outputs: classes, labels or numbers.
    max_length: the longest row in tokens, over all splits; more where a protocol says for how many a model is built.
    vocab_size: token ids, with the padding id; None for a series.
    channels: numbers at each step of a series; None for tokens.
    names: of the outputs; empty where they are their indices.
    image: height and width, if a row is the pixels of an image, row by row; its ids are grey levels, 1 the darkest.
    pairs: of a row of two inputs, how its class is told from vectors a and b of the two: ``"concat"``, by [a, b],
        ``"nli"``, by [a, b, a - b, a b], or ``"normed"``, see `tsla.models.classifier.PairHead`; empty for a row of
        one input.
    end: the id that ends every row; 0 if none does.
    final: of a row's scored tokens the last is its answer, for which the others are trained as well.
    alphabet: the characters that have ids of their own, in the order of these.
    input_mean, input_std: of each channel; target_mean, target_std: of each number, of the training split.
    """

    name: str
    inputs: str
    target: str
    outputs: int
    max_length: int
    vocab_size: int | None = None
    channels: int | None = None
    names: tuple[str, ...] = ()
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    image: tuple[int, ...] = ()
    pairs: str = ""
    end: int = 0
    alphabet: str = ""
    final: bool = False


def parse_spec(data: object, problems: list[str]) -> TaskSpec | None:
    """The spec of plain data, such as a saved one, or None with its problems noted."""
    known = set(TaskSpec._fields)
    if not isinstance(data, dict) or not set(data) <= known or not set(TaskSpec._fields[:5]) <= set(data):
        problems.append(f"task must have {', '.join(TaskSpec._fields[:5])}, and of {', '.join(sorted(known))}, "
                        f"got {data!r}")  # fmt: skip
        return None
    found = len(problems)
    for name, value in data.items():
        if name in (choices := {"inputs": INPUTS, "target": TARGETS, "pairs": PAIRS}):
            allowed = choices[name]
            if value not in allowed:
                shown = ", ".join(one or "''" for one in allowed)
                problems.append(f"task.{name} ({value!r}) must be one of {shown}")
        elif name in ("name", "alphabet"):
            if not isinstance(value, str):
                problems.append(f"task.{name} ({value!r}) must be a text")
        elif name == "final":
            if not isinstance(value, bool):
                problems.append(f"task.final ({value!r}) must be true or false")
        elif name == "end":
            if type(value) is not int or value < 0:
                problems.append(f"task.end ({value!r}) must be a whole number of at least 0")
        elif name in ("outputs", "max_length") or (name in ("vocab_size", "channels") and value is not None):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                problems.append(f"task.{name} ({value!r}) must be a whole number of at least 1")
        elif name == "image":
            if not _is_image(value, data["max_length"]):
                problems.append(f"task.image ({value!r}) must be [], or a height and a width in pixels whose product "
                                f"is task.max_length ({data['max_length']!r})")  # fmt: skip
        elif value is not None:
            kind = str if name == "names" else float
            if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
                problems.append(f"task.{name} ({value!r}) must be a list of {'texts' if kind is str else 'numbers'}")
    if (data.get("vocab_size") is None) == (data.get("channels") is None):
        problems.append("task must have either vocab_size or channels")
    if len(problems) > found:
        return None
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
    return TaskSpec(**values)


def _is_image(value: object, pixels: object) -> bool:
    if not isinstance(value, list | tuple) or not all(type(side) is int and side > 0 for side in value):
        return False
    return not value or (len(value) == 2 and value[0] * value[1] == pixels)


class Task(Protocol):
    """A task over rows of tokens or numbers.

    `split` returns a `datasets.Dataset` with the columns

    - `input_ids` (list<unsigned int>, no padding, no id 0) or, for a series, `values` (list<float64, float32 or uint8>,
      step by step, not standardised)
    - `input_ids_2`, of rows of two inputs, for which `spec.pairs` says so
    - `label`: int64; for labels list<uint8>, 1 where one applies; for numbers list<float64>, not standardised; for
      tokens list<int32> as long as `input_ids`, `IGNORE` where nothing is asked
    - any others: names of slices whose scores are told apart, a value for each row, or for each scored token (a list)

    `references` maps a short name to the test score of a trivial rule (in the objective's monitored metric), in rising
    order. Both build what they need on first use and read it from disk afterwards.
    """

    @property
    def spec(self) -> TaskSpec: ...

    def split(self, name: str) -> Dataset: ...

    def references(self) -> dict[str, float]: ...
