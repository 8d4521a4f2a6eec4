"""Norms without parameters."""

from torch import Tensor

from tsla.ops.types import accumulation_dtype


def srms_norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """SRMSNorm, x / sqrt(mean(x^2) + eps) along the last axis (arXiv 2307.14995); like x, made in float32 at least."""
    y = x.to(accumulation_dtype(x.dtype))
    return (y * (y.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
