"""What a run ends with: result.json, the table and the line."""

import io
import math

import pytest
from rich.console import Console

from tsla.evaluation.curves import _smooth, draw_curves
from tsla.evaluation.result import cost_line, score_table

REFERENCES = {"majority": 0.1, "root operator": 0.35}
RESULT = {"params": 12345, "state_bytes": 4096, "steps": 2200, "seconds": 125.4, "train_tokens_per_second": 9876.5,
          "peak_memory_bytes": 3 * 2**20}  # fmt: skip


def text(shown: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(shown)
    return console.file.getvalue()


@pytest.mark.parametrize(("accuracy", "place"), [(0.05, 0), (0.2, 1), (0.9, 2), (1.0, 2)])
def test_the_table_is_in_rising_order(accuracy, place):
    lines = [
        line
        for line in text(score_table("taylor", "test accuracy", accuracy, REFERENCES)).splitlines()
        if "0." in line or "1." in line
    ]
    assert len(lines) == 3
    assert "taylor" in lines[place] and f"{accuracy:.3f}" in lines[place]
    others = [line for at, line in enumerate(lines) if at != place]
    assert "majority" in others[0] and "0.100" in others[0] and "root operator" in others[1] and "0.350" in others[1]


def test_the_line_of_costs():
    assert (
        cost_line(RESULT)
        == "12,345 parameters, 4 KiB of state, 2,200 steps in 2:05 at 9,876 tokens/s, 3 MiB at the peak"
    )


@pytest.mark.parametrize("rows", ["", "10,0,2.3,0.1,,\n", "10,0,2.3,0.1,,\n15,0,,,2.2,0.3\n20,0,nan,0.2,,\n"])
def test_the_curve_is_a_picture(tmp_path, rows):
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("step,epoch,train/loss,train/accuracy,val/loss,val/accuracy\n" + rows)
    draw_curves(metrics, tmp_path / "curves.png", "accuracy", REFERENCES, "digits, taylor, seed 0")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "curves.png"
    ).stat().st_size > 9000


def test_the_smooth_curve_does_not_lag():
    assert _smooth([]) == []
    assert _smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    values = [math.sin(at) + at / 10 for at in range(100)]
    assert _smooth(values[::-1])[::-1] == pytest.approx(_smooth(values))
    ramp = [float(at) for at in range(100)]
    assert _smooth(ramp)[20:80] == pytest.approx(ramp[20:80], abs=1e-3)
    waves = [math.sin(at) for at in range(100)]
    assert max(map(abs, _smooth(waves)[10:90])) < 0.8 * max(map(abs, waves))
