"""Chat templates: what transformers makes of them, and nothing else that they might want."""

import dataclasses

import pytest
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from limelight import ArgumentError
from limelight.generation.conversation import conversation
from limelight.pretrained import Pretrained
from limelight.text import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<s>system: be kind</s>\n"
    "{% endif %}{{ '<s>' + message['role'] + ': ' + message['content'] | trim + eos_token + '\n' }}{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% set x = 1 %}"
    "{% endgeneration %}{{ x is defined }}{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)
EVERYTHING = (
    "{{ dict(a=1, b=[1, none]) }}{{ dict.fromkeys('ab', 2) }}{% set ns = namespace(n=0, s='-' * 10) %}"
    "{% for m in messages[::-1] %}{% if loop.index > 2 %}{% break %}{% endif %}{% set ns.n = ns.n + 1 %}"
    "{{ m.content.split(' ') | join('_') | replace('.', '') }}{{ m | tojson(indent=2, sort_keys=true) }}"
    "{{ m | tojson(separators=(',', ':'), ensure_ascii=true) }}{% endfor %}{{ ns.n }}{{ ns.s }}{{ 2 ** 10 }}"
    "{{ messages | map(attribute='role') | unique | sort | list }}"
    "{{ messages | selectattr('role', 'eq', 'user') | list }}"
    "{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}{{ strftime_now('%Y') | length }}"
    "{{ messages[0].get('reasoning_content') }}{{ 'thinking' in messages[0] }}{{ '%05.2f' % 3.14159 }}{{ 7 // 2 }}"
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
    special = ["<s>", "</s>"]
    made = Backend(
        models.BPE({c: n for n, c in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}, [])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(special)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


@pytest.fixture
def model(backend):
    special = {"bos_token_id": 0, "eos_token_id": [1, 0]}  # the first of several ends is what templates call it
    return lambda template: Pretrained("none", None, "here", (), Tokenizer(backend, template), special)


@pytest.mark.parametrize("template", [CHATML, LOOPS, MARKED, EVERYTHING])
@pytest.mark.parametrize("talk", [TALK, TALK[1:2], [{**TALK[0], "reasoning": "Why? é", "name": None, "n": 1.5}]])
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
        ("{{ namespace(__class__=1) }}", "underscore"),
        ("{{ dict.__class__.__mro__ }}", "unsafe"),
        ("{% set n = namespace() %}{% set n._a = 1 %}", "underscore"),
        ("{{ raise_exception('a' * 10000) }}", "a" * 400),
        ("{{ 1 + 'a' }}", "TypeError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "too deep"),
        ("{% for i in [1] %}" * 25 + "{% endfor %}" * 25, "SyntaxError"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ 1 / 0 }}", "division"),
        ("{% if %}", "xpected"),
    ],
)
def test_templates_that_fail_or_reach_out(model, template, why):
    with pytest.raises(ArgumentError, match=rf"(?s)`conversation` must fit the model's chat template, but .*{why}"):
        conversation(model(template), TALK, True)


def test_a_template_that_takes_too_much(model):
    rule = r"`conversation` must be rendered by the model's chat template within 1.2 s and 400 MiB"
    with pytest.raises(ArgumentError, match=f"{rule}, but it takes more memory"):
        conversation(model("{{ 'a' * 10000000000 }}"), TALK, True)


def test_messages_are_plain_data(model):
    deep = []
    for _ in range(10_000):
        deep = [deep]
    for content, got in ((object(), "<object"), ({1: 2}, "{1: 2}"), ({"set"}, "{'set'}"), (deep, "nested too deep")):
        with pytest.raises(ArgumentError, match=f"`conversation` must be plain data.*{got}"):
            conversation(model(CHATML), [{"role": "user", "content": content}], True)
    with pytest.raises(ArgumentError, match=r"`conversation` must be characters .* character 1 is U\+D800"):
        conversation(model(CHATML), [{"role": "user", "content": ["a\ud800"]}], True)
    halves = conversation(model(CHATML), "\ud83d" + "\udc4d", True)
    assert halves == conversation(model(CHATML), "\U0001f44d", True)
    with pytest.raises(ArgumentError, match=r"`conversation` must fit the model's .* no attribute 'content'"):
        conversation(model("{{ 'a' + messages[0]['content'] }}"), [{"role": "user", "content": None}], True)
    for name in ("reply", "parse_special_tokens"):
        with pytest.raises(ArgumentError, match=f"`{name}` must be True or False, but it is 'x'"):
            conversation(model(CHATML), "Hi", **{"reply": True, name: "x"})


def test_no_template_no_conversation(model):
    with pytest.raises(ArgumentError, match="`conversation` needs the chat template of a checkpoint"):
        conversation(model(None), "Hi", True)
    for spoken in ([], [{"content": "Hi"}], [1], 5, None, b"Hi", {"role": "user"}, [{"role": 5}], [{"role": None}]):
        with pytest.raises(ArgumentError, match="`conversation` must be a text or messages with a role"):
            conversation(model(CHATML), spoken, True)
    with pytest.raises(ArgumentError, match="`tokenizer` must come with the checkpoint"):
        conversation(dataclasses.replace(model(CHATML), tokenizer_or_why="none here"), "Hi", True)
