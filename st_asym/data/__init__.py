"""Retrieval collections: queries, documents and which answers which, out of files, data sets and lists.

From the bottom up: ``collection``, ``files`` (lines and rows), ``beir`` and ``pairs`` (the two layouts), ``checks``,
``merging``, ``pseudo`` (queries for a corpus that has none), ``sources``, ``inputs``.
"""

from st_asym.data.collection import Qrels, RetrievalData
from st_asym.data.inputs import as_retrieval_data, load_data
from st_asym.data.pairs import from_pairs
from st_asym.data.pseudo import pseudo_queries

__all__ = ["Qrels", "RetrievalData", "as_retrieval_data", "from_pairs", "load_data", "pseudo_queries"]
