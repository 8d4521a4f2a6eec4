"""Every test starts from the same random numbers, on one thread, with uninitialised memory that shows.

None sees what the user has measured: the cache is an empty folder, here and in processes that tests start.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tsla import native

# The GPU's kernels run on the CPU, where a test asks for them and there is no GPU.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share their parent's, so that native code is compiled once
    EMPTY = tempfile.TemporaryDirectory(prefix="tsla-cache-")
    os.environ["TSLA_CACHE"] = EMPTY.name
    if native.describe().startswith("none"):  # no compiler
        os.environ["TSLA_NATIVE"] = "0"  # torch does it all, without a warning in every test


def pytest_unconfigure() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        EMPTY.cleanup()


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Seeds and threads."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """`empty` returns NaN, so that a result read before it was written fails."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def filled(*args: Any, **options: Any) -> torch.Tensor:
            x = make(*args, **options)
            return x.fill_(torch.nan) if x.is_floating_point() and x.device.type != "meta" else x

        return filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Native code is turned off, and what the tests before have found of it is forgotten, and again thereafter."""
    monkeypatch.setenv("TSLA_NATIVE", "0")
    native.forget()
    yield
    native.forget()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` need one."""
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
