"""TaylorShift (arXiv 2403.02920): Taylor attention of unit vectors, with a temperature and an output of steady size."""

from typing import Unpack

import torch
from torch import Tensor, nn

from tsla.mixers.base import MODES, HeadMixer, HeadOptions, State
from tsla.ops import taylor_attention, taylor_feature_dim
from tsla.ops.attention import FORMS
from tsla.ops.checks import check_choice, check_crossover, check_polynomial
from tsla.ops.norm import unit
from tsla.ops.types import KernelState, accumulation_dtype


class TaylorShiftAttention(HeadMixer):
    """Weights a s^2 + b s + c of s = temperature_h * cos(q, k); the output times sqrt(N / head_dim), N keys seen.

    An average of N values of size 1 under nearly equal weights has a size of about sqrt(1 / N): the factor undoes that,
    so that a layer gives the same size at every length. In the causal form, which the paper does not have, N is the
    query's own: position i sees i + 1 keys, and its average is of so many. With the N of the whole sequence, early
    outputs would depend on how much follows, and grow with it; the query's own count is causal, is what a step of
    decoding knows, and keeps the size the same at every position.

    Args:
        dim: model width.
        a, b, c: of the polynomial, which must not be negative anywhere: a > 0 and c >= b^2 / (4 a).
        normalize: divide queries and keys by their length; else s = temperature_h * q.k / sqrt(head_dim).
        scale_output: the factor sqrt(N / head_dim).
        impl, crossover: form of the computation, and where auto changes it, see `tsla.ops.taylor_attention`.
        options: as in `HeadMixer`; head_dim defaults to 16, since cost and state grow with its square.
    """

    supports = MODES
    state_type = KernelState
    default_head_dim = 16

    def __init__(
        self, dim: int, *, a: float = 0.5, b: float = 1.0, c: float = 1.0, normalize: bool = True,
        scale_output: bool = True, impl: str = "auto", crossover: float | None = None, **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        check_polynomial((c, b, a), 2)
        super().__init__(dim, **options)
        self.coefficients = (c, b, a)
        self.normalize, self.scale_output, self.impl = normalize, scale_output, check_choice("impl", impl, FORMS)
        self.crossover = check_crossover(crossover, impl)
        self.temperature = nn.Parameter(torch.ones(self.heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k = self._scaled(q), self._unit(k)
        out = taylor_attention(
            q, k, v, coefficients=self.coefficients, scale=1.0, causal=self.causal, key_mask=mask, return_state=False,
            impl=self.impl, crossover=self.crossover,
        ).output  # fmt: skip
        return self._sized(out, self._seen(k, mask), v.dtype)

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        q, k = self._scaled(q), self._unit(k)
        before = None if state is None else KernelState(*state)
        out, after = taylor_attention(
            q, k, v, coefficients=self.coefficients, scale=1.0, causal=True, key_mask=mask, state=before,
            return_state=True, impl=self.impl, crossover=self.crossover,
        )  # fmt: skip
        assert after is not None
        seen = self._seen(k, mask) + (0 if before is None else before.length[:, None])
        return self._sized(out, seen, v.dtype), after

    def state_bytes(self, length: int) -> int:
        """kv and z in float32 at least, whatever the length."""
        size = accumulation_dtype(self.to_k.weight.dtype).itemsize
        return size * self.kv_heads * taylor_feature_dim(self.head_dim, order=2) * (self.value_dim + 1)

    def _unit(self, x: Tensor) -> Tensor:
        """x / |x| in float32 at least, if this mixer divides by lengths."""
        return unit(x.to(accumulation_dtype(x.dtype))) if self.normalize else x

    def _scaled(self, q: Tensor) -> Tensor:
        q = self._unit(q) * self.temperature[:, None, None]
        return q if self.normalize else q * self.head_dim**-0.5

    def _seen(self, k: Tensor, mask: Tensor | None) -> Tensor:
        """Visible keys of each query ``(b, n)``, or of all of them ``(b, 1)``."""
        real = torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device) if mask is None else mask
        return real.cumsum(-1) if self.causal else real.sum(-1, keepdim=True)

    def _sized(self, out: Tensor, seen: Tensor, dtype: torch.dtype) -> Tensor:
        if self.scale_output:
            out = out * (seen.to(out.dtype) / self.head_dim).sqrt()[:, None, :, None]
        return out.to(dtype)
