"""Use a model that ``quickstart.py`` saved, with sentence_transformers alone.

    python examples/search.py runs/quickstart

Shows the top three documents of three queries, before (the untouched encoder) and after (the saved model).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any

sys.modules["st_asym"] = None  # type: ignore[assignment]  # from here on, `import st_asym` fails

import numpy as np  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402

Vectors = np.ndarray[Any, np.dtype[np.float32]]


def main() -> None:
    folder = Path(sys.argv[1])
    model = SentenceTransformer(str(folder / "model"))
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    index = np.load(folder / "index.npz")

    sample = texts["documents"][:16]
    difference = np.abs(model.encode_document(sample) - index["documents_after"][:16]).max()
    print(f"\nLoaded without st_asym. Largest difference to the vectors computed in training: {difference:.1e}")

    queries = texts["queries"][:200]
    before = top_three(index["queries_before"][:200], index["documents_before"])
    after = top_three(model.encode_query(queries), index["documents_after"])
    changed = [i for i in range(len(queries)) if not np.array_equal(before[i], after[i])]
    print(f"{len(changed)} of the first {len(queries)} test queries have another top three; the first of them:")
    for i in changed[:3]:
        print(f"\n{shorten(queries[i], 100)}")
        for label, ranking in (("before", before[i]), ("after", after[i])):
            for rank, document in enumerate(ranking, start=1):
                print(f"  {label:6} {rank}. {shorten(texts['documents'][document], 100)}")


def top_three(queries: Vectors, documents: Vectors) -> np.ndarray[Any, np.dtype[np.intp]]:
    return np.argsort(-(queries @ documents.T), axis=1)[:, :3]


if __name__ == "__main__":
    main()
