"""Retrieval collections: queries, documents and which answers which, out of files, data sets and lists.

From the bottom up: ``document`` (which texts are the same, also those that a model was trained on), ``collection``,
``formats`` (rows of files, of BEIR's folders and of tables), ``rows`` (what they mean: pairs, documents, judgments),
``prepare`` (checks), ``pseudo_queries`` (for a corpus that has none), ``sources`` (any of these). Beside them,
``holdout`` cuts queries, and ``files`` writes what is whole or not there.
"""

from st_asym.data.collection import Qrels, RetrievalData
from st_asym.data.document import copies, text_key
from st_asym.data.pseudo_queries import pseudo_queries
from st_asym.data.rows import from_pairs
from st_asym.data.sources import as_retrieval_data, load_data

__all__ = [
    "Qrels",
    "RetrievalData",
    "as_retrieval_data",
    "copies",
    "from_pairs",
    "load_data",
    "pseudo_queries",
    "text_key",
]
