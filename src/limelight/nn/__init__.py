"""Layers of models, one idea per file: they call `limelight.attention` and the steps of `limelight.fused`.

Names of published models appear only in `limelight.models`.
"""

from .added_positions import LearnedPositions, Sinusoids
from .alignment import AdditiveAttention, MultiplicativeAttention, dot_attention
from .blocks import Block, DecoderBlock, PostNorm, PreNorm, Residual, Sandwich
from .cache import (
    Adaptive,
    Cache,
    HeldKeys,
    Importance,
    Keep,
    Kept,
    LastQueries,
    Pyramid,
    Received,
    Recency,
    Step,
)
from .class_head import ClassHead
from .context import ForwardContext
from .distance_bias import DistanceBias, LinearBias
from .embeddings import SummedEmbedding, TokenEmbedding
from .experts import MixtureOfExperts
from .feed_forward import ACTIVATIONS, FeedForward, GatedFeedForward
from .front_ends import FrontEnd, PatchEmbedding, SpectrumEmbedding
from .heads import MaskedHead, TiedHead, UntiedHead
from .initial import FanIn, Normal, Xavier
from .mixture_of_heads import HeadRouting, MixtureOfHeads, QueryNorm, TwoStage
from .multihead import MultiHead
from .norms import RMSNorm
from .positions import (
    DynamicNTK,
    InterleavedPairs,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Pairing,
    RopeScaling,
    Rotary,
    Rotation,
    SplitHalves,
    YaRN,
)
from .projection import Projection
from .routing import Routing, Switch, TopK, balance_loss, routings, z_loss
from .ssru import SSRU

__all__ = [
    "ACTIVATIONS",
    "SSRU",
    "Adaptive",
    "AdditiveAttention",
    "Block",
    "Cache",
    "ClassHead",
    "DecoderBlock",
    "DistanceBias",
    "DynamicNTK",
    "FanIn",
    "FeedForward",
    "ForwardContext",
    "FrontEnd",
    "GatedFeedForward",
    "HeadRouting",
    "HeldKeys",
    "Importance",
    "InterleavedPairs",
    "Keep",
    "Kept",
    "LastQueries",
    "LearnedPositions",
    "LinearBias",
    "LinearScaling",
    "Llama3Scaling",
    "LongRope",
    "MaskedHead",
    "MixtureOfExperts",
    "MixtureOfHeads",
    "MultiHead",
    "MultiplicativeAttention",
    "Normal",
    "Pairing",
    "PatchEmbedding",
    "PostNorm",
    "PreNorm",
    "Projection",
    "Pyramid",
    "QueryNorm",
    "RMSNorm",
    "Received",
    "Recency",
    "Residual",
    "RopeScaling",
    "Rotary",
    "Rotation",
    "Routing",
    "Sandwich",
    "Sinusoids",
    "SpectrumEmbedding",
    "SplitHalves",
    "Step",
    "SummedEmbedding",
    "Switch",
    "TiedHead",
    "TokenEmbedding",
    "TopK",
    "TwoStage",
    "UntiedHead",
    "Xavier",
    "YaRN",
    "balance_loss",
    "dot_attention",
    "routings",
    "z_loss",
]
