"""Requests and answers of ``/v1/embeddings``, in OpenAI's form."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from st_asym.heads.anatomy import Side

Vectors = np.ndarray[Any, np.dtype[np.float32]]

_FIELDS = ("dimensions", "encoding_format", "input", "input_type", "model", "user")
_INPUT_TYPES: dict[str, Side] = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "search_document": "document",
    "passage": "document",
}


class RefusedRequestError(ValueError):
    """What is wrong with a request, as its client is told."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> bytes:
    """An error as OpenAI's clients read it.

    Example:
        >>> error_body("input is missing", 400, param="input")
        b'{"error":{"message":"input is missing","type":"invalid_request_error","param":"input","code":null}}'
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


@dataclass(frozen=True)
class EmbeddingsRequest:
    """What a request asks for.

    Attributes:
        model: As its client wrote it.
        side: Of the model or of ``input_type``.
        texts: At least one, none of them empty.
        base64: Whether vectors are wanted as little-endian float32 in base64.
        dimensions: How many numbers of a vector are wanted; None for all.
    """

    model: str
    side: Side
    texts: list[str]
    base64: bool
    dimensions: int | None

    @classmethod
    def read(cls, body: bytes, *, name: str, size: int, max_texts: int) -> EmbeddingsRequest:
        """Check all of a request.

        Args:
            body: JSON.
            name: Of the model, without a side.
            size: How many numbers a vector has.
            max_texts: How many texts a request may have.

        Raises:
            RefusedRequestError: What is wrong, and what to send.

        Example:
            >>> EmbeddingsRequest.read(b'{"model": "m-query", "input": "a"}', name="m", size=8, max_texts=4)
            EmbeddingsRequest(model='m-query', side='query', texts=['a'], base64=False, dimensions=None)
        """
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
                f"Unrecognized request argument: {_shown(unknown[0])}. Known are {', '.join(_FIELDS)}.",
                param=unknown[0][:60],
                code="unknown_parameter",
            )
        model, side = _model_and_side(asked, name)
        return cls(model, side, _texts(asked, max_texts), _is_base64(asked), _dimensions(asked, size))


def answer_body(request: EmbeddingsRequest, vectors: Vectors, tokens: int) -> bytes:
    """Vectors as OpenAI's clients read them.

    Args:
        request: What was asked for.
        vectors: Whole, float32 of shape ``(n, d)``.
        tokens: How many were read.
    """
    if request.dimensions is not None:
        cut = vectors[:, : request.dimensions].astype(np.float64)
        lengths = np.linalg.norm(cut, axis=1, keepdims=True)
        vectors = (cut / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
    rows: Iterable[Any] = np.ascontiguousarray(vectors)
    if request.base64:
        rows = [base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors]
    return orjson.dumps(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows)],
            "model": request.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _model_and_side(asked: dict[str, Any], name: str) -> tuple[str, Side]:
    names: dict[str, Side] = {f"{name}-query": "query", f"{name}-document": "document"}
    both = " and ".join(names)
    model, input_type = asked.get("model"), asked.get("input_type")
    if model is None:
        raise RefusedRequestError(f"model is missing: {both} are served.", param="model")
    if not isinstance(model, str) or model not in (name, *names):
        raise RefusedRequestError(
            f"There is no model {_shown(model)} here: {both} are served.",
            param="model",
            code="model_not_found",
            status=404 if isinstance(model, str) else 400,
        )
    if input_type is not None and (not isinstance(input_type, str) or input_type not in _INPUT_TYPES):
        raise RefusedRequestError(
            f"input_type must be one of {', '.join(_INPUT_TYPES)}, not {_shown(input_type)}.", param="input_type"
        )
    side, said = names.get(model), None if input_type is None else _INPUT_TYPES[input_type]
    if side is not None and said is not None and side != said:
        raise RefusedRequestError(
            f"{model} is for {side} texts, and input_type says {said}: leave one of them out.", param="input_type"
        )
    side = side or said
    if side is None:
        raise RefusedRequestError(
            f"{name} does not say whether these are queries or documents, which have vectors of their own. Name one "
            f"of {both}, or send input_type, 'query' or 'document'.",
            param="model",
            code="side_missing",
        )
    return model, side


def _texts(asked: dict[str, Any], max_texts: int) -> list[str]:
    given = asked.get("input")
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
            what = "is empty" if text == "" else f"is {_shown(text)}, which is no text"
            raise RefusedRequestError(f"input[{position}] {what}.", param="input")
    return texts


def _is_base64(asked: dict[str, Any]) -> bool:
    form = asked.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise RefusedRequestError(
            f"encoding_format must be 'float' or 'base64', not {_shown(form)}.", param="encoding_format"
        )
    return bool(form == "base64")


def _dimensions(asked: dict[str, Any], size: int) -> int | None:
    dimensions = asked.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or not 1 <= dimensions <= size):
        raise RefusedRequestError(
            f"dimensions must be a whole number from 1 to {size}, not {_shown(dimensions)}.", param="dimensions"
        )
    return dimensions if dimensions != size else None


def _shown(value: object) -> str:
    """What a client sent, short enough for a message."""
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:60] + "...") if len(text) > 60 else repr(text) if isinstance(value, str) else text
