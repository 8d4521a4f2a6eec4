"""Random arguments for attention, and comparisons of two implementations on them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Tensors = dict[str, Tensor]


def qkv(
    *, b: int = 2, h: int = 4, g: int = 2, n: int = 9, m: int | None = None, d: int = 3, e: int = 5,
    dtype: torch.dtype = torch.float64,
) -> Tensors:  # fmt: skip
    """q, k and v by name."""
    m = n if m is None else m
    shapes = {"q": (b, h, n, d), "k": (b, g, m, d), "v": (b, g, m, e)}
    return {name: torch.randn(*shape, dtype=dtype) for name, shape in shapes.items()}


def some_mask(b: int, m: int, keep: float = 0.7) -> Tensor:
    """A random mask; the last row's first third, and all of row 0 if there are more than two, are masked."""
    mask = torch.rand(b, m) < keep
    mask[-1, : m // 3] = False
    if b > 2:
        mask[0] = False
    return mask


def some_decay(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Log decays between -0.5 and 0."""
    return -torch.rand(*shape, dtype=dtype) / 2


def results(run: Callable[..., Any], inputs: Tensors) -> tuple[Tensors, Tensors]:
    """What `run` returns (float tensors, by place), and the gradients of a fixed random sum of it by input."""
    leaves = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    outputs = {str(i): x for i, x in enumerate(flat(run(**leaves))) if x.is_floating_point()}
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for x in outputs.values():
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
        loss = loss + (x.double() * weights).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return outputs, dict(zip(leaves, gradients, strict=True))


def agree(fast: Callable[..., Any], slow: Callable[..., Any], inputs: Tensors, tolerance: float = 1e-10) -> None:
    """Both return the same tensors and have the same gradients with respect to every input."""
    got, got_gradients = results(fast, inputs)
    expected, expected_gradients = results(slow, inputs)
    close(got, expected, tolerance)
    close(got_gradients, expected_gradients, tolerance)


def close(got: Tensors, expected: Tensors, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        assert got[name].shape == x.shape, name
        torch.testing.assert_close(
            got[name].double(), x.double(), rtol=tolerance, atol=tolerance, msg=lambda text, at=name: f"{at}: {text}"
        )


def flat(x: Any) -> Iterator[Tensor]:
    """The tensors in a result: a tensor, something else, or any nesting of tuples of these."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Iterable):
        for part in x:
            yield from flat(part)


def error(x: Tensor, exact: Tensor) -> float:
    """Largest difference, over the largest value."""
    return ((x.double() - exact).abs().max() / exact.abs().max()).item()


class Largest(TorchDispatchMode):
    """Notes the numel of the largest tensor any operation returns while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in flat(out) if not _is_view(func))])
        return out


def _is_view(func: Any) -> bool:
    return any(result.alias_info is not None for result in func._schema.returns)
