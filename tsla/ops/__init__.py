"""Mathematics on tensors: attention and its parts as functions, without parameters or configuration."""

from tsla.ops.attention import linear_attention, taylor_attention
from tsla.ops.cluster_kernel import cluster_kernel_attention
from tsla.ops.crossover import taylor_crossover
from tsla.ops.feature_map import taylor_feature_dim, taylor_feature_map
from tsla.ops.fourier import fourier_attention
from tsla.ops.ksvd import ksvd_objective
from tsla.ops.norm import srms_norm
from tsla.ops.poly import taylor_poly_attention
from tsla.ops.rotary import rotary
from tsla.ops.types import Attended, KernelState
from tsla.ops.window import window_attention
from tsla.ops.window_kernel import window_kernel_attention

__all__ = [
    "Attended",
    "KernelState",
    "cluster_kernel_attention",
    "fourier_attention",
    "ksvd_objective",
    "linear_attention",
    "rotary",
    "srms_norm",
    "taylor_attention",
    "taylor_crossover",
    "taylor_feature_dim",
    "taylor_feature_map",
    "taylor_poly_attention",
    "window_attention",
    "window_kernel_attention",
]
