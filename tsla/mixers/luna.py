"""Luna (arXiv 2106.01540): tokens are packed into a short second sequence, and read it instead of one another."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tsla.mixers.base import MODES, Mixed, Mixer, State
from tsla.ops import linear_attention
from tsla.ops.packing import each_sequence, groups, in_order, put_back, take
from tsla.ops.types import KernelState, accumulation_dtype, full_precision
from tsla.ops.window import masked_softmax_attention


class LunaState(NamedTuple):
    """Sums of k_j a_j^T and of a_j v_j^T over the tokens seen, and how many ``(b,)``."""

    packed: KernelState
    unpacked: KernelState
    length: Tensor


class LunaStream(nn.Module):
    """The second sequence as a model starts with it, ``(slots, dim)``, learned; all layers of a model share it.

    Args:
        slots: its length.
        dim: model width.

    Raises:
        ValueError: if slots is below 1.
    """

    undecayed = ("rows",)

    def __init__(self, slots: int, dim: int) -> None:
        super().__init__()
        if slots < 1:
            raise ValueError(f"slots ({slots}) must be at least 1")
        self.rows = nn.Parameter(torch.randn(slots, dim) * dim**-0.5)


class LunaAttention(Mixer):
    """Linear unified nested attention. The second sequence p has few slots and goes on from layer to layer (`side`).

    Bidirectional, of tokens x that read c, which is x itself or a context; p' is p normalised:

        pack      y = softmax((p' W_pq) (c W_pk)^T / sqrt(d)) (c W_pv)        (slots, dim)
        unpack    o = softmax((x W_q) (y W_k)^T / sqrt(d)) (y W_v) W_o        (n, dim)
        stream    p + y, for the next layer

    Causal, where p must not change, for it would tell of later tokens, and t tokens have been seen:

        a_j = log2(1 + 2^s), s = (p' W_pq / sqrt(d)) . (x_j W_pk), of each slot
        u_t = softmax(x_t W_q / sqrt(d) . sum_{j<=t} (x_j W_k) a_j^T / t)
        o_t = (u_t . sum_{j<=t} a_j (x_j W_v)^T / t) W_o

    which is no average of values. Per head, d = dim / heads. It owns its projections, so that it has none of the
    options of `HeadMixer`: grouped heads, rotary positions, other widths. The number of slots never depends on the
    input, as it does in the published code where that is shorter.

    >>> layer = LunaAttention(dim=256, heads=8, slots=32)

    Args:
        dim: model width.
        heads: of both attentions.
        slots: length of p.
        tie_kv: W_pk = W_pv and W_k = W_v.
        causal: a token sees itself and earlier ones only; needed by `extend`.
        bias: on all projections.
        dropout: on the output, and on what is added to p.
        stream: where p starts if no layer before gives one, and always if causal; None = an own one.

    Raises:
        ValueError: heads that do not divide dim, slots below 1, or a stream of another size.
    """

    supports = MODES
    state_type = LunaState

    def __init__(
        self, dim: int, *, heads: int = 8, slots: int = 16, tie_kv: bool = True, causal: bool = False,
        bias: bool = True, dropout: float = 0.0, stream: LunaStream | None = None,
    ) -> None:  # fmt: skip
        for name, size in (("dim", dim), ("heads", heads)):
            if size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1")
        if dim % heads:
            raise ValueError(f"heads ({heads}) must divide dim ({dim})")
        super().__init__(dim, width=dim, causal=causal)
        self.stream = LunaStream(slots, dim) if stream is None else stream
        if self.stream.rows.shape != (slots, dim):
            raise ValueError(f"stream must have shape {(slots, dim)}, got {tuple(self.stream.rows.shape)}")
        self.heads, self.slots = heads, slots

        def projection(gain: float = 2**-0.5) -> nn.Linear:
            made = nn.Linear(dim, dim, bias=bias)
            nn.init.xavier_uniform_(made.weight, gain=gain)
            if bias:
                nn.init.zeros_(made.bias)
            return made

        self.stream_norm = nn.LayerNorm(dim)
        self.to_pq, self.to_pk, self.to_q, self.to_k = (projection() for _ in range(4))
        self.to_pv = None if tie_kv or causal else projection()  # the causal form packs no values
        self.to_v = None if tie_kv else projection()
        self.to_out = projection(1.0)
        self.dropout = nn.Dropout(dropout)

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        """As in `Mixer`; side: p ``(b, slots, dim)``, or of every packed sequence; the causal form leaves it alone."""
        self.check_input(x, context, mask, cu_seqlens)
        if context is not None and self.causal:
            raise ValueError("cross-attention has no order between x and context: causal must be False")
        rows = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        if side is not None and side.shape != (rows, self.slots, self.dim):
            raise ValueError(f"side must have shape {(rows, self.slots, self.dim)}, got {tuple(side.shape)}")
        if self.causal:
            out = self._alone(x, mask) if cu_seqlens is None else each_sequence(self._alone, x, cu_seqlens, mask)
            return Mixed(self._merge(out))
        p = self.stream.rows.to(x.dtype).repeat(rows, 1, 1) if side is None else side
        if cu_seqlens is None:
            packed, out = self._both_steps(p, x, x if context is None else context, mask)
        else:
            packed, out = self._apart(p, x, cu_seqlens, mask)
        return Mixed(self._merge(out), p + self.dropout(packed))

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        out, after = self._read_on(x, None if state is None else LunaState(*state), mask)
        return self._merge(out), after

    def state_bytes(self, length: int) -> int:
        """The packed slots; if causal, sums for each of them, in float32 at least. Whatever the length."""
        dtype = self.to_q.weight.dtype
        if not self.causal:
            return dtype.itemsize * self.slots * self.dim
        head = self.dim // self.heads
        return accumulation_dtype(dtype).itemsize * self.heads * (head * (self.slots + 1) + self.slots * (head + 1))

    def _both_steps(self, p: Tensor, x: Tensor, keys: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each slot takes from the keys, ``(b, slots, dim)``, and what each token then takes from the slots."""
        if keys.shape[1] == 0:  # nothing to see, as where all is masked
            mask = keys.new_ones(keys.shape[:2], dtype=torch.bool)
        packed = self._pack(p, keys, mask)
        q, k = self._split(self.to_q(x)), self._split(self.to_k(packed))
        v = k if self.to_v is None else self._split(self.to_v(packed))
        out = _join(scaled_dot_product_attention(q, k, v))
        return packed, out if mask is None else out.masked_fill(~mask.any(-1)[:, None, None], 0.0)

    def _pack(self, p: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        q, k = self._split(self.to_pq(self.stream_norm(p))), self.to_pk(keys)
        v = k if self.to_pv is None else self.to_pv(keys)
        if mask is None:
            return _join(scaled_dot_product_attention(q, self._split(k), self._split(v)))
        k, v = (self._split(y.masked_fill(~mask[..., None], 0.0)) for y in (k, v))
        return _join(masked_softmax_attention(q, k, v, mask[:, None, None], None))

    def _apart(self, p: Tensor, x: Tensor, cu_seqlens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both steps for each packed sequence, of which p ``(sequences, slots, dim)`` has a row, by itself."""
        found, packed, outputs = groups(cu_seqlens), [], []
        for group in found:
            own = take(x, group, 1)
            slots, out = self._both_steps(p.index_select(0, group.sequences), own, own, group.masked(mask))
            packed.append(slots)
            outputs.append(out)
        return in_order(packed, found), put_back(outputs, found, 1)

    def _alone(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._read_on(x, None, mask)[0]

    def _read_on(self, x: Tensor, past: LunaState | None, mask: Tensor | None) -> tuple[Tensor, LunaState]:
        """The causal form for tokens that follow those of `past`, before the output projection."""
        own, k, packing = self.to_q(x), self.to_k(x), self.to_pk(x)
        v = k if self.to_v is None else self.to_v(x)
        p = self.to_pq(self.stream_norm(self.stream.rows.to(x.dtype)))[None]
        scale = (self.dim // self.heads) ** -0.5
        with full_precision(x.device):
            wide = accumulation_dtype(x.dtype)
            q, p = (self._split(y.to(wide)) * scale for y in (own, p))
            k, v, keys = (self._split(y.to(wide)) for y in (k, v, packing))
            scores = keys @ p.mT
            a = torch.logaddexp2(scores, scores.new_zeros(()))
            new = torch.ones(x.shape[:2], dtype=torch.long, device=x.device) if mask is None else mask.long()
            before = new.new_zeros(len(new)) if past is None else past.length
            seen = (new.cumsum(1) + before[:, None]).clamp(min=1)[:, None, :, None].to(wide)
            first = linear_attention(
                q, k, a, causal=True, normalize=False, key_mask=mask, state=past and past.packed, return_state=True
            )
            u = (first.output / seen).softmax(-1)
            second = linear_attention(
                u, a, v, causal=True, normalize=False, key_mask=mask, state=past and past.unpacked, return_state=True
            )
        assert first.state is not None and second.state is not None
        return _join(second.output / seen).to(own.dtype), LunaState(first.state, second.state, first.state.length)

    def _merge(self, out: Tensor) -> Tensor:
        return self.dropout(self.to_out(out))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (h d) -> b h n d", h=self.heads)


def _join(x: Tensor) -> Tensor:
    return rearrange(x, "b h n d -> b n (h d)")
