"""Memory, in two ways: the sum of the tensors alive, which no allocator's habits blur, and that of a whole process."""

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

CLEAR = Path("/proc/self/clear_refs")  # Linux's way to begin a new peak


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


def bytes_of(tensors: Any) -> int:
    """Bytes of what some tensors lie in, in whatever lists and mappings, each once."""
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in _tensors(tensors)}.values())


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, torch.Tensor):
        yield x
    elif isinstance(x, dict):
        yield from _tensors(tuple(x.values()))
    elif isinstance(x, list | tuple):
        for part in x:
            yield from _tensors(part)


# Of a process ---------------------------------------------------------------------------------------------------------


def peak_extra_bytes(prepare: Callable[[], Callable[[], object]]) -> int | None:
    """The most memory of a process during a call, beyond what it had before and the tensors that the call returns.

    Unlike the sum of tensors this sees what kernels take for themselves, and what an allocator keeps in between.

    Args:
        prepare: makes the call, with all it needs in memory; must be picklable, for it runs in a process of its own
            with as many threads as this one.

    Returns:
        bytes; None where the system does not tell (only Linux does) or the call failed.
    """
    if not CLEAR.exists():
        return None
    context = get_context("forkserver")  # a fork of a process that has imported torch and run nothing
    context.set_forkserver_preload(["tsla.bench.model"])
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(there, prepare, torch.get_num_threads()), daemon=True)
    child.start()
    there.close()
    try:
        found: int | None = here.recv()
    except EOFError:  # killed, as when memory ran out
        found = None
    child.join()
    return found


def _measure(answer: "Connection[Any, Any]", prepare: Callable[[], Callable[[], object]], threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        call = prepare()
        with contextlib.suppress(AttributeError):  # glibc's: what was freed is no room that the call finds for nothing
            ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")  # the peak is from now on
        before = _status("VmRSS")
        out = call()
        answer.send(max(_status("VmHWM") - before - bytes_of(out), 0))
    except Exception:
        answer.send(None)


def _status(name: str) -> int:
    """Bytes that the system counts for this process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def free_bytes() -> float:
    """Memory that can still be had, as the system says; without limit where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return math.inf
