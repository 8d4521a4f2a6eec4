"""Memory as the sum of the tensors alive, which no allocator's habits blur."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """Notes the most bytes of tensors alive at once, after any operation, while it is active.

    Inputs count from the first operation that reads them. What a kernel allocates and frees inside one operation does
    not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._alive = {key: held for key, held in self._alive.items() if not held[0].expired()}
        for x in _tensors((args, kwargs, out)):
            storage = x.untyped_storage()
            self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.bytes = max(self.bytes, sum(size for _, size in self._alive.values()))
        return out


def peak_bytes(call: Any) -> int:
    """The most bytes of tensors alive at once during `call()`."""
    with PeakMemory() as memory:
        call()
    return memory.bytes


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)
