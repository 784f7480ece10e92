from __future__ import annotations

import asyncio
import base64
import copy
import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

pytest.importorskip("orjson")
pytest.importorskip("starlette")

from endpoint import bad_requests
from serving_helpers import model_with_random_heads
from starlette.testclient import TestClient

from st_asym.serving import app

TEXTS = ["red head", "a small text and a big document of the frozen encoder", "vector", "answers query " * 20]


@pytest.fixture(scope="module")
def model(tiny_bert: Path) -> SentenceTransformer:
    return model_with_random_heads(tiny_bert, prompts={"query": "red ", "document": "text "})


@pytest.fixture
def client(model: SentenceTransformer) -> Iterator[TestClient]:
    served = app(model, name="clicks", max_batch=4, max_texts=50, max_bytes=20_000)
    with TestClient(served, raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient, **body: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "clicks-query", "input": "red", **body})


def vectors(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return np.array([row["embedding"] for row in data], dtype=np.float32)


def error(answer: Any) -> dict[str, Any]:
    found = answer.json()
    assert list(found) == ["error"]
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in found["error"]["message"]
    return dict(found["error"])


def test_each_name_gives_its_side(client: TestClient, model: SentenceTransformer) -> None:
    for side, encode in (("query", model.encode_query), ("document", model.encode_document)):
        answer = ask(client, model=f"clicks-{side}", input=TEXTS)
        np.testing.assert_allclose(vectors(answer), encode(TEXTS), rtol=0, atol=1e-6)
        assert answer.json()["model"] == f"clicks-{side}"
        assert answer.json()["object"] == "list"
    assert np.abs(model.encode_query(TEXTS) - model.encode_document(TEXTS)).max() > 0.1


def test_tokens_are_those_that_the_encoder_reads(client: TestClient) -> None:
    usage = ask(client, input=["head", "small text", "text " * 100]).json()["usage"]
    prompt, special = 1, 2
    tokens = (1 + prompt + special) + (2 + prompt + special) + 32  # the last is cut off
    assert usage == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_is_little_endian_float32(client: TestClient, model: SentenceTransformer) -> None:
    row = ask(client, encoding_format="base64").json()["data"][0]["embedding"]
    found = np.frombuffer(base64.b64decode(row), dtype="<f4")
    np.testing.assert_allclose(found, model.encode_query("red"), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found, vectors(ask(client))[0])


def test_dimensions_are_cut_off_and_normalised_again(client: TestClient, model: SentenceTransformer) -> None:
    cut = model.encode_query(TEXTS)[:, :5]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(ask(client, input=TEXTS, dimensions=5)), expected, rtol=0, atol=1e-6)
    assert vectors(ask(client, dimensions=16)).shape == (1, 16)


@pytest.mark.parametrize(
    ("input_type", "side"),
    [("query", "query"), ("search_query", "query")]
    + [(name, "document") for name in ("document", "search_document", "passage")],
)
def test_input_type_says_the_side(client: TestClient, input_type: str, side: str) -> None:
    expected = vectors(ask(client, model=f"clicks-{side}"))
    np.testing.assert_array_equal(vectors(ask(client, model="clicks", input_type=input_type)), expected)
    assert ask(client, model="clicks", input_type=input_type).json()["model"] == "clicks"


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"model": "clicks"}, 400, "model", "clicks-query and clicks-document"),
        ({"model": None}, 400, "model", "model is missing"),
        ({"model": "gpt"}, 404, "model", "There is no model 'gpt' here: clicks-query and clicks-document are served."),
        ({"model": 7}, 400, "model", "There is no model 7"),
        ({"model": "clicks-query", "input_type": "document"}, 400, "input_type", "leave one of them out"),
        ({"input_type": "classification"}, 400, "input_type", "must be one of query, search_query"),
        ({"input": [1, 2, 3]}, 400, "input", "not tokens"),
        ({"input": [[1, 2], [3]]}, 400, "input", "check_embedding_ctx_length=False"),
        ({"input": ""}, 400, "input", "input[0] is empty"),
        ({"input": []}, 400, "input", "at least one text"),
        ({"input": ["red", None]}, 400, "input", "input[1] is None"),
        ({"input": {"text": "red"}}, 400, "input", "a text or a list"),
        ({"input": ["red"] * 51}, 400, "input", "51 texts, and a request may have 50"),
        ({"input": "red " * 6_000}, 413, None, "larger than 20000 bytes"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "must be 'float' or 'base64', not 'int8'"),
        ({"dimensions": 17}, 400, "dimensions", "from 1 to 16, not 17"),
        ({"dimensions": True}, 400, "dimensions", "from 1 to 16, not True"),
        ({"prompt_name": "query"}, 400, "prompt_name", "Unrecognized request argument"),
    ],
)
def test_what_is_refused(
    client: TestClient, body: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    answer = ask(client, **body)
    found = error(answer)
    assert (answer.status_code, found["param"], found["type"]) == (status, param, "invalid_request_error")
    assert message in found["message"]


def test_what_is_not_there(client: TestClient) -> None:
    for answer, status in ((client.get("/v1/embeddings"), 405), (client.post("/v1/chat/completions"), 404)):
        assert answer.status_code == status
        assert "POST /v1/embeddings" in error(answer)["message"]


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["clicks-query", "clicks-document"]
    assert all(0 <= time.time() - model["created"] < 3600 and model["object"] == "model" for model in models)


def test_requests_that_arrive_together_share_a_batch_and_not_their_vectors(
    client: TestClient, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    go_on = threading.Event()
    encode = model.encode_query

    def slow(texts: list[str], **options: Any) -> Any:
        go_on.wait(0.05)
        sizes.append(len(texts))
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode_query", slow)
    words = ["red", "head", "small text", "big document", "vector", "frozen encoder learns " * 9]
    asked = [list(texts) for texts in itertools.permutations(words, 2)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda texts: vectors(ask(client, input=texts)), asked))
    for texts, found in zip(asked, answers, strict=True):
        np.testing.assert_allclose(found, encode(texts), rtol=0, atol=1e-6)
    assert len(sizes) < len(asked)
    assert max(sizes) == 4  # max_batch


def test_a_small_request_does_not_wait_for_all_of_a_large_one(
    client: TestClient, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[list[str]] = []
    started, go_on = threading.Event(), threading.Event()
    encode = model.encode_query

    def watched(texts: list[str], **options: Any) -> Any:
        started.set()
        go_on.wait(10)
        order.append(texts)
        return encode(texts, **options)

    monkeypatch.setattr(model, "encode_query", watched)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(ask, client, input=["document"] * 40)
        started.wait(10)
        small = pool.submit(ask, client, input="red")
        threading.Timer(0.3, go_on.set).start()
        assert vectors(small.result()).shape == (1, 16)
        assert vectors(large.result()).shape == (40, 16)
    assert any("red" in texts for texts in order[:3])


def test_what_waits_when_its_client_has_gone_is_not_encoded(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    started, go_on = threading.Event(), threading.Event()
    encode = model.encode_query

    def watched(texts: list[str], **options: Any) -> Any:
        started.set()
        go_on.wait(1)
        encoded.extend(texts)
        return encode(texts, **options)

    served = app(model, name="clicks", max_batch=4)
    monkeypatch.setattr(model, "encode_query", watched)
    body = json.dumps({"model": "clicks-query", "input": ["document"] * 40}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}

    async def closed_while_it_is_encoded() -> None:
        messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.to_thread(started.wait, 10)
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            pass

        await served(scope, receive, send)
        go_on.set()
        await asyncio.sleep(0.5)  # the server goes on

    asyncio.run(closed_while_it_is_encoded())
    assert vectors(ask(TestClient(served), input="red")).shape == (1, 16)
    assert encoded == ["document"] * 4 + ["red"]


def test_documents_do_not_wait_for_all_queries(
    client: TestClient, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    started, go_on = threading.Event(), threading.Event()

    def watched(side: str, encode: Any) -> Any:
        def encoded(texts: list[str], **options: Any) -> Any:
            started.set()
            go_on.wait(10)
            order.append(side)
            return encode(texts, **options)

        return encoded

    monkeypatch.setattr(model, "encode_query", watched("query", model.encode_query))
    monkeypatch.setattr(model, "encode_document", watched("document", model.encode_document))
    with ThreadPoolExecutor(9) as pool:
        queries = [pool.submit(ask, client, input=["red"] * 4)]
        started.wait(10)
        queries += [pool.submit(ask, client, input=["red"] * 4) for _ in range(7)]
        threading.Event().wait(0.3)  # they arrive
        document = pool.submit(ask, client, model="clicks-document")
        threading.Timer(0.3, go_on.set).start()
        assert vectors(document.result()).shape == (1, 16)
        assert all(vectors(query.result()).shape == (4, 16) for query in queries)
    assert order.index("document") <= 2
    assert len(order) == 9


def test_what_one_request_breaks_the_others_get_all_the_same(
    client: TestClient, model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = model.encode_query

    def broken(texts: list[str], **options: Any) -> Any:
        threading.Event().wait(0.05)
        if "big" in texts:
            raise RuntimeError("a secret of the server")
        return encode(texts, **options) * (float("nan") if "head" in texts else 1)

    monkeypatch.setattr(model, "encode_query", broken)
    asked = ["red", "big", "small", "head"] * 4
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: ask(client, input=text), asked))
    for text, answer in zip(asked, answers, strict=True):
        if text in ("big", "head"):
            assert answer.status_code == 500
            assert error(answer)["type"] == "server_error"
            assert "secret" not in answer.text
        else:
            np.testing.assert_allclose(vectors(answer)[0], encode(text), rtol=0, atol=1e-6)


def test_no_bad_request_ends_it(client: TestClient, model: SentenceTransformer) -> None:
    requests = bad_requests(random.Random(0), "clicks")  # noqa: S311 - the same each time
    for method, path, body in itertools.islice(requests, 150):
        answer = client.request(method, path, content=body)
        assert 400 <= answer.status_code < 500, (method, path, body[:200], answer.text[:200])
        assert method == "HEAD" or error(answer)["message"]
    np.testing.assert_allclose(vectors(ask(client, input=TEXTS)), model.encode_query(TEXTS), rtol=0, atol=1e-6)


def test_a_model_that_cannot_be_served_is_refused(model: SentenceTransformer) -> None:
    for name in ("", " "):
        with pytest.raises(ValueError, match=f"name is '{name}': say what clients call the model"):
            app(model, name=name)
    with pytest.raises(ValueError, match="max_batch must be a whole number of at least 1, got 0"):
        app(model, max_batch=0)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken[-2].parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        app(broken)
