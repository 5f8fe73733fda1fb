"""Chat templates: what transformers makes of them, and nothing else that they might want."""

import dataclasses

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from limelight import ArgumentError
from limelight.generation.conversation import conversation
from limelight.models import Pretrained
from limelight.text import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<s>system: be kind</s>\n"
    "{% endif %}{{ '<s>' + message['role'] + ': ' + message['content'] | trim + eos_token + '\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
LOOPS = (
    "{{ bos_token }}\n  {%- for m in messages %}\n    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {%- set name = m['role'] | upper %}\n[{{ name }}] {{ m.content | tojson }}\n  {%- endfor %}\n"
)
TALK = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": " Où est-il? "},
    {"role": "assistant", "content": "There."},
]


@pytest.fixture(scope="module")
def backend():
    marks = ["<s>", "</s>"]
    made = Backend(models.BPE({c: n for n, c in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(marks)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


@pytest.fixture
def model(backend):
    marks = {"bos_token_id": 0, "eos_token_id": 1}
    return lambda template: Pretrained("none", None, "here", (), Tokenizer(backend, template), marks)


@pytest.mark.parametrize("template", [CHATML, LOOPS])
@pytest.mark.parametrize("talk", [TALK, TALK[1:2]])
@pytest.mark.parametrize("reply", [True, False])
def test_conversations_read_as_in_transformers(model, backend, template, talk, reply):
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    other.chat_template = template
    wanted = other.apply_chat_template(talk, tokenize=False, add_generation_prompt=reply)
    read = conversation(model(template), talk, reply)
    assert read.text == wanted
    assert list(read.ids) == other.apply_chat_template(talk, add_generation_prompt=reply)["input_ids"]


def test_a_text_is_a_message_of_the_user(model):
    one = model(CHATML)
    assert conversation(one, "Hi", True).text == conversation(one, [{"role": "user", "content": "Hi"}], True).text


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'a' * 10 ** 9 }}", "may not compute"),
        ("{{ 'a' * 1000000000 }}", "may not compute"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ 1 / 0 }}", "division"),
        ("{% if %}", "xpected"),
    ],
)
def test_templates_that_fail_or_reach_out(model, template, why):
    with pytest.raises(ArgumentError, match=rf"(?s)`conversation` must fit the model's chat template, but .*{why}"):
        conversation(model(template), TALK, True)


def test_no_template_no_conversation(model):
    with pytest.raises(ArgumentError, match="`conversation` needs the chat template of a checkpoint"):
        conversation(model(None), "Hi", True)
    for spoken in ([], [{"content": "Hi"}], [1]):
        with pytest.raises(ArgumentError, match="`conversation` must be a text or messages with a role"):
            conversation(model(CHATML), spoken, True)
    with pytest.raises(ArgumentError, match="`tokenizer` must come with the checkpoint"):
        conversation(dataclasses.replace(model(CHATML), tokenizer_or_why="none here"), "Hi", True)
