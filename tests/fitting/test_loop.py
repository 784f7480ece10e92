"""The loop of the rehearsals gives what the stock trainer gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fitting_helpers import rotated

from st_asym import EmbeddingCache, Settings
from st_asym.fitting.candidates import behind_vectors, candidates
from st_asym.fitting.closed_form import pair_covariance
from st_asym.fitting.gate import Choice
from st_asym.fitting.loop import ShuffledBatches, refit, set_dial, train_heads, weights_of
from st_asym.fitting.vectors import read_vectors


def test_batches_are_a_new_order_in_each_epoch() -> None:
    batches = ShuffledBatches(range(10), 4, seed=1)
    assert len(batches) == 3
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append([row for rows in batches for row in rows])
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert [len(rows) for rows in batches] == [4, 4, 2]


@pytest.mark.parametrize("negatives", ["corpus", "in-batch"])
@pytest.mark.parametrize("sides", ["both", "query"])
@pytest.mark.parametrize(("epoch", "dial"), [(4, 1.0), (2, 0.6)])
def test_loop_and_trainer_give_the_same_weights(
    tmp_path: Path, negatives: Any, sides: Any, epoch: int, dial: float
) -> None:
    encoder, data = rotated(50)
    settings = Settings(
        sides=sides, init="pairs", contrastive=negatives, unlabelled_weight=0.1, epochs=4, batch_size=16
    )
    candidate = candidates(settings, 50)[-1]
    assert candidate.trains
    cache = EmbeddingCache(tmp_path)
    vectors = read_vectors(encoder, data, cache, {}, seed=3)
    choice = Choice(candidate.name, epoch, dial)
    model, log = refit(encoder, candidate, choice, vectors, data, cache)

    train = data.qrels["train"]
    covariance = pair_covariance(vectors.queries, vectors.documents, *vectors.pairs(train))
    heads = candidate.heads(vectors.dimension, vectors.dimension, covariance)
    alone = behind_vectors(heads)
    start = weights_of(heads)
    losses = train_heads(
        alone,
        candidate.loss(alone, vectors, train, {}),
        vectors.of_queries(train),
        torch.arange(len(train)),
        epochs=4,
        batch_size=16,
        learning_rate=settings.learning_rate,
        seed=3,
        after_epoch=lambda reached: reached == epoch,
    )
    set_dial(heads, candidate.identity(vectors.dimension, vectors.dimension), weights_of(heads), dial)
    found = dict(model[-2].named_parameters())
    for name, parameter in heads.named_parameters():
        torch.testing.assert_close(found[name], parameter, atol=1e-5, rtol=0)
        assert not torch.equal(parameter, start[name]) or "bias" in name
    assert [entry["epoch"] for entry in log] == [entry["epoch"] for entry in losses] == list(range(1, epoch + 1))
    assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in losses], abs=2e-3)
