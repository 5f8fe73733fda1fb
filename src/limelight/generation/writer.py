"""What generation needs of a model: a network that predicts the next token, and the tokenizer that goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..models.config import Config
from ..models.stack import Stack
from ..text import Tokenizer


class Writer(Protocol):
    """A model that can write text. `limelight.Pretrained` is one."""

    @property
    def network(self) -> Stack:
        """The network: a `DecoderOnly` or an `EncoderDecoder`, or another one, which is refused."""

    @property
    def config(self) -> Config:
        """The configuration of the network."""

    @property
    def source(self) -> Path:
        """Where the model came from; errors name it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; an error where there is none."""

    @property
    def tokenizer_or_why(self) -> Tokenizer | str:
        """The tokenizer, or why there is none."""

    @property
    def special_token_ids(self) -> Mapping[str, Any]:
        """Ids of the special tokens, by the names that published configurations give them."""

    @property
    def decoder_start_token_id(self) -> int:
        """The token that every text of the decoder begins with, in a model with an encoder; an error without one."""
