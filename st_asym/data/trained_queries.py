"""Which queries a model was trained on, as digests that recognise them and cannot be read."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from st_asym.data.collection import RetrievalData
from st_asym.data.document import text_key

# Digests beyond this are left out, so that the file stays as small as a configuration.
MOST_QUERIES = 100_000
_MOST_PAIRS = 50_000
_BYTES = 8
_NAMES = ("key", "queries", "query_digests", "pairs", "pair_digests")


@dataclass(frozen=True)
class TrainedQueries:
    """Digests of training queries, and of these with their relevant documents.

    They are of :func:`st_asym.data.text_key`, so that another spelling is the same query, and keyed at random, so that
    those of two models cannot be compared. The key stands beside them: whoever guesses a query can check the guess.

    Example:
        >>> from st_asym.data.collection import RetrievalData
        >>> data = RetrievalData({"q": "Error E17"}, {"d": "Replace the filter."}, {"train": {"q": {"d": 1}}})
        >>> found = TrainedQueries.of([data])
        >>> found.among({"1": "error  e17", "2": "error E18"})
        {'1'}
    """

    key: bytes
    queries: int  # how many there are
    query_digests: frozenset[bytes] | None  # None for more than 100,000
    pairs: int  # how many queries with a relevant document
    pair_digests: frozenset[bytes] | None  # None for more than 50,000

    @classmethod
    def of(cls, collections: Iterable[RetrievalData]) -> TrainedQueries:
        """Digest the training queries of collections."""
        queries, pairs = set(), []
        for data in collections:
            for query_id, documents in data.relevant("train").items():
                if (query := data.queries.get(query_id)) is not None:
                    queries.add(text_key(query))
                    pairs += [(query, data.corpus[document]) for document in documents if document in data.corpus]
        key = secrets.token_bytes(16)
        query_digests = pair_digests = None
        if len(queries) <= MOST_QUERIES:
            query_digests = frozenset(_digest(key, query) for query in queries)
        if len(pairs) <= _MOST_PAIRS:
            pair_digests = frozenset(_digest(key, *pair) for pair in pairs)
        number = len(pairs) if pair_digests is None else len(pair_digests)
        return cls(key, len(queries), query_digests, number, pair_digests)

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> TrainedQueries:
        """Out of JSON; a ``TypeError`` or ``ValueError`` where it is not what :meth:`as_dict` gives."""
        if set(found) != set(_NAMES):
            raise ValueError(f"The digests of training queries have the parts {sorted(found)}, not {sorted(_NAMES)}.")
        key = bytes.fromhex(found["key"])
        if not 1 <= len(key) <= hashlib.blake2b.MAX_KEY_SIZE:
            raise ValueError(f"The key of the digests of training queries has {len(key)} bytes.")
        queries = _unpacked(found["query_digests"], found["queries"])
        pairs = _unpacked(found["pair_digests"], found["pairs"])
        return cls(key, found["queries"], queries, found["pairs"], pairs)

    def as_dict(self) -> dict[str, Any]:
        """As JSON knows it."""
        queries, pairs = map(_packed, (self.query_digests, self.pair_digests))
        found = (self.key.hex(), self.queries, queries, self.pairs, pairs)
        return dict(zip(_NAMES, found, strict=True))

    def among(self, queries: Mapping[str, str]) -> set[str]:
        """The ids of queries, given with their texts, that were trained on; none where the digests are left out."""
        known = self.query_digests or frozenset()
        return {query_id for query_id, text in queries.items() if _digest(self.key, text) in known}

    def with_their_documents(
        self, queries: Mapping[str, str], corpus: Mapping[str, str], relevant: Mapping[str, Collection[str]]
    ) -> set[str]:
        """The ids of queries that were trained on with one of the documents that are relevant to them here."""
        known = self.pair_digests or frozenset()
        return {
            query_id
            for query_id, documents in relevant.items()
            if any(_digest(self.key, queries[query_id], corpus[document]) in known for document in documents)
        }


def _digest(key: bytes, *texts: str) -> bytes:
    digest = hashlib.blake2b(key=key, digest_size=_BYTES)
    digest.update("\0".join(map(text_key, texts)).encode("utf-8", "surrogatepass"))
    return digest.digest()


def _packed(digests: frozenset[bytes] | None) -> str | None:
    # Sorted: their order must not tell that of the training data.
    return None if digests is None else base64.b64encode(b"".join(sorted(digests))).decode("ascii")


def _unpacked(text: Any, number: Any) -> frozenset[bytes] | None:
    if type(number) is not int or number < 0:
        raise TypeError(f"The number of digests of training queries is {number!r:.40}.")
    if text is None:
        return None
    content = base64.b64decode(text, validate=True)
    found = frozenset(content[start : start + _BYTES] for start in range(0, len(content), _BYTES))
    if len(content) != number * _BYTES or len(found) != number:
        raise ValueError(f"There are not {number} digests of training queries.")
    return found
