"""Random features that training draws anew: when, what, and that a run which was stopped draws the same."""

import lightning as L
import pytest
import torch
import train_runs as runs

from tsla.mixers import PerformerAttention, RFAAttention
from tsla.training.redraw import Redraw

KEY = "encoder.blocks.0.mixer.feature_map.projection"
LIMITS = ("trainer.max_steps=12", "trainer.validate_every=5", "trainer.checkpoint_every=4", "optim.lr=0.01")
PERFORMER = (*runs.DIGITS, *runs.HEADS, *LIMITS, "mixer=performer")


class Trainer:
    """As much of a trainer as the callback looks at."""

    global_step = 0


class Several(L.LightningModule):
    """Mixers that redraw after every third step (and a twin of that), after every step, and never."""

    def __init__(self):
        super().__init__()
        self.slow = PerformerAttention(8, heads=2, redraw_every=3)
        self.fast = RFAAttention(8, heads=2, redraw_every=1)
        self.never = PerformerAttention(8, heads=2, redraw_every=None)
        self.twin = PerformerAttention(8, heads=2, redraw_every=3)

    def rows(self):
        return [mixer.feature_map.projection.clone() for mixer in (self.slow, self.fast, self.never, self.twin)]


def after(redraw, model, step):
    """Which of the rows have changed at the end of a batch."""
    before, trainer = model.rows(), Trainer()
    trainer.global_step = step
    redraw.on_train_batch_end(trainer, model, None, None, 0)
    return [not torch.equal(a, b) for a, b in zip(before, model.rows(), strict=True)]


def test_steps_of_the_optimiser_are_counted_and_not_batches():
    redraw, model = Redraw(0), Several()
    for step in range(1, 10):
        for batch in range(3):  # two of them within an accumulated step, which the counter has not seen
            drawn = after(redraw, model, step - 1 if batch < 2 else step)
            third = batch == 2 and step % 3 == 0
            assert drawn == [third, batch == 2, False, third], (step, batch)


def test_what_is_drawn_is_told_by_seed_step_and_place():
    """Whatever was drawn before, and by whom: so in a run that is gone on with, and in another process."""
    first, resumed, other = Several(), Several(), Several()
    whole = Redraw(4)
    for step in range(1, 7):
        after(whole, first, step)
        torch.randn(5)
    after(Redraw(4), resumed, 6)
    after(Redraw(5), other, 6)
    for at in (0, 1, 3):
        assert torch.equal(first.rows()[at], resumed.rows()[at])
        assert not torch.equal(first.rows()[at], other.rows()[at])
    assert not torch.equal(first.rows()[0], first.rows()[3])


def test_drawing_leaves_the_random_numbers_of_training_alone():
    model, before = Several(), torch.get_rng_state()
    assert after(Redraw(0), model, 3)[0]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("performer") / "run"
    assert runs.train(*PERFORMER, "mixer.redraw_every=3", "trainer.accumulate=2", f"run_dir={run}") == 0
    return run


@pytest.mark.parametrize("batch", [5, 12, 15])  # within a step, at one that draws, and after it
def test_a_stopped_run_draws_what_it_would_have(tmp_path, whole, batch):
    run = tmp_path / "run"
    options = (*PERFORMER, "mixer.redraw_every=3", "trainer.accumulate=2")
    assert runs.stopped_at_batch(batch, *options, f"run_dir={run}") == 130
    assert runs.train(f"resume={run}") == 0
    runs.assert_same_run(whole, run)


def test_a_run_draws_by_its_steps_and_saves_what_it_drew(tmp_path, whole):
    """12 steps and a redraw after every 3rd: the last rows are those of step 12, in the model and its checkpoint."""
    options = (*PERFORMER, "trainer.accumulate=2")
    assert runs.train(*options, "mixer.redraw_every=12", f"run_dir={tmp_path / 'once'}") == 0
    assert runs.train(*options, "mixer.redraw_every=null", f"run_dir={tmp_path / 'never'}") == 0
    often, once, never = (runs.weights(run)[KEY] for run in (whole, tmp_path / "once", tmp_path / "never"))
    assert torch.equal(often, once) and not torch.equal(often, never)
    assert torch.equal(runs.checkpoint(whole)["state_dict"][f"model.{KEY}"], often)
