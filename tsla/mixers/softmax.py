"""Softmax attention, the quadratic baseline (arXiv 1706.03762)."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tsla.mixers.base import MODES, HeadMixer, State
from tsla.mixers.cache import KeyValueCache, extended
from tsla.ops.window import masked_softmax_attention


class SoftmaxAttention(HeadMixer):
    """Attention with weights exp(q.k / sqrt(head_dim)), by torch's fused kernels. Its state grows with every token."""

    supports = MODES
    state_type = KeyValueCache

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            out: Tensor = scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=True)
            return out
        visible = mask[:, None, None, :]
        if self.causal:
            visible = visible & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        k, v = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (k, v))
        return masked_softmax_attention(q, k, v, visible, None)

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        cache = extended(state, k, v, mask)
        n, m = q.shape[2], cache.keys.shape[2]
        earlier = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        return masked_softmax_attention(q, cache.keys, cache.values, cache.real[:, None, None] & earlier, None), cache

    def state_bytes(self, length: int) -> int:
        """Every key and value."""
        return self.key_value_bytes(length)
