"""Conversations as a model was trained to read them, by the chat template of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ..tensors.shapes import ArgumentError, wrong
from ..text import Text, printable, valid_text
from .plain_text import Escapes
from .templates import LIMITS, TemplateError, TemplateLimitError, renderer
from .writer import Writer

Message: TypeAlias = "Mapping[str, Any]"  # {"role": "user", "content": "Hello"}
Conversation: TypeAlias = "str | Sequence[Message]"  # a text is one message of the user

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one field; the first is the common one
EXAMPLE = 'For example: [{"role": "user", "content": "Hello"}].'


def conversation(model: Writer, spoken: Conversation, reply: bool, parse_special_tokens: bool = True) -> Text:
    """One conversation as tokens, by the chat template of the checkpoint.

    Args:
        model: whose tokenizer and template.
        spoken: a list of messages, or a text: one message of the user.
        reply: whether the beginning of the model's answer is put behind (``add_generation_prompt``).
        parse_special_tokens: whether a message that spells a special token holds that token.

    Raises:
        ArgumentError: no template, messages that do not fit it, a template beyond its limits.
    """
    tokenizer = model.tokenizer
    template = tokenizer.chat_template
    if template is None:
        named = ", ".join(tokenizer.chat_templates)
        got = f"{model.source} has none" + (f' called "default", only {named}' if named else "")
        raise wrong("conversation", "needs the chat template of a checkpoint", got, "Write the prompt as a text.")
    for name, value in {"reply": reply, "parse_special_tokens": parse_special_tokens}.items():
        if not isinstance(value, bool):
            raise wrong(name, "must be True or False", f"it is {value!r:.80}", "Leave it out for True.")
    messages = _messages(spoken)
    special = tokenizer.named_special_tokens(model.special_token_ids)
    if parse_special_tokens:
        return tokenizer.read(
            _rendered(template, messages, reply, special), add_special_tokens=False
        )  # the template writes them
    escapes = Escapes.of(tokenizer, template, messages)
    return escapes.read(_rendered(template, escapes.escaped(messages), reply, special))


def _rendered(template: str, messages: list[dict[str, Any]], reply: bool, special: Mapping[str, str]) -> str:
    """The text that the template makes of messages."""
    variables = {**special, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": reply}
    see = "See its text: model.tokenizer.chat_template."
    try:
        return valid_text(renderer.render(template, variables), "conversation")
    except TemplateLimitError as error:
        rule = f"must be rendered by the model's chat template {LIMITS}"
        raise wrong("conversation", rule, f"{error}", f"A template may hold any program. {see}") from error
    except TemplateError as error:
        got = f"it says: {printable(str(error)).rstrip('.')}"
        raise wrong("conversation", "must fit the model's chat template", got, see) from error


def _messages(spoken: object) -> list[dict[str, Any]]:
    """Messages as plain data. A key whose value is ``None`` is left out."""
    if isinstance(spoken, str):
        spoken = [{"role": "user", "content": spoken}]
    if not isinstance(spoken, Sequence) or isinstance(spoken, bytes) or not spoken:
        raise wrong("conversation", "must be a text or messages with a role", f"it is {spoken!r:.80}", EXAMPLE)
    for one in spoken:
        if not isinstance(one, Mapping) or not isinstance(one.get("role"), str):
            raise wrong("conversation", "must be a text or messages with a role", f"{one!r:.80} is one", EXAMPLE)
    try:
        return [
            _plain({key: value for key, value in _with_reasoning(one).items() if value is not None}) for one in spoken
        ]
    except RecursionError:
        raise wrong("conversation", "must be plain data", "a message is nested too deep", EXAMPLE) from None


def _with_reasoning(message: Message) -> Message:
    """A message with its reasoning under the keys that templates read."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A value as JSON has it, its texts valid."""
    if isinstance(value, str):
        return valid_text(value, "conversation")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {valid_text(key, "conversation"): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    raise _no_data(value)


def _no_data(value: object) -> ArgumentError:
    rule = "must be plain data: texts, numbers, lists, and objects with names"
    return wrong("conversation", rule, f"{value!r:.80} is in it", EXAMPLE)
