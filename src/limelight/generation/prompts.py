"""Prompts of every kind as the token ids that texts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeGuard, TypeVar

import torch
from torch import Tensor

from ..forms.layouts import Layout, Padded
from ..models.decoder_only import DecoderOnly
from ..models.encoder_decoder import EncoderDecoder
from ..nn import FrontEnd
from ..outputs import Encoded
from ..tensors.shapes import describe, wrong
from ..text import Tokens
from .writer import Writer

Kind = TypeVar("Kind")
Prompt: TypeAlias = "str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tokens | Tensor"


def beginnings(
    model: Writer, prompt: Prompt, layout: Layout | None, target: Prompt | None
) -> tuple[list[list[int]], Encoded | None]:
    """The tokens that each text begins with; and what the encoder made of the prompts, in a model that has one.

    Args:
        model: the model that continues the texts.
        prompt: texts, tokens, or what else an encoder reads.
        layout: of a prompt that is a tensor.
        target: what the decoder of a model with an encoder begins with.
    """
    network = model.network
    if not isinstance(network, (DecoderOnly, EncoderDecoder)) or network.head is None:
        raise wrong("model", "must predict the next token to write", f"this is {model}", "Take a decoder with a head.")
    if not isinstance(network, EncoderDecoder):
        if target is not None:
            raise wrong("target", "is for a model with an encoder and a decoder", f"this is {model}", "Leave it out.")
        return _begun(model, rows_of(model, "prompt", prompt, layout)), None
    device = next(network.parameters()).device
    with torch.no_grad():
        if isinstance(network.encoder.embedding, FrontEnd):
            if not isinstance(prompt, Tensor):
                raise wrong(
                    "prompt",
                    "must be a tensor for this encoder",
                    describe(prompt),
                    "limelight.models.sound makes one of a sound.",
                )
            encoded = network.encode(prompt.to(device, next(network.parameters()).dtype), layout=layout)
        else:
            ids, layout = padded(rows_of(model, "prompt", prompt, layout), device)
            encoded = network.encode(ids, layout=layout)
    rows = _targets(model, target)
    if len(rows) not in (1, len(encoded.states)):
        got = f"there are {len(rows)} targets and {len(encoded.states)} prompts"
        raise wrong("target", "must be one, or one for each prompt", got, "Repeat one or the other.")
    return rows * (len(encoded.states) // len(rows)), encoded


def rows_of(model: Writer, name: str, prompt: Prompt, layout: Layout | None = None) -> list[list[int]]:
    """Tokens of each row, without padding."""
    rows = _rows_of(model, name, prompt, layout)
    if not rows:
        raise wrong(name, "must hold at least one row", "it holds none", "Leave out what would be empty.")
    config = model.config.encoder if name == "prompt" else None
    vocabulary = (config or model.config).vocabulary
    for number, row in enumerate(rows):
        if row and not (min(row) >= 0 and max(row) < vocabulary):
            strange = next(token for token in row if not 0 <= token < vocabulary)
            rule = f"must hold token ids from 0 to {vocabulary - 1}"
            raise wrong(name, rule, f"{strange} is one of row {number}", "Read texts with this model's own tokenizer.")
    return rows


def _rows_of(model: Writer, name: str, prompt: Prompt, layout: Layout | None) -> list[list[int]]:
    if isinstance(prompt, str):
        prompt = [prompt]
    if _are(prompt, str):
        prompt = model.tokenizer(prompt)
    if isinstance(prompt, Tokens):
        if layout is not None:
            raise wrong("layout", "belongs to token ids", "texts have their own", "Leave it out.")
        return [list(text.ids) for text in prompt.texts]
    if isinstance(prompt, Tensor):
        return _rows_of_tensor(name, prompt, layout)
    if layout is not None:
        raise wrong("layout", "belongs to a tensor", "lists of ids have no padding", "Leave it out.")
    if _are(prompt, int):
        return [list(prompt)]
    if isinstance(prompt, Sequence) and prompt and all(_are(row, int) or row in ([], ()) for row in prompt):
        return [list(row) for row in prompt if not isinstance(row, (str, int))]
    raise wrong(
        name,
        "must be a text, several, what `read` makes of them, or token ids",
        f"it is {describe(prompt) if isinstance(prompt, Tensor) else repr(prompt)[:80]}",
        'For example: model.generate("Once upon a time").',
    )


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Layout | None]:
    """``(B, L)`` ids padded at the right, and where the padding stands."""
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device)
    return ids, None if min(lengths) == longest else Padded(torch.tensor(lengths, dtype=torch.int64, device="cpu"))


def decoder_beginning(model: Writer) -> list[int]:
    """Token ids that every text of an encoder-decoder begins with: its start token, and those forced to follow it."""
    forced = sorted(model.special_token_ids.get("forced_decoder_ids") or ())
    if [place for place, _ in forced] != list(range(1, len(forced) + 1)) or any(token is None for _, token in forced):
        raise wrong(
            "target",
            "must say what the text begins with",
            f"the checkpoint leaves it open (forced_decoder_ids = {forced})",
            "Give the ids of the first tokens (start, language, task): target=[...].",
        )
    return [model.decoder_start_token_id, *(token for _, token in forced)]


def _targets(model: Writer, target: Prompt | None) -> list[list[int]]:
    """The first tokens of each text of the decoder: tokens as given, or a text after `decoder_beginning`."""
    if target is None:
        return [decoder_beginning(model)]
    texts = [target] if isinstance(target, str) else target
    if _are(texts, str):
        return [
            [*decoder_beginning(model), *model.tokenizer.read(text, add_special_tokens=False).ids] for text in texts
        ]
    return _begun(model, rows_of(model, "target", target), "target")


def _begun(model: Writer, rows: list[list[int]], name: str = "prompt") -> list[list[int]]:
    """The rows; an empty one becomes the beginning-of-text token, where the model has one."""
    if all(rows):
        return rows
    begin = model.special_token_ids.get("bos_token_id")
    if not isinstance(begin, int):
        got = f"row {next(number for number, row in enumerate(rows) if not row)} has none"
        raise wrong(name, "must have at least one token in each row", got, "Give it a first word or token.")
    return [row or [begin] for row in rows]


def _rows_of_tensor(name: str, ids: Tensor, layout: Layout | None) -> list[list[int]]:
    if ids.dim() not in (1, 2) or ids.dtype not in (torch.int64, torch.int32):
        raise wrong(name, "must be (B, L) int64 token ids", f"it is {describe(ids)}", "model.read makes them of texts.")
    ids = ids if ids.dim() == 2 else ids[None]
    if layout is None:
        return ids.tolist()
    B, L = ids.shape
    layout.check(B, L, L)
    ranges = layout.text_ranges(L)
    if ranges is None:
        raise wrong("layout", "must be Padded, one text a row", f"it is {layout!r}", "Give the rows as lists of ids.")
    firsts, lengths = (torch.as_tensor(x, device="cpu").expand(B).tolist() for x in ranges)
    return [row[first : first + n] for row, first, n in zip(ids.tolist(), firsts, lengths, strict=True)]


def _are(values: object, kind: type[Kind]) -> TypeGuard[Sequence[Kind]]:
    """Whether ``values`` are several of one kind, at least one."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or not values:
        return False
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
