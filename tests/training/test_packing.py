"""Training on packed rows: the same curve as on padded ones, and the same run after a stop."""

import pytest
import train_runs as runs

LISTOPS = (*runs.LISTOPS, *runs.HEADS, "trainer.max_steps=8", "trainer.validate_every=4", "task.packing=true")
MQAR = ("experiment=mqar", "task.train=[16/4/60,32/4/30]", "task.val=[16/4/10]", "task.test=[16/4/10]", *runs.HEADS,
        "model.dim=16", "trainer.max_steps=6", "trainer.batch_tokens=200", "task.packing=true", *runs.TINY)  # fmt: skip


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("arguments", [LISTOPS, (*LISTOPS, "model.pool=attention", "mixer.token_shift=true"), MQAR])
def test_the_curve_is_that_of_padded_rows(arguments):
    for packing in ("true", "false"):
        assert runs.train(*arguments[:-1] if arguments is MQAR else arguments, f"task.packing={packing}",
                          "model.dropout=0", f"run_dir={packing}") == 0  # fmt: skip
    for packed, padded in zip(runs.metrics("true"), runs.metrics("false"), strict=True):
        assert packed.keys() == padded.keys()
        for name in packed:
            if not name.startswith("perf") and packed[name]:
                assert float(packed[name]) == pytest.approx(float(padded[name]), abs=2e-3), name


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    options = (*LISTOPS, "model.dropout=0.1", "trainer.workers=0")
    assert runs.train(*options, "run_dir=whole") == 0
    assert runs.stopped_at_batch(5, *options, "run_dir=cut") == 130
    assert runs.train("resume=cut") == 0
    runs.assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_workers_hand_packed_batches_over():
    assert runs.train(*LISTOPS, "trainer.workers=1", "run_dir=far", "model.dropout=0") == 0
    assert runs.train(*LISTOPS, "run_dir=near", "model.dropout=0") == 0
    assert runs.metrics("far") == runs.metrics("near")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("experiment=listops_short", "model.pool=cls"),
            "model.pool=cls puts a token before a row, and task.packing=true",
        ),
        (("experiment=mqar", "trainer.compile=true"), "packed batches have ever new shapes, each compiled anew"),
        (("experiment=digits", "model=vision"), "task.packing=true changes nothing for model=vision"),
    ],
)
def test_what_cannot_be_packed(arguments, message, capsys):
    assert runs.train(*arguments, "task.packing=true") == 2
    assert message in capsys.readouterr().err
