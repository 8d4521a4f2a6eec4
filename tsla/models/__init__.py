"""Models: blocks, encoder and heads around any mixer; what they cost; saving and loading."""

from tsla.models.account import Account, account
from tsla.models.block import Block, FeedForward, GridConv, ShortConv
from tsla.models.classifier import Classified, SequenceClassifier
from tsla.models.denoiser import Denoiser
from tsla.models.encoder import Encoder
from tsla.models.norm import SRMSNorm
from tsla.models.token_classifier import TokenClassifier
from tsla.models.vision import VisionTransformer

__all__ = [
    "Account", "Block", "Classified", "Denoiser", "Encoder", "FeedForward", "GridConv", "SRMSNorm",
    "SequenceClassifier", "ShortConv", "TokenClassifier", "VisionTransformer", "account",
]  # fmt: skip
