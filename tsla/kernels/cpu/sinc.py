"""The sums of `tsla.ops.sinc` by C++: tensors into the struct that sinc.cpp takes, and out of it."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from tsla.compiler import NativeError
from tsla.native import load

_WAVES = ("x", "sin", "cos")
_SIZES = ("b", "d", "rows", "keys", "threads")


class _Waves(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in _WAVES), ("batch", ctypes.c_int64), ("channel", ctypes.c_int64)]


class Tile(ctypes.Structure):
    """The arguments of a call; fields that are not set are null."""

    _fields_ = [
        ("q", _Waves), ("k", _Waves), ("radius", ctypes.c_void_p), *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in ("logs", "weight", "by_query", "by_key", "by_radius")),
    ]  # fmt: skip


class Shares(ctypes.Structure):
    """The arguments of a call for softmax."""

    _fields_ = [
        ("logs", ctypes.c_void_p), ("hidden", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "b", "rows", "keys", "causal", "threads")),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


class Angles(ctypes.Structure):
    """The arguments of a call for waves."""

    _fields_ = [
        ("source", ctypes.c_void_p), ("radius", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("batch", "channel", "token")),
        *((name, ctypes.c_void_p) for name in _WAVES),
        *((name, ctypes.c_int64) for name in ("b", "d", "count", "ld", "threads")),
    ]  # fmt: skip


STRUCTS = (Tile, Shares, Angles)


def waves(x: Tensor, radius: Tensor, gap: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `tsla.ops.sinc.waves`, in float32; `gap` numbers of any value after each channel."""
    (b, d, count), radius = x.shape, radius.contiguous()
    made = tuple(x.new_empty(b, d, count + gap) for _ in range(3))
    where = (x.data_ptr(), radius.data_ptr(), *x.stride(), *(part.data_ptr() for part in made))
    _library().tsla_waves(ctypes.byref(Angles(*where, b, d, count, count + gap, torch.get_num_threads())))
    one, two, three = (part[..., :count] for part in made)
    return one, two, three


def log_sinc(q: tuple[Tensor, ...], k: tuple[Tensor, ...], radius: Tensor) -> Tensor:
    """As `tsla.ops.sinc.log_sinc`, in float32."""
    tile = _tile(q, k, radius)
    logs = q[0].new_empty(tile.b, tile.rows, tile.keys)
    tile.logs = logs.data_ptr()
    _library().tsla_log_sinc(ctypes.byref(tile))
    return logs


def softmax(logs: Tensor, scale: float, hidden: Tensor | None, causal: bool) -> Tensor:
    """As `tsla.ops.sinc.softmax`, in float32."""
    where = (0, 0) if hidden is None else (hidden.data_ptr(), hidden.stride(0))
    shares = Shares(logs.data_ptr(), *where, *logs.shape, causal, torch.get_num_threads(), scale)
    _library().tsla_softmax(ctypes.byref(shares))
    return logs


def slope_sums(
    q: tuple[Tensor, ...], k: tuple[Tensor, ...], radius: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `tsla.ops.sinc.slope_sums`, in float32."""
    tile, library, weight = _tile(q, k, radius), _library(), weight.contiguous()
    blocks = -(-tile.keys // library.tsla_block())  # each of which adds up its own, so that no two threads meet
    by_query = weight.new_empty(tile.b, blocks, tile.d, tile.rows)
    by_key = weight.new_empty(tile.b, tile.d, tile.keys)
    by_radius = weight.new_empty(tile.b, blocks, tile.d)
    tile.weight, tile.by_key = weight.data_ptr(), by_key.data_ptr()
    tile.by_query, tile.by_radius = by_query.data_ptr(), by_radius.data_ptr()
    library.tsla_slope_sums(ctypes.byref(tile))
    return by_query.sum(1), by_key, by_radius.sum((0, 1))


def _tile(q: tuple[Tensor, ...], k: tuple[Tensor, ...], radius: Tensor) -> Tile:
    (b, d, rows, _), keys = q[0].shape, k[0].shape[-1]
    tile = Tile(_waves(q, 2), _waves(k, 3), 0, b, d, rows, keys, torch.get_num_threads())
    tile.held = radius.contiguous()  # it may be one number expanded; the tile keeps what it points at
    tile.radius = tile.held.data_ptr()
    return tile


def _waves(parts: tuple[Tensor, ...], place: int) -> _Waves:
    """Where three tensors lie, of the same strides, whose dimension `place` has its numbers side by side."""
    x = parts[0]
    for part in parts:
        if part.dtype != torch.float32 or part.stride() != x.stride() or part.stride(place) != 1:
            raise ValueError(f"waves must be float32 and side by side, got {part.dtype}, {part.stride()}")
    return _Waves(*(part.data_ptr() for part in parts), x.stride(0), x.stride(1))


def _library() -> Any:
    library = load("sinc")
    library.tsla_abi.restype = library.tsla_block.restype = ctypes.c_int64
    if library.tsla_abi() != sum(map(ctypes.sizeof, STRUCTS)):
        raise NativeError("the library sinc and tsla.kernels.cpu.sinc disagree about their struct")
    return library
