"""Packed rows: every mixer treats sequences packed one after another as it treats each by itself."""

from itertools import pairwise

import mechanisms
import pytest
import torch
from cases import agree
from mechanisms import DIM, NAMES, WITH_OPTIONS, build
from torch.testing import assert_close

from tsla.mixers.base import Mixer

EXACT = {"rtol": 1e-9, "atol": 1e-9}
LENGTHS = (3, 7, 1, 20, 0, 2, 5, 17, 4)
BOUNDS = torch.tensor([0, *LENGTHS]).cumsum(0)
EVERYTHING = pytest.mark.parametrize(("name", "kind"), WITH_OPTIONS)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def apart(mixer, x, mask=None):
    parts = [
        mixer(x[:, start:stop], mask=None if mask is None else mask[:, start:stop])
        for start, stop in pairwise(BOUNDS.tolist())
    ]
    return torch.cat(parts, dim=1)


@EVERYTHING
@CAUSAL
def test_sequences_are_mixed_by_themselves(name, kind, causal):
    if causal not in mechanisms.directions(name):
        return
    mixer, x = build(name, kind, causal=causal), torch.randn(1, sum(LENGTHS), DIM, dtype=torch.float64)
    mask = torch.rand(1, sum(LENGTHS)) < 0.7
    mask[:, 3:10] = False
    for real in (None, mask):
        assert_close(mixer.mix(x, mask=real, cu_seqlens=BOUNDS).output, apart(mixer, x, real), **EXACT)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@CAUSAL
def test_gradients_are_those_of_separate_calls(name, causal):
    if causal not in mechanisms.directions(name):
        return
    mixer = build(name, "all", causal=causal)
    agree(
        lambda x: mixer.mix(x, cu_seqlens=BOUNDS).output, lambda x: apart(mixer, x),
        {"x": torch.randn(1, sum(LENGTHS), DIM, dtype=torch.float64)}, 1e-8,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_refusals(name):
    mixer, x = build(name, dtype=torch.float32), torch.zeros(1, 9, DIM)
    with pytest.raises(ValueError, match=r"^cu_seqlens must rise from 0 to the length \(9\), got \[0, 5\]$"):
        mixer.mix(x, cu_seqlens=torch.tensor([0, 5]))
    with pytest.raises(ValueError, match=r"^cu_seqlens needs a batch of one packed row, got 2$"):
        mixer.mix(x.expand(2, 9, DIM), cu_seqlens=torch.tensor([0, 9]))
    if "cross" in mixer.supports:
        with pytest.raises(ValueError, match=r"^cu_seqlens packs the sequences of x: it does not go with a context$"):
            mixer.mix(x, x, cu_seqlens=torch.tensor([0, 9]))


class Unpacked(Mixer):
    """A mechanism that cannot take packed rows."""

    supports = frozenset({"bidirectional"})

    def mix(self, x, context=None, *, mask=None, side=None, cu_seqlens=None):
        self.check_input(x, context, mask, cu_seqlens)


def test_a_mechanism_that_cannot_says_so():
    with pytest.raises(ValueError, match=r"^Unpacked does not support 'packed', only bidirectional$"):
        Unpacked(DIM, width=DIM, causal=False).mix(torch.zeros(1, 9, DIM), cu_seqlens=torch.tensor([0, 9]))
