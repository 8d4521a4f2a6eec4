"""Rotary position embedding (RoFormer, arXiv 2104.09864)."""

import torch
from torch import Tensor


def rotary(x: Tensor, positions: Tensor, *, base: float = 10_000.0) -> Tensor:
    """Rotate each pair (x_{2i}, x_{2i+1}) of a head by position * base^(-2i / d), so that q.k sees distances only.

    Args:
        x: ``(b, h, n, d)``, d even.
        positions: ``(n,)`` or ``(b, n)``, integers or floats.
        base: of the wavelengths, from 2 pi to about 2 pi * base tokens.

    Returns:
        A tensor like x. Angles are float32 at least: bf16 cannot tell position 256 from 257.

    Raises:
        ValueError: if d is odd, or positions do not fit x.
    """
    b, _, n, d = x.shape
    if d % 2:
        raise ValueError(f"rotary positions need an even head dim, got {d}")
    if tuple(positions.shape) not in ((n,), (b, n)):
        raise ValueError(f"positions must have shape {(n,)} or {(b, n)}, got {tuple(positions.shape)}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(0, d, 2, device=x.device, dtype=dtype) / d)
    angle = positions.to(dtype)[..., None] * frequency  # (n, d/2) or (b, n, d/2)
    if angle.dim() == 3:
        angle = angle[:, None]
    cos, sin = angle.cos(), angle.sin()
    even, odd = x.to(dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
