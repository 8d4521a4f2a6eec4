"""The native form: attention of order 2 by the compiled kernels of `tsla.kernels`, and what stays torch's around them.

The kernels do both forms, direct and by sums; which one is a matter of length, as in torch.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.functional import pad

from tsla.native import available, load
from tsla.ops.center import mean_scores
from tsla.ops.kernel import Polynomial, weights
from tsla.ops.scan import DEFAULT_CHUNK
from tsla.ops.types import Attended, KernelState, full_precision

WIDEST = 64  # of q and k: the features of wider heads are too many for the caches


def attend(
    q: Tensor, k: Tensor, v: Tensor, polynomial: Polynomial, *, scale: float, causal: bool, key_mask: Tensor | None,
    gates: Tensor | None, centered: bool, state: KernelState | None, keep_state: bool, normalize: bool, short: bool,
) -> Attended:  # fmt: skip
    """`taylor_attention` after its checks; gates ``(b, h, n)`` are 0 where masked, `short` asks for the direct form."""
    from tsla.kernels.cpu.taylor import taylor

    if not q.dtype == k.dtype == v.dtype or q.dtype == torch.float16:
        q, k, v = q.float(), k.float(), v.float()
    kv, z = (None, None) if state is None else (state.kv.float(), state.z.float())
    shift = _shift(q, k, key_mask, causal, gates, z, scale) if centered else None
    if gates is not None and not causal:
        return Attended(_both_ways(q, k, v, polynomial, key_mask, gates, shift, scale, normalize), None)
    direct = short and state is None and not keep_state
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, kv, shift))
    out, _, kv, z = taylor(
        q, k, v, mask=key_mask, gates=gates, shift=shift, kv=kv, z=z, scale=scale,
        coefficients=polynomial.coefficients, causal=causal, direct=direct, normalize=normalize,
        keep_state=keep_state or (learns and not causal and not direct), exact=learns,
    )  # fmt: skip
    if not keep_state:
        return Attended(out, None)
    seen = key_mask.sum(-1) if key_mask is not None else q.new_full((q.shape[0],), k.shape[2], dtype=torch.long)
    return Attended(out, KernelState(kv, z, seen if state is None else state.length + seen))


def fits(head_dim: int, order: int) -> bool:
    """Whether there are kernels for heads of this width and order."""
    return order == 2 and head_dim <= WIDEST


def why_not(q: Tensor, k: Tensor, v: Tensor, order: int, scale: float | None, others: Sequence[Tensor | None]) -> str:
    """What keeps these inputs from the native form; empty if nothing does.

    The kernels take addresses, so that what has none, or what torch has yet to do to a tensor, is left to torch.
    """
    if not fits(q.shape[-1], order):
        return f"head dim ({q.shape[-1]}) must be at most {WIDEST}, and order ({order}) 2"
    for x in (q, k, v):
        if x.device.type != "cpu":
            return f"device ({x.device.type}) must be cpu"
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"dtype ({x.dtype}) must be float32, bfloat16 or float16"
        if x.numel() == 0:
            return f"shape {tuple(x.shape)} must not be empty"
    if isinstance(scale, Tensor):
        return "scale must be a number"
    if any(x is not None and x.device != q.device for x in others):
        return "all must be on the cpu"
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


def _both_ways(
    q: Tensor, k: Tensor, v: Tensor, polynomial: Polynomial, key_mask: Tensor | None, gates: Tensor,
    shift: Tensor | None, scale: float, normalize: bool,
) -> Tensor:  # fmt: skip
    """Decay exp(-|c_i - c_j|): a causal pass from each end, less the diagonal that both have counted."""
    from tsla.kernels.cpu.taylor import taylor

    scan = partial(taylor, kv=None, z=None, scale=scale, coefficients=polynomial.coefficients, causal=True,
                   direct=False, normalize=False, keep_state=False)  # fmt: skip
    q, k, v = q.float(), k.float(), v.float()  # their sums are still to be divided
    out, den, *_ = scan(q, k, v, mask=key_mask, gates=gates, shift=shift)
    # From the right, the pair (i, j) must pass the gates i+1 ... j: the flipped gates, one step late.
    late = pad(gates.flip(-1)[..., :-1], (1, 0))
    back = None if key_mask is None else key_mask.flip(-1)
    turned = None if shift is None else shift.flip(-1)
    behind, rest, *_ = scan(q.flip(-2), k.flip(-2), v.flip(-2), mask=back, gates=late, shift=turned)
    own_k, own_v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = (q * own_k).sum(-1) * scale
    own = weights(scores if shift is None else scores - shift, polynomial)
    if key_mask is not None:
        own, own_v = own.masked_fill(~key_mask[:, None], 0.0), own_v.masked_fill(~key_mask[:, None, :, None], 0.0)
    sums, total = out + behind.flip(-2) - own[..., None] * own_v, den + rest.flip(-1) - own
    return sums / torch.where(total == 0, 1.0, total)[..., None] if normalize else sums


def _shift(
    q: Tensor, k: Tensor, key_mask: Tensor | None, causal: bool, gates: Tensor | None, z: Tensor | None, scale: float
) -> Tensor:
    """The mean score of each query ``(b, h, n)``."""
    q, k, real = q.float() * scale, k.float(), k.new_ones(*k.shape[:-1], 1, dtype=torch.float32)
    if key_mask is not None:
        k, real = (x.masked_fill(~key_mask[:, None, :, None], 0.0) for x in (k, real))
    if gates is not None:
        k, real = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, real))
    with full_precision(q.device):
        return mean_scores(q.unflatten(1, (k.shape[1], -1)), k, real, causal, gates, z, DEFAULT_CHUNK).flatten(1, 2)
