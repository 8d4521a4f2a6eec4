"""What a data set holds, as text to read before training: lengths, labels, and what rows look like."""

import io
import shlex
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from tsla.tasks.base import IGNORE, SPLITS, Task, TaskSpec
from tsla.tasks.encoding import decode
from tsla.tasks.loading import Rows

LABELS, EXAMPLES, WIDTH = 20, 3, 70  # of a table, of the training rows, characters of one
PERCENTILES = {"shortest": 0, "5 %": 5, "median": 50, "95 %": 95, "longest": 100}
ROWS_PER_BATCH = 32  # of middling length: enough for a steady gradient, few enough for many steps


def inspect(task: Task, arguments: Sequence[str] = ()) -> str:
    """Rows, lengths, labels, vocabulary or channels, rows in two splits, examples, and the command that trains on it.

    Args:
        task: whose splits are read.
        arguments: `key=value` of the task, as typed, for that command.
    """
    spec = task.spec
    splits = {split: Rows(task.split(split), spec) for split in SPLITS}
    parts: list[RenderableType] = [_split_table(splits), "", _target_table(spec, splits), "", *_inputs(spec, splits)]
    parts += _warnings(spec, splits)
    truncated = getattr(task, "manifest", {}).get("truncated") if spec.name == "files" else None
    if truncated:
        parts.append(f"{truncated} rows were longer than max_length and lost their end")
    parts += ["", "first training rows"]
    parts += [Text(f"  {_target(spec, splits['train'], row)}: {_example(spec, splits['train'], row)}")
              for row in range(min(EXAMPLES, len(splits["train"])))]  # fmt: skip
    tokens = sorted(splits["train"].lengths.tolist())
    parts += ["", "train on it with", Text(f"  {train_command(spec.name, arguments, tokens)}", no_wrap=True)]
    return render(parts)


def render(parts: Sequence[RenderableType], width: int = 110) -> str:
    """Tables and texts without colours; a long command is not broken."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str | Text))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip("\n").split("\n"))


def printable(text: str, length: int = WIDTH) -> str:
    """A text on one line: control characters escaped, its end cut off."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:length])
    return shown if len(shown) <= length and len(text) <= length else shown[: length - 3] + "..."


def train_command(name: str, arguments: Sequence[str], lengths: Sequence[int]) -> str:
    """What to type: the task's arguments, and a budget that holds a fair batch of rows so long (sorted lengths)."""
    middle, longest = lengths[len(lengths) // 2], lengths[-1]
    budget = min(max(ROWS_PER_BATCH * middle, longest, 2048), max(32768, longest))
    tokens = 1 << (budget - 1).bit_length()
    options = [shlex.quote(f"task.{argument}") for argument in arguments]
    return " ".join(["tsla train", f"experiment={name}", *options, f"trainer.batch_tokens={tokens}"])


# --- tables -----------------------------------------------------------------------------------------------------------


def _split_table(splits: dict[str, Rows]) -> Table:
    table = new_table("", "rows", "steps", *PERCENTILES)
    for split, rows in splits.items():
        quantiles = np.percentile(rows.lengths, list(PERCENTILES.values())).astype(int).tolist()
        table.add_row(split, f"{len(rows):,}", f"{int(rows.lengths.sum()):,}", *(f"{q:,}" for q in quantiles))
    return table


def _target_table(spec: TaskSpec, splits: dict[str, Rows]) -> Table:
    """Rows of each class or label, or what numbers are like."""
    if spec.target == "numbers":
        table = new_table(
            "number", "mean", "deviation", *(f"{edge} in {s}" for s in SPLITS for edge in ("least", "most"))
        )
        for place in range(spec.outputs):
            mean, std = spec.target_mean[place], spec.target_std[place]
            found = [_unscaled(rows.targets[:, place], mean, std) for rows in splits.values()]
            edges = [f"{x:.4g}" for values in found for x in (values.min(), values.max())]
            table.add_row(_name(spec, place), f"{mean:.4g}", f"{std:.4g}", *edges)
        return table
    counts = {split: _counts(spec, rows) for split, rows in splits.items()}
    order = np.argsort(-counts["train"], kind="stable")
    table = new_table(
        {"class": "class", "labels": "label"}.get(spec.target, "class of tokens"), *SPLITS, "share of train"
    )
    for place in order[:LABELS].tolist():
        share = counts["train"][place] / max(_items(spec, splits["train"]), 1)
        table.add_row(_name(spec, place), *(f"{counts[s][place]:,}" for s in SPLITS), f"{share:.1%}")
    if len(order) > LABELS:
        rest = order[LABELS:]
        table.add_row(f"{len(rest)} others", *(f"{counts[s][rest].sum():,}" for s in SPLITS), "")
    return table


def _inputs(spec: TaskSpec, splits: dict[str, Rows]) -> list[RenderableType]:
    """The ids that occur, or the scale of each channel."""
    if spec.channels is not None:
        table = new_table("channel", "mean", "deviation", title="of the training rows")
        for place in range(min(spec.channels, LABELS)):
            table.add_row(str(place), f"{spec.input_mean[place]:.4g}", f"{spec.input_std[place]:.4g}")
        return [table]
    seen = [
        set().union(*(np.unique(piece).tolist() for one in rows.inputs for piece in one.pieces))
        for rows in splits.values()
    ]
    total = (spec.vocab_size or 1) - 1
    lines = f"{len(set().union(*seen))} of {total} {'bytes' if spec.inputs == 'bytes' else 'tokens'} occur"
    if new := (seen[1] | seen[2]) - seen[0]:
        lines += f"; {len(new)} of them in val or test only"
    return [lines]


def _warnings(spec: TaskSpec, splits: dict[str, Rows]) -> list[RenderableType]:
    """What may make scores look better or worse than they are."""
    found: list[RenderableType] = []
    inputs = {
        split: {b"|".join(one[row].tobytes() for one in rows.inputs) for row in range(len(rows))}
        for split, rows in splits.items()
    }
    for a, b in combinations(SPLITS, 2):
        if count := len(inputs[a] & inputs[b]):
            found.append(f"note: {count} inputs stand in {a} and in {b}")
    if spec.target == "class" and len(splits["train"]):
        share = _counts(spec, splits["train"]).max() / len(splits["train"])
        if share > 0.9:
            found.append(f"note: {share:.0%} of the training rows are of one class: read f1 beside accuracy")
    return found


def new_table(*headings: str, title: str | None = None) -> Table:
    """Without lines: the first column to the left, the others to the right."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        made.add_column(Text(heading), justify="right" if place else "left", no_wrap=True)
    return made


# --- rows -------------------------------------------------------------------------------------------------------------


def _counts(spec: TaskSpec, rows: Rows) -> NDArray[np.int64]:
    if spec.target == "labels":
        return rows.targets.sum(0).astype(np.int64)
    targets = _all_targets(rows)
    return np.bincount(targets[targets != IGNORE], minlength=spec.outputs)


def _items(spec: TaskSpec, rows: Rows) -> int:
    return int((_all_targets(rows) != IGNORE).sum()) if spec.target == "tokens" else len(rows)


def _all_targets(rows: Rows) -> NDArray[Any]:
    """Classes of rows, or of all tokens."""
    targets: NDArray[Any] = rows.targets.joined(range(len(rows))) if rows.spec.target == "tokens" else rows.targets
    return targets


def _name(spec: TaskSpec, place: int) -> str:
    return printable(spec.names[place], 40) if spec.names else str(place)


def _example(spec: TaskSpec, rows: Rows, row: int) -> str:
    """A row's inputs as a text to read, each cut to its share of the width."""
    shown = []
    for one in rows.inputs:
        values = one[row][:WIDTH]
        text = decode(spec, values if spec.channels is None else values.reshape(-1, spec.channels))
        cut = len(one[row]) > WIDTH
        width = WIDTH // len(rows.inputs) - 3 * (len(rows.inputs) - 1)
        shown.append(printable(text + " " * max(0, width + 1 - len(text)) if cut else text, width))
    return " | ".join(shown)


def _unscaled(values: NDArray[Any], mean: Any, std: Any) -> NDArray[np.float64]:
    """Standardised numbers in their own unit; a 0 that came back as 1e-7 is a 0."""
    found = values.astype(np.float64) * np.asarray(std) + np.asarray(mean)
    return np.where(np.abs(found) < 1e-6 * np.asarray(std), 0.0, found)


def _target(spec: TaskSpec, rows: Rows, row: int) -> str:
    match spec.target:
        case "class":
            return _name(spec, int(rows.targets[row]))
        case "labels":
            return ";".join(_name(spec, place) for place in np.flatnonzero(rows.targets[row]).tolist()) or "(none)"
        case "numbers":
            values = _unscaled(rows.targets[row], spec.target_mean, spec.target_std)
            return " ".join(f"{x:.4g}" for x in values)
        case _:
            return f"{spec.outputs} classes"
