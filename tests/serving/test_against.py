from __future__ import annotations

import base64
import http.server
import json
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_helpers import DIMENSION, encoder_of
from sentence_transformers import SentenceTransformer
from serving_helpers import model_with_random_heads
from typer.testing import CliRunner

from st_asym import asymmetric_model
from st_asym.cli import app
from st_asym.export.export_side import TEXTS
from st_asym.serving import compare_with_server

Answer = tuple[int, Any]
Give = Callable[[str, list[str]], Any]
PROMPTS = {"query": "red ", "document": "big text "}
NAMES = ["clicks-query", "clicks-document"]
WORDS = ["red", "head", "small text", "a big document", "frozen encoder learns", "vector", "answers query"]
WORDS += ["red vector head", "query of the small red document", "learns answers", "text vector", "big red small " * 4]


@pytest.fixture(scope="module")
def model(tiny_bert: Path) -> SentenceTransformer:
    return model_with_random_heads(tiny_bert, prompts=PROMPTS)


@contextmanager
def server(answer: Callable[[str, Any], Answer], key: str | None = None) -> Iterator[str]:
    """A server whose ``answer`` to a path and a body, None of a GET, is a status and JSON; to those with its key."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, found = answer(self.path, json.loads(self.rfile.read(length)) if length else None)
            given = self.headers.get("Authorization")
            if key is not None and given != f"Bearer {key}":
                status, found = 401 if given is None else 403, {"error": f"Incorrect API key: {given}"}
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            if status in (301, 302, 307, 308):
                self.send_header("Location", found["Location"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()


def openai(give: Give, names: list[Any] | None = None) -> Callable[[str, Any], Answer]:
    """``/v1/embeddings`` that gives ``give(model name, texts)``, in an order of its own."""

    def answer(path: str, body: Any) -> Answer:
        if path == "/v1/models" and names is not None:
            return 200, {"data": [{"id": name} for name in names]}
        if path != "/v1/embeddings":
            return 404, {"detail": "Not Found"}
        vectors = np.asarray(give(body["model"], body["input"])).tolist()
        rows = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return 200, {"data": rows[::-1]}

    return answer


def found(model: SentenceTransformer, give: Give, *sides: Any) -> dict[str, list[str]]:
    with server(openai(give, NAMES)) as url:
        compared = compare_with_server(model, url, texts=WORDS, sides=sides or ("query", "document"))
    assert compared.right == (not any(side.mistakes for side in compared.sides.values()))
    return {side: list(what.mistakes) for side, what in compared.sides.items()}


def rightly(model: SentenceTransformer) -> Give:
    return lambda name, texts: (model.encode_query if name.endswith("query") else model.encode_document)(texts)


def encoded(model: SentenceTransformer, side: str, prompt: str, *, heads: bool = True) -> Give:
    """Vectors by the head of a side, or none, with a prompt."""
    used = model if heads else SentenceTransformer(modules=list(model.children())[:3], device="cpu")
    return lambda _, texts: used.encode([prompt + text for text in texts], prompt="", task=side)


def test_a_right_server(model: SentenceTransformer) -> None:
    with server(openai(rightly(model), NAMES)) as url:
        for address in (url, url + "/", url + "/v1", url + "/v1/embeddings"):
            compared = compare_with_server(model, address, texts=WORDS)
            assert compared.right
        lines = str(compared).splitlines()
        assert lines[0].endswith("gives the vectors of the model.")
        assert lines[1:] == [f"{side} (clicks-{side}): right, lowest cosine 1.000000" for side in PROMPTS]


def test_a_text_whose_vector_is_zero_is_no_mistake() -> None:
    words = dict(zip(WORDS[0::4], np.eye(DIMENSION, dtype=np.float32), strict=False))
    model = asymmetric_model(encoder_of({"red": np.ones(DIMENSION), **words}))
    texts = ["red", *words, "unknown to it"]
    assert not model.encode_query("unknown to it").any()
    with server(openai(rightly(model), NAMES)) as url:
        assert compare_with_server(model, url, texts=texts).right


def test_half_precision_is_right(model: SentenceTransformer) -> None:
    half = lambda name, texts: rightly(model)(name, texts).astype(np.float16)  # noqa: E731
    assert found(model, half) == {"query": [], "document": []}
    rounded = lambda name, texts: torch.tensor(rightly(model)(name, texts)).bfloat16().float()  # noqa: E731
    assert found(model, rounded) == {"query": [], "document": []}


def test_each_mistake_is_named(model: SentenceTransformer, tiny_bert: Path) -> None:
    own, others = PROMPTS["query"], PROMPTS["document"]
    stranger = model_with_random_heads(tiny_bert, seed=1, prompts=PROMPTS)
    with torch.no_grad():
        for parameter in stranger[0].parameters():
            parameter.copy_(torch.randn_like(parameter))
    right = encoded(model, "query", own)
    mistakes: list[tuple[Give, set[str]]] = [
        (right, set()),
        (encoded(model, "document", others), {"other head"}),
        (encoded(model, "document", ""), {"other head", "no prompt"}),
        (encoded(model, "query", own, heads=False), {"no head"}),
        (encoded(model, "query", "", heads=False), {"no head", "no prompt"}),
        (encoded(model, "query", ""), {"no prompt"}),
        (encoded(model, "query", others), {"other prompt"}),
        (encoded(model, "query", own + own), {"other prompt"}),
        (encoded(model, "query", own + "small "), {"other prompt"}),
        (encoded(stranger, "query", own), {"other encoder"}),
        (lambda name, texts: right(name, texts)[:, :8], {"other encoder"}),
        (lambda name, texts: right(name, texts) * 7, {"not normalised"}),
        (lambda name, texts: encoded(model, "document", others)(name, texts) * 7, {"other head", "not normalised"}),
        (lambda name, texts: right(name, [text[:35] for text in texts]), {"length of texts"}),
    ]
    for give, expected in mistakes:
        assert set(found(model, give, "query")["query"]) == expected


@pytest.mark.parametrize(("prompts", "kind"), [({}, "other weights"), (PROMPTS, "other prompt")])
def test_other_heads_are_not_called_a_mistake_that_they_are_not(
    tiny_bert: Path, prompts: dict[str, str], kind: str
) -> None:
    mine, last_weeks = (model_with_random_heads(tiny_bert, prompts=prompts) for _ in range(2))
    with torch.no_grad():
        for parameter in last_weeks[-2].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    with server(openai(encoded(last_weeks, "query", prompts.get("query", "")))) as url:
        compared = compare_with_server(mine, url, texts=WORDS, sides=("query",))
    assert [*compared.sides["query"].mistakes] == [kind]
    assert "the weights are of another training" in str(compared)
    assert "leaves out the head" not in str(compared)


def test_what_the_texts_are_too_short_to_show_is_said(model: SentenceTransformer) -> None:
    endless = encoder_of({"fox": np.ones(DIMENSION), "filter": np.eye(DIMENSION)[0]})
    for one, count in ((endless, 2), (model, 0)):
        with server(openai(rightly(one), NAMES)) as url:
            compared = compare_with_server(one, url)
        assert compared.right
        assert len(re.findall(r"texts of more than 5\d\d tokens, .* were not compared", str(compared))) == count


def test_one_wrong_vector_among_right_ones_is_named(model: SentenceTransformer) -> None:
    def third_again(name: str, texts: list[str]) -> Any:
        return rightly(model)(name, [*texts[:4], texts[2], *texts[5:]])

    with server(openai(third_again, NAMES)) as url:
        compared = compare_with_server(model, url, texts=WORDS)
    for found in compared.sides.values():
        ((name, text),) = found.mistakes.items()
        assert name == "some texts"
        assert text.startswith("1 of 12 texts have other vectors") and f"the first is {WORDS[4]!r}" in text


def test_what_to_do_is_said(model: SentenceTransformer) -> None:
    with server(openai(encoded(model, "document", PROMPTS["document"]), ["only"])) as url:
        compared = compare_with_server(model, url, texts=WORDS)
    assert (compared.sides["document"].mistakes, compared.sides["document"].model) == ({}, "only")
    assert "does not give the vectors" in str(compared).splitlines()[0]
    assert "query (only): other head. These are document vectors: query texts must go to the model" in str(compared)


def test_a_side_without_a_head_and_the_head_that_is_left_out(tiny_encoder: SentenceTransformer) -> None:
    import st_asym

    model = st_asym.asymmetric_model(tiny_encoder, document=False)
    with torch.no_grad():
        for parameter in model[-2].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    assert found(model, lambda _, texts: model.encode_document(texts)) == {"query": ["no head"], "document": []}


def test_a_server_that_normalises_what_the_model_does_not(make_encoder: Callable[..., SentenceTransformer]) -> None:
    model = make_encoder("pooling")
    with server(openai(lambda _, texts: model.encode(texts, normalize_embeddings=True), ["only"])) as url:
        compared = compare_with_server(model, url, texts=WORDS, sides=["query"])
    ((name, text),) = compared.sides["query"].mistakes.items()
    assert name == "normalised"
    assert "turn it off in the server" in text and "Let the server normalise" not in text


def test_embed_of_text_embeddings_inference(model: SentenceTransformer) -> None:
    asked: list[Any] = []

    def answer(path: str, body: Any) -> Answer:
        asked.append((path, body))
        return (200, model.encode_query(body["inputs"]).tolist()) if path == "/embed" else (404, b"")

    with server(answer) as url:
        for address in (url, url + "/embed"):
            compared = compare_with_server(model, address, texts=WORDS, sides=["query"])
            assert compared.right, str(compared)
    assert asked[-1] == ("/embed", {"inputs": WORDS, "truncate": True})


def test_base64_is_read_where_a_server_sends_nothing_else(model: SentenceTransformer) -> None:
    give = rightly(model)
    in_base64 = lambda name, texts: [base64.b64encode(row).decode() for row in give(name, texts)]  # noqa: E731
    assert found(model, in_base64) == {"query": [], "document": []}


def test_a_redirect_is_named(model: SentenceTransformer) -> None:
    def moved(status: int, path: str) -> Answer:
        return (status, {"Location": f"/new{path}"}) if path == "/v1/embeddings" else (404, b"")

    for status in (301, 302, 307, 308):
        with (
            server(lambda path, _, status=status: moved(status, path)) as url,
            pytest.raises(ValueError, match=f"{url}/v1/embeddings redirects to /new/v1/embeddings: give the address"),
        ):
            compare_with_server(model, url, texts=WORDS)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_what_is_no_whole_answer_is_one_line(model: SentenceTransformer, answer: bytes) -> None:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1 << 16)
            self.request.sendall(answer)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match="/v1/embeddings gives no whole answer in HTTP"):
            compare_with_server(model, f"http://127.0.0.1:{listening.server_address[1]}", texts=WORDS)
        listening.shutdown()
    with pytest.raises(ValueError, match="nonnumeric port: 'abc'"):
        compare_with_server(model, "http://127.0.0.1:abc", texts=WORDS)


def test_a_server_that_refuses_long_texts(model: SentenceTransformer) -> None:
    def answer(path: str, body: Any) -> Answer:
        if body and max(map(len, body["input"])) > 1000:
            return 400, {"error": {"message": "maximum context length is 32 tokens"}}
        return openai(rightly(model), NAMES)(path, body)

    with server(answer) as url:
        compared = compare_with_server(model, url, sides=["query"])
    ((name, text),) = compared.sides["query"].mistakes.items()
    assert name == "length of texts"
    assert "2700 characters is refused" in text and "maximum context length" in text


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (lambda *_: (404, b""), ValueError, "/embed answers 404"),
        (lambda *_: (500, {"error": "no"}), ValueError, 'answers 500: {"error": "no"}'),
        (lambda *_: (200, b"<html>"), ValueError, "does not answer with JSON"),
        (lambda *_: (200, {"data": [{"index": 0}]}), ValueError, "no data with an index and an embedding"),
        (
            lambda *_: (200, {"data": [{"index": 0, "embedding": [1.0]}]}),
            ValueError,
            "should answer with 12 finite",
        ),
        (
            lambda *_: (200, {"data": [{"index": i, "embedding": [float("nan")]} for i in range(12)]}),
            ValueError,
            "not finite",
        ),
        (openai(lambda *_: [[1.0]], ["a", "b"]), ValueError, "the models a, b: say with --query-model"),
        (openai(lambda *_: [[1.0]], [1, 2]), ValueError, "the models 1, 2: say with --query-model"),
    ],
)
def test_a_server_that_is_none(model: SentenceTransformer, answer: Any, error: type[Exception], message: str) -> None:
    with server(answer) as url, pytest.raises(error, match=re.escape(message)):
        compare_with_server(model, url, texts=WORDS)


def test_no_server(model: SentenceTransformer) -> None:
    with pytest.raises(OSError, match="Is the server running"):
        compare_with_server(model, "http://127.0.0.1:9", texts=WORDS)
    with pytest.raises(ValueError, match="is no address"):
        compare_with_server(model, "localhost:8000", texts=WORDS)
    with pytest.raises(ValueError, match="sides must name"):
        compare_with_server(model, "http://127.0.0.1:9", sides=["left"])  # type: ignore[list-item]


def test_the_key_of_a_server(model: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clicks"
    model.save_pretrained(str(path))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["verify", str(path), "--against", url, *arguments])

    monkeypatch.delenv("ST_ASYM_API_KEY", raising=False)
    with server(openai(rightly(model), NAMES), key="sk-right") as url:
        missing = run()
        assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
        assert "answers 401" in missing.stderr and "wants an API key" in missing.stderr
        wrong = run("--api-key", "sk-wrong")
        assert (wrong.exit_code, "sk-wrong" in wrong.output) == (2, False)
        assert "answers 403" in wrong.stderr and "does not take this API key" in wrong.stderr
        right = run("--api-key", "sk-right")
        assert (right.exit_code, "sk-right" in right.output) == (0, False), right.output
        monkeypatch.setenv("ST_ASYM_API_KEY", "sk-right")
        assert run().exit_code == 0
        broken = run("--api-key", "sk-\nright")
        assert (broken.exit_code, "right" in broken.output) == (2, False)
        assert "line break" in broken.stderr


def test_the_command(model: SentenceTransformer, tmp_path: Path) -> None:
    path = tmp_path / "clicks"
    model.save_pretrained(str(path))

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["verify", str(path), *arguments])

    with server(openai(rightly(model), None)) as url:  # lists no models: NAME-query and NAME-document
        assert run("--against", url).exit_code == 0
        swapped = run("--against", url, "--query-model", "document", "--document-model", "query")
        assert (swapped.exit_code, swapped.stdout.count("other head")) == (1, 2)
        assert run("--against", url, "--document-model", "query", "--side", "query").exit_code == 0
    missing = run("--against", url)
    assert (missing.exit_code, missing.stderr.count("\n")) == (2, 1)
    assert "add --against" in run("--side", "query").stderr
    assert len(TEXTS) == 12
