"""Attention of order 2 by compiled kernels, the CPU's or the GPU's, and what stays torch's around them."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from tsla.ops.center import mean_scores
from tsla.ops.kernel import Polynomial, weights
from tsla.ops.scan import DEFAULT_CHUNK
from tsla.ops.types import Attended, KernelState, full_precision

if TYPE_CHECKING:
    from tsla.kernels.taylor import Passes


def attend(
    q: Tensor, k: Tensor, v: Tensor, polynomial: Polynomial, *, scale: float, causal: bool, key_mask: Tensor | None,
    gates: Tensor | None, centered: bool, state: KernelState | None, keep_state: bool, normalize: bool, short: bool,
    form: str,
) -> Attended:  # fmt: skip
    """`taylor_attention` after its checks; gates ``(b, h, n)`` are 0 where masked, `short` asks for the direct form.

    form: ``"native"`` or ``"triton"``, whose kernels there are.
    """
    from tsla.kernels.taylor import taylor

    passes = _passes(form)
    if not q.dtype == k.dtype == v.dtype or (q.dtype == torch.float16 and form == "native"):
        q, k, v = q.float(), k.float(), v.float()
    kv, z = (None, None) if state is None else (state.kv.float(), state.z.float())
    shift = _shift(q, k, key_mask, causal, gates, z, scale) if centered else None
    if gates is not None and not causal:
        return Attended(_both_ways(q, k, v, polynomial, key_mask, gates, shift, scale, normalize, passes), None)
    direct = short and form == "native" and state is None and not keep_state  # a GPU has but one form
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, kv, shift))
    out, _, kv, z = taylor(
        q, k, v, mask=key_mask, gates=gates, shift=shift, kv=kv, z=z, scale=scale,
        coefficients=polynomial.coefficients, causal=causal, direct=direct, normalize=normalize,
        keep_state=keep_state or (learns and not causal and not direct), learns=learns, passes=passes,
    )  # fmt: skip
    if not keep_state:
        return Attended(out, None)
    seen = key_mask.sum(-1) if key_mask is not None else q.new_full((q.shape[0],), k.shape[2], dtype=torch.long)
    return Attended(out, KernelState(kv, z, seen if state is None else state.length + seen))


def _passes(form: str) -> "Passes":
    match form:
        case "native":
            from tsla.kernels.cpu.passes import PASSES as NATIVE

            return NATIVE
        case _:
            from tsla.kernels.triton.passes import PASSES as TRITON

            return TRITON


def _both_ways(
    q: Tensor, k: Tensor, v: Tensor, polynomial: Polynomial, key_mask: Tensor | None, gates: Tensor,
    shift: Tensor | None, scale: float, normalize: bool, passes: "Passes | None",
) -> Tensor:  # fmt: skip
    """Decay exp(-|c_i - c_j|): a causal pass from each end, less the diagonal that both have counted."""
    from tsla.kernels.taylor import taylor

    scan = partial(taylor, kv=None, z=None, scale=scale, coefficients=polynomial.coefficients, causal=True,
                   direct=False, normalize=False, keep_state=False, passes=passes)  # fmt: skip
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
