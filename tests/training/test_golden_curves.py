"""Committed curves: fifty steps of three configurations must give the losses they gave when they were recorded.

After a change that is meant to alter them: ``python tests/training/test_golden_curves.py`` and say why in the commit.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import train_runs as runs

GOLDEN = Path(__file__).parents[1] / "golden" / "curves.json"
STEPS = ("trainer.max_steps=50", "trainer.validate_every=25", "optim.warmup_steps=5")
CONFIGURATIONS = {
    "listops": (*runs.LISTOPS, *runs.HEADS, *STEPS, "model.causal=true", "model.pool=attention", "mixer.impl=linear"),
    "digits": (*runs.DIGITS, *runs.HEADS, *STEPS, "mixer.local_heads=1", "trainer.accumulate=2"),
    "mqar": (*runs.MQAR, *runs.HEADS, *STEPS, "trainer.ema=0.9", "mixer.gate=true"),
}


def curve(name: str, folder: Path, *more: str) -> list[dict[str, str]]:
    assert runs.train(*CONFIGURATIONS[name], *more, f"run_dir={folder / 'run'}", f"data_dir={folder / 'data'}") == 0
    return runs.metrics(folder / "run")


def assert_same_curve(expected: list[dict[str, str]], got: list[dict[str, str]], rel: float) -> None:
    assert [row["step"] for row in got] == [row["step"] for row in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.keys() == b.keys()
        for column in a:
            # Scores are fractions of some dozen rows, of which another machine's rounding may move one.
            near = {"rel": rel} if column.endswith("loss") or column == "optim/lr" else {"abs": 0.06}
            assert float(a[column]) == pytest.approx(float(b[column]), **near), (a["step"], column)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_curve_is_the_committed_one(name, tmp_path):
    golden = json.loads(GOLDEN.read_text())
    same = golden["torch"] == torch.__version__.split("+")[0]
    assert_same_curve(golden["curves"][name], curve(name, tmp_path), 1e-3 if same else 1e-2)


def test_the_same_command_gives_the_same_curve_and_another_seed_another(tmp_path):
    first, again, other = (
        curve("digits", tmp_path / name, seed) for name, seed in (("a", "seed=0"), ("b", "seed=0"), ("c", "seed=1"))
    )
    assert first == again
    with pytest.raises(AssertionError):
        assert_same_curve(first, other, 1e-2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    curves = {}
    for name in CONFIGURATIONS:
        with tempfile.TemporaryDirectory() as folder:
            curves[name] = curve(name, Path(folder))
    version = torch.__version__.split("+")[0]
    GOLDEN.write_text(json.dumps({"torch": version, "curves": curves}, indent=1) + "\n")
