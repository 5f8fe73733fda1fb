"""What stands beside a tokenizer: templates by their names, special tokens by theirs, as transformers collects them."""

import json

import pytest
import tokenizers
import transformers
from support.peers import made
from tokenizers import models, pre_tokenizers

from limelight.checkpoints.load import load
from limelight.formats.errors import CheckpointError
from limelight.formats.tokenizer_files import tokenizer_in

TOKENS = ["<s>", "</s>", "<pad>", "<unk>", "<image>", "<a>", "<b>"]


@pytest.fixture
def folder(tmp_path):
    backend = tokenizers.Tokenizer(
        models.BPE({c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(TOKENS)
    backend.save(str(tmp_path / "tokenizer.json"))

    def write(**files):
        for name, values in files.items():
            path = tmp_path / {"jinja": "chat_template.jinja"}.get(name, f"{name}.json")
            path.write_text(values if isinstance(values, str) else json.dumps(values), "utf-8")
        return tmp_path

    return write


def token(content, **more):
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": False, "rstrip": False, **more}


SETTINGS = [
    {},
    {"bos_token": "<s>", "eos_token": "</s>"},
    {"bos_token": token("<s>"), "eos_token": None, "pad_token": token("<pad>", lstrip=True)},
    {"unk_token": "<unk>", "sep_token": "</s>", "cls_token": "<s>", "mask_token": "<a>", "add_bos_token": True},
    {"image_token": "<image>", "eos_token": "</s>", "extra_special_tokens": ["<a>", "<b>"]},
    {"eos_token": "</s>", "additional_special_tokens": ["<a>", token("<b>")]},
    {"eos_token": "</s>", "extra_special_tokens": {"image_token": "<image>", "boi": "<a>"}},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("decoder", [False, True])
def test_special_tokens_are_those_of_transformers(folder, settings, decoder):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    if decoder:
        settings["added_tokens_decoder"] = {}
    where = folder(
        tokenizer_config=settings,
        special_tokens_map={"pad_token": "<pad>", "bos_token": {"content": "<b>", "lstrip": False}},
    )
    other = transformers.AutoTokenizer.from_pretrained(where)
    assert tokenizer_in(where).special_tokens == other.special_tokens_map


def test_without_settings_nothing_is_set(folder):
    assert tokenizer_in(folder()).special_tokens is None


NAMED = [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]


@pytest.mark.parametrize(
    ("configured", "jinja", "more"),
    [
        (None, None, {}),
        ("T", None, {}),
        ("T", "J", {}),
        (NAMED, None, {}),
        (NAMED[::-1], None, {}),
        (NAMED[1:], None, {}),
        (NAMED, "J", {}),
        (None, "J", {"rag": "R2", "tool_use": "U"}),
        (NAMED, None, {"rag": "R2"}),
    ],
)
def test_templates_are_those_of_transformers(folder, configured, jinja, more):
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({} if configured is None else {"chat_template": configured}),
    }
    where = folder(tokenizer_config=settings, **({} if jinja is None else {"jinja": jinja}))
    for name, template in more.items():
        (where / "additional_chat_templates").mkdir(exist_ok=True)
        (where / "additional_chat_templates" / f"{name}.jinja").write_text(template)
    other = transformers.AutoTokenizer.from_pretrained(where).chat_template
    ours = tokenizer_in(where)
    assert ours.chat_templates == (other if isinstance(other, dict) else {"default": other} if other else {})
    assert ours.chat_template == (other.get("default") if isinstance(other, dict) else other)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": "[" * 100_000}, "tokenizer_config.json is damaged .* it is no JSON"),
        ({"tokenizer_config": "[]"}, "tokenizer_config.json is damaged .* no JSON object"),
        ({"tokenizer_config": {"chat_template": 5}}, "its chat_template is neither a text nor a list"),
        ({"tokenizer_config": {"chat_template": ["a"]}}, "its chat_template is neither a text nor a list"),
        ({"tokenizer_config": {"chat_template": [{"name": 5, "template": "a"}]}}, "its chat_template is neither"),
        ({"tokenizer_config": {}, "special_tokens_map": "{"}, "special_tokens_map.json is damaged .* no JSON"),
        ({"jinja": "a" * 3_000_000}, "chat_template.jinja is damaged .* 3,000,000 bytes, more than 2,097,152"),
    ],
)
def test_damaged_settings(folder, files, message):
    with pytest.raises(CheckpointError, match=message):
        tokenizer_in(folder(**files))


def test_files_that_are_no_utf_8(folder):
    where = folder(tokenizer_config={})
    (where / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(CheckpointError, match=r"chat_template.jinja is damaged .* it is no UTF-8 \(byte 3 is 0xe9\)"):
        tokenizer_in(where)
    (where / "chat_template.jinja").unlink()
    (where / "tokenizer_config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config.json is damaged .* it is no UTF-8"):
        tokenizer_in(where)


def test_templates_are_saved(tmp_path):
    theirs = made("llama")
    source = tmp_path / "source"
    theirs.save_pretrained(source)
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (source / "chat_template.jinja").write_text("{{ eos_token }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("R")
    again = load(load(source).save(tmp_path / "again"))
    assert again.tokenizer.chat_templates == {"default": "{{ eos_token }}", "rag": "R"}
    assert again.tokenizer.special_tokens == {"eos_token": "</s>"}
    assert again.conversation("Hi").texts[0].text == "</s>"
