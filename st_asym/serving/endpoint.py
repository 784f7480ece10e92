"""One endpoint for both sides of a model: requests in OpenAI's form, those that arrive together encoded together."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import normalize_embeddings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from torch import Tensor

from st_asym.export.export_side import side_vectors
from st_asym.export.onnx import Array
from st_asym.heads.anatomy import Side, public_name, side_prompt
from st_asym.heads.model import load_encoder

_FIELDS = ("dimensions", "encoding_format", "input", "input_type", "model", "user")
_INPUT_TYPES: dict[str, Side] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
}


def app(
    model: SentenceTransformer | str | PathLike[str],
    *,
    name: str | None = None,
    max_batch: int = 32,
    max_texts: int = 2048,
    max_bytes: int = 8 << 20,
) -> Starlette:
    """An ASGI app that speaks OpenAI's ``/v1/embeddings``, with a model name for each side.

    ``NAME-query`` gives what ``encode_query`` gives and ``NAME-document`` what ``encode_document`` gives, since clients
    send the same body for both. ``NAME`` alone is refused, unless ``input_type`` says ``query`` or ``document`` (also
    ``search_query`` and ``search_document``, as Cohere has it, and ``passage``, as NVIDIA has it). Fields that it does
    not know are refused, as they may be meant to change the vectors. Texts are cut off where the model cuts them off.

    Requests that arrive together are encoded together, in one thread, queries and documents in turn. In float32 a
    vector stays within 1e-6 of what ``encode_query`` or ``encode_document`` gives, whatever it was encoded with; in
    half precision padding changes its last digits, as in any batch. What still waits when its client has gone is not
    encoded.

    Errors are in OpenAI's form. ``GET /health`` answers once the model is there, and ``GET /v1/models`` names both
    models. Keys, TLS and limits by client are for a proxy in front of it.

    Args:
        model: A model with or without heads, or the Hub id or path of one.
        name: What clients call it; that of its folder or on the Hub if None, ``"model"`` for one in memory.
        max_batch: How many texts are encoded in one call.
        max_texts: How many texts a request may have; more are answered with status 400.
        max_bytes: How large its body may be; more is answered with status 413.

    Returns:
        The app, for ``uvicorn.run`` or any ASGI server, with one worker for one model in memory.

    Raises:
        ValueError: The model's vectors are not finite, the sides' differ in length, ``name`` is empty, or a limit is
            below 1.

    Example:
        >>> import torch
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import BoW
        >>> from starlette.testclient import TestClient
        >>> encoder = SentenceTransformer(modules=[BoW(["red", "head"])], device="cpu")
        >>> client = TestClient(app(encoder, name="words"))
        >>> answer = client.post("/v1/embeddings", json={"model": "words-query", "input": "red head"})
        >>> answer.json()["data"][0]["embedding"]
        [1.0, 1.0]
        >>> client.post("/v1/embeddings", json={"model": "words", "input": "red head"}).status_code
        400
    """
    for limit, value in {"max_batch": max_batch, "max_texts": max_texts, "max_bytes": max_bytes}.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{limit} must be a whole number of at least 1, got {value!r}.")
    if name is None:
        name = "model" if isinstance(model, SentenceTransformer) else public_name(model)
    if not name.strip():
        raise ValueError(f"name is {name!r}: say what clients call the model.")
    loaded = load_encoder(model)
    sizes = [side_vectors(loaded, side, ["size"]).shape[1] for side in ("query", "document")]
    if sizes[0] != sizes[1]:
        raise ValueError(f"The model's query vectors have {sizes[0]} numbers and its document vectors {sizes[1]}.")
    batches = _Batches(loaded, max_batch)
    kind = {"object": "model", "created": int(time.time()), "owned_by": "st_asym"}
    models = [{"id": f"{name}-{side}", **kind} for side in ("query", "document")]

    async def embeddings(request: Request) -> Response:
        asked = _asked_for(await _body(request, max_bytes), name, sizes[0], max_texts)
        encoding = asyncio.ensure_future(batches.encode(asked.side, asked.texts))
        gone = asyncio.ensure_future(_is_gone(request))
        try:
            await asyncio.wait((encoding, gone), return_when=asyncio.FIRST_COMPLETED)
            if not encoding.done():
                raise ClientDisconnect
            return _answer(asked, *encoding.result())
        finally:
            gone.cancel()
            encoding.cancel()  # what waits to be encoded is dropped

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", JSONResponse({"object": "list", "data": models}), methods=["GET"]),
            Route("/health", JSONResponse({"status": "ok"}), methods=["GET"]),
        ],
        exception_handlers={
            RefusedRequestError: _error,
            HTTPException: _error,
            ClientDisconnect: _gone,
            Exception: _error,
        },
    )


class RefusedRequestError(ValueError):
    """What is wrong with a request, as its client is told."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


async def _error(request: Request, error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    told, headers = error, None
    if isinstance(error, HTTPException):  # a wrong path or method
        message = f"{request.method} {request.url.path} is not served: send POST /v1/embeddings."
        told, headers = RefusedRequestError(message[:300], status=error.status_code), error.headers
    if not isinstance(told, RefusedRequestError):  # no fault of the client's; the server logs the traceback
        told = RefusedRequestError("The model could not encode this.", status=500)
    kind = "invalid_request_error" if told.status < 500 else "server_error"
    body = {"error": {"message": str(told), "type": kind, "param": told.param, "code": told.code}}
    return Response(orjson.dumps(body), told.status, headers, media_type="application/json")


async def _gone(_: Request, _error: Exception) -> Response:
    """Nobody reads it: a client that closed its connection is no error of the server's."""
    return Response(status_code=400)


async def _is_gone(request: Request) -> None:
    """Wait until the client of a request whose body was read closes its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, max_bytes: int) -> bytes:
    """The whole body, read no further than it may be long."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise RefusedRequestError(
                f"The body is larger than {max_bytes} bytes: send fewer texts in a request.", status=413
            )
    return bytes(body)


class _EmbeddingsRequest(NamedTuple):
    """What a request asks for, all of it checked."""

    model: str
    side: Side
    texts: list[str]
    in_base64: bool
    dimensions: int


def _asked_for(body: bytes, name: str, size: int, max_texts: int) -> _EmbeddingsRequest:
    """Check a request of the model ``name``, whose vectors have ``size`` numbers."""
    try:
        asked = orjson.loads(body)
    except ValueError as error:
        raise RefusedRequestError(f"The body is not JSON in UTF-8: {error}.") from None
    if not isinstance(asked, dict):
        raise RefusedRequestError('The body must be an object such as {"model": ..., "input": ...}.')
    asked = {key: value for key, value in asked.items() if value is not None}
    # What would change a vector and is not understood must not be ignored.
    if unknown := sorted(set(asked) - set(_FIELDS)):
        raise RefusedRequestError(
            f"Unrecognized request argument: {unknown[0]!r:.60}. Known are {', '.join(_FIELDS)}.",
            param=unknown[0][:60],
            code="unknown_parameter",
        )
    side, texts = _side(asked, name), _texts(asked.get("input"), max_texts)
    form, dimensions = asked.get("encoding_format", "float"), asked.get("dimensions", size)
    if form not in ("float", "base64"):
        raise RefusedRequestError(
            f"encoding_format must be 'float' or 'base64', not {form!r:.60}.", param="encoding_format"
        )
    if type(dimensions) is not int or not 1 <= dimensions <= size:
        raise RefusedRequestError(
            f"dimensions must be a whole number from 1 to {size}, not {dimensions!r:.60}.", param="dimensions"
        )
    return _EmbeddingsRequest(asked["model"], side, texts, form == "base64", dimensions)


def _side(asked: Mapping[str, Any], name: str) -> Side:
    """Of the model that is named, or of ``input_type``."""
    names: dict[str, Side] = {f"{name}-query": "query", f"{name}-document": "document"}
    both = " and ".join(names)
    model, input_type = asked.get("model"), asked.get("input_type")
    if model is None:
        raise RefusedRequestError(f"model is missing: {both} are served.", param="model")
    if model not in (name, *names):
        message = f"There is no model {model!r:.60} here: {both} are served."
        status = 404 if isinstance(model, str) else 400
        raise RefusedRequestError(message, param="model", code="model_not_found", status=status)
    if input_type not in (None, *_INPUT_TYPES):
        message = f"input_type must be one of {', '.join(_INPUT_TYPES)}, not {input_type!r:.60}."
        raise RefusedRequestError(message, param="input_type")
    sides = [side for side in (names.get(model), _INPUT_TYPES.get(input_type or "")) if side is not None]
    if not sides:
        raise RefusedRequestError(
            f"{name} does not say whether these are queries or documents, which have vectors of their own. Name one "
            f"of {both}, or send input_type, 'query' or 'document'.",
            param="model",
            code="side_missing",
        )
    if sides[0] != sides[-1]:
        message = f"{model} is for {sides[0]} texts, and input_type says {sides[1]}: leave one of them out."
        raise RefusedRequestError(message, param="input_type")
    return sides[0]


def _texts(given: Any, max_texts: int) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise RefusedRequestError("input must be a text or a list of at least one text.", param="input")
    if len(texts) > max_texts:
        raise RefusedRequestError(
            f"input has {len(texts)} texts, and a request may have {max_texts}: send several requests.", param="input"
        )
    if any(type(text) is int or isinstance(text, list) for text in texts):
        raise RefusedRequestError(
            "input must be texts, not tokens: their numbers are those of another tokenizer. In LangChain's "
            "OpenAIEmbeddings, set check_embedding_ctx_length=False.",
            param="input",
        )
    for position, text in enumerate(texts):
        if not isinstance(text, str) or not text:
            what = "is empty" if text == "" else f"is {text!r:.60}, which is no text"
            raise RefusedRequestError(f"input[{position}] {what}.", param="input")
    return texts


def _answer(asked: _EmbeddingsRequest, vectors: Array, tokens: int) -> Response:
    """Vectors, float32 of shape ``(n, d)``, as OpenAI's clients read them."""
    if asked.dimensions < vectors.shape[1]:
        vectors = normalize_embeddings(torch.from_numpy(vectors[:, : asked.dimensions])).numpy()
    rows: Iterable[Any] = np.ascontiguousarray(vectors)
    if asked.in_base64:
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
        "model": asked.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


class _Piece(NamedTuple):
    """A few texts of one request, and what they become: vectors, and how many tokens they have."""

    texts: list[str]
    answer: Future[tuple[Array, int]]


class _Batches:
    """Encodes texts of many requests, at most ``max_batch`` in one call, both sides in turn, in one thread.

    Neither a tokenizer nor PyTorch's threads like to be shared. What arrives while a batch is encoded makes up the next
    one; nothing waits for a batch to become full. A request of more texts than fit sends one piece after the other, so
    that a small one never waits for all of a large one.
    """

    def __init__(self, model: SentenceTransformer, max_batch: int) -> None:
        self._model = model
        self._max_batch = max_batch
        self._waiting: dict[Side, deque[_Piece]] = {"query": deque(), "document": deque()}
        self._turn = deque(self._waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")

    async def encode(self, side: Side, texts: Sequence[str]) -> tuple[Array, int]:
        """Vectors, float32 of shape ``(n, d)``, and the number of tokens that the encoder read.

        They count with prompt and special tokens, without what was cut off.
        """
        order = np.argsort([-len(text) for text in texts], kind="stable")
        found = []
        for start in range(0, len(texts), self._max_batch):
            piece = _Piece([texts[place] for place in order[start : start + self._max_batch]], Future())
            self._waiting[side].append(piece)
            self._thread.submit(self._encode_next)  # as often as there are pieces, and each time at least one is taken
            found.append(await asyncio.wrap_future(piece.answer))
        return np.concatenate([own for own, _ in found])[np.argsort(order)], sum(tokens for _, tokens in found)

    def _encode_next(self) -> None:
        """Encode what waits on one side, up to a whole batch; nothing where a call before this one did so."""
        self._turn.rotate()
        side = next((one for one in self._turn if self._waiting[one]), self._turn[0])
        waiting, room = self._waiting[side], self._max_batch
        batch: list[_Piece] = []
        while waiting and len(waiting[0].texts) <= room:
            piece = waiting.popleft()
            if piece.answer.set_running_or_notify_cancel():  # its client may have gone
                batch.append(piece)
                room -= len(piece.texts)
        answers = self._vectors_or_errors(side, [piece.texts for piece in batch]) if batch else []
        for piece, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                piece.answer.set_exception(answer)
            else:
                piece.answer.set_result(answer)

    def _vectors_or_errors(self, side: Side, requests: list[list[str]]) -> list[tuple[Array, int] | Exception]:
        """An answer for each request: what one of them breaks, the others get all the same."""
        try:
            return list(self._vectors(side, requests))
        except BaseException as error:  # a panic of the tokenizers is no Exception
            if len(requests) > 1:
                return [answer for request in requests for answer in self._vectors_or_errors(side, [request])]
            return [error if isinstance(error, Exception) else RuntimeError(str(error))]

    def _vectors(self, side: Side, requests: list[list[str]]) -> list[tuple[Array, int]]:
        texts = [text for request in requests for text in request]
        vectors = side_vectors(self._model, side, texts, batch_size=self._max_batch)
        parts = np.split(vectors, np.cumsum([len(request) for request in requests])[:-1])
        return [(part, self._tokens(side, request)) for part, request in zip(parts, requests, strict=True)]

    def _tokens(self, side: Side, texts: list[str]) -> int:
        features = self._model.preprocess(texts, prompt=side_prompt(self._model, side) or None, task=side)
        counted = features.get("attention_mask", features.get("input_ids"))
        if not isinstance(counted, Tensor):
            return 0
        return int(counted.sum()) if "attention_mask" in features else counted.numel()
