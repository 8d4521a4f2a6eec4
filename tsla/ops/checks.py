"""Argument checks of the attention ops: every error names the value and what is allowed, before any work is done."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from math import factorial, isfinite

import torch
from torch import Tensor

from tsla.ops.kernel import Polynomial
from tsla.ops.types import KernelState

CENTERS = ("zero", "mean")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, if it is one of `allowed`; else a ValueError with the list."""
    if value not in allowed:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(allowed)}")
    return value


def check_polynomial(coefficients: Sequence[float], order: int) -> Polynomial:
    """The polynomial with these coefficients of 1, s, s^2, ..., if it is of that order and nowhere negative."""
    plain = tuple(float(c) for c in coefficients)
    if len(plain) != order + 1:
        raise ValueError(f"coefficients ({len(plain)}) must be order + 1 ({order + 1}) numbers")
    if not all(isfinite(c) for c in plain):
        raise ValueError(f"coefficients ({list(plain)}) must be finite")
    if plain[-1] <= 0 or (lowest := _lowest(plain)) < -1e-9 * max(map(abs, plain)):
        reason = "the last is not above 0" if plain[-1] <= 0 else f"their polynomial falls to {lowest:.3g}"
        raise ValueError(f"coefficients ({list(plain)}) must give no negative weight: {reason}")
    return Polynomial(tuple(c * factorial(p) for p, c in enumerate(plain)))


# torch.compile would look through the cache and trace the search
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _lowest(plain: tuple[float, ...]) -> float:
    return _search_lowest(plain)


@lru_cache(maxsize=64)
def _search_lowest(plain: tuple[float, ...]) -> float:
    """Smallest value of a polynomial of even order with a positive last coefficient: it lies where the slope turns."""
    return min([_value(plain, at) for at in _turns(_slope(plain))], default=plain[0])


def _turns(plain: Sequence[float]) -> list[float]:
    """Where a polynomial changes sign, in order: at most once between two turns of its slope, found by halving."""
    if len(plain) < 2:
        return []
    bound = 1 + max(abs(c / plain[-1]) for c in plain[:-1])  # Cauchy's: no root lies further out
    found = []
    for low, high in pairwise([-bound, *_turns(_slope(plain)), bound]):
        if (_value(plain, low) < 0) == (_value(plain, high) < 0):
            continue
        falls = _value(plain, high) < 0
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if (_value(plain, middle) < 0) != falls else (low, middle)
        found.append(high)
    return found


def _slope(plain: Sequence[float]) -> list[float]:
    return [p * c for p, c in enumerate(plain)][1:]


def _value(plain: Sequence[float], at: float) -> float:
    out = 0.0
    for c in reversed(plain):
        out = out * at + c
    return out


def check_center(center: str, order: int) -> str:
    """`center`, if it is one of `CENTERS` and the polynomial has one."""
    if check_choice("center", center, CENTERS) == "mean" and order == 0:
        raise ValueError("center='mean' needs an order of at least 2: a constant polynomial has no centre")
    return center


def check_crossover(crossover: float | None, impl: str) -> float | None:
    """`crossover`, if it is a length or None, and `impl` is the one that asks for it."""
    if crossover is not None:
        if not crossover >= 0:  # nor NaN
            raise ValueError(f"crossover ({crossover}) must be a length of at least 0, or None")
        if impl not in ("auto", "native"):
            raise ValueError(f"crossover ({crossover:g}) needs impl='auto' or 'native', got {impl!r}")
    return crossover


def check_floor(floor: float, normalize: bool) -> None:
    """Raise ValueError unless this can be the least magnitude of a denominator, where there is one."""
    if not (isfinite(floor) and floor >= 0):
        raise ValueError(f"floor ({floor}) must be finite and at least 0")
    if floor and not normalize:
        raise ValueError(f"floor ({floor}) needs normalize=True: there is no denominator")


def check_qkv(q: Tensor, k: Tensor, v: Tensor, causal: bool, key_mask: Tensor | None) -> None:
    """Shapes and types that every attention op needs: q (b,h,n,d), k (b,g,m,d), v (b,g,m,e), key_mask (b,m)."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} must have 4 dimensions (batch, heads, length, width), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")
    (b, h, n, d), (g, m) = q.shape, k.shape[1:3]
    if k.shape[0] != b or v.shape[0] != b:
        raise ValueError(f"q, k and v must have one batch size, got {b}, {k.shape[0]} and {v.shape[0]}")
    if k.shape[-1] != d:
        raise ValueError(f"k ({k.shape[-1]}) must be as wide as q ({d})")
    if d == 0:
        raise ValueError("q and k must be at least 1 wide, got 0")
    if v.shape[1:3] != k.shape[1:3]:
        raise ValueError(f"v must have the heads and length of k {tuple(k.shape[1:3])}, got {tuple(v.shape[1:3])}")
    if g == 0 or h % g:
        raise ValueError(f"key/value heads ({g}) must divide query heads ({h})")
    if causal and n != m:
        raise ValueError(f"causal attention needs as many keys ({m}) as queries ({n})")
    check_mask(key_mask, (b, m), name="key_mask")


def check_mask(mask: Tensor | None, shape: tuple[int, ...], *, name: str = "mask", of: str = "token") -> None:
    """Raise ValueError unless `mask`, where there is one, is a bool of that shape."""
    if mask is not None and (tuple(mask.shape) != shape or mask.dtype != torch.bool):
        raise ValueError(
            f"{name} must be torch.bool of shape {shape}, True = real {of}; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def check_kernel_options(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, log_decay: Tensor | None, state: KernelState | None,
    keep_state: bool, features: int, chunk: int,
) -> None:  # fmt: skip
    """What `taylor_attention` and `linear_attention` need beyond `check_qkv`."""
    (b, h, n, _), (g, m) = q.shape, k.shape[1:3]
    if chunk < 1:
        raise ValueError(f"chunk_size ({chunk}) must be at least 1")
    if log_decay is not None:
        if not log_decay.is_floating_point():
            raise ValueError(f"log_decay must be a floating-point tensor, got {log_decay.dtype}")
        if tuple(log_decay.shape) not in ((h,), (b, h, n)):
            raise ValueError(f"log_decay must have shape {(h,)} or {(b, h, n)}, got {tuple(log_decay.shape)}")
        if n != m:
            raise ValueError(f"log_decay needs as many keys ({m}) as queries ({n})")
        if not causal and (state is not None or keep_state):
            raise ValueError("bidirectional attention with log_decay has no state: a later key would change it")
    if state is not None:
        heads = g if log_decay is None else h
        expected = {"kv": (b, heads, features, v.shape[-1]), "z": (b, heads, features), "length": (b,)}
        for name, shape in expected.items():
            if tuple(getattr(state, name).shape) != shape:
                got = tuple(getattr(state, name).shape)
                raise ValueError(f"state.{name} must have shape {shape}, got {got}")
