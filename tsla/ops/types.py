"""What linear-cost attention returns (an output, a state for later tokens) and the precision it works in."""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor


class KernelState(NamedTuple):
    """All that a kernel attention remembers of the keys and values it has seen; its size does not grow.

    kv: ``(b, s, f, e)`` sum of phi(k) v^T;  z: ``(b, s, f)`` sum of phi(k);  length: ``(b,)`` int64, visible keys seen.
    s is the number of key/value heads, or of query heads where the decay differs per query head.
    kv and z are at least float32: a bf16 sum stops growing after some hundred tokens.
    """

    kv: Tensor
    z: Tensor
    length: Tensor


class Attended(NamedTuple):
    """Output ``(b, h, n, e)`` in the type of the queries, and the state after the last key (None unless asked for)."""

    output: Tensor
    state: KernelState | None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that features, states and denominators are kept in: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: it would send products back to low precision, explicit casts or not. The meta device has none."""
    # While it compiles, torch 2.11 cannot be asked; and nothing is compiled for the meta device.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
