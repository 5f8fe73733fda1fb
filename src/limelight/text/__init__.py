"""Text as token ids: tokenizers, the spans of tokens, and limits on what a tokenizer's description may cost."""

from __future__ import annotations

from .tokenizer import SpecialToken, Text, Tokenizer, Tokens, printable, printable_json, valid_text

__all__ = ["SpecialToken", "Text", "Tokenizer", "Tokens", "printable", "printable_json", "valid_text"]
