"""Vectors of a running server, by ``/v1/embeddings`` or Text Embeddings Inference's ``/embed``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np

from st_asym.heads.anatomy import Side

Vectors = np.ndarray[Any, np.dtype[np.float64]]
_SECONDS = 60


class TextRefusedError(ValueError):
    """The server says that the request is at fault: a text may be too long for it."""


class EmbeddingServer:
    """A server of vectors.

    Args:
        url: Its address, with or without ``/v1``, ``/v1/embeddings`` or ``/embed``.

    Raises:
        ValueError: It is no address.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url!r} is no address of a server: write http://127.0.0.1:8000, for example.")
        given = url.rstrip("/")
        self.url = given.removesuffix("/embeddings").removesuffix("/embed").removesuffix("/v1")
        path = given.removeprefix(self.url)
        self._v1 = "" if path == "/embeddings" else "/v1"
        self._embed = path == "/embed"

    def model_names(self) -> list[str]:
        """The ids that ``/v1/models`` lists; none where it is not served."""
        if self._embed:
            return []
        try:
            found = self._ask(f"{self._v1}/models")
            return [model["id"] for model in found["data"]]
        except (ValueError, KeyError, TypeError):
            return []

    def vectors(self, texts: Sequence[str], model: str) -> Vectors:
        """Vectors of texts, as any client asks for them.

        Args:
            texts: What to encode.
            model: The model's name; ``/embed`` has none.

        Returns:
            Shape ``(n, d)``.

        Raises:
            OSError: The server cannot be reached.
            TextRefusedError: It takes none of these texts, or one of them is too long for it.
            ValueError: It answers with another error, or not with one finite vector for each text.
        """
        if not self._embed:
            try:
                found = self._ask(f"{self._v1}/embeddings", {"model": model, "input": list(texts)})
            except _NotServedError:
                self._embed = True
            else:
                return self._checked(_in_order(found), len(texts))
        return self._checked(self._ask("/embed", {"inputs": list(texts), "truncate": True}), len(texts))

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        url = self.url + path
        data = None if body is None else json.dumps(body).encode()
        # The address is the user's own, and http or https, as the constructor saw to.
        request = Request(url, data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                return json.loads(answer.read())
        except HTTPError as error:
            said = error.read(500).decode(errors="replace").strip()
            # Ollama and others answer 404 for an unknown model, too, and say so.
            unknown_path = error.code in (404, 405) and "model" not in said.lower()
            at_fault = TextRefusedError if error.code in (400, 413, 422) else ValueError
            kind = _NotServedError if unknown_path else at_fault
            raise kind(f"{url} answers {error.code}: {said or error.reason}") from None
        except (URLError, TimeoutError, ConnectionError) as error:
            raise OSError(f"No answer from {url}: {getattr(error, 'reason', error)}. Is the server running?") from None
        except ValueError:
            raise ValueError(f"{url} does not answer with JSON: is it a server of embeddings?") from None

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


class _NotServedError(ValueError):
    """There is nothing at this path."""


def _in_order(found: Any) -> list[Any]:
    try:
        return [row["embedding"] for row in sorted(found["data"], key=lambda row: int(row["index"]))]
    except (KeyError, TypeError, ValueError):
        raise ValueError("The server's answer has no data with an index and an embedding for each text.") from None


def name_of_side(names: Sequence[str], side: Side, default: str) -> str:
    """Which of a server's models is that of a side.

    Args:
        names: Of its models.
        side: Which side.
        default: What is asked for where the server lists no models.

    Raises:
        ValueError: Several could be.

    Example:
        >>> name_of_side(["m-query", "m-document"], "query", "x-query"), name_of_side([], "query", "x-query")
        ('m-query', 'x-query')
    """
    for fitting in ([name for name in names if name == default], [name for name in names if name.endswith(side)]):
        if len(fitting) == 1:
            return fitting[0]
    if len(names) > 1:
        raise ValueError(
            f"The server has the models {', '.join(names)}: say with --{side}-model ({side}_model=) which of them is "
            f"for {side} texts, or that only the other side is served (--side, sides=)."
        )
    return names[0] if names else default
