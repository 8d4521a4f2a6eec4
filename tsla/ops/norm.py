"""Norms without parameters."""

import torch
from torch import Tensor

from tsla.ops.types import accumulation_dtype


def srms_norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """x over its root mean square along the last dimension, x / sqrt(mean(x^2) + eps): SRMSNorm (arXiv 2307.14995).

    Computed in float32 at least, returned in the type of x ``(..., width)``.
    """
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """x / |x| along the last dimension; a row of zeros, as of padding, stays zero and has a finite gradient."""
    largest = x.detach().abs().amax(-1, keepdim=True)
    x = x / torch.where(largest == 0, 1.0, largest)  # float32 need not hold the square of any length: it has no say
    square = x.square().sum(-1, keepdim=True)
    return x * torch.where(square == 0, 1.0, square).rsqrt()
