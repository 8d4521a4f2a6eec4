"""Pickles of others, read without running what is in them: containers, texts, numbers and arrays of numbers.

A pickle can run any code. Here it cannot: of all names it may only use those by which numpy writes arrays and numbers,
and even these stand for the classes below, which keep what they are given and do nothing. Each has its `__setstate__`:
of a class without one a pickle could set any attribute, and change how later pickles are read.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")  # types of numbers that an array may have
CORES = ("numpy.core", "numpy._core")  # where numpy has its functions, before version 2 and since


class _Kind:
    """What a pickle says of the type of numbers."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order: object = "|"

    def __setstate__(self, state: Any) -> None:
        order: object = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def value(self) -> np.dtype[Any]:
        """The type; ValueError for one that is none of numbers."""
        if self.code not in CODES or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"numbers of type {self.code!r}, which must be one of {', '.join(CODES)}")
        return np.dtype(f"{self.order}{self.code}")


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def value(self) -> NDArray[Any]:
        """The array; ValueError or TypeError if it is none of numbers, row by row."""
        state: Any = self.state
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Kind) or by_columns or type(content) is not bytes:
            raise ValueError("its array must be one of numbers, row by row")
        return np.frombuffer(content, kind.value()).reshape(shape)


class _Buffer:
    """What a pickle of protocol 5 says of an array."""

    def __init__(self, content: object, kind: object, shape: object, order: object, *_: object) -> None:
        self.content = bytes(content) if isinstance(content, bytearray) else content
        self.kind, self.shape, self.by_columns = kind, shape, order != "C"

    def __setstate__(self, _: object) -> None:
        raise ValueError("an array of protocol 5 has no state")

    def value(self) -> NDArray[Any]:
        """As that of `_Array`."""
        array = _Array()
        array.__setstate__((1, self.shape, self.kind, self.by_columns, self.content))
        return array.value()


class _Number:
    """What a pickle says of a single number of numpy."""

    def __init__(self, kind: object, content: object) -> None:
        self.kind, self.content = kind, content

    def __setstate__(self, _: object) -> None:
        raise ValueError("a number has no state")

    def value(self) -> Any:
        """The number, of Python."""
        if not isinstance(self.kind, _Kind) or type(self.content) is not bytes:
            raise ValueError("its number must be one of numpy")
        return np.frombuffer(self.content, self.kind.value(), 1)[0].item()


_STANDS_FOR: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Kind,
    **{(f"{core}.multiarray", "_reconstruct"): _Array for core in CORES},
    **{(f"{core}.multiarray", "scalar"): _Number for core in CORES},
    **{(f"{core}.numeric", "_frombuffer"): _Buffer for core in CORES},
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    """Reads bytes, texts, numbers, lists, tuples, dicts, and what it takes for arrays; anything else is an error."""

    def find_class(self, module: str, name: str) -> type:
        try:
            return _STANDS_FOR[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed") from None


def load_pickle(file: Path, *, encoding: str = "ASCII") -> Any:
    """What a pickle holds, all of it in memory; arrays and numbers of numpy in it are told by `plain`.

    Args:
        file: the pickle.
        encoding: of the texts of Python 2; ``"bytes"`` leaves them as they are.

    Raises:
        Exception: it asks for anything else, or is damaged, which can raise anything.
    """
    with file.open("rb") as stream:
        return _Restricted(stream, encoding=encoding).load()


def plain(value: object) -> Any:
    """An array of a pickle as numpy's, a number as Python's; what else there is, as it is.

    Raises:
        ValueError, TypeError: an array or number of another kind than `CODES`, or whose content does not fit.
    """
    return value.value() if isinstance(value, _Array | _Buffer | _Number) else value
