"""A GPU for machines that have none: tensors said to be on it are on the CPU, and its clock goes when told.

Streams and memory are what the tests say. A graph is a true one: it keeps the operations of torch that run while it is
captured, and its replay runs those alone, without any Python of the call.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

L2 = 1000
CARD = SimpleNamespace(name="Card 9", major=9, minor=1, total_memory=24 * 2**30, L2_cache_size=L2)


class OnTheCPU(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device")) == "cuda":
            kwargs["device"] = "cpu"
        return func(*("cpu" if isinstance(x, str) and x == "cuda" else x for x in args), **kwargs)


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out


class Graph:
    def __init__(self, gpu):
        self.gpu, self.steps = gpu, []
        gpu.graphs.append(self)

    def pool(self):
        return id(self)

    @torch.no_grad()
    def replay(self):
        self.gpu.log.append("replay")
        self.gpu.now += self.gpu.replaying
        for func, args, kwargs, out in self.steps:
            again = func(*args, **kwargs)
            for old, new in zip(_tensors(out), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def _stream():
    return SimpleNamespace(wait_stream=lambda other: None)


def _tensors(out):
    return [x for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, torch.Tensor)]


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = self.gpu.now
        self.gpu.now += self.gpu.tick
        self.gpu.log.append("event")

    def elapsed_time(self, end):
        assert self.gpu.waited >= end.at, "read before the GPU was waited for"
        return 1e3 * (end.at - self.at)


class FakeGPU:
    """now, tick, replaying: seconds of its clock, and those an event and a replay take.  log: what was done.

    pools: those that captures were given.  broken: no capture works.  allocated, peak: bytes.
    """

    def __init__(self, monkeypatch):
        self.now, self.tick, self.replaying, self.waited = 0.0, 0.0, 0.0, -1.0
        self.log, self.graphs, self.pools, self.broken = [], [], [], False
        self.allocated, self.peak, self.stream = 0, 0, _stream()
        fakes = {
            "is_available": lambda: True, "current_device": lambda: 0, "get_device_properties": lambda device: CARD,
            "synchronize": self.wait, "empty_cache": lambda: self.log.append("empty"),
            "Event": lambda enable_timing: Event(self), "CUDAGraph": lambda: Graph(self), "graph": self.capture,
            "Stream": _stream, "current_stream": lambda: self.stream, "stream": self.on,
            "mem_get_info": lambda: (2**30, 2**31), "memory_reserved": lambda: 100,
            "memory_allocated": lambda: self.allocated, "max_memory_allocated": lambda: self.peak,
            "reset_peak_memory_stats": self.forget,
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.compiler, "reset", lambda: self.log.append("reset"))
        generator = torch.Generator
        monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())

    def wait(self):
        self.waited = self.now
        self.log.append("wait")

    def forget(self):
        self.peak = self.allocated

    @contextmanager
    def capture(self, graph, pool=None):
        self.pools.append(pool)
        before, self.stream = self.stream, _stream()
        if self.broken:  # torch's own context leaves the stream as it is, too
            raise RuntimeError("operation not permitted when stream is capturing")
        with Recorder() as recorder:
            yield
        graph.steps, self.stream = recorder.steps, before

    @contextmanager
    def on(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before
