"""Models: shapes built from one configuration. A published family is data (`limelight.models.families`)."""

from .config import Config, Recipe, recipe
from .decoder_only import DecoderOnly
from .encoder_only import EncoderOnly
from .pretrained import Pretrained
from .stack import Output, Stack

__all__ = ["Config", "DecoderOnly", "EncoderOnly", "Output", "Pretrained", "Recipe", "Stack", "recipe"]
