"""Taylor-series linear attention (arXiv 2402.18668, 2403.02920)."""

from typing import Unpack

from torch import Tensor

from tsla.mixers.base import MODES, HeadMixer, HeadOptions, State
from tsla.mixers.decay import KINDS, Decay
from tsla.ops import taylor_attention, taylor_feature_dim
from tsla.ops.attention import FORMS
from tsla.ops.checks import check_center, check_choice, check_crossover
from tsla.ops.feature_map import check_order
from tsla.ops.types import KernelState, accumulation_dtype


class TaylorAttention(HeadMixer):
    """Attention with weights T(q.k / sqrt(head_dim)), T the Taylor polynomial of exp: cost O(n), state O(1).

    >>> layer = TaylorAttention(dim=256, heads=8, causal=True)
    >>> y = layer(torch.randn(2, 4096, 256))
    >>> y, state = layer.extend(torch.randn(2, 1, 256))

    Args:
        dim: model width.
        order: even degree of the polynomial.
        center: ``"zero"``, or ``"mean"`` to expand around each query's mean score (see `tsla.ops.taylor_attention`).
        decay: ``"none"``; ``"fixed"`` or ``"selective"`` forgetting, see `Decay`. The state then has every query head.
        impl, crossover: form of the computation, and where auto changes it, see `tsla.ops.taylor_attention`.
        options: as in `HeadMixer`; head_dim defaults to 16, since cost and state grow with its square.
    """

    supports = MODES
    state_type = KernelState
    default_head_dim = 16

    def __init__(
        self, dim: int, *, order: int = 2, center: str = "zero", decay: str = "none", impl: str = "auto",
        crossover: float | None = None, **options: Unpack[HeadOptions],
    ) -> None:  # fmt: skip
        check_order(order)
        super().__init__(dim, **options)
        self.order, self.impl = order, check_choice("impl", impl, FORMS)
        self.crossover = check_crossover(crossover, impl)
        self.center = check_center(center, order)
        self.decay = None if check_choice("decay", decay, KINDS) == "none" else Decay(dim, self.heads, decay)
        if self.decay is not None:
            self.supports = MODES - {"cross"}  # distance between two sequences has no meaning

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return taylor_attention(
            q, k, v, order=self.order, center=self.center, causal=self.causal, key_mask=mask,
            log_decay=None if self.decay is None else self.decay(x), return_state=False, impl=self.impl,
            crossover=self.crossover,
        ).output  # fmt: skip

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        before = None if state is None else KernelState(*state)
        out, after = taylor_attention(
            q, k, v, order=self.order, center=self.center, causal=True, key_mask=mask,
            log_decay=None if self.decay is None else self.decay(x), state=before, return_state=True, impl=self.impl,
            crossover=self.crossover,
        )  # fmt: skip
        assert after is not None
        return out, after

    def state_bytes(self, length: int) -> int:
        """kv and z in float32 at least, whatever the length."""
        size = accumulation_dtype(self.to_k.weight.dtype).itemsize
        heads = self.kv_heads if self.decay is None else self.heads
        return size * heads * taylor_feature_dim(self.head_dim, order=self.order) * (self.value_dim + 1)
