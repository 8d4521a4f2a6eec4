"""Where the Triton form can be taken: attention of order 2 by the kernels of `tsla.kernels.triton`.

They are for CUDA tensors. Where TRITON_INTERPRET=1 was set before the start, Triton interprets them on the CPU, slowly,
and ``impl="triton"`` takes CPU tensors too: that is how they are tested without a GPU.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from tsla.ops import native

OLDEST = (8, 0)  # compute capability of the first cards that multiply bfloat16 and TensorFloat-32


def devices() -> tuple[str, ...]:
    """Types of devices whose tensors the kernels take."""
    return ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def why_not(q: Tensor, k: Tensor, v: Tensor, order: int, scale: float | None, others: Sequence[Tensor | None]) -> str:
    """What keeps these inputs from the Triton form; empty if nothing does."""
    if reason := native.why_not(q, k, v, order, scale, others, devices=devices()):
        return reason
    return unfit(q.device.index) if q.is_cuda else ""


@cache
def unfit(index: int | None) -> str:
    """What keeps a GPU from them: they are for NVIDIA's, from Ampere on."""
    if torch.version.hip:
        return f"torch for ROCm ({torch.version.hip}) must be torch for CUDA"
    if not torch.cuda.is_available():  # a fake tensor's
        return ""
    capability = torch.cuda.get_device_capability(index)
    return "" if capability >= OLDEST else f"compute capability {capability} must be at least {OLDEST}"


@cache
def ready() -> bool:
    """Whether Triton is there; it comes with torch for CUDA."""
    return find_spec("triton") is not None


def require() -> None:
    """Raise ModuleNotFoundError unless Triton is there."""
    if not ready():
        raise ModuleNotFoundError("impl='triton' needs the package triton: pip install 'tsla[triton]'")


# As in `native`, for compiled graphs.
unfit._dynamo_marked_constant = True  # type: ignore[attr-defined]
ready._dynamo_marked_constant = True  # type: ignore[attr-defined]
require._dynamo_marked_constant = True  # type: ignore[attr-defined]
