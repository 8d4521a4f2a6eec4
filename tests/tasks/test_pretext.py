"""What inputs ask by themselves: hidden places drawn by seed, epoch and row, and the next of each row."""

import numpy as np
import pytest
import torch
import train_runs as runs
from datasets import Dataset

from tsla.tasks.loading import Batch, LengthBatches, Loader, Rows
from tsla.tasks.pretext import ask_hidden, ask_next, pretext_spec

LENGTHS = (7, 3, 1)


def batch(*, packed: bool = False, first: int = 5) -> Batch:
    """Rows of 7, 3 and 1 tokens, which count up from 1."""
    ids = [np.arange(1, length + 1) for length in LENGTHS]
    data = Dataset.from_dict({"input_ids": ids, "label": [0, 0, 0]})
    return Rows(data, runs.spec(), packed=packed).__getitems__([0, 1, 2])._replace(rows=torch.arange(first, first + 3))


def wide(rows: int = 400, first: int = 0) -> Batch:
    """Of 50 slots each, every second of which is padding."""
    mask = torch.arange(50).expand(rows, 50) % 2 == 0
    ids = torch.randint(1, 9, (rows, 50))
    return Batch(ids, mask, torch.zeros(rows), torch.arange(first, first + rows))


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_of_the_real_tokens_is_hidden(share):
    given = wide()
    asked = ask_hidden(given, 0, share=share, seed=0)
    assert asked.inputs is given.inputs and asked.targets is given.inputs
    assert given.mask.flatten()[asked.scored].all()
    assert len(asked.scored) / 10_000 == pytest.approx(share, abs=0.02)
    assert asked.scored.diff().min() > 0
    assert len(ask_hidden(given, 0, share=1.0, seed=0).scored) == 10_000


def test_what_is_hidden_is_a_function_of_seed_epoch_and_first_row():
    def drawn(first: int = 0, epoch: int = 0, seed: int = 0) -> list[int]:
        return ask_hidden(wide(first=first), epoch, share=0.3, seed=seed).scored.tolist()

    once = drawn()
    torch.manual_seed(5)
    assert drawn() == once
    assert len({tuple(x) for x in (once, drawn(first=1), drawn(epoch=1), drawn(seed=1))}) == 4


def test_the_next_token_is_of_the_same_row():
    asked = ask_next(batch(), 0)
    flat = asked.targets.flatten()[asked.scored]
    assert flat.tolist() == [2, 3, 4, 5, 6, 7, 2, 3]
    assert (asked.inputs.flatten()[asked.scored] + 1).tolist() == flat.tolist()


@pytest.mark.parametrize("ask", [ask_next, lambda given, epoch: ask_hidden(given, epoch, share=1.0, seed=0)])
def test_packed_rows_ask_as_padded_ones(ask):
    padded, packed = (ask(batch(packed=packed), 0) for packed in (False, True))
    assert packed.cu_seqlens.tolist() == [0, 7, 10, 11]
    for one in ("inputs", "targets"):
        assert torch.equal(*(getattr(x, one).flatten()[x.scored] for x in (padded, packed))), one


def test_a_loader_poses_by_its_epoch_and_validation_always_the_same():
    rows = Rows(Dataset.from_dict({"input_ids": [[1, 2]] * 6, "label": [0] * 6}), runs.spec())

    def pose(given: Batch, epoch: int) -> Batch:
        return given._replace(targets=given.targets + epoch)

    for seed, expected in ((0, {0, 3}), (None, {0})):
        loader = Loader(rows, LengthBatches(rows.lengths, 4, seed=seed), pose=pose)
        seen = set()
        for epoch in (0, 3):
            loader.batches.set_epoch(epoch)
            seen |= {int(x.targets[0]) for x in loader} | {int(loader.batch([1]).targets)}
        assert seen == expected


def test_the_spec_of_tokens_and_of_a_series():
    of_tokens = pretext_spec(runs.spec(vocab_size=18, pairs="nli", names=("a", "b")))
    assert of_tokens == runs.spec(vocab_size=18, outputs=18, target="tokens")
    series = runs.spec(vocab_size=None, channels=2, inputs="series", input_mean=(1.0, 2.0), input_std=(3.0, 4.0))
    found = pretext_spec(series)
    assert (found.target, found.outputs) == ("values", 2)
    assert (found.target_mean, found.target_std) == (series.input_mean, series.input_std)
