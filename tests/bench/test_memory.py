"""The two ways to measure memory, on amounts that are known."""

import sys
from functools import partial
from operator import mul

import pytest
import torch

from tsla.bench.memory import free_bytes, peak_bytes, peak_extra_bytes

MIB = 2**20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")


def test_memory_taken_outside_torch_is_seen():
    bytes_of_python = partial(partial, mul, b"x", 64 * MIB)
    assert 64 * MIB <= peak_extra_bytes(bytes_of_python) < 72 * MIB
    assert peak_bytes(bytes_of_python()) == 0  # the sum of tensors knows nothing of it


def test_what_a_call_returns_does_not_count():
    assert peak_extra_bytes(partial(partial, torch.ones, 16 * MIB)) < 16 * MIB  # of 64; torch's own code is loaded too


def test_what_was_there_before_does_not_count():
    there = partial(partial, torch.Tensor.add_, torch.zeros(16 * MIB), 1)
    assert peak_extra_bytes(there) < 16 * MIB


def test_a_call_that_fails_has_no_number():
    assert peak_extra_bytes(partial(partial, torch.ones, -1)) is None
    assert free_bytes() > 64 * MIB
