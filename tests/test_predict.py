"""`tsla predict`: rows in, the same rows' predictions out, for every kind of target and input file."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import train_runs as runs

from tsla import cli
from tsla.build import load_model_and_spec
from tsla.predict import predict
from tsla.training.checkpoints import load_weights

TRAIN = (*runs.TINY, *runs.HEADS, "trainer.max_steps=4", "trainer.validate_every=2", "trainer.batch_tokens=512")
WORDS = {"=good": "fine great", 'bad, "very"': "poor awful", "nan\nline": "so so"}
TEXTS = [f"{word} {i} é" for i in range(20) for word in WORDS.values()]
NAMES = [name for _ in range(20) for name in WORDS]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs by the target they learnt."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    rows = [
        {"text": text, "label": name, "labels": [name, "all"][: 1 + i % 2], "a": i * 100.0, "b": i,
         "x": [[i, 1.0 * (i % 3)]] * (1 + i % 4), "time": [1.7e9 + i, 1.7e9 - i], "far": 1.7e9 + i}
        for i, (text, name) in enumerate(zip(TEXTS, NAMES, strict=True))
    ]  # fmt: skip
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ("experiment=files", f"task.path={data}", f"data_dir={folder / 'data'}")
    kinds = {
        "class": (*files, "task.max_length=16"),
        "labels": (*files, "task.label=[labels]", "task.target=labels"),
        "numbers": (*files, "task.label=[a,b]", "task.target=numbers", "task.input=x", "task.kind=series"),
        "far": (*files, "task.label=[far]", "task.target=numbers", "task.input=time", "task.kind=series"),
        "number": (*files, "task.label=[a]", "task.target=numbers", "model.positions=learned"),
        "tokens": ("experiment=mqar", "task.train=[16/2/40]", "task.val=[16/2/8]", "task.test=[16/2/8]",
                   "task.vocab_size=32", f"data_dir={folder / 'data'}"),
        "listops": (*runs.LISTOPS, f"data_dir={folder / 'data'}"),
    }  # fmt: skip
    for name, arguments in kinds.items():
        assert runs.train(*arguments, *TRAIN, f"run_dir={folder / name}") == 0
    data.unlink()  # nothing but the run is needed
    return folder


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def table(path) -> list[dict]:
    if Path(path).suffix == ".jsonl":
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def logits(run, rows) -> list[torch.Tensor]:
    """Of ids or values, one row at a time, by the best weights."""
    model, _ = load_model_and_spec(run / "model")
    load_weights(model, run / "checkpoints" / "best.ckpt")
    with torch.inference_mode():
        return [model(torch.as_tensor(row)[None])[0] for row in rows]


def ids(text: str, length: int | None = None) -> np.ndarray:
    return (np.frombuffer(text.encode(), np.uint8).astype(np.int64) + 1)[:length]


def write(values, name="new.csv", column="text") -> Path:
    path = Path(name)
    match path.suffix:
        case ".csv":
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([["id", column], *enumerate(values)])
        case ".jsonl":
            path.write_text("".join(json.dumps({"id": i, column: value}) + "\n" for i, value in enumerate(values)))
        case ".parquet":
            pq.write_table(pa.table({column: values}), path)
        case ".txt":
            path.write_bytes("".join(f"{value}\r\n" for value in values).encode())
        case _:
            path.mkdir()
            for number, value in enumerate(values):
                (path / f"{number:02}.txt").write_text(value)
    return path


@pytest.mark.parametrize("source", ["new.csv", "new.jsonl", "new.parquet", "new.txt", "folder"])
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_classes(trained, source, ending):
    texts = [*TEXTS[:7], "x", "much longer than any text of the training"]
    out = predict(trained / "class", write(texts, source), Path(f"out.{ending}"), batch_tokens=40)
    expected = [x.softmax(-1) for x in logits(trained / "class", [ids(text, 16) for text in texts])]
    names = sorted(WORDS)
    rows = table(out)
    assert list(rows[0]) == ["row", *(["file"] if source == "folder" else []), "prediction", "probability"]
    assert [int(row["row"]) for row in rows] == list(range(1, 10))
    assert [row["prediction"] for row in rows] == [names[int(p.argmax())] for p in expected]
    assert [float(row["probability"]) for row in rows] == pytest.approx([float(p.max()) for p in expected], abs=2e-6)
    if source == "folder":
        assert [row["file"] for row in rows] == [f"{i:02}.txt" for i in range(9)]
    assert not list(Path().glob("*.part"))


def test_the_best_weights_are_used_where_there_are_any(trained, tmp_path):
    run, copy = trained / "class", tmp_path / "copy"
    (copy / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "model"):
        (copy / name).symlink_to(run / name)
    with_last = table(predict(copy, write(TEXTS)))
    state = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    state["state_dict"]["model.head.bias"][1] += 100
    torch.save(state, copy / "checkpoints" / "best.ckpt")
    with_best = table(predict(copy, Path("new.csv")))
    assert {row["prediction"] for row in with_best} == {sorted(WORDS)[1]}
    assert {float(row["probability"]) for row in with_best} == {1.0} != {float(row["probability"]) for row in with_last}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_labels(trained, ending):
    rows = table(predict(trained / "labels", write(TEXTS[:9]), Path(f"out.{ending}")))
    names = sorted([*WORDS, "all"])
    for row, x in zip(rows, logits(trained / "labels", map(ids, TEXTS[:9])), strict=True):
        chosen = [name for name, value in zip(names, x.tolist(), strict=True) if value > 0]
        assert row["prediction"] == (chosen if ending == "jsonl" else ";".join(chosen))
        found = [float(row[f"probability {name}"]) for name in names]
        assert found == pytest.approx(x.sigmoid().tolist(), abs=2e-6)


def test_numbers_have_their_unit(trained):
    series = [[[i, 2.0], [i, 0.5]] for i in range(5)]
    rows = table(predict(trained / "numbers", write(series, "new.jsonl", "x"), None))
    spec = load_model_and_spec(trained / "numbers" / "model")[1]
    scaled = (np.array(series) - spec.input_mean) / spec.input_std
    for row, x in zip(rows, logits(trained / "numbers", scaled.astype(np.float32)), strict=True):
        expected = x.numpy() * spec.target_std + spec.target_mean
        assert [float(row["prediction a"]), float(row["prediction b"])] == pytest.approx(expected.tolist(), rel=1e-4)
    assert Path("new.predictions.csv").exists() and abs(float(rows[0]["prediction a"])) > 500
    assert list(table(predict(trained / "number", write(["a b"]), None))[0]) == ["row", "prediction"]


def test_numbers_far_from_0(trained):
    series = 1.7e9 + np.array([[[i], [-i]] for i in range(0, 60, 10)])
    rows = table(predict(trained / "far", write(series[:, :, 0].tolist(), "new.jsonl", "time"), None))
    spec = load_model_and_spec(trained / "far" / "model")[1]
    scaled = ((series - spec.input_mean) / spec.input_std).astype(np.float32)
    assert 10 < spec.target_std[0] < 20 and len(np.unique(scaled)) == 11
    expected = [float(x.double() * spec.target_std[0]) for x in logits(trained / "far", scaled)]
    found = [float(row["prediction"]) - spec.target_mean[0] for row in rows]
    assert found == pytest.approx(expected, abs=1e-3) and np.ptp(found) > 0.1


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_tokens(trained, ending):
    inputs = [[1, 20, 2, 30, 1, 0, 2], [3, 17]]
    rows = table(predict(trained / "tokens", write(inputs, "new.jsonl", "input_ids"), Path(f"out.{ending}")))
    for row, x in zip(rows, logits(trained / "tokens", [np.array(ids) + 1 for ids in inputs]), strict=True):
        expected = x.argmax(-1).tolist()
        assert row["prediction"] == (expected if ending == "jsonl" else " ".join(map(str, expected)))


def test_listops(trained):
    (row,) = table(predict(trained / "listops", write(["[MAX 4 [MIN 2 9 ] ]"], "new.txt")))
    assert row["prediction"] in "0123456789" and 0.1 <= float(row["probability"]) <= 1


def test_which_column(trained):
    rows = [{"review": "a", "other": "b"}]
    Path("new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"new\.jsonl has the columns 'review', 'other': say by column="):
        predict(trained / "class", Path("new.jsonl"))
    with pytest.raises(ValueError, match=r"column \('reviews'\) must be a column .*did you mean 'review'"):
        predict(trained / "class", Path("new.jsonl"), column="reviews")
    assert len(table(predict(trained / "class", Path("new.jsonl"), column="review"))) == 1
    assert len(table(predict(trained / "class", write(["a"], "one.parquet", "anything")))) == 1


REFUSED = {
    "an empty row": (["a", "b", ""], "new.csv", {}, r"new\.csv, column 'text', row 3: input \(''\) is empty"),
    "a row and its column": ([None, "b"], "new.jsonl", {}, r"column 'text', row 1: input \(None\) must"),
    "no rows": ([], "new.txt", {}, "has 0 rows"),
    "an empty folder": ([], "folder", {}, r"must hold \.txt files"),
    "a column of texts": (["a"], "new.txt", {"column": "text"}, "needs a table"),
    "another ending": (["a"], "new.csv", {"out": Path("out.xlsx")}, r"out \(out\.xlsx\) must end in \.csv or \.jsonl"),
    "over the input": (["a"], "new.csv", {"out": Path("../x/../new.csv")}, "is the input itself"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(trained, name, tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    values, source, options, message = REFUSED[name]
    if "out" in options and ".." in str(options["out"]):
        options = {"out": tmp_path / "x" / ".." / "new.csv"}
    path = write(values, source)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(ValueError, match=message):
        predict(trained / "class", path, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["x", source])
    assert before is None or path.read_bytes() == before


def test_learnt_positions_end_somewhere(trained):
    with pytest.raises(ValueError, match=r"column 'text', row 2: 90 steps, but this model learnt positions up to"):
        predict(trained / "number", write(["a", "b" * 90]))


def test_earlier_predictions_survive_a_failure(trained, monkeypatch):
    out = predict(trained / "class", write(TEXTS[:2]))
    before = out.read_text()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predict(trained / "class", write(TEXTS[:5]))
    assert out.read_text() == before and not list(Path().glob("*.part"))


def test_the_command(trained, capsys):
    write(TEXTS[:3])
    assert cli.main(["predict", str(trained / "class"), "new.csv", "out=out.jsonl", "column=text"]) == 0
    assert capsys.readouterr().out == "out.jsonl\n" and len(table("out.jsonl")) == 3
    assert cli.main(["predict", str(trained / "class"), "none.csv"]) in (1, 2)
    assert "none.csv" in capsys.readouterr().err
