"""Layers: one idea per file. They know the operator and nothing below it; they never see a published name."""

from .blocks import Block, PostNorm, PreNorm
from .embeddings import SummedEmbedding, TokenEmbedding
from .feed_forward import ACTIVATIONS, FeedForward, GatedFeedForward
from .heads import MaskedHead, OwnHead, TiedHead
from .multihead import MultiHead
from .norms import RMSNorm
from .places import Places
from .positions import Linear, LongWaves, Rotary, Rotation, Stretch

__all__ = [
    "ACTIVATIONS",
    "Block",
    "FeedForward",
    "GatedFeedForward",
    "Linear",
    "LongWaves",
    "MaskedHead",
    "MultiHead",
    "OwnHead",
    "Places",
    "PostNorm",
    "PreNorm",
    "RMSNorm",
    "Rotary",
    "Rotation",
    "Stretch",
    "SummedEmbedding",
    "TiedHead",
    "TokenEmbedding",
]
