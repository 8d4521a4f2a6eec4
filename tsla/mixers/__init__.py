"""Token mixers: one module per mechanism, all with the same heads, masks, cross-attention and decoding."""

from tsla.mixers.base import HeadMixer, Mixed, Mixer, State
from tsla.mixers.channel_first import ChannelFirst
from tsla.mixers.gated_conv import GatedConv
from tsla.mixers.head_split import HeadSplit
from tsla.mixers.none import NoMixer
from tsla.mixers.softmax import SoftmaxAttention
from tsla.mixers.taylor import TaylorAttention
from tsla.mixers.taylor_poly import TaylorPolyAttention
from tsla.mixers.taylorshift import TaylorShiftAttention
from tsla.mixers.token_shift import TokenShift
from tsla.mixers.window import WindowAttention

__all__ = [
    "ChannelFirst",
    "GatedConv",
    "HeadMixer",
    "HeadSplit",
    "Mixed",
    "Mixer",
    "NoMixer",
    "SoftmaxAttention",
    "State",
    "TaylorAttention",
    "TaylorPolyAttention",
    "TaylorShiftAttention",
    "TokenShift",
    "WindowAttention",
]
