"""A family of published models, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ...formats.ctranslate2_files import CTranslate2File
from ...formats.gguf_files import GGUFFile
from ...formats.marian_files import MarianFile
from ...formats.rules import KeyRules
from ...nn import Normal
from ...text import Tokenizer
from ..config import Config
from ..stack import Stack
from .published import Published


@dataclass(frozen=True)
class GGUFNames:
    """How GGUF writes a family.

    Args:
        fields: GGUF's metadata names, without the architecture in front, and the published names of the same.
        embedding: the tensor that holds the token embedding; its rows are the vocabulary.
        own_head: the name of a tensor that exists only when the output head is not tied to the embedding.
        rules: key rules from GGUF's tensors to ours.
        scaling: the published ``rope_scaling`` of a file.
        check: refuses a file whose other fields say that it is not the model of a configuration.
    """

    fields: Mapping[str, str]
    embedding: str
    own_head: str
    rules: Callable[[Config], KeyRules]
    scaling: Callable[[GGUFFile], dict[str, Any]]
    check: Callable[[GGUFFile, Config], None]


@dataclass(frozen=True)
class CTranslate2Names:
    """How CTranslate2 writes a family.

    Args:
        specification: its name for the kind of model.
        describe: the published configuration, from the sizes in a file.
        special_token_ids: their ids by published names, from the tokenizer and the file's own ``config.json``.
        rules: key rules from its variables to our tensors.
    """

    specification: str
    describe: Callable[[CTranslate2File], dict[str, Any]]
    special_token_ids: Callable[[Tokenizer, Mapping[str, Any]], dict[str, Any]]
    rules: Callable[[Config], KeyRules]


@dataclass(frozen=True)
class MarianNames:
    """How Marian's own files hold a family.

    Args:
        configure: our configuration, from the settings and sizes in a file.
        rules: key rules from its tensors to ours.
    """

    configure: Callable[[MarianFile], Config]
    rules: Callable[[Config], KeyRules]


def _normal_weights(config: Config) -> Callable[[nn.Module], None]:
    """Draws normal weights of deviation 0.02, whatever the configuration."""
    return Normal()


@dataclass(frozen=True)
class Family:
    """A family of published models: how configurations and checkpoints are read and written.

    Args:
        name: its ``model_type`` in a published configuration and its ``general.architecture`` in GGUF.
        shape: `limelight.models.EncoderOnly`, `DecoderOnly` or `EncoderDecoder`.
        configure: from the published configuration to ours.
        publish: the published fields of one of our configurations, ``model_type`` apart: the inverse of ``configure``.
        rules: key rules between published checkpoints and our modules.
        gguf: names in GGUF files; ``None`` where the family is not read from GGUF.
        ctranslate2: names in CTranslate2 files, or ``None``.
        marian: configuration and rules of Marian's own files, or ``None``.
        float32_in_float16: ends of the names of parameters that are float32 in a model loaded in float16.
        initialisation: draws the first weights of a model of a configuration, as published.
        default_tokens: ids of special tokens that transformers assumes where a configuration has none, by their keys.
    """

    name: str
    shape: Callable[[Config], Stack]
    configure: Callable[[Published], Config]
    publish: Callable[[Config], dict[str, Any]]
    rules: Callable[[Config], KeyRules]
    gguf: GGUFNames | None = None
    ctranslate2: CTranslate2Names | None = None
    marian: MarianNames | None = None
    float32_in_float16: tuple[str, ...] = ()
    initialisation: Callable[[Config], Callable[[nn.Module], None]] = _normal_weights
    default_tokens: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)

    def unset_tokens(self, vocabulary: int) -> dict[str, int | None]:
        """The published value that means no token, for each of the ``default_tokens`` beyond a vocabulary.

        With an id beyond it transformers makes no model. It takes ``None`` for every token but that which a decoder
        starts with, where -1 stands for none.

        Args:
            vocabulary: the number of tokens of a model.
        """
        most = {key: max(ids) if isinstance(ids, tuple) else ids for key, ids in self.default_tokens.items()}
        beyond = [key for key, token in most.items() if token >= vocabulary]
        return {key: -1 if key == "decoder_start_token_id" else None for key in beyond}
