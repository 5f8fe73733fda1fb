"""Models of Hugging Face transformers as subjects, as they are: `TransformersSubject`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...backends.contract import BackendError
from ...forms.observations import current_watcher, watching
from ...integrations.transformers import NAME, enable, report
from ...models.sound import RATE, spectrum
from ...tensors.shapes import describe, wrong
from ...text import Text
from .base import Run, Source, Subject, shown_name
from .discovery import SOURCE, TARGET, Call, Discovery, Renamed, discover
from .parts import Given, body_of, can_cache, configs_of, giving, head_of, positions_of, states_in, table_of
from .sound import FRAME_SECONDS, existing_heads, heard, states_of
from .texts import MAX_WRITTEN, after, cut, read_text, text_of, unknown_token_of

OUTSIDE = (
    "limelight.integrations.transformers.report(model) lists its layers; take a model whose attention goes through "
    "transformers' registry (Llama, BERT, T5, and most others)."
)


class TransformersSubject(Subject):
    """A ``transformers.PreTrainedModel`` with its tokenizer, observed through transformers' attention registry.

    The model is run once on a few tokens, to find its attention layers in the order of their calls. Whatever a run sets
    (the attention implementation, evaluation mode) is put back after it, so that the model stays as it was.

    Args:
        model: the model, of any device and dtype.
        tokenizer: its tokenizer, or a processor that has one.

    Raises:
        ArgumentError: no layer of the model can be observed (with the reason), the model does not run on token ids
            alone, or the tokenizer has ids that the model does not have.
    """

    reads = "input_ids"

    def __init__(self, model: Any, tokenizer: Any = None) -> None:
        enable()
        self.model = model
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        self.features = getattr(tokenizer, "feature_extractor", None)
        self.name = shown_name(getattr(model, "name_or_path", "") or type(model).__name__)
        self.base = body_of(model)
        self._takes = frozenset(inspect.signature(self.base.forward).parameters)
        self._seq2seq = "decoder_input_ids" in self._takes
        self._decoder: Any = self.base.get_decoder() if self._seq2seq else self.base
        self.hears = model.main_input_name == "input_features"
        self._check_inputs()
        self._measure()
        self._check_layers()
        self._found, output = self._discover()
        hidden = states_in(output, self._seq2seq)
        self._modules = tuple(call.module for call in self._found.calls)
        encoded = getattr(output, "encoder_last_hidden_state", None)
        self._name_layers(hidden, self._length(output), SOURCE if encoded is None else encoded.shape[1])
        self._find_norm(output, hidden)

    def _check_inputs(self) -> None:
        """Refuse what reads neither texts nor the sounds of Whisper (for pictures there is a class of its own)."""
        name = self.model.main_input_name
        if name != self.reads and not (self.hears and self._seq2seq and self.model.config.model_type == "whisper"):
            got = f"{self.name} reads {name}"
            way_out = "limelight.watching observes its layers (limelight.integrations.transformers)."
            raise wrong("model", "must read text, pictures, or sounds as Whisper does", got, way_out)

    def _measure(self) -> None:
        self.vocabulary = self.embeddings().shape[0]
        self.limit = positions_of(self._decoder)
        trained = getattr(getattr(self._decoder, "config", None), "max_position_embeddings", None)
        self.trained_positions = trained if self.limit is None and isinstance(trained, int) else self.limit

    def _length(self, output: Any) -> int:
        """The number of tokens of the run on a few."""
        return TARGET if self._seq2seq else SOURCE

    def _check_layers(self) -> None:
        with self._observing():
            layers = report(self.base)
        self.unobserved = layers.own
        if not layers.served:
            why = next(iter(layers.own.values()), "no layer of it is attention")
            raise wrong("model", "must have attention that can be observed", f"of {self.name} {why}", OUTSIDE)

    def _few(self) -> dict[str, Tensor]:
        """Inputs of a few tokens."""
        device = self.model.device
        ids = (torch.arange(SOURCE, device=device) + 1) % self.vocabulary
        inputs: dict[str, Tensor] = {"input_ids": ids[None]}
        if self.hears:
            sizes = self.model.config.num_mel_bins, 2 * self.model.config.max_source_positions
            inputs = {"input_features": torch.zeros(1, *sizes, dtype=self.model.dtype, device=device)}
        if self._seq2seq:
            inputs["decoder_input_ids"] = ids[None, :TARGET]
        return inputs

    def _discover(self) -> tuple[Discovery, Any]:
        """Run the model on a few tokens; return what was found, and its output."""
        inputs = self._few()
        try:
            with self._observing():
                found, output = discover(self.base, lambda: self._call(self.base, inputs, hidden=True))
        except BackendError as error:
            raise wrong("model", "must have attention that can be observed", str(error).rstrip("."), OUTSIDE) from error
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            got = f"{self.name} raised {type(error).__name__}: {reason:.200}"
            rule = f"must run on {self.model.main_input_name} alone"
            raise wrong("model", rule, got, "Of a model of several parts, pass one part.") from error
        if not states_in(output, self._seq2seq):
            raise wrong("model", "must return its hidden states", f"{self.name} returns none", "Pass one part of it.")
        return found, output

    def _find_norm(self, output: Any, hidden: tuple[Tensor, ...]) -> None:
        """Find the last norm, and whether the last of the hidden states lacks it."""
        last = getattr(output, "last_hidden_state", None)
        last = hidden[-1] if last is None else last
        self._norm = self._found.norm_before(last)
        self._lacks_norm = not torch.equal(hidden[-1], last)

    def _name_layers(self, hidden: tuple[Tensor, ...], length: int, states: int) -> None:
        """Give every call its place: encoder, main stack, or cross-attention."""
        inner = set(self._decoder.modules())
        decoder = {name for name, module in self.base.named_modules() if module in inner}
        own: list[tuple[str, Call]] = []
        encoder, cross = [], []
        for name, call in zip(self._found.names, self._found.calls, strict=True):
            if self._seq2seq and call.module not in decoder:
                encoder.append(name)
                self.encoder_heads = max(self.encoder_heads, call.heads)
            elif (call.queries, call.keys) == (length, length):
                own.append((name, call))
            elif self._seq2seq and (call.queries, call.keys) == (TARGET, states):
                cross.append(name)
            else:
                why = f"its {call.queries} queries and {call.keys} keys are not the {length} tokens of the text"
                self.unobserved = {**self.unobserved, name: why}
        main = [call for _, call in own] or [call for call in self._found.calls if call.queries == TARGET]
        if not own and not cross:
            why = next(iter(self.unobserved.values()), "no layer of it is attention")
            raise wrong("model", "must have attention that can be observed", f"of {self.name} {why}", OUTSIDE)
        self.attention_names = tuple(name for name, _ in own)
        self.encoder_names, self.cross_names = tuple(encoder), tuple(cross)
        self.layers = len(main)
        self.heads = max(call.heads for call in main)
        causal = all(call.causal for call in main if call.keys == call.queries)
        self.kind = "encoder-decoder" if self._seq2seq else "decoder" if causal else "encoder"
        named = getattr(getattr(self.model, "generation_config", None), "alignment_heads", None)
        self.alignment_heads = existing_heads(named, self.layers, self.heads)
        self.blocks = max(len(hidden) - 1, self.layers)
        begins = [call.block for call in main] if len(hidden) - 1 != self.layers else list(range(self.layers))
        self._depths = (0, *(max(begin, 0) for begin in begins[1:]), len(hidden) - 1)

    @contextmanager
    def _observing(self) -> Iterator[None]:
        """Inside, the model computes its attention with Limelight, in evaluation mode and without gradients."""
        before = {id(config): (config, config._attn_implementation) for config in configs_of(self.model)}
        training = [module for module in self.model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            self.model.set_attn_implementation(NAME)
            with torch.no_grad():
                yield
        finally:
            for config, implementation in before.values():
                config._attn_implementation_internal = implementation
            for module in training:
                module.training = True

    def _call(self, module: Any, inputs: dict[str, Any], hidden: bool = False) -> Any:
        extra: dict[str, Any] = {"use_cache": False} if "use_cache" in self._takes else {}
        return module(**extra | inputs, output_attentions=False, output_hidden_states=hidden, return_dict=True)

    def tokenize(self, text: str) -> Text:
        table = table_of(self.base, self.model, self._decoder)
        return self._checked(read_text(self._reader(), text), self.vocabulary if table is None else len(table))

    def read_source(self, source: Any) -> Source:
        if not self.hears:
            text = self.tokenize(source)
            self.check_fit("text", len(text), positions_of(self.base.get_encoder()))
            return Source(torch.tensor([text.ids], dtype=torch.int64, device="cpu"), text, len(text))
        samples = heard(source)
        if self.features is None:
            features = spectrum(samples, bands=self.model.config.num_mel_bins)
        else:
            features = self.features(samples.numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"]
        return Source(features, None, states_of(samples), FRAME_SECONDS)

    def read_target(self, text: str) -> Text:
        read = read_text(self._reader(), text, target=True)
        read = self._checked(read, self.vocabulary)
        start = self._start()
        end = max((place + 1 for place, own in enumerate(read.special) if not own), default=0)
        read = cut(read, end)  # without what ends a text
        return read if read.ids[:1] == (start,) else after([start], [self._spelled(start)], read)

    def write(self, source: Source) -> Text:
        if not self.model.can_generate():
            got = f"{self.name} is a {type(self.model).__name__}"
            raise wrong("target", "must be given for a model that does not write", got, "Pass target=.")
        most = MAX_WRITTEN if self.limit is None else min(MAX_WRITTEN, self.limit // 2)  # what it begins with, beside
        how = {"do_sample": False, "num_beams": 1, "max_new_tokens": most}
        with self._observing():
            ids = self.model.generate(**self._source(source.input), **how)[0].tolist()
        reader, known = self._reader(), set(self.tokenizer.all_special_ids)
        while len(ids) > 1 and ids[-1] in known:
            ids.pop()
        begin = [] if ids[:1] == [self._start()] else list(getattr(reader, "prefix_tokens", [self._start()]))
        ids = [*begin, *ids]

        def decode(some: list[int]) -> str:
            return str(reader.decode(some, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        special = [place == 0 or number in known for place, number in enumerate(ids)]
        return text_of(ids, [self._spelled(number) for number in ids], special, decode)

    def _start(self) -> int:
        """The token that a decoder begins with."""
        for config in (getattr(self.model, "generation_config", None), self.model.config):
            for name in ("decoder_start_token_id", "bos_token_id"):
                if isinstance(start := getattr(config, name, None), int):
                    return start
        got = f"{self.name} names neither decoder_start_token_id nor bos_token_id"
        raise wrong("target", "must begin with a token that the model names", got, "Set one in model.config.")

    def _spelled(self, number: int) -> str:
        return str(self._reader().convert_ids_to_tokens([number])[0])

    def _reader(self) -> Any:
        if not callable(self.tokenizer):
            came = "alone" if self.tokenizer is None else f"with {describe(self.tokenizer)}"
            got = f"a {type(self.model).__name__} came {came}"
            way_out = "Pass tokenizer=AutoTokenizer.from_pretrained(...), or (model, tokenizer)."
            raise wrong("tokenizer", "must come with the model to read text", got, way_out)
        return self.tokenizer

    def _checked(self, text: Text, vocabulary: int) -> Text:
        """The text, unless it holds an id that the model does not have."""
        for token, number in zip(text.tokens, text.ids, strict=True):
            if not 0 <= number < vocabulary:
                raise wrong(
                    "tokenizer",
                    f"must fit the model {self.name}, which has the token ids 0 to {vocabulary - 1}",
                    f"its token {token!r} has the id {number}",
                    "Take the tokenizer of the same checkpoint.",
                )
        return text

    def run(
        self,
        ids: Tensor,
        *,
        lengths: Tensor | None = None,
        source: Tensor | None = None,
        hidden: bool = False,
        logits: bool = False,
    ) -> Run:
        inputs = self._inputs(ids, lengths, source)
        output = self._observed(self.model if logits else self.base, inputs, hidden)
        states = self._states(output) if hidden else ()
        return Run(
            tuple(states[depth] for depth in self._depths) if states else (),
            output.logits if logits and head_of(self.model) is not None else None,
            tuple(getattr(output, "encoder_hidden_states", None) or ()) if hidden else (),
        )

    def _observed(self, module: Any, inputs: dict[str, Any], hidden: bool) -> Any:
        """Call the model or its body, for a watcher under the names of its layers."""
        watcher = current_watcher()
        with self._observing():
            if watcher is None:
                return self._call(module, inputs, hidden)
            with watching(Renamed(watcher, self._modules, self._found.names)):
                return self._call(module, inputs, hidden)

    def _states(self, output: Any) -> tuple[Tensor, ...]:
        """The hidden states of the main stack, the last behind the last norm."""
        states = states_in(output, self._seq2seq)
        if states and self._lacks_norm and self._norm is not None:
            with torch.no_grad():
                states = (*states[:-1], self._norm(states[-1]))
        return states

    def scorer(self) -> Callable[[Sequence[int]], Tensor]:
        if not can_cache(self.base):
            return super().scorer()
        read, cache = 0, None

        def score(ids: Sequence[int]) -> Tensor:
            nonlocal read, cache
            self.check_fit("text", len(ids), self.limit)
            row = torch.tensor([list(ids[read:])], dtype=torch.int64, device="cpu")
            inputs = {**self._inputs(row, None, None), "use_cache": True, "past_key_values": cache}
            output = self._observed(self.base, inputs, hidden=True)
            cache = getattr(output, "past_key_values", None)
            read = 0 if cache is None else len(ids)  # else the next call reads the whole text
            return self._logits(self._states(output)[-1])

        return score

    def _inputs(self, ids: Tensor, lengths: Tensor | None, source: Tensor | None) -> dict[str, Any]:
        device = self.model.device
        longest = ids.shape[1]
        self.check_fit("target" if self._seq2seq else "text", longest, self.limit)
        if (source is None) == self._seq2seq:
            rule = "must be given for an encoder-decoder, and for no other model"
            raise wrong("source", rule, f"{self.name} is one: {self._seq2seq}", "Give the source, or leave it out.")
        prefix = "decoder_" if self._seq2seq else ""
        inputs: dict[str, Any] = {f"{prefix}input_ids": ids.to(device)}
        if lengths is not None:
            exists = torch.arange(longest, device=device) < lengths.to(device)[:, None]
            inputs[f"{prefix}attention_mask"] = exists.long()
        return inputs if source is None else inputs | self._source(source)

    def _source(self, source: Tensor) -> dict[str, Any]:
        """What an encoder reads, by the name of the model's argument."""
        dtype = self.model.dtype if source.is_floating_point() else None
        return {self.model.main_input_name: source.to(self.model.device, dtype)}

    def lens(self, states: Tensor, depth: int) -> Tensor | None:
        """The logits of hidden states: the last norm (unless they passed it), then all that the model's head does.

        The head is the model's own code after its last states, scalings and caps included.
        """
        if head_of(self.model) is None:
            return None
        rows = states.to(self.model.device, self.model.dtype).reshape(1, -1, states.shape[-1])
        if depth < self.layers and self._norm is not None:
            with torch.no_grad():
                rows = self._norm(rows)
        given = Given(last_hidden_state=rows)
        with self._observing(), giving(self._stacks(), given):
            ids = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
            inputs: dict[str, Any] = {"input_ids": ids}
            if self._seq2seq:
                inputs = {"decoder_input_ids": ids, "encoder_outputs": given}
            logits: Tensor = self._call(self.model, inputs).logits
        return logits.reshape(*states.shape[:-1], -1)

    def _stacks(self) -> list[Any]:
        """The parts that the head calls for the last states: the body, or one within it that some heads call."""
        if self._seq2seq:
            return [self._decoder]
        found = getattr(self.model, "get_decoder", None)
        inner = found() if callable(found) else None
        return [stack for stack in (self.base, inner) if isinstance(stack, PreTrainedModel) and stack is not self.model]

    def embeddings(self) -> Tensor:
        table = table_of(self._decoder, self.base, self.model)
        if table is None:
            raise wrong("model", "must have a table of token embeddings", f"{self.name} has none", "Use another model.")
        return table.detach()

    def output_weight(self, name: str) -> Tensor:
        names = self._found.names
        call = self._found.calls[names.index(name)] if name in names else None
        projection: Any = None if call is None else call.projection
        weight = getattr(projection, "weight", None)
        if call is None or not isinstance(weight, Tensor) or not weight.is_floating_point():
            got = f"that of {name!r} was not found: something stands between it and the heads, or it is quantised"
            raise wrong("name", "must be an attention layer with an output projection", got, "Use another layer.")
        matrix = weight.detach().T if isinstance(projection, nn.Linear) else weight.detach()  # (H * Dv, width)
        return matrix.reshape(call.heads, -1, matrix.shape[1]).float()

    @property
    def unknown_token(self) -> str | None:
        return None if self.tokenizer is None else unknown_token_of(self.tokenizer)

    def spell(self, token: int) -> str:
        return str(self._reader().convert_ids_to_tokens(token))

    def decode(self, ids: Sequence[int]) -> str:
        how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self._reader().decode(list(ids), **how))

    def is_special(self, token: int) -> bool:
        return token in set(getattr(self._reader(), "all_special_ids", ()))

    @property
    def ends(self) -> frozenset[int]:
        found = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        return frozenset([found] if isinstance(found, int) else found or ())
