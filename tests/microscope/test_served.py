"""What a server attended to, read from one that answers as vLLM does."""

import json
import math
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.browser import browser, open_page  # noqa: F401

from limelight import ArgumentError, cli
from limelight.microscope.served import look_at_server

TOKENS = ["The", " bank", " \x1b[31m", " river"]
TOKENS_BY_PLACE: dict = {}  # in the place of those
ANSWERS: dict = {}  # in the place of the right ones
KEYS: dict = {}  # the Authorization with which each path was read last
LAYER = {
    "first": 0, "end": 3,
    "entropy": [[0.0, 0.5, 1.0], [0.0, 0.3, 0.8]],
    "top_keys": [[[0, -1], [1, 0], [0, 1]], [[0, -1], [0, 1], [2, 1]]],
    "top_weights": [[[1.0, 0.0], [0.9, 0.1], [0.6, 0.4]], [[1.0, 0.0], [0.5, 0.5], [0.3, 0.2]]],
}  # fmt: skip
RECORD = {"request": "cmpl-1-0", "finished": True, "prompt": [5, 6, 7], "tokens": [8], "notes": ["Some are missing."],
          "layers": {"model.layers.4.attn": LAYER}}  # fmt: skip


class Server(BaseHTTPRequestHandler):
    asked: dict = {}  # noqa: RUF012

    def answer(self, data, status=200):
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        KEYS[self.path] = self.headers["Authorization"]
        if self.path == "/v1/models":
            self.answer(ANSWERS.get("models", {"data": [{"id": "small"}]}))
        elif self.path.startswith("/elsewhere/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/elsewhere"))
            self.end_headers()
        elif self.path == "/v1/limelight/requests/cmpl-1":
            self.answer(RECORD)
        else:
            self.answer({"detail": "no such thing"}, 404)

    def do_POST(self):
        Server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = "cmpl-1" if Server.asked["prompt"] == "The bank" else "cmpl-2"
        tokens = [TOKENS_BY_PLACE.get(place, token) for place, token in enumerate(TOKENS)]
        answer = {"id": name, "choices": [{"logprobs": {"tokens": tokens}}]}
        self.answer(ANSWERS.get("completions", answer), ANSWERS.get("status", 200))

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_rows(address):
    served = look_at_server(address, "The bank", generate=1, layers="4")
    assert Server.asked["vllm_xargs"] == {"limelight_observe": "entropy,top=4; layers=4"}
    assert (Server.asked["max_tokens"], Server.asked["echo"], Server.asked["model"]) == (1, True, "small")
    assert (served.model, served.given, served.notes) == ("small", 3, ("Some are missing.",))
    assert [row["token"] for row in served.rows] == TOKENS[:3]
    first, second, third = served.rows
    assert (first["entropy"], first["other"]) == (0.0, None)
    assert (second["entropy"], second["entropy_uniform"]) == (0.4, math.log(2))
    assert second["other"] is None  # it looked at itself and at the first token alone
    assert (third["other"], third["weight"], third["layer"], third["head"]) == (" bank", 0.4, 4, 0)


def test_an_answer_without_observations(address):
    with pytest.raises(ArgumentError, match=r"answers 404 at .*cmpl-2: .*no such thing.*LIMELIGHT_OBSERVE=requests"):
        look_at_server(address, "another")


@pytest.mark.parametrize(
    ("place", "answer"),
    [
        ("models", [1, 2]),
        ("models", {"data": []}),
        ("models", {"data": [{"id": None}]}),
        ("completions", "a text"),
        ("completions", {"id": "cmpl-1", "choices": [{"logprobs": None}]}),
        ("completions", {"id": "cmpl-1", "choices": [{"logprobs": {"tokens": [1, 2, 3, 4]}}]}),
        ("notes", None),
        ("notes", [5]),
        ("layers", {"0": LAYER | {"entropy": [[0.0, 0.1], [0.0]]}}),
        ("layers", {"0": LAYER | {"entropy": [["a", "b", "c"], ["a", "b", "c"]]}}),
        ("layers", {"0": LAYER | {"top_keys": [[[10**30] * 2] * 3] * 2}}),
        ("layers", {"0": LAYER | {"top_keys": [[0] * 3] * 2}}),
        ("layers", {"0": LAYER | {"first": "0"}}),
        ("layers", {"0": LAYER | {"first": -3, "end": 10**12}}),
        ("layers", {"0": {"entropy": LAYER["entropy"], "first": 0, "end": 3}}),
    ],
)
def test_answers_of_another_form(address, monkeypatch, place, answer):
    monkeypatch.setitem(ANSWERS if place in ("models", "completions") else RECORD, place, answer)
    with pytest.raises(ArgumentError, match=r"`server` must be a vLLM server .* answers in another form"):
        look_at_server(address, "The bank")


def test_what_the_server_says_of_the_request(address, monkeypatch):
    monkeypatch.setitem(ANSWERS, "completions", {"error": {"message": "too many tokens"}})
    for status, message in (
        (400, "must be a server that takes the request, .* too many tokens. Change the text"),
        (401, "too many tokens. Set OPENAI_API_KEY"),
        (500, "too many tokens. Start vLLM"),
    ):
        monkeypatch.setitem(ANSWERS, "status", status)
        with pytest.raises(ArgumentError, match=message):
            look_at_server(address, "The bank")


def test_a_key_is_not_sent_where_a_server_redirects_to(address, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    look_at_server(f"{address}/elsewhere/v1/", "The bank")  # `/v1` belongs to the address in OpenAI's clients
    assert (KEYS["/elsewhere/v1/models"], KEYS["/v1/models"]) == ("Bearer secret", None)


def test_numbers_that_json_does_not_have(address, monkeypatch, capsys):
    monkeypatch.setitem(RECORD, "layers", {"0": LAYER | {"entropy": [[None] * 3] * 2}})
    code, out, _ = run(monkeypatch, capsys, "The bank", "--server", address, "--json")
    assert (code, [row["entropy"] for row in json.loads(out)["rows"]]) == (0, [None] * 3)


def test_nothing_observed(address, monkeypatch, capsys):
    monkeypatch.setitem(RECORD, "layers", {})
    code, out, _ = run(monkeypatch, capsys, "The bank", "--server", address)
    assert code == 0
    assert "No token was observed." in out


@pytest.mark.parametrize("server", ["127.0.0.1:8000", "file:///etc/passwd", "http://", 8000])
def test_what_is_no_address(server):
    with pytest.raises(ArgumentError, match="`server` must be an address"):
        look_at_server(server, "The bank")


def test_a_server_that_is_not_there():
    with pytest.raises(ArgumentError, match=r"http://127\.0\.0\.1:9/v1/models cannot be read"):
        look_at_server("http://127.0.0.1:9", "The bank")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["limelight", "look", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (ended.value.code or 0, *capsys.readouterr())


def test_the_command(address, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "The bank", "--server", address)
    assert code == 0
    assert "small: as it was served" in out
    assert "Some are missing." in out
    assert next(line.split() for line in out.splitlines() if "4.0" in line)[-3:] == ["bank", "0.40", "4.0"]
    assert "\x1b[31m" not in out  # a token of a text does not steer the terminal
    code, out, _ = run(monkeypatch, capsys, "The bank", "--server", address, "--json")
    assert json.loads(out)["rows"][2]["other"] == " bank"


@pytest.mark.parametrize(("width", "theme"), [(1400, "dark"), (400, "light")])
def test_the_page(address, monkeypatch, capsys, tmp_path, open_page, width, theme):  # noqa: F811
    hostile = "<img src=x onerror=alert(1)> & \x1b[31m"
    monkeypatch.setitem(RECORD, "notes", [hostile])
    monkeypatch.setitem(TOKENS_BY_PLACE, 1, hostile)
    code, _, error = run(monkeypatch, capsys, "The bank", "--server", address, "--output", str(tmp_path / "page.html"))
    assert code == 0
    assert "page.html" in error
    page = open_page(tmp_path / "page.html", width=width, theme=theme, ready="table.served")
    rows = page.locator("tbody tr")
    assert rows.count() == 3
    assert "<img src=x onerror=alert(1)>" in rows.nth(1).inner_text()
    assert rows.nth(2).locator("td").all_inner_texts()[3:] == ["0.40", "4.0"]
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    code, _, error = run(monkeypatch, capsys, "The bank", "--server", address, "--output", str(tmp_path / "page.txt"))
    assert code != 0
    assert "must end in .html" in error


def test_options_of_a_model_that_runs_here(address, monkeypatch, capsys):
    others = ("--model minilm", "--temperature 0", "--top-p 0.5", "--seed 0", "--lens", "--special", "--atlas a.json")
    for other in others:
        code, _, error = run(monkeypatch, capsys, "The bank", "--server", address, *other.split())
        assert code != 0
        assert f"`{other.split()[0]}` belongs to a model that is run here" in " ".join(error.split())
