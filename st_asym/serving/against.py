"""Whether a running server gives the vectors of a model."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from os import PathLike
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Router
from sentence_transformers.util import cos_sim

from st_asym.export.export_side import TEXTS, cosines, side_vectors
from st_asym.heads.anatomy import Side, public_name, side_prompt
from st_asym.heads.model import load_encoder

Vectors = np.ndarray[Any, np.dtype[np.float64]]

# 1 - cosine of two vectors of one text. Up to the first, nothing but the order of sums differs; up to the second, the
# server computes in half precision.
_SAME, _NEARLY = 1e-5, 1e-3
_LENGTH = 0.01
_RECOGNISED = 0.5
_SECONDS = 60  # to wait for an answer
_OTHER: dict[Side, Side] = {"query": "document", "document": "query"}
_SERVE = "Serve this model, or name the one that is served."


@dataclass(frozen=True)
class ServedSide:
    """What a server gives for the texts of one side.

    Attributes:
        side: Which side.
        model: The name that the server was asked for.
        cosine: Lowest cosine of a vector of the server and the model's; NaN where they differ in length.
        mistakes: What is wrong and what to do, by ``"other head"``, ``"no head"``, ``"no prompt"``, ``"other prompt"``,
            ``"length of texts"``, ``"some texts"``, ``"other encoder"``, ``"other weights"``, ``"normalised"`` or
            ``"not normalised"``; empty if all is right.
        uncompared: What was not compared: texts longer than those that were asked for; empty if the model cuts off
            earlier, or the caller chose the texts.
    """

    side: Side
    model: str
    cosine: float
    mistakes: dict[str, str]
    uncompared: str = ""

    def __str__(self) -> str:
        """In one line for each mistake."""
        if self.mistakes:
            return "\n".join(f"{self.side} ({self.model}): {name}. {text}" for name, text in self.mistakes.items())
        return f"{self.side} ({self.model}): right, lowest cosine {self.cosine:.6f}{self.uncompared}"


@dataclass(frozen=True)
class ServerComparison:
    """What :func:`compare_with_server` found.

    Attributes:
        url: The server.
        sides: What it gives for each side that was asked for.
    """

    url: str
    sides: dict[Side, ServedSide]

    @property
    def right(self) -> bool:
        """Whether all vectors are those of the model."""
        return not any(found.mistakes for found in self.sides.values())

    def __str__(self) -> str:
        """A first line that says whether it is right, then one for each side and mistake."""
        first = f"{self.url} {'gives' if self.right else 'does not give'} the vectors of the model."
        return "\n".join([first, *map(str, self.sides.values())])


def compare_with_server(
    model: SentenceTransformer | str | PathLike[str],
    url: str,
    *,
    sides: Sequence[Side] = ("query", "document"),
    query_model: str | None = None,
    document_model: str | None = None,
    api_key: str | None = None,
    texts: Sequence[str] | None = None,
) -> ServerComparison:
    """Ask a running server for vectors of a few texts and say whether they are those of a model.

    It may be anything with ``/v1/embeddings`` (``st-asym serve``, vLLM, Infinity, Ollama) or Text Embeddings
    Inference's ``/embed``. It is asked as any client asks it, for the bare texts. If its vectors are not right, they
    are compared with those that come of the usual mistakes: through the head of the other side, or none; with the
    prompt of the other side, none, or twice its own. What remains is another prompt or another encoder.

    Args:
        model: What should be served, with both sides; or its Hub id or path.
        url: Of the server, with or without ``/v1``.
        sides: Which sides it has.
        query_model: What the server calls the model for queries. If None, the one model that it lists, that whose name
            ends in ``query``, or ``NAME-query`` where it lists none.
        document_model: The same for documents.
        api_key: What the server asks its clients for, sent as a bearer token, as OpenAI's do; kept nowhere.
        texts: What to ask for; a dozen texts of up to some 600 tokens if None. Where the model reads longer ones, give
            one: a server that cuts off between looks right without.

    Raises:
        OSError: The model cannot be read, or the server cannot be reached.
        ValueError: The server answers with an error, or lists several models of which any could be meant.

    Example:
        >>> print(compare_with_server("fitted-model", "http://127.0.0.1:8000"))  # doctest: +SKIP
        http://127.0.0.1:8000 gives the vectors of the model.
        query (fitted-model-query): right, lowest cosine 1.000000
        document (fitted-model-document): right, lowest cosine 1.000000
    """
    if not sides or not set(sides) <= set(_OTHER):
        raise ValueError(f"sides must name 'query', 'document' or both, got {sides!r}.")
    server = _Server(url, api_key)
    name = "model" if isinstance(model, SentenceTransformer) else public_name(model)
    wanted = {"query": query_model, "document": document_model}
    listed = server.model_names() if any(wanted[side] is None for side in sides) else []
    names = {side: wanted[side] or _name_of_side(listed, side, f"{name}-{side}") for side in sides}
    served = {side: _served(server, TEXTS if texts is None else texts, names[side]) for side in sides}
    loaded = load_encoder(model)
    found = {side: _compared(loaded, side, names[side], *served[side]) for side in sides}
    if texts is None:
        found = {side: replace(one, uncompared=_uncompared(loaded, side)) for side, one in found.items()}
    return ServerComparison(url, found)


def _limit(model: SentenceTransformer, side: Side) -> int | None:
    """After how many tokens the model cuts texts of a side off."""
    return getattr(next(model.children()), f"{side}_length", None) or model.max_seq_length


def _uncompared(model: SentenceTransformer, side: Side) -> str:
    """What ``TEXTS`` cannot show: where the server cuts longer texts off, if the model reads more of them."""
    longest = max(TEXTS, key=len)
    found = [model.preprocess([text], task=side).get("input_ids") for text in (longest, longest * 2)]
    tokens, more = (0 if ids is None else ids.shape[-1] for ids in found)
    return f"; texts of more than {tokens} tokens, which the model reads, were not compared" if more > tokens else ""


def _served(server: _Server, texts: Sequence[str], name: str) -> tuple[Vectors, list[str], str]:
    """Vectors of the texts that the server takes, these texts, and what it says where the longest is too long."""
    try:
        return server.vectors(texts, name), list(texts), ""
    except _AnswerError as error:
        longest = max(texts, key=len)
        shorter = [text for text in texts if text != longest]
        if not shorter or not error.text_refused:
            raise
        return server.vectors(shorter, name), shorter, f"A text of {len(longest)} characters is refused ({error}). "


def _compared(
    model: SentenceTransformer, side: Side, name: str, served: Vectors, texts: Sequence[str], refused: str
) -> ServedSide:
    right = side_vectors(model, side, texts).astype(np.float64)
    distances = _distances(served, right)
    mistakes = _mistake(model, side, served, right, texts) if distances.max() > _SAME else {}
    if refused:
        limit = f"The model cuts texts off at {_limit(model, side)} tokens: let the server or the client do so too."
        mistakes["length of texts"] = refused + limit
    known = right.any(axis=1)  # a text that the model has no vector for has no length
    if "other encoder" not in mistakes:
        mistakes |= _of_lengths(np.linalg.norm(served[known], axis=1), np.linalg.norm(right[known], axis=1))
    cosine = float(1 - distances.max()) if served.shape == right.shape else float("nan")
    return ServedSide(side, name, cosine, mistakes)


def _of_lengths(served: Vectors, right: Vectors) -> dict[str, str]:
    """The mistake of a server whose vectors have these lengths where the model's have those."""
    ratio = served / right
    if (np.abs(ratio - 1) <= _LENGTH).all():
        return {}
    longer = f"The server's vectors are {ratio.min():.3g} to {ratio.max():.3g} times as long as the model's"
    if (np.abs(served - 1) <= _LENGTH).all():
        return {
            "normalised": f"{longer}: the server normalises, and the model does not. That changes nothing where the "
            "index compares by cosine; for inner products, turn it off in the server."
        }
    return {
        "not normalised": f"{longer}. Let the server normalise, or the client, or let the index compare by cosine and "
        "not by inner product."
    }


def _mistake(
    model: SentenceTransformer, side: Side, served: Vectors, right: Vectors, texts: Sequence[str]
) -> dict[str, str]:
    """The mistake whose vectors are nearest to the server's; none if that is what is right, in half precision."""
    own = side_prompt(model, side)
    known = [("own", own, right)]
    for wrong in _wrong_vectors(model, side, texts):
        if all(_distances(wrong[-1], vectors).max() > _SAME for *_, vectors in known):  # rounding alone is no other
            known.append(wrong)
    head, prompt, vectors = min(known, key=lambda one: float(np.median(_distances(served, one[-1]))))
    best = _distances(served, vectors)
    if np.median(best) <= _NEARLY:
        return {**_named(model, side, head, prompt), **_of_some(_limit(model, side), best, texts)}
    if served.shape[1] != vectors.shape[1]:
        return {"other encoder": f"Vectors have {served.shape[1]} numbers, and the model's {right.shape[1]}. {_SERVE}"}
    # Of the same encoder, a text stays more like itself than like the others, whatever is put in front of it.
    alike = cos_sim(served, vectors).numpy()
    recognised = float((alike.argmax(axis=1) == np.arange(len(alike))).mean())
    if recognised < _RECOGNISED and np.diag(alike).mean() < _RECOGNISED:
        return {"other encoder": f"Nothing is alike: the mean cosine is {np.diag(alike).mean():.2f}. {_SERVE}"}
    text = (
        f"Texts are recognised and their vectors differ (lowest cosine {1 - best.max():.3f}): the weights are of "
        "another training, or in 8 bits, or "
    )
    if own or side_prompt(model, _OTHER[side]):
        return {"other prompt": f"{text}something else than {own!r} is in front of texts."}
    return {"other weights": f"{text}something is in front of texts."}


def _of_some(limit: int | None, distances: Vectors, texts: Sequence[str]) -> dict[str, str]:
    """The mistake of a server that gives some texts other vectors than most: the long ones, or any."""
    lengths, far = np.array([len(text) for text in texts]), distances > _NEARLY
    if not far.any():
        return {}
    if lengths[~far].max() < lengths[far].min():
        long = "Short texts have the right vectors, long ones have not: the server cuts them off elsewhere. "
        return {"length of texts": f"{long}Let it read {limit} tokens, as the model does."}
    return {
        "some texts": f"{far.sum()} of {len(texts)} texts have other vectors (lowest cosine {1 - distances.max():.3f}),"
        f" the first is {texts[int(far.argmax())][:60]!r}. Ask for it alone: right then, the server mixes up the texts "
        "of a request; else it changes or cuts off such texts, or has weights in 8 bits."
    }


def _named(model: SentenceTransformer, side: Side, head: str, prompt: str) -> dict[str, str]:
    """In words, a mistake of the head, of the prompt, or of both."""
    other, own = _OTHER[side], side_prompt(model, side)
    found: dict[str, str] = {}
    if head == "other":
        found["other head"] = (
            f"These are {other} vectors: {side} texts must go to the model of the {side} side. With a server that "
            f"knows no sides, serve st-asym export --side {side} beside it."
        )
    elif head == "none":
        found["no head"] = (
            f"These are the encoder's own vectors: the server leaves out the head, or gives the {other} side, if that "
            f"has none. Serve st-asym export --side {side} (--format onnx for servers that know no hidden layer), or "
            "use st-asym serve."
        )
    if prompt == own or (head == "other" and prompt == side_prompt(model, other)):
        return found
    put = f"put {own!r} in front of each text (Text Embeddings Inference: --default-prompt-name {side})"
    if not prompt:
        found["no prompt"] = f"The server adds no prompt: {put}."
    elif prompt == own + own:
        found["other prompt"] = f"{own!r} is in front of each text twice: let only the server or the client add it."
    else:
        found["other prompt"] = f"{prompt!r} is in front of each text" + (
            f": {put} instead." if own else f", and {side} texts have no prompt: leave it out."
        )
    return found


def _wrong_vectors(model: SentenceTransformer, side: Side, texts: Sequence[str]) -> Iterator[tuple[str, str, Vectors]]:
    """Vectors of the usual mistakes, the simplest first: which head, which prompt, and what comes of them."""
    modules: list[Any] = list(model.children())
    heads = [("own", model, side)]
    # What stays of it where a server knows no Router or no Dense.
    cuts = [next((i for i, m in enumerate(modules) if isinstance(m, kind)), None) for kind in (Router, Dense)]
    for cut in dict.fromkeys(cuts):
        if cut:  # a Router in front of everything leaves no encoder
            heads.append(("none", SentenceTransformer(modules=modules[:cut], device=str(model.device)), side))
    heads.append(("other", model, _OTHER[side]))
    own, other = side_prompt(model, side), side_prompt(model, _OTHER[side])
    for prompt in dict.fromkeys((own, other, "", own + own)):
        for head, module, task in heads:
            found = module.encode(
                list(texts), prompt=prompt, task=task, convert_to_tensor=True, show_progress_bar=False
            )
            vectors = found.to(device="cpu", dtype=torch.float64).numpy()
            if np.isfinite(vectors).all():
                yield head, prompt, vectors


def _distances(a: Vectors, b: Vectors) -> Vectors:
    """1 - cosine of each two vectors, shape ``(n,)``; 0 of equal ones, infinite where they differ in length."""
    return 1 - cosines(a, b) if a.shape == b.shape else np.full(len(a), np.inf)


class _AnswerError(ValueError):
    """The server answers with a status of its own."""

    def __init__(self, url: str, status: int, said: str) -> None:
        super().__init__(f"{url} answers {status}: {said}")
        # Ollama and others answer 404 for an unknown model, too, and say so.
        self.no_such_path = status in (404, 405) and "model" not in said.lower()
        self.text_refused = status in (400, 413, 422)


class _NoRedirects(HTTPRedirectHandler):
    """A redirected POST would be sent on as a GET, without the texts."""

    def redirect_request(self, *_: Any) -> None:
        """Follow none: the redirect itself is the answer."""


class _Server:
    """A server at an address, which is given with or without ``/v1``, ``/v1/embeddings`` or ``/embed``."""

    def __init__(self, url: str, api_key: str | None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a server: write http://127.0.0.1:8000, for example.")
        given = url.rstrip("/")
        self.url = given.removesuffix("/embeddings").removesuffix("/embed").removesuffix("/v1")
        path = given.removeprefix(self.url)
        self._v1 = "" if path == "/embeddings" else "/v1"
        self._embed = path == "/embed"
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("The API key has characters that no header may hold, such as a line break.")
        self._key = api_key or ""

    def model_names(self) -> list[str]:
        """The ids that ``/v1/models`` lists; none where it is not served."""
        if self._embed:
            return []
        try:
            return [str(model["id"]) for model in self._ask(f"{self._v1}/models")["data"]]
        except (ValueError, KeyError, TypeError):
            return []

    def vectors(self, texts: Sequence[str], model: str) -> Vectors:
        """Vectors of texts, shape ``(n, d)``, as any client asks for them; ``/embed`` knows no model's name."""
        if not self._embed:
            try:
                found = self._ask(f"{self._v1}/embeddings", {"model": model, "input": list(texts)})
                return self._checked(_in_order(found), len(texts))
            except _AnswerError as error:
                if not error.no_such_path:
                    raise
                self._embed = True
        return self._checked(self._ask("/embed", {"inputs": list(texts), "truncate": True}), len(texts))

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        url = self.url + path
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        # The address is the user's own, and http or https, as the constructor saw to.
        request = Request(url, data, headers)  # noqa: S310
        try:
            with build_opener(_NoRedirects).open(request, timeout=_SECONDS) as answer:
                return json.loads(answer.read())
        except HTTPError as error:
            if moved := error.headers.get("Location"):
                raise ValueError(f"{url} redirects to {moved}: give the address of the server itself.") from None
            raise _AnswerError(url, error.code, self._said(error)) from None
        except (URLError, TimeoutError, ConnectionError) as error:
            raise OSError(f"No answer from {url}: {getattr(error, 'reason', error)}. Is the server running?") from None
        except HTTPException as error:  # no HTTP, an answer that breaks off, or an address that is none
            raise ValueError(f"{url} gives no whole answer in HTTP ({error}): is it a server of embeddings?") from None
        except ValueError:
            raise ValueError(f"{url} does not answer with JSON: is it a server of embeddings?") from None

    def _said(self, error: HTTPError) -> str:
        """What an error says, without the key, and what to do about a key that is missing or wrong."""
        said = error.read(500).decode(errors="replace").strip() or error.reason
        if error.code not in (401, 403):
            return said
        if self._key:
            return f"{said.replace(self._key, '...')} The server does not take this API key."
        return f"{said} The server wants an API key: give it as --api-key (api_key=), or set ST_ASYM_API_KEY."

    def _checked(self, rows: Any, count: int) -> Vectors:
        try:
            vectors = np.array(rows, dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{self.url} does not answer with vectors of one length.") from None
        if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
            raise ValueError(
                f"{self.url} should answer with {count} finite vectors, and answers with an array of shape "
                f"{vectors.shape}{'' if np.isfinite(vectors).all() else ' that is not finite'}."
            )
        return vectors


def _in_order(found: Any) -> list[Any]:
    try:
        rows = [row["embedding"] for row in sorted(found["data"], key=lambda row: int(row["index"]))]
        # Some send base64 unasked, since most clients ask for it.
        return [np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row for row in rows]
    except (KeyError, TypeError, ValueError):
        raise ValueError("The server's answer has no data with an index and an embedding for each text.") from None


def _name_of_side(names: Sequence[str], side: Side, default: str) -> str:
    """Which of a server's models is that of a side; the default where it lists none."""
    for fitting in ([name for name in names if name == default], [name for name in names if name.endswith(side)]):
        if len(fitting) == 1:
            return fitting[0]
    if len(names) > 1:
        raise ValueError(
            f"The server has the models {', '.join(names)}: say with --{side}-model ({side}_model=) which of them is "
            f"for {side} texts, or that only the other side is served (--side, sides=)."
        )
    return names[0] if names else default
