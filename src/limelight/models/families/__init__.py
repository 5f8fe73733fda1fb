"""Families of published models, as data: a configuration map and key rules each."""

from .bert import BERT
from .family import Family, GGUFNames
from .llama import LLAMA
from .published import Published

FAMILIES = {family.name: family for family in (BERT, LLAMA)}

__all__ = ["BERT", "FAMILIES", "LLAMA", "Family", "GGUFNames", "Published"]
