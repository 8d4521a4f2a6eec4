"""Where the native form can be taken: attention of order 2 by the kernels of `tsla.kernels.cpu`, compiled on first use.

The kernels do both forms, direct and by sums; which one is a matter of length, as in torch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tsla.native import available, load

WIDEST = 64  # of q and k: the features of wider heads are too many for the caches


def fits(head_dim: int, order: int) -> bool:
    """Whether there are kernels for heads of this width and order."""
    return order == 2 and head_dim <= WIDEST


def why_not(
    q: Tensor, k: Tensor, v: Tensor, order: int, scale: float | None, others: Sequence[Tensor | None], *,
    devices: Sequence[str] = ("cpu",),
) -> str:  # fmt: skip
    """What keeps these inputs from kernels for tensors of these devices; empty if nothing does.

    The kernels take addresses, so that what has none, or what torch has yet to do to a tensor, is left to torch.
    """
    if not fits(q.shape[-1], order):
        return f"head dim ({q.shape[-1]}) must be at most {WIDEST}, and order ({order}) 2"
    for x in (q, k, v):
        if x.device.type not in devices:
            return f"device ({x.device.type}) must be {' or '.join(devices)}"
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"dtype ({x.dtype}) must be float32, bfloat16 or float16"
        if x.numel() == 0:
            return f"shape {tuple(x.shape)} must not be empty"
    if isinstance(scale, Tensor):
        return "scale must be a number"
    if any(x is not None and x.device != q.device for x in others):
        return "all must be on one device"
    return "" if torch.compiler.is_compiling() else _no_address(q, k, v, *others)


def _no_address(*tensors: Tensor | None) -> str:
    if torch._C._get_tracing_state() is not None or forward_ad._current_level >= 0:
        return "neither torch.jit.trace nor forward-mode differentiation sees it"
    for x in tensors:
        if x is not None and (x.layout != torch.strided or x.is_neg() or x._is_zerotensor()
                              or torch._C._functorch.is_functorch_wrapped_tensor(x)):  # fmt: skip
            return "a transformed or lazy tensor has no address"
    return ""


def ready() -> bool:
    """Whether the library is there, compiled now if need be; False, after one warning, where it cannot be."""
    return available("attention")


def require() -> None:
    """Raise NativeError, with the reason, unless the library is there."""
    load("attention")


# A compiled graph takes the answers as constants, see `measured.auto_crossover`.
ready._dynamo_marked_constant = True  # type: ignore[attr-defined]
require._dynamo_marked_constant = True  # type: ignore[attr-defined]
