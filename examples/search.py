"""Use a model that ``quickstart.py`` saved, with sentence_transformers alone.

    python examples/search.py runs/quickstart/model
    python examples/search.py runs/quickstart/model "how do I sort an array in place?"

Ranks a few sentences of documentation for a query.
"""

from __future__ import annotations

import argparse
import sys

sys.modules["st_asym"] = None  # type: ignore[assignment]  # from here on, `import st_asym` fails

from sentence_transformers import SentenceTransformer  # noqa: E402

DOCUMENTS = [
    "Returns a sorted copy of an array; the method of the same name sorts it where it is.",
    "Reads a table from a file of comma-separated values, line by line or at once.",
    "Computes the shortest path between two nodes of a weighted graph.",
    "Splits a data set into random train and test subsets.",
    "Moves a tensor to another device, or converts it to another dtype.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the folder of a saved model")
    parser.add_argument("query", nargs="?", default="load a csv file", help="(default: %(default)s)")
    options = parser.parse_args()
    model = SentenceTransformer(options.model)
    print(f"\nLoaded without st_asym. {options.query!r} finds:")
    similarities = model.similarity(model.encode_query(options.query), model.encode_document(DOCUMENTS))[0]
    for place in similarities.argsort(descending=True)[:3].tolist():
        print(f"  {similarities[place]:.3f}  {DOCUMENTS[place]}")


if __name__ == "__main__":
    main()
