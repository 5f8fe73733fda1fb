"""Families of published models, as data: a configuration map and key rules each."""

from .albert import ALBERT
from .bert import BERT
from .distilbert import DISTILBERT
from .family import Family, GGUFNames
from .gemma2 import GEMMA2
from .gpt2 import GPT2
from .llama import LLAMA
from .mistral import MISTRAL
from .published import Published
from .qwen3 import QWEN3
from .roberta import ROBERTA

FAMILIES = {family.name: family for family in (BERT, ROBERTA, DISTILBERT, ALBERT, GPT2, LLAMA, MISTRAL, QWEN3, GEMMA2)}

__all__ = [
    "ALBERT",
    "BERT",
    "DISTILBERT",
    "FAMILIES",
    "GEMMA2",
    "GPT2",
    "LLAMA",
    "MISTRAL",
    "QWEN3",
    "ROBERTA",
    "Family",
    "GGUFNames",
    "Published",
]
