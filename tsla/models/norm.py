"""The norms that a model can be built with."""

from torch import Tensor, nn

from tsla.ops import srms_norm
from tsla.ops.checks import check_choice

NORMS = ("layer", "srms")


class SRMSNorm(nn.Module):
    """SRMSNorm, a token over its root mean square, without parameters (TransNormerLLM, arXiv 2307.14995)."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` in the type of x, computed in float32 at least."""
        return srms_norm(x)


def make_norm(kind: str, dim: int) -> nn.Module:
    """The norm of tokens ``(..., dim)``: ``"layer"``, with a learned scale and bias, or ``"srms"``, without any.

    Raises:
        ValueError: another kind, with those there are.
    """
    return nn.LayerNorm(dim) if check_choice("norm", kind, NORMS) == "layer" else SRMSNorm()
