"""What measuring on an NVIDIA GPU needs: graphs, times by events, the memory of a call, and the card in words.

A GPU works through what Python has launched, and mostly waits for Python where tensors are small. So a call is captured
in a graph once and replayed as a whole, events on the GPU's own clock stand around it, and the L2 cache, which would
otherwise hold the inputs of the call before, is written over each time.
"""

import math
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from tsla.bench.exact import relative_error
from tsla.bench.memory import bytes_of
from tsla.bench.timing import Clock, Timing, order, timing
from tsla.config.options import ConfigError

WARM_UP, FEWEST, MOST = 3, 5, 100  # rounds before, at least, at most
SIZE = 4096  # of the yardstick's matrices
MATMUL_OPERATIONS = 2 * SIZE**3

Run = Callable[[], list[Tensor]]


def check_gpu() -> None:
    """See that there is a GPU.

    Raises:
        ConfigError: torch was built without CUDA, or finds no card.
    """
    if not torch.cuda.is_available():
        why = "finds none" if torch.version.cuda else "was built without CUDA"
        raise ConfigError([f"device ('cuda') needs an NVIDIA GPU: torch {torch.__version__} {why}"])


def begin() -> None:
    """Give back what an earlier case has left: memory kept for reuse, and compiled forms.

    The compiler counts the shapes of a function and, after some, runs it uncompiled: these must not be all cases'.
    """
    torch.compiler.reset()
    torch.cuda.empty_cache()


# Time -----------------------------------------------------------------------------------------------------------------


def capture(run: Run, tolerance: float, beside: torch.cuda.CUDAGraph | None = None) -> torch.cuda.CUDAGraph | None:
    """The call as a graph, once its replay gave what the call gives; None for what cannot be captured.

    Args:
        run: a call that has been found right.  It runs a few times before.
        tolerance: largest difference over the largest value: sums of atomic additions are not the same twice.
        beside: a living graph whose memory this one shares.  Either overwrites the outputs of the other, which
            nobody reads; each with memory of its own, those of one case might not fit on the card.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set up workspaces on the first calls on a stream that is not the default
        for _ in range(WARM_UP):
            right = run()
    now = torch.cuda.current_stream()
    now.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        pool = None if beside is None else beside.pool()
        with torch.cuda.stream(now), torch.cuda.graph(graph, pool=pool):  # one that fails stays on its own stream
            found = run()
        for x in found:
            x.detach().fill_(math.nan)  # a replay that does nothing is seen
        graph.replay()
        torch.cuda.synchronize()
    except Exception:  # it waits for the GPU, as for the value of a tensor, or launches on another stream
        return None
    with torch.no_grad():
        worst = max(relative_error(got, plain.double()) for got, plain in zip(found, right, strict=True))
    return graph if worst <= tolerance else None


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, seconds: float, clock: Clock = time.perf_counter
) -> dict[str, Timing]:
    """Time each of `calls` by events, in turns as `tsla.bench.timing.interleaved` does, each after a flush."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, flush = list(calls), flusher()
    began = clock()
    for turn in range(WARM_UP + MOST):
        events = {}
        for name in order(names, turn):
            start, end = events[name] = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush()  # while the GPU writes, Python launches what is timed
            start.record()
            calls[name]()
            end.record()
        torch.cuda.synchronize()
        if turn >= WARM_UP:
            for name, (start, end) in events.items():
                times[name].append(1e-3 * start.elapsed_time(end))
        if turn + 1 >= WARM_UP + FEWEST and clock() - began > seconds:
            break
    return {name: timing(own) for name, own in times.items()}


def flusher() -> Callable[[], object]:
    """Writes a buffer twice as large as the L2 cache."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(2 * size, dtype=torch.uint8, device="cuda").zero_


def matmul(dtype: str) -> Callable[[], object]:
    """torch's own product of two matrices of this type: what the card can do."""
    generator = torch.Generator("cuda").manual_seed(0)
    a, b = (torch.randn(SIZE, SIZE, generator=generator, device="cuda").to(getattr(torch, dtype)) for _ in range(2))
    return lambda: torch.mm(a, b)


# Memory ---------------------------------------------------------------------------------------------------------------


def extra_bytes(run: Run) -> int:
    """The most memory of torch's allocator during a call, beyond what it held before and what the call returns."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = bytes_of(run())
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - before - kept, 0)


def free_bytes() -> int:
    """Memory of the card that can still be had, with what torch keeps for reuse."""
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


# The card -------------------------------------------------------------------------------------------------------------


def described(dtype: str) -> str:
    """The card, torch, CUDA and Triton, and the rate of torch.mm in this type."""
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    rate = MATMUL_OPERATIONS / interleaved({"mm": matmul(dtype)}, seconds=0)["mm"].median
    precision = f" (precision {torch.get_float32_matmul_precision()})" if dtype == "float32" else ""
    return (f"{card.name} (compute capability {card.major}.{card.minor}, {card.total_memory / 2**30:.0f} GiB, "
            f"{card.L2_cache_size / 2**20:.0f} MiB of L2), torch {torch.__version__}, CUDA {torch.version.cuda}, "
            f"Triton {_triton()}; torch's matmul in {dtype}{precision}: {rate / 1e12:.1f} TFLOP/s")  # fmt: skip


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return "not installed"
