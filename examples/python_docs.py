"""A retrieval collection that is already on your disk: the documentation of installed Python packages.

The first line of a docstring is a query, the rest of it the document that answers it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from st_asym.data import RetrievalData, from_pairs

# Dependencies of st_asym itself, so that they are installed wherever it is.
PACKAGES = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "networkx",
    "numpy",
    "pandas",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "torch",
)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)
_SHORTEST_QUERY, _LONGEST_QUERY = 20, 200
_SHORTEST_DOCUMENT, _LONGEST_DOCUMENT = 100, 1_000


def python_docs(pairs: int = 4_000, packages: tuple[str, ...] = PACKAGES) -> RetrievalData:
    """Read the docstrings of public modules, classes and functions from their source; nothing is imported.

    Args:
        pairs: How many to keep, chosen by a hash of the query, so that the order of files does not matter.
        packages: Top-level names; those that are not installed are left out.

    Returns:
        A collection split into train, dev and test by a hash of the query.
    """
    documents: dict[str, str] = {}
    seen: set[str] = set()
    for package in packages:
        for query, document in _docstrings(package):
            if query not in documents and document not in seen:
                documents[query] = document
                seen.add(document)
    chosen = sorted(documents, key=lambda query: hashlib.blake2b(query.encode()).digest())[:pairs]
    return from_pairs((query, documents[query]) for query in chosen)


def _docstrings(package: str) -> Iterator[tuple[str, str]]:
    """First line and rest of each docstring of a package that is long enough to search for."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).rglob("*.py")):
            folders = file.relative_to(folder).parts[:-1]
            if not any(name.startswith("_") or name in {"test", "tests"} for name in folders):
                yield from _docstrings_of(file)


def _docstrings_of(file: Path) -> Iterator[tuple[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in _statements(tree):
        if isinstance(node, _DOCUMENTED) and not getattr(node, "name", "").startswith("_"):
            query, _, document = inspect.cleandoc(ast.get_docstring(node) or "").partition("\n")
            query, document = query.strip(), document.strip()
            if (
                _SHORTEST_QUERY <= len(query) <= _LONGEST_QUERY
                and _SHORTEST_DOCUMENT <= len(document) <= _LONGEST_DOCUMENT
            ):
                yield query, document


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """What ``ast.walk`` gives, in its order, without what is in expressions, where nothing is documented."""
    left = deque[ast.AST]([tree])
    while left:
        node = left.popleft()
        yield node
        left.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, _STATEMENTS))
