"""Models: blocks, encoder and heads around any mixer; what they cost; saving and loading."""

from tsla.models.account import Account, account
from tsla.models.block import Block, FeedForward, ShortConv
from tsla.models.classifier import Classified, SequenceClassifier
from tsla.models.encoder import Encoder
from tsla.models.token_classifier import TokenClassifier

__all__ = [
    "Account", "Block", "Classified", "Encoder", "FeedForward", "SequenceClassifier", "ShortConv", "TokenClassifier",
    "account",
]  # fmt: skip
