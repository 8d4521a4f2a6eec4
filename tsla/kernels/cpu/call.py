"""The struct that the C++ entry points take (call.h), and how tensors get into it."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from tsla.compiler import NativeError
from tsla.kernels.taylor import Inputs
from tsla.native import load


class Strided(ctypes.Structure):
    """A tensor of 4 dimensions whose last one is contiguous; strides in elements."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "token", "half"))]


_SIZES = ("b", "h", "g", "s", "n", "m", "d", "e", "causal", "direct", "normalize", "threads")
_NUMBERS = ("scale", "flat", "slope", "curve")
_STRIDED = ("q", "k", "v", "out", "dout")
_POINTERS = ("mask", "gates", "shift", "den", "kv0", "z0", "kv1", "z1", "dden", "dkv1", "dz1",
             "dq", "dk", "dv", "dones", "dshift", "dsums", "dkv0", "dz0")  # fmt: skip


class Call(ctypes.Structure):
    """The arguments of one call; fields that are not set are 0, so null."""

    def __init__(self, *sizes: int, **numbers: float) -> None:
        super().__init__(*sizes, **numbers)
        self.held: list[Tensor] = []

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_float) for name in _NUMBERS),
        *((name, Strided) for name in _STRIDED),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


def strided(x: Tensor) -> Strided:
    """Where `x` (b, heads, tokens, width), with contiguous rows, lies."""
    batch, head, token, _ = x.stride()
    return Strided(x.data_ptr(), batch, head, token, x.dtype == torch.bfloat16)


def make_call(x: Inputs) -> Call:
    """What both passes need."""
    (b, h, n, d), (g, m) = x.q.shape, x.k.shape[1:3]
    flat, slope, curve = x.coefficients
    call = Call(b, h, g, x.states, n, m, d, x.v.shape[-1], x.causal, x.direct, x.normalize, torch.get_num_threads(),
                scale=x.scale, flat=flat, slope=slope, curve=curve)  # fmt: skip
    fill(call, q=x.q, k=x.k, v=x.v, mask=x.mask, gates=x.gates, shift=x.shift, kv0=x.kv, z0=x.z)
    return call


def fill(call: Call, **fields: Tensor | None) -> None:
    """Set fields; the call keeps what it points at, so that a copy made here lives as long."""
    for name, value in fields.items():
        if isinstance(value, Tensor):
            if name in _STRIDED:
                setattr(call, name, strided(value))
            else:
                if value.dtype not in (torch.float32, torch.bool) or value.device.type != "cpu":
                    raise ValueError(f"{name} must be float32 or bool on the cpu, got {value.dtype}, {value.device}")
                value = value.contiguous()
                setattr(call, name, value.data_ptr())
            call.held.append(value)


def run(name: str, call: Call) -> None:
    """Call an entry point of the library.

    Raises:
        NativeError: there is no library, or it was made for another struct.
        MemoryError: it ran out of memory.
    """
    if _entry_points.get(name) is None:
        library = load("attention")
        library.tsla_abi.restype = ctypes.c_int64
        if library.tsla_abi() != ctypes.sizeof(Call):
            raise NativeError("the native attention library and tsla.kernels.cpu.call disagree about their struct")
        for entry in ("tsla_forward", "tsla_backward"):
            _entry_points[entry] = getattr(library, entry)
    if _entry_points[name](ctypes.byref(call)):
        raise MemoryError(f"no memory for attention of {call.n} queries and {call.m} keys")


_entry_points: dict[str, Any] = {}
