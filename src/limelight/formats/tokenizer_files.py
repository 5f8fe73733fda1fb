"""Tokenizers: from ``tokenizer.json``, or from the vocabulary inside a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from ..text import Tokenizer
from ..text.limits import reasons_against
from .errors import CheckpointError, damaged
from .gguf_files import GGUFFile

CONTROL, USER_DEFINED = 3, 4  # GGUF's token types
MAX_TOKENIZER_BYTES, MAX_SETTINGS_BYTES, MAX_TEMPLATE_BYTES = 2**28, 2**26, 2**21

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Expressions that split text before the merges, by GGUF's name; ``None`` is GPT-2's own. "smollm" was trained with
# digits split one by one; Limelight follows ``transformers``, whose ids differ only for digits after several blanks.
PRE_TOKENIZERS = {
    "gpt-2": None,
    "smollm": None,
    "default": None,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}


def tokenizer_in(folder: Path) -> Tokenizer | str:
    """The tokenizer of a model folder, or why there is none."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return f"{path} does not exist"
    settings = _json_in(folder / "tokenizer_config.json")
    return Tokenizer(_backend_in(path), _chat_templates(folder, settings), _special_tokens(folder, settings))


def _backend_in(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer that a file describes, unless what it describes has no bounds."""
    written = _text_in(path, MAX_TOKENIZER_BYTES)
    try:
        described = json.loads(written)
        reasons = list(reasons_against(described)) if isinstance(described, dict) else ["it is no JSON object"]
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it describes no tokenizer ({error})") from error
    if reasons:
        raise CheckpointError(f"{path} is refused: {'; '.join(reasons)}. Take another checkpoint.")
    try:
        return tokenizers.Tokenizer.from_str(written)
    except BaseException as error:  # the library raises plain Exception, and panics, which are none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise damaged(path, f"the tokenizers library says {str(error)!r:.300}") from error


def _json_in(path: Path) -> dict[str, Any] | None:
    """The object in a small file; ``None`` where there is no file."""
    if not path.is_file():
        return None
    try:
        values = json.loads(_text_in(path, MAX_SETTINGS_BYTES))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise damaged(path, "it is no JSON object")
    return values


def _text_in(path: Path, most: int) -> str:
    """A file of at most so many bytes, as UTF-8."""
    size = path.stat().st_size
    if size > most:
        raise damaged(path, f"it has {size:,} bytes, more than {most:,}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, f"it is no UTF-8 (byte {error.start:,} is {error.object[error.start]:#04x})") from error


def _chat_templates(folder: Path, settings: dict[str, Any] | None) -> dict[str, str]:
    """Templates by their names: those in files of their own, or else those in ``tokenizer_config.json``."""
    found = {}
    files = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in {"default": folder / "chat_template.jinja", **files}.items():
        if path.is_file():
            found[name] = _text_in(path, MAX_TEMPLATE_BYTES)
    if found:
        return found
    named = (settings or {}).get("chat_template")
    if isinstance(named, str):
        return {"default": named}
    listed = [] if named is None else named if isinstance(named, list) else [named]
    for one in listed:
        if not (isinstance(one, dict) and isinstance(one.get("name"), str) and isinstance(one.get("template"), str)):
            path = folder / "tokenizer_config.json"
            raise damaged(path, "its chat_template is neither a text nor a list of objects with name and template")
    return {one["name"]: one["template"] for one in listed}


def _special_tokens(folder: Path, settings: dict[str, Any] | None) -> dict[str, str] | None:
    """Special tokens by the names templates use (``bos_token``), as in ``transformers``; ``None`` without settings."""
    if settings is None:
        return None
    values = dict(settings)
    if "added_tokens_decoder" not in settings:  # the older way: a file of its own, which comes first
        values |= _json_in(folder / "special_tokens_map.json") or {}
    extra = values.get("extra_special_tokens")
    named = {key: value for key, value in values.items() if key.endswith("_token")}
    spelled = {key: _spelling(value) for key, value in {**named, **(extra if isinstance(extra, dict) else {})}.items()}
    return {key: token for key, token in spelled.items() if token is not None}


def _spelling(token: object) -> str | None:
    """A token as it is spelled: a text, or an object with its ``content``."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def marian_tokenizer(folder: Path) -> Tokenizer | str:
    """The tokenizer of a Marian model, which puts ``</s>`` after every text."""
    tokenizer = tokenizer_in(folder)
    if isinstance(tokenizer, str):
        return tokenizer
    backend = tokenizer.backend
    end = backend.token_to_id("</s>")
    if end is None:
        raise damaged(folder / "tokenizer.json", "it has no </s>")
    backend.add_special_tokens([AddedToken("</s>", normalized=False, special=True)])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return Tokenizer(backend)


# An element or an atom in brackets, a bond, a ring, a branch: what SMILES is made of (Schwaller et al. 2018).
_SMILES = r"\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9]"


def smiles_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model of molecules, by the vocabulary in ``vocab.txt``, one token a line."""
    path = folder / "vocab.txt"
    vocabulary = {token: number for number, token in enumerate(path.read_text("utf-8").splitlines())}
    try:
        special = {token: vocabulary[token] for token in ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")}
    except KeyError as error:
        raise damaged(path, f"it has no {error}") from error
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_SMILES), behavior="removed", invert=True)
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    ends = [(token, special[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return Tokenizer(backend)


# llama.cpp, which writes such files, treats these cuts so, and the files do not say it: a word that is whole in the
# vocabulary is one token whatever the merges are, and a text begins with the beginning-of-text token unless the file
# says otherwise.
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")


def tokenizer_of(file: GGUFFile) -> Tokenizer | str:
    """The byte-level BPE tokenizer that a GGUF file describes (the ids of ``transformers``), or why there is none."""
    fields = file.fields
    kind, name = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        return f"{file.path} has a tokenizer of the kind {kind!r}, and Limelight builds byte-level BPE ('gpt2')"
    if name not in PRE_TOKENIZERS:
        return f"{file.path} has the pre-tokenizer {name!r}, and Limelight has {', '.join(PRE_TOKENIZERS)}"
    tokens, merges = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.merges")
    if not (_are_texts(tokens) and _are_texts(merges)):
        raise damaged(file.path, "its tokenizer has no vocabulary or no merges")
    backend = tokenizers.Tokenizer(_bpe(file, tokens, merges))
    backend.pre_tokenizer = _pre_tokenizer(PRE_TOKENIZERS[name])
    backend.decoder = decoders.ByteLevel()
    _add_special(backend, tokens, fields.get("tokenizer.ggml.token_type") or [])
    _add_ends(backend, fields, tokens)
    template = fields.get("tokenizer.chat_template")
    return Tokenizer(backend, template if isinstance(template, str) else None)


def _bpe(file: GGUFFile, tokens: list[str], merges: list[str]) -> models.BPE:
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    spelled = {token if set(token) <= alphabet else _in_bytes(token): number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        return models.BPE(vocab=spelled, merges=pairs, ignore_merges=file.fields.get("tokenizer.ggml.pre") in LLAMA3)
    except Exception as error:  # the library raises plain Exception
        raise damaged(file.path, f"its vocabulary and merges do not fit ({error})") from error


def _in_bytes(token: str) -> str:
    """A token that is written in plain text, in the byte alphabet of GPT-2."""
    return "".join(
        piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(token)
    )


def _pre_tokenizer(expression: str | None) -> pre_tokenizers.PreTokenizer:
    if expression is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), behavior="isolated"), by_bytes])


def _add_special(backend: tokenizers.Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Add the tokens that stay whole: the model's special tokens, and words that its makers added."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    typed = list(zip(tokens, types, strict=False))
    # a special token outside the byte alphabet is a mislabel of the converter; adding it would lengthen the vocabulary
    special = [token for token, kind in typed if kind == CONTROL and set(token) <= alphabet]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    added = [token for token, kind in typed if kind == USER_DEFINED and backend.token_to_id(token) is not None]
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in added])


def _add_ends(backend: tokenizers.Tokenizer, fields: dict[str, Any], tokens: list[str]) -> None:
    """Add the special tokens that the model expects before and after every text."""
    ends = {}
    usual = {"bos": fields.get("tokenizer.ggml.pre") in LLAMA3, "eos": False}
    for side in ("bos", "eos"):
        number = fields.get(f"tokenizer.ggml.{side}_token_id", -1)
        if fields.get(f"tokenizer.ggml.add_{side}_token", usual[side]) and 0 <= number < len(tokens):
            ends[side] = (tokens[number], number)
    if ends:
        names = [ends[side][0] if side in ends else "" for side in ("bos", "eos")]
        single = " ".join(part for part in (names[0], "$A", names[1]) if part)
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(ends.values()))


def _are_texts(values: object) -> TypeGuard[list[str]]:
    return isinstance(values, list) and bool(values) and all(isinstance(value, str) for value in values)
