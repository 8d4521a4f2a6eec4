"""What a trained run says of new inputs: a table of predictions beside their row numbers."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from torch import Tensor, nn

from tsla.build import load_model_and_spec
from tsla.config import Config, read
from tsla.config.schema import VisionConfig
from tsla.config.tasks import FilesConfig
from tsla.evaluation.evaluate import answers_of
from tsla.tasks import tables
from tsla.tasks.base import TaskSpec
from tsla.tasks.encoding import Array, encode_inputs
from tsla.tasks.loading import LengthBatches, Loader, Rows
from tsla.training.checkpoints import load_weights
from tsla.training.hardware import pick_device
from tsla.training.objective import Objective
from tsla.training.run_dir import write_text

COLUMNS = ("text", "input", "input_ids", "tokens", "values", "Source")  # of inputs, where nobody says which it is
OUTPUTS = (".csv", ".jsonl")


def predict(
    run_dir: Path, source: Path, out: Path | None = None, *, column: str | None = None, batch_tokens: int = 16384
) -> Path:
    """Predict every row of `source` with a run's best weights; returns the file it wrote.

    The file has a row for each input, in their order: ``row``, counted from 1; ``file``, if they are files; then

    - of a class: ``prediction``, its name, and ``probability``
    - of labels: ``prediction``, those above one half joined by ``;`` (a list in JSONL), and ``probability <label>``
    - of numbers: ``prediction`` in the unit of the target, or ``prediction <name>`` of several
    - of tokens: ``prediction``, the class at each token, spaced (a list in JSONL)

    Texts are written as they are: a class name that begins with ``=`` is a formula to a spreadsheet.

    Args:
        run_dir: a finished run; its data is not needed.
        source: csv, tsv, jsonl, json, parquet, txt (an input a line), or a folder of txt files (one input each).
        out: ends in csv or jsonl; None for `<name of source>.predictions.csv` in the current folder.
        column: of the inputs; None for that of the run, or the usual names, or the only one.
        batch_tokens: most tokens of a batch, padding included.

    Raises:
        ValueError: a row that cannot be encoded, with its number, or wrong options; nothing is written then.
        FileNotFoundError: no such run or input.
    """
    out = _target(source, out)
    config = read(run_dir / "config.yaml")
    model, spec = load_model_and_spec(run_dir / "model")
    best = run_dir / "checkpoints" / "best.ckpt"
    if best.is_file():
        load_weights(model, best)
    values, files, place = _read_inputs(source, config, column)
    most = config.task.max_length if isinstance(config.task, FilesConfig) else None
    rows = tables.each(values, lambda value: encode_inputs(spec, value, max_length=most), place)
    _check_lengths(rows, config, spec, place)
    outputs = _outputs(model, spec, rows, batch_tokens, config.trainer.accelerator)
    records = [{"row": number, **({"file": name} if name else {}), **_record(spec, output)}
               for number, (name, output) in enumerate(zip(files, outputs, strict=True), 1)]  # fmt: skip
    _write(out, records)
    return out


def _target(source: Path, out: Path | None) -> Path:
    """Where predictions go."""
    if not source.exists():
        raise FileNotFoundError(f"input ({source}) does not exist")
    made = Path(f"{source.resolve().stem}.predictions.csv") if out is None else out
    if made.suffix.lower() not in OUTPUTS:
        raise ValueError(f"out ({made}) must end in {' or '.join(OUTPUTS)}")
    if made.is_dir():
        raise ValueError(f"out ({made}) is a folder: give a file")
    if made.exists() and made.samefile(source):
        raise ValueError(f"out ({made}) is the input itself: give another file")
    return made


def _read_inputs(source: Path, config: Config, column: str | None) -> tuple[list[Any], list[str | None], str]:
    """Raw inputs, the file of each if it has one of its own, and where they stand, for errors."""
    texts = source.is_dir() or source.suffix.lower() == ".txt"
    if texts and column is not None:
        raise ValueError(f"column ({column}) needs a table, and {source} holds texts")
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.suffix.lower() == ".txt" and file.is_file())
        if not files:
            raise ValueError(f"{source} must hold .txt files")
        return (
            [file.read_bytes().removeprefix(b"\xef\xbb\xbf") for file in files],
            [file.name for file in files],
            str(source),
        )
    place = str(source)
    if texts:
        values: list[Any] = list(tables.read_lines(source))
    else:
        columns = tables.read_file(source)
        column = column or _usual(list(columns), config, source)
        values, place = tables.column(columns, column, "column", place), f"{source}, column {column!r}"
    if not values:
        raise ValueError(f"{source} has 0 rows")
    return values, [None] * len(values), place


def _usual(names: list[str], config: Config, source: Path) -> str:
    """The column of inputs when nobody said which."""
    own = [config.task.input] if isinstance(config.task, FilesConfig) else []
    if found := [name for name in (*own, *COLUMNS) if name in names]:
        return found[0]
    if len(names) == 1:
        return names[0]
    raise ValueError(f"{source} has the columns {', '.join(map(repr, names))}: say by column= which one it is")


def _check_lengths(rows: Sequence[list[Array]], config: Config, spec: TaskSpec, place: str) -> None:
    if isinstance(config.model, VisionConfig):
        height, width = spec.image
        for number, (pixels,) in enumerate(rows, 1):
            if len(pixels) != height * width:
                raise ValueError(f"{place}, row {number}: {len(pixels)} pixels, but this model looks at images of "
                                 f"{height} x {width} (model=vision)")  # fmt: skip
        return
    if config.model.positions != "learned":
        return
    for number, row in enumerate(rows, 1):
        if (longest := max(map(len, row))) > spec.max_length:
            raise ValueError(f"{place}, row {number}: {longest} steps, but this model learnt positions up to "
                             f"{spec.max_length} (model.positions=learned)")  # fmt: skip


def _outputs(
    model: nn.Module,
    spec: TaskSpec,
    rows: Sequence[list[Array]],
    batch_tokens: int,
    accelerator: str,
) -> list[Tensor]:
    """What the model gives each row, in order."""
    loaded = Rows(_dataset(spec, rows), spec)
    loader = Loader(loaded, LengthBatches(loaded.padded, batch_tokens, seed=None))
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch, answers in answers_of(model, loader, Objective(spec), pick_device(accelerator)):
        for place, row in enumerate(batch.rows.tolist()):
            own = answers.outputs[answers.rows == place]
            found[row] = own if spec.target == "tokens" else own[0]
    return found


def _dataset(spec: TaskSpec, rows: Sequence[list[Array]]) -> Dataset:
    """Rows as a task has them, each with a target that is never looked at."""
    kinds = {"class": Value("int64"), "labels": List(Value("uint8")), "numbers": List(Value("float32")),
             "tokens": List(Value("int32"))}  # fmt: skip
    kind = "uint32" if spec.channels is None else "float64"
    names = ["values" if spec.channels else "input_ids", "input_ids_2"][: 1 + bool(spec.pairs)]
    width = {"class": 0, "tokens": 1}.get(spec.target, spec.outputs)
    data: dict[str, list[Any]] = {name: [row[at].reshape(-1) for row in rows] for at, name in enumerate(names)}
    data["label"] = [[0] * (len(row[0]) if spec.target == "tokens" else width) if width else 0 for row in rows]
    features = Features({**{name: List(Value(kind)) for name in names}, "label": kinds[spec.target]})
    return Dataset.from_dict(data, features=features)


def _record(spec: TaskSpec, output: Tensor) -> dict[str, Any]:
    """The columns of one row; lists become text in CSV."""
    names = spec.names or tuple(map(str, range(spec.outputs)))
    match spec.target:
        case "class":
            probability, best = output.softmax(-1).max(-1)
            return {"prediction": names[int(best)], "probability": round(float(probability), 6)}
        case "labels":
            chances = output.sigmoid().tolist()
            chosen = Labels(name for name, chance in zip(names, chances, strict=True) if chance > 0.5)
            return {"prediction": chosen} | {
                f"probability {name}": round(chance, 6) for name, chance in zip(names, chances, strict=True)
            }
        case "numbers":
            values = Objective(spec).in_units(output.double()).tolist()
            return {"prediction" if len(values) == 1 else f"prediction {name}": float(f"{value:.15g}")
                    for name, value in zip(names, values, strict=True)}  # fmt: skip
        case _:
            return {"prediction": output.argmax(-1).tolist()}


class Labels(list[str]):
    """Names, which a table joins by ``;``."""

    def __str__(self) -> str:
        return ";".join(self)


def _write(out: Path, records: list[dict[str, Any]]) -> None:
    file = io.StringIO(newline="")
    if out.suffix.lower() == ".jsonl":
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    else:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in record.items()} for record in records)
    write_text(out, file.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, Labels):
        return str(value)
    return " ".join(map(str, value)) if isinstance(value, list) else value
