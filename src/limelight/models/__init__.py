"""Models: shapes built from one configuration. A published family is data (`limelight.models.families`)."""

from ..outputs import Encoded, Output
from .config import Config, Recipe, recipe
from .decoder_only import DecoderOnly
from .encoder_decoder import EncoderDecoder
from .encoder_only import EncoderOnly
from .new import new
from .stack import Stack

__all__ = [
    "Config",
    "DecoderOnly",
    "Encoded",
    "EncoderDecoder",
    "EncoderOnly",
    "Output",
    "Recipe",
    "Stack",
    "new",
    "recipe",
]
