"""The base of all mixers: `Mixer`, what blocks call, and `HeadMixer`, projections and heads around a mechanism."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, TypedDict

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from tsla.ops import rotary
from tsla.ops.checks import check_mask
from tsla.ops.packing import check_cu_seqlens, groups, put_back, take

MODES = frozenset({"bidirectional", "causal", "cross", "decode", "packed"})


class State(Protocol):
    """What a mixer remembers: a NamedTuple of tensors, or of such tuples; `length` ``(b,)`` counts the tokens seen."""

    @property
    def length(self) -> Tensor: ...

    def __iter__(self) -> Iterator[Any]: ...


class Mixed(NamedTuple):
    """Output ``(b, n, dim)``; a second stream for the next layer; a loss the mechanism adds (None: absent)."""

    output: Tensor
    side: Tensor | None = None
    aux: Tensor | None = None


class Mixer(nn.Module):
    """What blocks call: a token mixer ``(b, n, dim) -> (b, n, dim)``, whatever it does inside.

    A mechanism defines `mix`, `extend` where it supports decoding, and `state_bytes`; most build on `HeadMixer`.

    Args:
        dim: model width.
        width: of the output before any output projection.
        causal: a token sees itself and earlier ones only; needed by `extend`.

    Raises:
        ValueError: if the mechanism does not support the direction, with the list of what it does.
    """

    supports: frozenset[str] = frozenset()
    state_type: type | None = None  # of the states that `extend` returns; None: any

    def __init__(self, dim: int, *, width: int, causal: bool) -> None:
        super().__init__()
        self.dim, self.width, self.causal = dim, width, causal
        self.need("causal" if causal else "bidirectional")

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        """Mix the tokens of x, or let them read those of `context`.

        Args:
            x: ``(b, n, dim)``.
            context: ``(b, m, dim)`` for cross-attention.
            mask: ``(b, n)``, or ``(b, m)`` with a context; bool, True = real token.
            side: stream of the layer before; a mechanism without one leaves it alone.
            cu_seqlens: ``(sequences + 1,)`` int, the bounds of the sequences packed into the one row of x, which then
                mix by themselves. Not with a context.
        """
        raise TypeError(f"{type(self).__name__} must define mix()")

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Outputs of any number of new tokens and the state after them: prefill, chunked prefill, decoding.

        Args:
            x: ``(b, n, dim)``, the tokens that follow those `state` has seen (None = none yet).
            state: returned by the call before.
            mask: ``(b, n)`` bool; a masked token leaves the state and the count of positions as they were.
        """
        raise TypeError(f"{type(self).__name__} must define extend()")

    def state_bytes(self, length: int) -> int:
        """Bytes per sequence that later queries need of `length` keys, counters aside."""
        raise TypeError(f"{type(self).__name__} must define state_bytes()")

    def forward(self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None) -> Tensor:
        """``mix(...).output``: ``(b, n, dim)``."""
        return self.mix(x, context, mask=mask).output

    def need(self, mode: str) -> None:
        """Raise ValueError with the list of what is supported, unless `mode` is."""
        if mode not in self.supports:
            raise ValueError(
                f"{type(self).__name__} does not support {mode!r}, only {', '.join(sorted(self.supports))}"
            )

    def check_input(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, cu_seqlens: Tensor | None = None
    ) -> None:  # fmt: skip
        """Raise ValueError unless these have the shapes and types `mix` names, and a context can be read."""
        if context is not None:
            self.need("cross")
        keys = x if context is None else context
        for name, y in (("x", x), ("context", keys)):
            if y.dim() != 3 or y.shape[-1] != self.dim:
                raise ValueError(f"{name} must have shape (batch, length, {self.dim}), got {tuple(y.shape)}")
        if keys.shape[0] != x.shape[0]:
            raise ValueError(f"context must have the batch size of x ({x.shape[0]}), got {keys.shape[0]}")
        check_mask(mask, tuple(keys.shape[:2]))
        if cu_seqlens is not None:
            self.need("packed")
            if context is not None:
                raise ValueError("cu_seqlens packs the sequences of x: it does not go with a context")
            check_cu_seqlens(cu_seqlens, x, x.shape[1])

    def check_extend(self, x: Tensor, state: State | None, mask: Tensor | None) -> None:
        """Raise ValueError unless this mixer can decode, the input fits, and the state is of as many sequences."""
        self.need("decode")
        if not self.causal:
            raise ValueError("extend needs causal=True: a later token would change earlier outputs")
        self.check_input(x, None, mask)
        if state is not None and self.state_type is not None and not isinstance(state, self.state_type):
            raise ValueError(f"state must be a {self.state_type.__name__}, as extend returns it, "
                             f"got {type(state).__name__}")  # fmt: skip
        if state is not None and state.length.shape != x.shape[:1]:
            raise ValueError(f"state must be of {x.shape[0]} sequences, as x is, got {tuple(state.length.shape)}")


class HeadOptions(TypedDict, total=False):
    """The keyword arguments of `HeadMixer`, for the signatures of the mechanisms built on it."""

    heads: int
    head_dim: int | None
    value_dim: int | None
    kv_heads: int | None
    causal: bool
    rotary: bool
    gate: bool
    qk_norm: bool
    bias: bool
    dropout: float
    output_projection: bool


class HeadNorm(nn.Module):
    """RMS norm of a head ``(..., width)`` with a learned scale, in the type of the head.

    Under autocast a head is bf16 and the scale float32; `nn.RMSNorm` would leave its fused kernel and warn.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight.to(x.dtype))


class HeadMixer(Mixer):
    """A mixer with heads: projections around `attend`, which the mechanism defines.

    Args:
        dim: model width.
        heads: query heads.
        head_dim: width of a query and key head; None = `default_head_dim` of the mechanism, or dim / heads.
        value_dim: width of a value head; None = dim / heads.
        kv_heads: key/value heads, a divisor of heads (1 = multi-query); None = heads.
        causal: a token sees itself and earlier ones only; needed by `extend`.
        rotary: rotary positions on queries and keys, before any feature map.
        gate: multiply each head's output by a sigmoid of the token it belongs to.
        qk_norm: RMS-normalise queries and keys per head, with a learned scale.
        bias: on all projections; that of the gate always has one.
        dropout: on the output.
        output_projection: False returns the concatenated heads, ``(b, n, width)``.

    Raises:
        ValueError: widths and heads that do not fit, or a mode the mechanism does not support.
    """

    default_head_dim: ClassVar[int | None] = None

    def __init__(
        self, dim: int, *, heads: int = 8, head_dim: int | None = None, value_dim: int | None = None,
        kv_heads: int | None = None, causal: bool = False, rotary: bool = False, gate: bool = False,
        qk_norm: bool = False, bias: bool = False, dropout: float = 0.0, output_projection: bool = True,
    ) -> None:  # fmt: skip
        head_dim = self.default_head_dim if head_dim is None else head_dim
        for name, size in (("dim", dim), ("heads", heads), ("head_dim", head_dim), ("value_dim", value_dim)):
            if size is not None and size < 1:
                raise ValueError(f"{name} ({size}) must be at least 1")
        if (head_dim is None or value_dim is None) and dim % heads:
            raise ValueError(f"heads ({heads}) must divide dim ({dim}), or give head_dim and value_dim")
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads ({kv_heads}) must divide heads ({heads})")
        head_dim, value_dim = head_dim or dim // heads, value_dim or dim // heads
        if rotary and head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
        super().__init__(dim, width=heads * value_dim, causal=causal)
        self.heads, self.kv_heads, self.rotary = heads, kv_heads, rotary
        self.head_dim, self.value_dim = head_dim, value_dim
        self.to_q = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.to_k = nn.Linear(dim, kv_heads * self.head_dim, bias=bias)
        self.to_v = nn.Linear(dim, kv_heads * self.value_dim, bias=bias)
        self.q_norm = HeadNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = HeadNorm(self.head_dim) if qk_norm else nn.Identity()
        self.to_gate = nn.Linear(dim, heads) if gate else None
        self.to_out = nn.Linear(self.width, dim, bias=bias) if output_projection else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Heads ``(b, h, n, e)`` of q ``(b, h, n, d)``, k ``(b, g, m, d)``, v ``(b, g, m, e)``, key mask ``(b, m)``.

        x ``(b, n, dim)`` are the tokens of the queries, for what a mechanism makes of them beside these.
        """
        raise TypeError(f"{type(self).__name__} must define attend()")

    def attend_next(
        self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None, state: State | None
    ) -> tuple[Tensor, State]:
        """The same for tokens that follow those in `state`, causal; and the state after them."""
        raise TypeError(f"{type(self).__name__} must define attend_next()")

    def heads_of(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What `attend` is given for tokens x ``(b, n, dim)`` that see each other: q, k and v, normed and turned.

        mask: ``(b, n)`` bool, True = real token.
        """
        q, k, v = self._project(x, x)
        q, k = self._turned(q, k, x, mask, None)
        return q, k, v

    def mix(
        self, x: Tensor, context: Tensor | None = None, *, mask: Tensor | None = None, side: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Mixed:  # fmt: skip
        self.check_input(x, context, mask, cu_seqlens)
        if context is not None and (self.causal or self.rotary):
            raise ValueError("cross-attention has no order between x and context: causal and rotary must be False")
        q, k, v = self._project(x, x if context is None else context)
        if cu_seqlens is None:
            return Mixed(self._merge(self._attend(q, k, v, x, mask), x))
        found, outputs = groups(cu_seqlens), []
        for group in found:
            own_q, own_k, own_v = (take(y, group, 2) for y in (q, k, v))
            outputs.append(self._attend(own_q, own_k, own_v, take(x, group, 1), group.masked(mask)))
        return Mixed(self._merge(put_back(outputs, found, 2), x))

    def extend(self, x: Tensor, state: State | None = None, *, mask: Tensor | None = None) -> tuple[Tensor, State]:
        self.check_extend(x, state, mask)
        q, k, v = self._project(x, x)
        q, k = self._turned(q, k, x, mask, None if state is None else state.length)
        out, state = self.attend_next(q, k, v, x, mask, state)
        return self._merge(out, x), state

    def key_value_bytes(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens, in the parameters' type."""
        return self.to_k.weight.element_size() * self.kv_heads * tokens * (self.head_dim + self.value_dim)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k = self._turned(q, k, x, mask, None)
        return self.attend(q, k, v, x, mask)

    def _turned(
        self, q: Tensor, k: Tensor, x: Tensor, mask: Tensor | None, offset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys with rotary positions, if this mixer has them."""
        if not self.rotary:
            return q, k
        places = positions(mask, x, offset)
        return rotary(q, places), rotary(k, places)

    def _project(self, x: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q_norm(rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads))
        k = self.k_norm(rearrange(self.to_k(keys), "b m (g d) -> b g m d", g=self.kv_heads))
        v = rearrange(self.to_v(keys), "b m (g e) -> b g m e", g=self.kv_heads)
        return q, k, v

    def _merge(self, out: Tensor, x: Tensor) -> Tensor:
        if self.to_gate is not None:
            out = out * rearrange(self.to_gate(x).sigmoid(), "b n h -> b h n 1")
        return self.dropout(self.to_out(rearrange(out, "b h n e -> b n (h e)")))


def positions(mask: Tensor | None, x: Tensor, offset: Tensor | None = None) -> Tensor:
    """Position of each token of x ``(b, n, .)`` among the real ones, ``(n,)`` or ``(b, n)``, after `offset` ``(b,)``.

    Counting real tokens makes left padding, right padding and no padding the same.
    """
    places = torch.arange(x.shape[1], device=x.device) if mask is None else mask.cumsum(-1) - 1
    places = places if offset is None else places + offset[:, None]
    return places if mask is None else places.clamp(min=0)
