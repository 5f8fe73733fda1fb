"""A model with weights, its tokenizer, and where both came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .forms.layouts import Layout, Padded
from .generation import Beam, Conversation, Generation, Sampler, Stream
from .generation.conversation import conversation
from .generation.loop import generate, stream
from .generation.prompts import Prompt
from .generation.session import Prefill
from .models.config import Config
from .models.encoder_decoder import EncoderDecoder
from .models.pooling import embed
from .models.saving import save
from .models.stack import Stack
from .nn import Keep
from .outputs import Output
from .tensors.shapes import FLOATS, describe, wrong
from .text import Tokenizer, Tokens


@dataclass(frozen=True)
class Pretrained:
    """What `limelight.load` returns.

    >>> import limelight
    >>> model = limelight.load("minilm")  # doctest: +SKIP
    >>> tokens = model.read(["The bank is near the river.", "Hello."])  # doctest: +SKIP
    >>> model(tokens, hidden=True).hidden[3].shape  # doctest: +SKIP
    torch.Size([2, 9, 384])

    Args:
        name: the name or path that it was loaded by.
        network: the model, a `torch.nn.Module` in evaluation mode whose parameters require no gradient (for training:
            ``model.network.train().requires_grad_()``).
        source: the folder or file that the weights came from.
        unused: keys of the checkpoint that this model does not use, each with the reason.
        tokenizer_or_why: the tokenizer, or why there is none.
        special_token_ids: ids of the special tokens, by the names that published configurations give them:
            ``{"eos_token_id": 2}``.
    """

    name: str
    network: Stack
    source: Path
    unused: tuple[tuple[str, str], ...]
    tokenizer_or_why: Tokenizer | str
    special_token_ids: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The configuration of the network."""
        return self.network.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; an `ArgumentError` where the checkpoint has none."""
        if isinstance(self.tokenizer_or_why, str):
            raise wrong(
                "tokenizer",
                "must come with the checkpoint to read text",
                self.tokenizer_or_why,
                "Pass token ids instead.",
            )
        return self.tokenizer_or_why

    @property
    def device(self) -> torch.device:
        """The device that the network is on."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights in memory."""
        return next(self.network.parameters()).dtype

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the network, as `torch.nn.Module.parameters`."""
        return self.network.parameters()

    def train(self, mode: bool = True) -> Pretrained:
        """Put the network into training mode, in place: dropout is on. (`requires_grad_` of the network is apart.)"""
        self.network.train(mode)
        return self

    def eval(self) -> Pretrained:
        """Put the network into evaluation mode, in place; it begins in it."""
        return self.train(False)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Raise an `AttributeError` that points to ``model.network`` for methods of the module."""
            hint = f" (the torch.nn.Module is `model.network`: model.network.{name})" if hasattr(Stack, name) else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def read(self, texts: str | Sequence[str], *, side: str = "right") -> Tokens:
        """Tokenize one text or several, as a padded batch on the device of the network.

        Args:
            texts: one text or several.
            side: where shorter texts are padded, ``"right"`` or ``"left"``.

        Raises:
            ArgumentError: something else than texts, a checkpoint without a tokenizer.
        """
        if not _are_texts(texts):
            raise wrong("texts", "must be a text, or several", f"it is {describe(texts)}", 'As in read(["Hello."]).')
        return self.tokenizer(texts, side=side).to(self.device)

    def embed(self, texts: str | Sequence[str], *, normalise: bool = True, batch: int = 32) -> Tensor:
        """One vector for each text, ``(n, width)``: the mean of the last states over its tokens, special ones included.

        With ``normalise`` each has length 1, so that a product of two is their cosine: what sentence-transformers
        computes for all-MiniLM-L6-v2 (``minilm``). A text's vector does not depend on the texts beside it.

        >>> model.embed(["A river.", "A bank."]).shape  # doctest: +SKIP
        torch.Size([2, 384])

        Args:
            texts: one text or several.
            normalise: whether vectors are divided by their length.
            batch: how many texts are read at once.

        Raises:
            ArgumentError: a model with an encoder and a decoder, or without a tokenizer; a text beyond its positions.
        """
        return embed(self.network, self.tokenizer, texts, normalise=normalise, batch=batch)

    def __call__(
        self,
        tokens: str | Sequence[str] | Tokens | Tensor,
        *,
        layout: Layout | None = None,
        segments: Tensor | None = None,
        target: str | Sequence[str] | Tokens | Tensor | None = None,
        target_layout: Layout | None = None,
        hidden: bool = False,
        logits: bool = True,
    ) -> Output:
        """Run the network on texts, on what `read` makes of them, or on token ids.

        A model with an encoder reads ``tokens`` with it (or a sound or picture, as numbers), and its decoder reads
        ``target``: texts, before which the decoder's start token is put, or ids as they are; by default that token
        alone. So ``logits[:, i]`` predict token ``i`` of a target text.

        Args:
            tokens: texts, `read` ones, or ``(B, L)`` token ids.
            layout: which tokens exist, for token ids (`limelight.Padded`); texts have their own.
            segments: ``(B, L)`` segment of each token, for models that have segments.
            target: what the decoder of a model with an encoder reads.
            target_layout: which tokens of a ``target`` of ids exist.
            hidden: keep and return the hidden states after every layer.
            logits: whether to compute the logits.

        Raises:
            ArgumentError: tokens of another kind or beyond the vocabulary, a text longer than the model's positions.
        """
        tokens, layout = self._ids("layout", tokens, layout)
        how: dict[str, Any] = {"hidden": hidden, "logits": logits}
        if not isinstance(self.network, EncoderDecoder):
            if target is not None or target_layout is not None:
                raise wrong(
                    "target", "is for a model with an encoder and a decoder", f"this is {self}", "Leave it out."
                )
            return self.network(tokens, layout=layout, segments=segments, **how)  # type: ignore[no-any-return]
        if target is None:
            target = torch.full((len(tokens), 1), self.decoder_start_token_id, device=tokens.device)
        elif not isinstance(target, Tensor):
            target, target_layout = self._begun(*self._ids("target_layout", target, target_layout))
        return self.network(target, source=tokens, source_layout=layout, layout=target_layout, **how)  # type: ignore[no-any-return]

    def generate(
        self,
        prompt: Prompt,
        sampler: Sampler | Beam | None = None,
        *,
        tokens: int | None = 128,
        stop: str | int | Sequence[str | int] = (),
        seed: int | None = None,
        copies: int = 1,
        target: Prompt | None = None,
        layout: Layout | None = None,
        logprobs: bool = False,
        keep: Keep | None = None,
        prefill: Prefill | None = None,
        cache_dtype: str | torch.dtype | None = None,
    ) -> Generation:
        """Continue texts, until each one ends.

        >>> from limelight.generation import Beam, Sample
        >>> model = limelight.load("smollm2")  # doctest: +SKIP
        >>> model.generate("The capital of France is", tokens=2).text  # doctest: +SKIP
        ' Paris.'
        >>> model.generate("Once upon a time", Sample(top_p=0.9), seed=1, copies=3).texts  # doctest: +SKIP
        >>> model.generate(model.conversation("Why is the sky blue?"), Beam(width=4)).text  # doctest: +SKIP

        Every token costs one token: what was read is kept in a cache, in which rows of different lengths have no
        padding, so a text does not depend on the others of its batch. A prompt with several copies is read once.

        Args:
            prompt: a text, several, what `read` or `conversation` makes of them, token ids (a list, lists of different
                lengths, a ``(B, L)`` tensor), or what else an encoder reads (a sound).
            sampler: how a token is chosen: `limelight.generation.Greedy` (the default), ``Sample`` or ``Beam``.
            tokens: maximum number of new tokens; ``None`` for as many as the model has positions.
            stop: strings and token ids that end a text, in addition to the model's own; the text ends before them. A
                string may be or contain a special token (``"<|im_end|>"``).
            seed: of a ``Sample``. The same seed gives the same text for the same prompt, whatever else is in the
                batch. By default it is drawn from torch's generator.
            copies: continuations of each prompt: differently drawn, or the best of a ``Beam``.
            target: for a model with an encoder, what its decoder begins with: a text, behind the first tokens that the
                checkpoint names, or token ids with these included; one, or one for each prompt. By default these tokens
                alone.
            layout: where the padding of a tensor of ids stands (`limelight.Padded`).
            logprobs: also give the log-probability of each token.
            keep: how many keys and values of a text are kept, and which (`limelight.nn.Keep`), so that a long text
                fits into little memory; ``None`` keeps all that a later token can see.
            prefill: how the prompt is read: `limelight.distributed.ContextParallelPrefill` divides its tokens among
                processes; ``None`` reads it in this one.
            cache_dtype: ``"int8"``, ``"float8_e4m3fn"`` or ``"float8_e5m2"`` to keep keys and values in 8 bits, an
                approximation in about half the memory of bfloat16 (`limelight.nn.Cache`); ``None`` for their own dtype.

        Raises:
            ArgumentError: a model that does not write, a prompt of another kind, more tokens than the model has
                positions, a bad setting, or a model whose scores are not finite.
        """
        settings: dict[str, Any] = {"tokens": tokens, "stop": stop, "seed": seed, "copies": copies, "keep": keep}
        settings |= {"target": target, "layout": layout, "logprobs": logprobs, "prefill": prefill}
        settings["cache_dtype"] = cache_dtype
        return generate(self, prompt, sampler, **settings)

    def stream(
        self,
        prompt: Prompt,
        sampler: Sampler | None = None,
        *,
        tokens: int | None = 128,
        stop: str | int | Sequence[str | int] = (),
        seed: int | None = None,
        target: Prompt | None = None,
        layout: Layout | None = None,
        keep: Keep | None = None,
        prefill: Prefill | None = None,
        cache_dtype: str | torch.dtype | None = None,
    ) -> Stream:
        """Continue one text as `generate` does, and yield its pieces as they come.

        Pieces are whole characters, and together they are the text that `generate` gives. ``Stream.result`` holds all
        that is written so far.

        >>> for piece in model.stream("Once upon a time", tokens=20):  # doctest: +SKIP
        ...     print(piece, end="", flush=True)
        """
        settings: dict[str, Any] = {"tokens": tokens, "stop": stop, "seed": seed, "target": target, "keep": keep}
        settings |= {"layout": layout, "prefill": prefill, "cache_dtype": cache_dtype}
        return stream(self, prompt, sampler, **settings)

    def conversation(self, *spoken: Conversation, reply: bool = True, parse_special_tokens: bool = True) -> Tokens:
        """Conversations as the model was trained to read them, by the chat template of its checkpoint.

        >>> messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        >>> model.generate(model.conversation(messages)).text  # doctest: +SKIP

        Args:
            spoken: each a list of messages, or a text: one message of the user.
            reply: whether the beginning of the model's answer is put behind.
            parse_special_tokens: whether a message that spells a special token holds that token, as it does in
                ``transformers``. With ``False`` it holds the text alone: take that for texts from others, who could
                otherwise end their turn with ``<|im_end|>`` and speak as the system. The template's own special tokens
                stay what they are. Roles are not covered: they are for the program to choose.

        Raises:
            ArgumentError: a checkpoint without a template, messages that do not fit it, a template that takes more
                than 1.2 s or 400 MiB (the memory is limited on Linux alone: `limelight.generation.templates`).
        """
        return self.tokenizer.batch([conversation(self, one, reply, parse_special_tokens) for one in spoken])

    def _ids(
        self, name: str, tokens: str | Sequence[str] | Tokens | Tensor, layout: Layout | None
    ) -> tuple[Tensor, Layout | None]:
        """Token ids and their layout."""
        if isinstance(tokens, Tensor):
            return tokens, layout
        if not isinstance(tokens, Tokens) and not _are_texts(tokens):
            raise wrong(
                "target" if name == "target_layout" else "tokens",
                "must be a text, several, what `read` makes of them, or a (B, L) tensor of token ids",
                f"it is {describe(tokens)}",
                "torch.tensor([ids]) is a batch of one list of ids.",
            )
        if layout is not None:
            raise wrong(name, "belongs to token ids", "the tokens are texts, which have their own", "Leave it out.")
        read = tokens if isinstance(tokens, Tokens) else self.read(tokens)
        return read.ids, read.layout

    def _begun(self, ids: Tensor, layout: Layout | None) -> tuple[Tensor, Layout | None]:
        """Texts with the decoder's start token before them, unless the tokenizer has put it there (Whisper's does)."""
        if ids.numel() and bool((ids[:, 0] == self.decoder_start_token_id).all()):
            return ids, layout
        ids = torch.cat((torch.full_like(ids[:, :1], self.decoder_start_token_id), ids), dim=1)
        if layout is None:
            return ids, None
        ranges = layout.text_ranges(ids.shape[1] - 1)
        if ranges is None or bool(torch.as_tensor(ranges[0]).any()):
            raise wrong("target", "must be padded at the right", f"it is {layout}", "Read it with side='right'.")
        return ids, Padded(ranges[1] + 1)

    @property
    def decoder_start_token_id(self) -> int:
        """The token that every text of the decoder begins with (of a model with an encoder)."""
        token = self.special_token_ids.get("decoder_start_token_id")
        if not isinstance(token, int):
            raise wrong(
                "target",
                "must be token ids",
                "the checkpoint names no decoder_start_token_id",
                "Put the start token first.",
            )
        return token

    def to(self, where: torch.device | str | torch.dtype) -> Pretrained:
        """Move the network to another device or dtype, in place.

        Args:
            where: a device that this PyTorch has (``"cuda"``), or float32, float64, bfloat16 or float16.

        Raises:
            ArgumentError: neither.
        """
        if isinstance(where, torch.dtype):
            if where not in FLOATS:
                rule = f"must be one of {', '.join(map(str, FLOATS))}, or a device"
                raise wrong("where", rule, f"it is {where}", "Weights are floating-point numbers.")
            self.network.to(where)
            return self
        try:
            device = torch.device(where)
            torch.empty(0, device=device)
        except (RuntimeError, TypeError, AssertionError) as error:  # each is PyTorch's for a device that is not there
            reason = str(error).splitlines()[0]
            got = f"it is {where!r} ({reason.rstrip('.')})"
            raise wrong("where", "must be a device of this PyTorch, or a dtype", got, 'For example "cpu".') from error
        self.network.to(device)
        return self

    def save(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, shard_bytes: int = 5 * 10**9
    ) -> Path:
        """Write the model as its family publishes such models: `limelight.load` and ``transformers`` read the folder.

        It holds ``config.json``, the weights as safetensors, and the tokenizer. Weights that were left `unused` are not
        in it. The folder appears in one step when everything in it has reached the disk. No second copy of the weights
        is made in memory, beyond those of one shard whose dtype or order changes.

        >>> import limelight
        >>> limelight.load("smollm2").save("smollm2-bf16", dtype=torch.bfloat16)  # doctest: +SKIP

        Args:
            folder: a new or an empty folder.
            dtype: what the numbers are stored as; ``None`` for their own.
            shard_bytes: size from which on the weights are cut into several files with an index.

        Raises:
            ArgumentError: a folder that holds something already, or a place where none can be written.
        """
        return save(self, folder, dtype=dtype, shard_bytes=shard_bytes)

    def __repr__(self) -> str:
        c = self.config
        heads = f"{c.query_heads} x {c.head_width}" + (
            f" over {c.key_value_heads}" if c.key_value_heads != c.query_heads else ""
        )
        layers = f"{c.layers} layers" if c.encoder is None else f"{c.encoder.layers} + {c.layers} layers"
        limit = "" if c.limit is None else f", up to {c.limit} tokens"
        return f"<{self.name}: {c.family}, {layers}, heads {heads}, width {c.width}{limit}>"


def _are_texts(value: object) -> bool:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        return isinstance(value, str)
    return all(isinstance(one, str) for one in value)
