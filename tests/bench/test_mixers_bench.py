"""`tsla bench mixers`: a layer of every mechanism, checked before it is timed, in both passes."""

from pathlib import Path

import pytest
import torch

import tsla.bench.mixers
from tsla import cli
from tsla.bench.mixers import Layered, _run, call_of, error_of, expected_seconds, layer_of
from tsla.bench.model import Size
from tsla.bench.timing import Timing
from tsla.config import members
from tsla.config.mixers import MIXERS

from .conftest import read

BENCH = ["bench", "mixers", "dim=16", "heads=2", "length=24,16", "seconds=0", "threads=1", "memory=false", "out=o"]
SIZE = Size(dim=16, depth=1, heads=2, head_dim=0, batch=2, causal=False, length=24)

pytestmark = pytest.mark.usefixtures("few_rounds")


@pytest.mark.parametrize("causal", [False, True])
def test_every_mixer_is_measured_in_both_passes(causal, capsys):
    assert cli.main([*BENCH, f"causal={str(causal).lower()}"]) == 0
    assert "both passes" in capsys.readouterr().out
    rows = read("o/mixers.csv")
    direction = "causal" if causal else "bidirectional"
    able = {name for name in MIXERS if name != "none" and direction in members("mixer")[name].directions}
    assert {row["mixer"] for row in rows} == set(MIXERS) - {"none"}
    for row in rows:
        if row["mixer"] in able:
            assert float(row["seconds"]) > 0 and float(row["error"]) < 1e-4, row
        else:
            assert f"{row['mixer']} is " in row["problem"] and not row["seconds"]
    assert {(row["length"], row["backward"]) for row in rows} == {
        (length, backward) for length in ("16", "24") for backward in ("True", "False")
    }
    assert all(Path(f"o/mixers.{end}").stat().st_size for end in ("md", "png", "csv"))


def test_a_wrong_layer_has_no_time(monkeypatch):
    right = _run

    def wrong(layer, x, backward):
        return [y * (1.01 if y.dtype == torch.float32 else 1) for y in right(layer, x, backward)]

    monkeypatch.setattr(tsla.bench.mixers, "_run", wrong)
    assert cli.main([*BENCH, "only=softmax"]) == 0
    rows = read("o/mixers.csv")
    assert all(row["problem"].startswith("wrong: off by 0.01") and not row["seconds"] for row in rows)


def test_gradients_are_measured_too():
    out, *slopes = call_of("softmax", SIZE, True)()
    assert out.shape == (2, 24, 16) and [x.shape for x in slopes] == [(2, 24, 16), *[(16, 16)] * 4]
    assert len(call_of("softmax", SIZE, False)()) == 1
    assert 0 < error_of("softmax", SIZE, True) < 1e-5


def test_what_would_take_long_runs_once(monkeypatch):
    known = [Layered(SIZE, "softmax", False, time=Timing(0.5, 0.4, 0.6, 5))]
    longer = SIZE._replace(length=96)
    assert expected_seconds("softmax", longer, False, known) == pytest.approx(8.0)
    assert expected_seconds("softmax", longer, True, known) == 0 == expected_seconds("taylor", longer, False, known)
    monkeypatch.setattr(tsla.bench.mixers, "expected_seconds", lambda name, *others: 9.0 * (name == "softmax"))
    assert cli.main([*BENCH, "only=softmax,window"]) == 0
    assert {(row["mixer"], int(row["rounds"]) == 1) for row in read("o/mixers.csv")} == {
        ("softmax", True), ("window", False),
    }  # fmt: skip


def test_a_layer_has_the_same_weights_each_time():
    first, second = (layer_of("performer", SIZE).state_dict() for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_heads_must_divide_the_width(capsys):
    assert cli.main(["bench", "mixers", "dim=16", "heads=3"]) == 2
    assert "heads (3) must divide dim (16)" in capsys.readouterr().err
