"""Packed rows: sequences of different lengths one after another in a single row, without padding between them.

What mixes tokens takes them apart again, into batches of like length: less than half of such a batch is padding, so
that the work stays near that of the tokens, and every form of every mechanism serves packed rows as it is.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tsla.ops.types import Attended, KernelState


class Group(NamedTuple):
    """Sequences of like length: their numbers ``(s,)``, where their tokens are ``(s, longest)``, and which are real.

    Beyond its end a sequence repeats its last token.
    """

    sequences: Tensor
    places: Tensor
    real: Tensor

    def masked(self, mask: Tensor | None) -> Tensor:
        """Which of its places ``(s, longest)`` are real by a mask of the packed row ``(1, n)`` as well."""
        return self.real if mask is None else self.real & take(mask, self, 1)


def check_cu_seqlens(cu_seqlens: Tensor, x: Tensor, length: int) -> None:
    """Raise ValueError unless these are the bounds of sequences that fill the single row of x, of `length` tokens."""
    if not isinstance(cu_seqlens, Tensor):
        raise ValueError(f"cu_seqlens must be a tensor, got {type(cu_seqlens).__name__}")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"cu_seqlens must be int32 or int64 of shape (sequences + 1,), of at least one sequence, got "
            f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        )
    if x.shape[0] != 1:
        raise ValueError(f"cu_seqlens needs a batch of one packed row, got {x.shape[0]}")
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != length or bool((cu_seqlens.diff() < 0).any()):
        raise ValueError(f"cu_seqlens must rise from 0 to the length ({length}), got {_shown(cu_seqlens)}")


@torch.compiler.disable  # type: ignore[untyped-decorator]
def groups(cu_seqlens: Tensor) -> list[Group]:
    """The sequences in groups, each at most twice as long as the shortest of its group."""
    bounds = cu_seqlens.to("cpu", torch.long)
    starts, lengths = bounds[:-1], bounds.diff()
    sizes = [(length - 1).bit_length() if length else -1 for length in lengths.tolist()]
    found = []
    for size in sorted(set(sizes)):
        sequences = torch.tensor([i for i, own in enumerate(sizes) if own == size], device="cpu")
        own = lengths[sequences, None]
        step = torch.arange(int(own.max()), device="cpu")
        places = starts[sequences, None] + torch.minimum(step, (own - 1).clamp(min=0))
        found.append(Group(*(x.to(cu_seqlens.device) for x in (sequences, places, step < own))))
    return found


def take(x: Tensor, group: Group, dim: int) -> Tensor:
    """The tokens of a group out of a packed row: ``(1, ..., n, ...)`` to ``(s, ..., longest, ...)``, n at `dim`."""
    taken = x[0].index_select(dim - 1, group.places.flatten())
    return taken.unflatten(dim - 1, tuple(group.places.shape)).movedim(dim - 1, 0)


def put_back(parts: list[Tensor], found: list[Group], dim: int) -> Tensor:
    """What was made of the tokens of all groups, as a packed row again: the inverse of `take`."""
    rows = [
        part.movedim(0, dim - 1).flatten(dim - 1, dim).index_select(dim - 1, group.real.flatten().nonzero()[:, 0])
        for part, group in zip(parts, found, strict=True)
    ]
    places = torch.cat([group.places[group.real] for group in found])
    return torch.cat(rows, dim=dim - 1).index_select(dim - 1, places.argsort())[None]


def in_order(parts: list[Tensor], found: list[Group]) -> Tensor:
    """What was made of the sequences of all groups, ``(s, ...)`` each, in the order of the sequences."""
    return torch.cat(parts).index_select(0, torch.cat([group.sequences for group in found]).argsort())


def each_sequence(
    run: Callable[[Tensor, Tensor], Tensor], x: Tensor, cu_seqlens: Tensor, mask: Tensor | None = None
) -> Tensor:
    """What `run(x, mask)` makes of tokens ``(b, n, .)``, for each sequence of a packed row ``(1, n, .)`` by itself."""
    found = [group for group in groups(cu_seqlens) if group.places.shape[1]]  # an empty one has nothing to run on
    if not found:
        return run(x, x.new_ones(x.shape[:2], dtype=torch.bool))
    return put_back([run(take(x, group, 1), group.masked(mask)) for group in found], found, 1)


def attend_packed(
    attend: Callable[..., Attended], q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *,
    key_mask: Tensor | None = None, log_decay: Tensor | None = None, state: KernelState | None = None,
) -> Attended:  # fmt: skip
    """`attend` of each sequence by itself.

    Args:
        attend: called with q, k, v ``(s, heads, longest, .)``, key_mask, and log_decay and state where they are given.
        q: ``(1, h, n, d)``;  k: ``(1, g, n, d)``;  v: ``(1, g, n, e)``.
        cu_seqlens: ``(sequences + 1,)``, where each begins, and the end of the last.
        key_mask: ``(1, n)``.
        log_decay: ``(h,)`` or ``(1, h, n)``.
        state: of every sequence, so with a batch of that many.

    Returns:
        Output ``(1, h, n, e)``, and the states of the sequences, in their order.
    """
    check_cu_seqlens(cu_seqlens, q, q.shape[2])
    if k.shape[2] != q.shape[2]:
        raise ValueError(f"cu_seqlens needs as many keys ({k.shape[2]}) as queries ({q.shape[2]})")
    h, n = q.shape[1:3]
    if log_decay is not None and tuple(log_decay.shape) not in ((h,), (1, h, n)):
        raise ValueError(f"log_decay must have shape {(h,)} or {(1, h, n)}, got {tuple(log_decay.shape)}")
    for part in state or ():
        if part.dim() == 0 or len(part) != len(cu_seqlens) - 1:
            raise ValueError(f"state must be of {len(cu_seqlens) - 1} sequences, got {tuple(part.shape)[:1]}")
    found = groups(cu_seqlens)
    outputs, states = [], []
    for group in found:
        options: dict[str, object] = {}
        if log_decay is not None:
            options["log_decay"] = log_decay if log_decay.dim() == 1 else take(log_decay, group, 2)
        if state is not None:
            options["state"] = KernelState(*(part.index_select(0, group.sequences) for part in state))
        parts = (take(x, group, 2) for x in (q, k, v))
        result = attend(*parts, key_mask=group.masked(key_mask), **options)
        outputs.append(result.output)
        states.append(result.state)
    kept = [after for after in states if after is not None]
    after = KernelState(*(in_order(list(parts), found) for parts in zip(*kept, strict=True))) if kept else None
    return Attended(put_back(outputs, found, 2), after)


def _shown(cu_seqlens: Tensor) -> str:
    values = cu_seqlens.tolist()
    return str(values) if len(values) <= 8 else f"[{', '.join(map(str, values[:4]))}, ..., {values[-1]}]"
