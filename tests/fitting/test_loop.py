"""The loop of the rehearsals gives what the stock trainer gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fitting_helpers import DIMENSION, rotated

from st_asym import EmbeddingCache, Settings
from st_asym.data.holdout import HeldOut
from st_asym.fitting.candidates import behind_vectors, candidates
from st_asym.fitting.closed_form import pair_covariance
from st_asym.fitting.gate import Choice
from st_asym.fitting.loop import ShuffledBatches, refit, set_dial, train_heads, weights_of
from st_asym.fitting.rehearsal import cuts, rehearse
from st_asym.fitting.vectors import read_vectors
from st_asym.retrieval import Judgments


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


@pytest.mark.parametrize("negatives", ["corpus", "in-batch", "both"])
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
    losses = train_heads(candidate, alone, vectors, train, after_epoch=lambda reached: reached == epoch)
    set_dial(heads, candidate.identity(vectors.dimension, vectors.dimension), weights_of(heads), dial)
    found = dict(model[-2].named_parameters())
    for name, parameter in heads.named_parameters():
        torch.testing.assert_close(found[name], parameter, atol=1e-5, rtol=0)
        assert not torch.equal(parameter, start[name]) or "bias" in name
    assert [entry["epoch"] for entry in log] == [entry["epoch"] for entry in losses] == list(range(1, epoch + 1))
    assert [entry["loss"] for entry in log] == pytest.approx([entry["loss"] for entry in losses], abs=2e-3)


def test_what_a_loss_draws_goes_by_the_seed_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    encoder, data = rotated(30)
    settings = Settings(sides="both", init="identity", contrastive="in-batch", epochs=2, isotropy_weight=1.0)
    settings = replace(settings, isotropy_kind="sigreg", batch_size=16, learning_rate=1e-2)
    candidate = candidates(settings, 30)[-1]
    vectors = read_vectors(encoder, data, EmbeddingCache(tmp_path), {}, seed=7)
    train = data.qrels["train"]
    found = []
    for state in (1, 2):
        heads = candidate.heads(vectors.dimension, vectors.dimension, torch.eye(vectors.dimension))
        model = behind_vectors(heads)
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        train_heads(candidate, model, vectors, train)
        assert torch.equal(torch.random.get_rng_state(), before)
        found.append(weights_of(heads))
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name


def test_the_loss_of_both_is_the_mean_of_in_batch_and_corpus(tmp_path: Path) -> None:
    encoder, data = rotated(40)
    vectors = read_vectors(encoder, data, EmbeddingCache(tmp_path), {}, seed=0)
    qrels, found = data.qrels["train"], {}
    for kind in ("both", "in-batch", "corpus"):
        for isotropy in (0.0, 1.0):
            settings = Settings(sides="both", init="pairs", contrastive=kind, isotropy_weight=isotropy)
            candidate = candidates(settings, 40)[-1]
            model = behind_vectors(candidate.heads(DIMENSION, DIMENSION, torch.eye(DIMENSION)))
            queries = {"sentence_embedding": vectors.of_queries(qrels), "task": "query"}
            torch.manual_seed(0)
            found[kind, isotropy] = candidate.loss(model, vectors, qrels, {})([queries], torch.arange(40))
    parts = [found[kind, 0.0]["contrastive"].item() for kind in ("both", "in-batch", "corpus")]
    assert parts[0] == pytest.approx((parts[1] + parts[2]) / 2)
    isotropic = found["both", 1.0]
    assert set(isotropic) == {"contrastive", "isotropy"}
    assert isotropic["isotropy"].item() == pytest.approx(found["in-batch", 1.0]["isotropy"].item(), rel=0.2)


def test_what_is_rehearsed_is_what_is_kept_in_the_end(tmp_path: Path) -> None:
    """Judging the heads of the last training gives the scores of the rehearsal, at half and all of the epochs."""
    encoder, data = rotated(40)
    train = data.qrels["train"]
    candidate = candidates(Settings(sides="both", epochs=2, batch_size=16), 40)[-1]
    cache = EmbeddingCache(tmp_path)
    vectors = read_vectors(encoder, data, cache, {}, seed=0)
    part = HeldOut(train, train, tuple(train), (), {}, ())
    judged = rehearse(vectors, [part], [candidate], 1.0, out_features=vectors.dimension).judged[0]
    assert {(choice.epoch, choice.dial) for choice in judged.scores} == {(1, 1), (2, 1), (2, 0.4), (2, 0.7), (2, 0.85)}
    judgments = Judgments(train, {key: row for row, key in enumerate(data.corpus)})
    for choice, scores in judged.scores.items():
        model, _ = refit(encoder, candidate, choice, vectors, data, cache)
        queries = torch.tensor(model.encode_query(list(train)))
        found = queries @ torch.tensor(model.encode_document(list(data.corpus))).T
        assert judgments.ndcg(found.topk(10).indices) == pytest.approx(scores, abs=1e-5), choice


def test_heads_that_cannot_be_the_identity_have_no_dial(tmp_path: Path) -> None:
    encoder, data = rotated(40)
    narrow = Settings(sides="both", init="random", hidden_features=DIMENSION, epochs=2, batch_size=16)
    tried = candidates(narrow, 40)
    cache = EmbeddingCache(tmp_path)
    vectors = read_vectors(encoder, data, cache, {}, seed=0)
    judged = rehearse(vectors, cuts(data, 0)[:1], tried, 1.0, out_features=vectors.dimension).judged[0]
    assert {choice.dial for choice in judged.scores} == {1.0}
    assert {choice.candidate for choice in judged.scores} == {candidate.name for candidate in tried}
    refit(encoder, tried[-1], Choice(tried[-1].name, 2), vectors, data, cache)
