"""``/v1/embeddings`` for both sides of a model."""

from __future__ import annotations

from os import PathLike

from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from st_asym.export.export_side import side_vectors
from st_asym.heads.anatomy import public_name
from st_asym.heads.model import load_encoder
from st_asym.serving.batches import Batches
from st_asym.serving.openai_form import EmbeddingsRequest, RefusedRequestError, answer_body, error_body


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
    half precision padding changes its last digits, as in any batch.

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
        ValueError: The model's vectors are not finite, the sides' differ in length, or a limit is below 1.

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
    loaded = model if isinstance(model, SentenceTransformer) else load_encoder(model)
    sizes = [side_vectors(loaded, side, ["size"]).shape[1] for side in ("query", "document")]
    if sizes[0] != sizes[1]:
        raise ValueError(f"The model's query vectors have {sizes[0]} numbers and its document vectors {sizes[1]}.")
    batches = Batches(loaded, max_batch)
    models = [{"id": f"{name}-{side}", "object": "model", "owned_by": "st_asym"} for side in ("query", "document")]

    async def embeddings(request: Request) -> Response:
        body = await _body(request, max_bytes)
        asked = EmbeddingsRequest.read(body, name=name, size=sizes[0], max_texts=max_texts)
        vectors, tokens = await batches.encode(asked.side, asked.texts)
        return Response(answer_body(asked, vectors, tokens), media_type="application/json")

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def listed(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": models})

    return Starlette(
        routes=[
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/models", listed),
            Route("/health", health),
        ],
        exception_handlers={
            RefusedRequestError: _refused,
            HTTPException: _not_there,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


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


async def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, RefusedRequestError):
        raise error
    body = error_body(str(error), error.status, param=error.param, code=error.code)
    return Response(body, error.status, media_type="application/json")


async def _gone(_: Request, _error: Exception) -> Response:
    """Nobody reads it: a client that closed its connection is no error of the server's."""
    return Response(status_code=400)


async def _not_there(request: Request, error: Exception) -> Response:
    """A wrong path or method."""
    status, headers = (error.status_code, error.headers) if isinstance(error, HTTPException) else (404, None)
    message = f"{request.method} {request.url.path} is not served: send POST /v1/embeddings."
    return Response(error_body(message[:300], status), status, headers, media_type="application/json")


async def _failed(_: Request, _error: Exception) -> Response:
    """What is no fault of the client's; the server logs the traceback."""
    return Response(error_body("The model could not encode this.", 500), 500, media_type="application/json")
