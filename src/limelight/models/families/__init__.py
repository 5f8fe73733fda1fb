"""Families of published models, as data: a configuration map and key rules each."""

from .albert import ALBERT
from .bart import BART
from .bert import BERT
from .distilbert import DISTILBERT
from .family import Family, GGUFNames
from .gemma2 import GEMMA2
from .gpt2 import GPT2
from .llama import LLAMA
from .marian_own import MARIAN
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .phi3 import PHI3
from .published import Published
from .qwen3 import QWEN3
from .roberta import ROBERTA
from .t5 import T5
from .vit import VIT
from .whisper import WHISPER

_ENCODERS = (BERT, ROBERTA, DISTILBERT, ALBERT, VIT)
_DECODERS = (GPT2, LLAMA, MISTRAL, MIXTRAL, QWEN3, GEMMA2, PHI3)
_BOTH = (T5, BART, MARIAN, WHISPER)

FAMILIES = {family.name: family for family in (*_ENCODERS, *_DECODERS, *_BOTH)}

__all__ = [
    "ALBERT",
    "BART",
    "BERT",
    "DISTILBERT",
    "FAMILIES",
    "GEMMA2",
    "GPT2",
    "LLAMA",
    "MARIAN",
    "MISTRAL",
    "MIXTRAL",
    "PHI3",
    "QWEN3",
    "ROBERTA",
    "T5",
    "VIT",
    "WHISPER",
    "Family",
    "GGUFNames",
    "Published",
]
