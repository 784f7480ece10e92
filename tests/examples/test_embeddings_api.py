"""The example with an OpenAI-style client, against its own stand-in on 127.0.0.1."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import embeddings_api
import numpy as np
import pytest

from st_asym import Heads, Settings, fit_vectors

QUICK = Settings(
    sides="both", init="pairs", contrastive="in-batch", whitening=0.1, epochs=2, batch_size=16, learning_rate=1e-2
)


def tangled(texts: list[str]) -> Any:
    """A vector for each text: of its first word, but for directions that tell queries from documents."""
    found = []
    for text in texts:
        word, _, rest = text.partition(" ")
        own, others = (
            np.random.default_rng(int(hashlib.sha256(part.encode()).hexdigest()[:8], 16)) for part in (word, text)
        )
        found.append([*own.standard_normal(12), *(4 * others.standard_normal(4) * (1 + len(rest)))])
    return np.array(found) / np.linalg.norm(found, axis=1, keepdims=True)


def test_embed_fit_apply_search(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(60)]
    with embeddings_api.stand_in(tangled) as url:
        queries = embeddings_api.embed(url, "any", [f"{word} how" for word in words])
        np.testing.assert_allclose(queries, tangled([f"{word} how" for word in words]), atol=1e-6)
        documents = embeddings_api.embed(url, "any", [f"{word} so" for word in words])
        relevant = {row: [row] for row in range(60)}
        result = fit_vectors(queries, documents, relevant, settings=QUICK, show_progress_bar=False)
        assert result.report.kept
        heads = Heads.load(result.save(tmp_path / "heads"))
        index = heads.document(documents)
        found = [embeddings_api.search(url, "any", f"{word} how", heads, index, top=3) for word in words]
    assert sum(best[0] == row for row, best in enumerate(found)) > 40
    assert {len(best) for best in found} == {3}


def test_texts_beyond_one_request_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings_api, "AT_ONCE", 4)
    texts = [f"word{number} so" for number in range(10)]
    with embeddings_api.stand_in(tangled) as url:
        np.testing.assert_allclose(embeddings_api.embed(url, "any", texts), tangled(texts), atol=1e-6)
