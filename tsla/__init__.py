"""tsla: transformers whose attention costs O(N), with Taylor-series linear attention at the centre.

Names are imported when first used, so that `import tsla` loads neither torch nor lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "tsla.ops": (
        "Attended", "KernelState", "cluster_kernel_attention", "fourier_attention", "linear_attention",
        "taylor_attention", "taylor_crossover", "taylor_feature_dim", "taylor_feature_map", "taylor_poly_attention",
        "window_attention", "window_kernel_attention",
    ),
    "tsla.mixers": (
        "ChannelFirst", "FeatureAttention", "FeatureMap", "FourierAttention", "GatedConv", "HeadSplit",
        "HedgehogAttention", "LightningAttention", "LinearAttention", "LinformerAttention", "LunaAttention", "Mixed",
        "Mixer", "PerformerAttention", "PrimalAttention", "RFAAttention", "RFAGateAttention", "ScatterbrainAttention",
        "SoftmaxAttention", "TaylorAttention", "TaylorPolyAttention", "TaylorShiftAttention", "TokenShift",
        "TransNormerAttention", "WindowAttention",
    ),
    "tsla.models": ("Encoder", "SequenceClassifier", "TokenClassifier", "VisionTransformer", "account"),
    "tsla.build": ("load_model",),
}  # fmt: skip

__all__ = [
    "Attended", "ChannelFirst", "Encoder", "FeatureAttention", "FeatureMap", "FourierAttention", "GatedConv",
    "HeadSplit", "HedgehogAttention", "KernelState", "LightningAttention", "LinearAttention", "LinformerAttention",
    "LunaAttention", "Mixed", "Mixer", "PerformerAttention", "PrimalAttention", "RFAAttention", "RFAGateAttention",
    "ScatterbrainAttention", "SequenceClassifier", "SoftmaxAttention", "TaylorAttention", "TaylorPolyAttention",
    "TaylorShiftAttention", "TokenClassifier", "TokenShift", "TransNormerAttention", "VisionTransformer",
    "WindowAttention", "__version__", "account", "cluster_kernel_attention", "fourier_attention", "linear_attention",
    "load_model", "taylor_attention", "taylor_crossover", "taylor_feature_dim", "taylor_feature_map",
    "taylor_poly_attention", "window_attention", "window_kernel_attention",
]  # fmt: skip

if TYPE_CHECKING:
    from tsla.build import load_model
    from tsla.mixers import (
        ChannelFirst,
        FeatureAttention,
        FeatureMap,
        FourierAttention,
        GatedConv,
        HeadSplit,
        HedgehogAttention,
        LightningAttention,
        LinearAttention,
        LinformerAttention,
        LunaAttention,
        Mixed,
        Mixer,
        PerformerAttention,
        PrimalAttention,
        RFAAttention,
        RFAGateAttention,
        ScatterbrainAttention,
        SoftmaxAttention,
        TaylorAttention,
        TaylorPolyAttention,
        TaylorShiftAttention,
        TokenShift,
        TransNormerAttention,
        WindowAttention,
    )
    from tsla.models import Encoder, SequenceClassifier, TokenClassifier, VisionTransformer, account
    from tsla.ops import (
        Attended,
        KernelState,
        cluster_kernel_attention,
        fourier_attention,
        linear_attention,
        taylor_attention,
        taylor_crossover,
        taylor_feature_dim,
        taylor_feature_map,
        taylor_poly_attention,
        window_attention,
        window_kernel_attention,
    )


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'tsla' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
