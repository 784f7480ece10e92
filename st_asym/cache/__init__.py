"""Vectors of frozen encoders on disk, and models that are answered from them.

From the bottom up: ``lmdb_file`` (the handle of this process on a file), ``store`` (records), ``foreign`` and ``stock``
(what modules hold), ``fingerprint`` (digests), ``encoding`` (the encoder runs), ``parquet``, ``embedding_cache``,
``cached_model``.
"""

from st_asym.cache.cached_model import CachedSentenceTransformer
from st_asym.cache.embedding_cache import EmbeddingCache
from st_asym.cache.fingerprint import encoder_fingerprint, model_fingerprint, record_keys
from st_asym.cache.lmdb_file import CacheError

__all__ = [
    "CacheError",
    "CachedSentenceTransformer",
    "EmbeddingCache",
    "encoder_fingerprint",
    "model_fingerprint",
    "record_keys",
]
