"""Token mixers: one module per mechanism, all with the same heads, masks, cross-attention and decoding."""

from tsla.mixers.base import HeadMixer, Mixed, Mixer, State
from tsla.mixers.channel_first import ChannelFirst
from tsla.mixers.features import FeatureAttention, FeatureMap
from tsla.mixers.fourier import FourierAttention
from tsla.mixers.gated_conv import GatedConv
from tsla.mixers.head_split import HeadSplit
from tsla.mixers.hedgehog import HedgehogAttention
from tsla.mixers.lightning import LightningAttention, TransNormerAttention
from tsla.mixers.linear import LinearAttention
from tsla.mixers.linformer import LinformerAttention, LinformerProjection
from tsla.mixers.luna import LunaAttention
from tsla.mixers.none import NoMixer
from tsla.mixers.performer import PerformerAttention
from tsla.mixers.primal import PrimalAttention
from tsla.mixers.rfa import RFAAttention, RFAGateAttention
from tsla.mixers.scatterbrain import ScatterbrainAttention
from tsla.mixers.softmax import SoftmaxAttention
from tsla.mixers.taylor import TaylorAttention
from tsla.mixers.taylor_poly import TaylorPolyAttention
from tsla.mixers.taylorshift import TaylorShiftAttention
from tsla.mixers.token_shift import TokenShift
from tsla.mixers.window import WindowAttention

__all__ = [
    "ChannelFirst",
    "FeatureAttention",
    "FeatureMap",
    "FourierAttention",
    "GatedConv",
    "HeadMixer",
    "HeadSplit",
    "HedgehogAttention",
    "LightningAttention",
    "LinearAttention",
    "LinformerAttention",
    "LinformerProjection",
    "LunaAttention",
    "Mixed",
    "Mixer",
    "NoMixer",
    "PerformerAttention",
    "PrimalAttention",
    "RFAAttention",
    "RFAGateAttention",
    "ScatterbrainAttention",
    "SoftmaxAttention",
    "State",
    "TaylorAttention",
    "TaylorPolyAttention",
    "TaylorShiftAttention",
    "TokenShift",
    "TransNormerAttention",
    "WindowAttention",
]
