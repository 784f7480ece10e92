import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cache_helpers import tiny_bert
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    Matryoshka2dLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import BoW

from st_asym import (
    CachedSentenceTransformer,
    CacheError,
    EmbeddingCache,
    asymmetric_model,
    freeze_encoder,
    save_heads,
)

TEXTS = ["a bad cab", "deaf", "", "a bad cab", " ", "x" * 1000, "a", "é ü", "bad\ncab", "bad cab"]


def trained(bert: Path, **options: Any) -> SentenceTransformer:
    """A model whose heads are not the identity."""
    model = asymmetric_model(tiny_bert(bert), init="random", **options)
    model.prompts = {"query": "query: ", "document": "", "other": "other: "}
    return model


@pytest.fixture
def model(bert: Path) -> SentenceTransformer:
    return trained(bert)


@pytest.fixture
def cached(model: SentenceTransformer, tmp_path: Path) -> CachedSentenceTransformer:
    return CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "cache"))


def close(a: Any, b: Any) -> bool:
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-6)


def count_encoded(model: SentenceTransformer) -> list[int]:
    """A list that gets the number of texts each time that the encoder runs."""
    counts: list[int] = []
    model[1].register_forward_hook(lambda *call: counts.append(len(call[-1]["sentence_embedding"])))
    return counts


CALLS: dict[str, Callable[[SentenceTransformer], Any]] = {
    "encode": lambda model: model.encode(TEXTS),
    "encode_query": lambda model: model.encode_query(TEXTS),
    "encode_document": lambda model: model.encode_document(TEXTS),
    "one text": lambda model: model.encode_query("a bad cab")[None],
    "prompt": lambda model: model.encode_query(TEXTS, prompt="find: "),
    "prompt name": lambda model: model.encode(TEXTS, prompt_name="other"),
    "small batches": lambda model: model.encode(TEXTS, batch_size=2),
    "tensor": lambda model: model.encode(TEXTS, convert_to_tensor=True),
    "normalised": lambda model: model.encode(TEXTS, normalize_embeddings=True),
    "truncated": lambda model: model.encode_query(TEXTS, truncate_dim=8),
    "binary": lambda model: model.encode_query(TEXTS, precision="binary"),
    "array of texts": lambda model: model.encode(np.array(TEXTS)),
    "column": lambda model: model.encode(Dataset.from_dict({"text": TEXTS})["text"]),
    "processing": lambda model: model.encode(TEXTS, processing_kwargs={"text": {"max_length": 4}}),
    "tokens": lambda model: model.encode(["a bad cab"], output_value="token_embeddings")[0],
    "forward": lambda model: model(model.preprocess(TEXTS), task="query")["sentence_embedding"].detach(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_gives_the_models_vectors(
    model: SentenceTransformer, cached: CachedSentenceTransformer, call: Callable[[SentenceTransformer], Any]
) -> None:
    expected = call(model)
    assert close(call(cached), expected)
    # From the cache as well.
    assert close(call(cached), expected)


def test_nothing_in_nothing_out(model: SentenceTransformer, cached: CachedSentenceTransformer) -> None:
    assert cached.encode([]).shape == model.encode([]).shape
    assert cached.preprocess([]) == model.preprocess([]) == {}


def test_one_sided_shared_and_linear_heads(bert: Path, tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    for options in ({"query": False}, {"document": False}, {"shared": True}, {"hidden_features": None}):
        model = trained(bert, **options)
        cached = CachedSentenceTransformer(model, cache)
        assert close(cached.encode_query(TEXTS), model.encode_query(TEXTS))
        assert close(cached.encode_document(TEXTS), model.encode_document(TEXTS))
    # One encoder, whatever stands behind it: nine texts with the prompt of a query and nine without.
    assert len(cache) == 18


def test_a_model_without_heads_is_all_encoder(bert: Path, tmp_path: Path) -> None:
    encoder = tiny_bert(bert).requires_grad_(False)
    cached = CachedSentenceTransformer(encoder, EmbeddingCache(tmp_path))
    assert close(cached.encode(TEXTS), encoder.encode(TEXTS))
    assert close(cached.encode(TEXTS), encoder.encode(TEXTS))
    words = SentenceTransformer(modules=[BoW(["a", "bad", "cab"])])
    assert close(CachedSentenceTransformer(words, EmbeddingCache(tmp_path)).encode(TEXTS), words.encode(TEXTS))


def test_an_encoder_in_bfloat16_hands_over_bfloat16(bert: Path, tmp_path: Path) -> None:
    model = asymmetric_model(tiny_bert(bert).to(torch.bfloat16))
    cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path))
    features = cached.preprocess(["a bad cab"])
    assert features["sentence_embedding"].dtype == torch.bfloat16
    assert close(cached.encode(["a bad cab"]), model.encode(["a bad cab"]))


def test_what_it_hands_over_can_be_trained_on(cached: CachedSentenceTransformer) -> None:
    features = cached.preprocess(["a", "b"], task="query")
    vectors = features["sentence_embedding"]
    assert (vectors.shape, vectors.device.type, vectors.dtype) == ((2, 32), "cpu", torch.float32)
    assert not vectors.is_inference()
    cached.train()
    cached({**features, "task": "query"})["sentence_embedding"].sum().backward()
    assert next(p for p in cached.parameters() if p.requires_grad).grad is not None


@pytest.mark.parametrize("case", ["trainable", "unfrozen later", "router first", "not a model"])
def test_refuses_what_would_not_stay(bert: Path, tmp_path: Path, case: str) -> None:
    cache, model = EmbeddingCache(tmp_path), trained(bert)
    if case == "trainable":
        with pytest.raises(ValueError, match=r"encoder is trainable \(0\..* freeze it with st_asym.freeze_encoder"):
            CachedSentenceTransformer(tiny_bert(bert), cache)
    elif case == "unfrozen later":
        cached = CachedSentenceTransformer(model, cache)
        model[0].requires_grad_(True)
        cached.train()
        with pytest.raises(ValueError, match="encoder is trainable"):
            cached.preprocess(["a"])
        freeze_encoder(model)
        cached.preprocess(["a"])
    elif case == "router first":
        with pytest.raises(ValueError, match="begins with a Router"):
            CachedSentenceTransformer(SentenceTransformer(modules=[model[3]]), cache)
    else:
        with pytest.raises(TypeError, match="must be a SentenceTransformer, not a str"):
            CachedSentenceTransformer("a name", cache)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        lambda model: next(model.parameters()).add_(1e-3),
        lambda model: next(model.parameters()).data.add_(1e-3),
        lambda model: setattr(model, "max_seq_length", 4),
    ],
    ids=["step", "data", "max_seq_length"],
)
def test_refuses_an_encoder_that_changed(
    model: SentenceTransformer, cached: CachedSentenceTransformer, change: Callable[[SentenceTransformer], Any]
) -> None:
    cached.encode(TEXTS)
    change(model)
    with pytest.raises(ValueError, match="encoder has changed since"):
        cached.encode(TEXTS)
    again = CachedSentenceTransformer(model, cached.cache)
    assert close(again.encode_query(TEXTS), model.encode_query(TEXTS))


def test_names_the_row(cached: CachedSentenceTransformer) -> None:
    for bad in (5, None, ("a", "b")):
        with pytest.raises(TypeError, match="Row 1"):
            cached.preprocess(["a", bad])
    with pytest.raises(ValueError, match="Row 1"):
        cached.preprocess(["a", "\ud800"])


def stock_files(path: Path) -> None:
    """Check that a folder holds nothing but a stock model."""
    settings = json.loads((path / "config_sentence_transformers.json").read_text())
    modules = json.loads((path / "modules.json").read_text())
    assert settings["model_type"] == "SentenceTransformer"
    assert all(module["type"].startswith("sentence_transformers.") for module in modules)
    assert len(modules) == 5
    for file in path.rglob("*"):
        assert file.is_dir() or not any(name in file.read_bytes() for name in (b"st_asym", b"CachedSentence")), file


def test_saves_the_stock_model(model: SentenceTransformer, cached: CachedSentenceTransformer, tmp_path: Path) -> None:
    cached.encode(["a"])
    cached.prompts["new"] = "new: "
    cached.save_pretrained(str(tmp_path / "saved"))
    stock_files(tmp_path / "saved")
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert type(loaded) is type(cached.stock_model()) is SentenceTransformer
    assert loaded.prompts["new"] == "new: "
    assert close(loaded.encode_query(TEXTS), model.encode_query(TEXTS))


@pytest.mark.slow
def test_goes_through_pickle_and_the_librarys_pool(
    model: SentenceTransformer, cached: CachedSentenceTransformer
) -> None:
    expected = model.encode_query(TEXTS)
    assert close(pickle.loads(pickle.dumps(cached)).encode_query(TEXTS), expected)  # noqa: S301 - our own
    assert close(cached.encode_query(TEXTS, device=["cpu", "cpu"], chunk_size=3), expected)
    assert close(cached.encode_query(TEXTS), expected)


def test_hooks_on_one_are_not_hooks_on_the_other(model: SentenceTransformer, cached: CachedSentenceTransformer) -> None:
    calls: list[str] = []
    cached.register_forward_hook(lambda *_: calls.append("cached"))
    model.encode(["a"])
    assert calls == []
    cached.encode(["a"])
    assert calls == ["cached"]


def data(rows: int = 24) -> Dataset:
    words = ["bad cab", "deaf ace", "fed bee", "dead fad", "face off", "beef cafe"]
    return Dataset.from_dict(
        {
            "anchor": [f"{words[i % 6]} {chr(97 + i % 26)}" for i in range(rows)],
            "positive": [f"about {words[i % 6]}" for i in range(rows)],
        }
    )


def evaluator() -> InformationRetrievalEvaluator:
    queries = {str(i): text for i, text in enumerate(data(6)["anchor"])}
    corpus = {str(i): text for i, text in enumerate(data(6)["positive"])}
    return InformationRetrievalEvaluator(queries, corpus, {q: {q} for q in queries}, name="dev")


def trainer(model: SentenceTransformer, output: Path, **options: Any) -> SentenceTransformerTrainer:
    args = SentenceTransformerTrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        router_mapping={"anchor": "query", "positive": "document"},
        prompts={"anchor": "query: "},
        use_cpu=True,
        report_to=[],
        logging_steps=1,
        seed=3,
        **{"num_train_epochs": 1, **options},
    )
    return SentenceTransformerTrainer(
        model,
        args,
        train_dataset=data(),
        eval_dataset=data(8),
        loss=MultipleNegativesRankingLoss(model),
        evaluator=evaluator(),
    )


def heads(model: SentenceTransformer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_trains_as_the_model_does(bert: Path, tmp_path: Path) -> None:
    """Losses, evaluation and weights, with an encoder that has dropout; and each text is encoded once."""
    results = []
    for name in ("plain", "cached"):
        torch.manual_seed(0)
        model = trained(bert)
        encoded = count_encoded(model)
        used = CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "c")) if name == "cached" else model
        run = trainer(used, tmp_path / name, eval_strategy="epoch", num_train_epochs=2)
        run.train()
        history = [{k: v for k, v in entry.items() if "loss" in k or "ndcg" in k} for entry in run.state.log_history]
        results.append((heads(model), history))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-5
    for plain, cached in zip(results[0][1], results[1][1], strict=True):
        assert plain.keys() == cached.keys()
        assert all(abs(plain[key] - cached[key]) < 1e-3 for key in plain), (plain, cached)
    distinct = {"query: " + text for text in data()["anchor"]} | set(data()["positive"])
    # The model card, written with the last checkpoint, shows an example of up to four texts by the stock model.
    assert 0 <= sum(encoded) - len(distinct) <= 4


@pytest.mark.parametrize("kind", ["stock", "cached"])
def test_after_training_in_mixed_precision_each_runs_itself(bert: Path, tmp_path: Path, kind: str) -> None:
    model = asymmetric_model(SentenceTransformer(str(bert), device="cpu"))
    cache = EmbeddingCache(tmp_path / "vectors")
    used = model if kind == "stock" else CachedSentenceTransformer(model, cache)
    trainer(used, tmp_path / "run", bf16=True, max_steps=2).train()
    other = CachedSentenceTransformer(model, cache) if kind == "stock" else used.stock_model()
    model.save_pretrained(str(tmp_path / "model"))
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(other.encode_query(["red text"]), loaded.encode_query(["red text"]), atol=1e-6)


def test_checkpoints_are_stock_and_resume(bert: Path, tmp_path: Path) -> None:
    """Uses what the trainer reads checkpoints with, which is private: it fails here if that changes."""
    torch.manual_seed(0)
    start = trained(bert)
    weights = {name: value.clone() for name, value in start.state_dict().items()}
    ends = []
    for name in ("whole", "resumed"):
        model = trained(bert)
        model.load_state_dict(weights)
        cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "cache"))
        run = trainer(cached, tmp_path / name, save_strategy="steps", save_steps=3)
        if name == "resumed":
            run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        else:
            run.train()
        ends.append(heads(model))
    assert torch.equal(ends[0], ends[1])
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    (checkpoint / "training_args.bin").unlink()
    stock_files(checkpoint)


def test_ends_with_the_best_checkpoint(bert: Path, tmp_path: Path) -> None:
    model = trained(bert)
    cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path / "cache"))
    run = trainer(
        cached,
        tmp_path / "run",
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    run.train()
    best = SentenceTransformer(run.state.best_model_checkpoint, device="cpu")
    assert close(cached.encode_query(TEXTS), best.encode_query(TEXTS))


def test_workers_of_a_data_loader_look_up_and_do_not_encode(cached: CachedSentenceTransformer, tmp_path: Path) -> None:
    run = trainer(cached, tmp_path / "run", dataloader_num_workers=1, max_steps=2)
    with pytest.raises(RuntimeError, match=r"call EmbeddingCache\.fill\(model, texts\) before training"):
        run.train()
    cached.cache.fill(cached, data()["anchor"], prompt="query: ")
    cached.cache.fill(cached, data()["positive"])
    trainer(cached, tmp_path / "again", dataloader_num_workers=2, max_steps=4).train()


def test_a_cache_that_cannot_be_written_stops_the_call(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    EmbeddingCache(tmp_path)
    monkeypatch.setattr("os.access", lambda *_: False)
    cached = CachedSentenceTransformer(trained(bert), EmbeddingCache(tmp_path))
    with pytest.raises(CacheError, match="cannot be written to"):
        cached.encode(TEXTS)


def test_mteb_gives_the_models_scores(bert: Path, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")

    class Small(mteb.abstasks.AbsTaskRetrieval):  # type: ignore[misc, name-defined]
        ignore_identical_ids = False
        metadata = mteb.TaskMetadata(
            name="SmallRetrieval",
            description="Six queries.",
            reference=None,
            dataset={"path": "none/none", "revision": "1"},
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            date=None,
            domains=None,
            task_subtypes=None,
            license=None,
            annotations_creators=None,
            dialect=None,
            sample_creation=None,
            bibtex_citation=None,
        )

        def load_data(self, **_: Any) -> None:
            names = [f"q{i}" for i in range(6)]
            documents = {"id": names, "text": data(6)["positive"], "title": [""] * 6}
            split = {
                "queries": Dataset.from_dict({"id": names, "text": data(6)["anchor"]}),
                "corpus": Dataset.from_dict(documents),
                "relevant_docs": {name: {name: 1} for name in names},
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    model = trained(bert)
    cached = CachedSentenceTransformer(model, EmbeddingCache(tmp_path))
    scores = []
    for used in (model, cached, cached):
        encoded = count_encoded(model)
        result = mteb.evaluate(used, [Small()], cache=None, show_progress_bar=False)
        scores.append(result.task_results[0].scores["test"][0]["ndcg_at_10"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) == pytest.approx(scores[2], abs=1e-6)
    assert encoded == []


def test_a_loss_that_replaces_forward_and_puts_it_back_trains_on_cached_vectors(
    model: SentenceTransformer, cached: CachedSentenceTransformer, tmp_path: Path
) -> None:
    pairs = Dataset.from_dict({"query": ["a bad cab", "deaf"] * 4, "document": ["bad", "a", "cab", "x"] * 2})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=4,
        router_mapping={"query": "query", "document": "document"},
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    before = model.encode_query("a bad cab")
    loss = MatryoshkaLoss(cached, MultipleNegativesRankingLoss(cached), [32, 8])
    SentenceTransformerTrainer(cached, arguments, pairs, loss=loss).train()
    assert not close(model.encode_query("a bad cab"), before)
    assert close(cached.encode_query(TEXTS), model.encode_query(TEXTS))
    save_heads(model, tmp_path / "heads")


@pytest.mark.parametrize("kind", [AdaptiveLayerLoss, Matryoshka2dLoss])
def test_a_loss_that_reads_layers_is_refused(
    model: SentenceTransformer, cached: CachedSentenceTransformer, kind: Any
) -> None:
    options = {"matryoshka_dims": [32, 8]} if kind is Matryoshka2dLoss else {}
    loss = kind(cached, MultipleNegativesRankingLoss(cached), **options)
    columns = [{**cached.preprocess(TEXTS, task=task), "task": task} for task in ("query", "document")]
    with pytest.raises(ValueError, match="give the loss and the trainer the model itself"):
        loss(columns, None)
    assert close(cached.encode_query(TEXTS), model.encode_query(TEXTS))
