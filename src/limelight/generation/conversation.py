"""Conversations as the text that a model was taught on, by the template that its checkpoint carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..shapes import wrong
from ..text import Text, Tokenizer

if TYPE_CHECKING:
    from ..models.pretrained import Pretrained

Message: TypeAlias = "Mapping[str, Any]"  # {"role": "user", "content": "Hello"}
Conversation: TypeAlias = "str | Sequence[Message]"  # a text is one message of the user

MARKS = ("bos", "eos", "pad", "unk")


def conversation(model: Pretrained, spoken: Conversation, reply: bool) -> Text:
    """One conversation as tokens; see `limelight.models.Pretrained.conversation`."""
    tokenizer = model.tokenizer
    if tokenizer.chat_template is None:
        got = f"{model.source} has none"
        raise wrong("conversation", "needs the chat template of a checkpoint", got, "Write the prompt as a text.")
    messages = [{"role": "user", "content": spoken}] if isinstance(spoken, str) else list(spoken)
    if not messages or not all(isinstance(one, Mapping) and "role" in one for one in messages):
        example = '[{"role": "user", "content": "Hello"}]'
        raise wrong("conversation", "must be a text or messages with a role", f"it is {spoken!r}", f"As {example}.")
    marks = special_tokens(tokenizer, model.marks)
    try:
        text = _compiled(tokenizer.chat_template).render(messages=messages, add_generation_prompt=reply, **marks)
    except (jinja2.TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        got = f"it says: {str(error).rstrip('.')}"
        raise wrong(
            "conversation", "must fit the model's chat template", got, "See its text: chat_template."
        ) from error
    return tokenizer.read(text, marks=False)  # the template has written them


def special_tokens(tokenizer: Tokenizer, marks: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens as text, by the names that templates and tokenizers give them (``"eos_token"``).

    Of several that end a text, the first.
    """
    ids = {name: marks.get(f"{name}_token_id") for name in MARKS}
    ids = {name: value[0] if isinstance(value, (list, tuple)) and value else value for name, value in ids.items()}
    found = {name: tokenizer.backend.id_to_token(i) for name, i in ids.items() if isinstance(i, int)}
    return {f"{name}_token": text for name, text in found.items() if text is not None}


class _Sandbox(ImmutableSandboxedEnvironment):
    """Templates come with checkpoints: they reach no attribute of Python's, change nothing and call what is given.

    Powers and products of texts are left out, by which a few characters would take all memory.
    """

    intercepted_binops = frozenset(("**", "*"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers only."""
        if operator == "**" or not all(isinstance(side, (int, float)) for side in (left, right)):
            raise jinja2.TemplateError(f"a chat template may not compute {left!r:.40} {operator} {right!r:.40}")
        return super().call_binop(context, operator, left, right)


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _as_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(template)


def _as_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Plain JSON; Jinja's own escapes for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
