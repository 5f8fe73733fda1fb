"""Translation: a Marian model learns a substitution of letters, loads in transformers, and resumes bit for bit."""

import pytest
import torch

import limelight
from limelight.training import read_settings
from limelight.training.loop import train
from limelight.training.translation import bleu, translate

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = """
task = "translation"
[data]
train = "pairs.tsv"
held_out = 0.1
[tokenizer]
kind = "byte-pair"
vocab_size = 276
[model]
model_type = "marian"
d_model = 48
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 32
decoder_ffn_dim = 32
activation_function = "relu"
scale_embedding = true
dropout = 0.1
[learning]
rate = 5e-3
schedule = "inverse-square-root"
warmup = 40
label_smoothing = 0.1
weight_decay = 0.0
[run]
steps = 300
batch_tokens = 256
max_length = 16
evaluate_every = 150
save_every = 150
bleu_samples = 20
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    torch.manual_seed(0)
    code = dict(zip("abcdefgh", "stuvwxyz", strict=True))
    texts = [["abcdefgh"[n] for n in torch.randint(8, (int(torch.randint(4, 8, ())),))] for _ in range(300)]
    pairs = ((" ".join(text), " ".join(map(code.get, text))) for text in texts)
    (folder / "pairs.tsv").write_text("".join("\t".join(pair) + "\n" for pair in pairs))
    (folder / "small.toml").write_text(CONFIG)
    return folder / "small.toml"


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    return train(read_settings(config), tmp_path_factory.mktemp("translation") / "run")


def test_it_learns_to_translate(done):
    assert done.bleu > 80
    model = limelight.load(done.output)
    assert model.config.residual.make is limelight.nn.PostNorm
    assert model.config.one_table
    assert translate(model, ["a b c d", "h g f e d c", "a a a a"], max_tokens=20) == [
        "s t u v",
        "z y x w v u",
        "s s s s",
    ]
    assert translate(model, ["a b c d e f"], max_tokens=2) == ["s t"]


def test_transformers_gives_the_same_translation(done):
    transformers = pytest.importorskip("transformers")
    ours = limelight.load(done.output)
    theirs = transformers.MarianMTModel.from_pretrained(done.output).eval()
    ids = ours.read("a b c d e").ids
    with torch.no_grad():
        expected = theirs(input_ids=ids, decoder_input_ids=torch.tensor([[1, 265, 266]])).logits
        torch.testing.assert_close(
            ours(ids, target=torch.tensor([[1, 265, 266]])).logits, expected, rtol=1e-4, atol=1e-4
        )
    written = theirs.generate(ids, num_beams=1, do_sample=False, max_new_tokens=20)
    assert ours.tokenizer.write(written[0]) == translate(ours, ["a b c d e"], max_tokens=20)[0]


def test_a_resumed_run_has_the_same_losses(config, done, tmp_path):
    changes = ["run.evaluate_every=20", "run.bleu_samples=0"]
    train(read_settings(config, [*changes, "run.steps=7"]), tmp_path / "run")
    train(read_settings(config, [*changes, "run.steps=12"]), tmp_path / "run", resume=True)
    ours, whole = ((run / "losses.csv").read_text().splitlines()[1:13] for run in (tmp_path / "run", done.output))
    assert [row.split(",")[:2] for row in ours] == [row.split(",")[:2] for row in whole]


def test_bleu():
    assert bleu(["the bank is near the river"], ["the bank is near the river"]) == pytest.approx(100)
    assert bleu(["a b c d e"], ["f g h i j"]) < 10
