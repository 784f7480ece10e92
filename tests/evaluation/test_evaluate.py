from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from evaluation_helpers import collection, count_encoded, ndcg_at_10, with_heads
from sentence_transformers import SentenceTransformer

import st_asym
from st_asym import Comparison, EmbeddingCache, asymmetric_model, evaluate, save_provenance
from st_asym.cache import model_fingerprint
from st_asym.data import RetrievalData, as_retrieval_data, load_data
from st_asym.evaluation import mteb as running
from st_asym.evaluation.evaluate import require_mteb

Make = Callable[..., SentenceTransformer]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def no_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("this was evaluated before")

    monkeypatch.setattr(running.mteb, "evaluate", refuse)


def test_scores_are_those_of_the_formula_and_means_are_those_of_mteb(
    make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data, real = make_encoder(), collection(), running.mteb.evaluate
    model = with_heads(encoder, 1)
    given: dict[str, dict[str, float]] = {}

    def spy(searcher: Any, *arguments: Any, **options: Any) -> Any:
        result = real(searcher, *arguments, **options)
        given[searcher.mteb_model_meta.name.removeprefix("st_asym/")] = result.task_results[0].scores["test"][0]
        return result

    monkeypatch.setattr(running.mteb, "evaluate", spy)
    comparison = evaluate({"plain": encoder, "heads": model}, {"tiny": data}, results=None, baselines=())
    own = comparison.queries["tiny"]
    assert own["ids"] == [f"q{i}" for i in range(6)]
    for name, one in (("plain", encoder), ("heads", model)):
        assert own["scores"][name]["ndcg@10"][0] == pytest.approx(ndcg_at_10(one, data), abs=1e-6)
        for metric, mean in comparison[name].scores["tiny"].items():
            assert np.mean(own["scores"][name][metric][0]) == pytest.approx(mean, abs=1e-5), metric
            assert given[name][metric.replace("@", "_at_")] == pytest.approx(mean, abs=1e-5), metric
    difference = comparison["heads"].difference
    assert difference is not None
    assert difference.points == pytest.approx(np.mean(ndcg_at_10(model, data)) - np.mean(ndcg_at_10(encoder, data)))
    assert comparison.data["tiny"] | {"version": ""} == {"split": "test", "queries": 6, "documents": 12, "version": ""}


def test_the_untouched_encoder_comes_first_where_the_first_model_has_heads(make_encoder: Make) -> None:
    encoder = make_encoder(prompts={"query": "query: ", "document": "text: "})
    comparison = evaluate({"heads": with_heads(encoder, 1)}, {"tiny": collection()}, results=None, baselines=())
    assert [row.name for row in comparison.rows] == ["untouched encoder", "heads"]
    assert comparison.rows[0].digests == (model_fingerprint(encoder),)
    assert comparison.rows[0].difference is None
    untouched = comparison.queries["tiny"]["scores"]["untouched encoder"]["ndcg@10"][0]
    assert untouched == pytest.approx(ndcg_at_10(encoder, collection()), abs=1e-6)


def test_the_untouched_encoder_is_cut_as_the_model_is(make_encoder: Make) -> None:
    model = asymmetric_model(make_encoder())
    model.truncate_dim = 6
    cut = evaluate({"m": model}, {"tiny": collection()}, results=None, baselines=())
    assert cut["m"].average == cut["untouched encoder"].average
    narrow = asymmetric_model(make_encoder(), out_features=6)
    found = evaluate({"m": narrow}, {"tiny": collection()}, results=None, baselines=())
    assert any(
        note.startswith("untouched encoder has vectors of ") and note.endswith(", m of 6.") for note in found.notes
    )


def test_the_same_model_twice_is_free_and_a_changed_one_is_evaluated(
    make_encoder: Make, results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, data = with_heads(make_encoder(), 1), collection()
    first = evaluate({"heads": model}, {"tiny": data}, results=results)
    with torch.no_grad():  # another model under the same name, as after more training
        for parameter in model[-2].parameters():
            parameter.copy_(torch.randn_like(parameter))
    second = evaluate({"heads": model}, {"tiny": data}, results=results)
    assert second["heads"].digests != first["heads"].digests
    assert second.queries["tiny"]["scores"]["heads"]["ndcg@10"][0] == pytest.approx(ndcg_at_10(model, data), abs=1e-6)
    assert second.rows[0] == first.rows[0]

    model.save_pretrained(str(tmp_path / "saved"))
    no_runs(monkeypatch)
    again = evaluate({"heads": str(tmp_path / "saved")}, {"tiny": data}, results=results)
    assert again.rows == second.rows
    with pytest.raises(AssertionError, match="evaluated before"):  # other data under the same name are other data
        evaluate({"heads": model}, {"tiny": replace(data, corpus={**data.corpus, "d12": "red"})}, results=results)


def test_settings_that_shape_vectors_change_the_digest(make_encoder: Make) -> None:
    model = with_heads(make_encoder(), 1)
    digests = {model_fingerprint(model)}
    model.prompts["query"] = "query: "
    digests.add(model_fingerprint(model))
    model.max_seq_length = 8
    digests.add(model_fingerprint(model))
    model.truncate_dim = 8
    digests.add(model_fingerprint(model))
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(1e-4)
    digests.add(model_fingerprint(model))
    assert len(digests) == 5


def test_the_encoder_runs_once_per_text_for_all_models_that_share_it(make_encoder: Make, tmp_path: Path) -> None:
    encoder, data = make_encoder(), collection()
    encoded = count_encoded(encoder)
    models = {"plain": encoder, "a": with_heads(encoder, 1), "b": with_heads(encoder, 2)}
    encoder.requires_grad_(True)
    evaluate(models, {"tiny": data}, cache=tmp_path / "vectors", results=None, compressed=("int8", 8))
    queries = {data.queries[query_id] for query_id in data.qrels["test"]}
    assert encoded() == len({*data.corpus.values(), *queries})
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    evaluate(models, {"tiny": data}, cache=EmbeddingCache(tmp_path / "vectors"), results=None)
    assert encoded() == len({*data.corpus.values(), *queries})


def test_an_interrupted_evaluation_goes_on_where_it_was(make_encoder: Make, results: Path) -> None:
    encoder, data = make_encoder(), collection()
    good, bad = with_heads(encoder, 1), with_heads(encoder, 2)
    weight = next(p for p in bad.parameters() if p.requires_grad)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="bad gives vectors that are not finite for 6 of 6 texts"):
        evaluate({"good": good, "bad": bad}, {"tiny": data}, results=results, baselines=())
    kept_files = sorted(results.rglob("*.json"))
    assert len(kept_files) == 2
    stamps = [file.stat().st_mtime_ns for file in kept_files]
    with torch.no_grad():
        weight.copy_(kept)
    comparison = evaluate({"good": good, "bad": bad}, {"tiny": data}, results=results, baselines=())
    assert [file.stat().st_mtime_ns for file in kept_files] == stamps
    assert [row.name for row in comparison.rows] == ["untouched encoder", "good", "bad"]


def test_an_evaluation_that_is_killed_keeps_what_was_done(
    make_encoder: Make, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, data, real = make_encoder(), collection(), running.mteb.evaluate
    tasks = {"one": data, "two": replace(data, qrels={"test": {"q0": {"d0": 1}, "q1": {"d2": 1}}})}
    done: list[str] = []

    def killed_at_the_second(model: Any, task: Any, **options: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(task.metadata.name)
        return real(model, task, **options)

    monkeypatch.setattr(running.mteb, "evaluate", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate({"plain": encoder}, tasks, results=results, baselines=())
    done.clear()

    def counted(model: Any, task: Any, **options: Any) -> Any:
        done.append(task.metadata.name)
        return real(model, task, **options)

    monkeypatch.setattr(running.mteb, "evaluate", counted)
    assert list(evaluate({"plain": encoder}, tasks, results=results, baselines=()).data) == ["one", "two"]
    assert done == ["two"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 0, "key": {}, "scores": []}'])
def test_a_results_file_that_cannot_be_used_is_written_anew(make_encoder: Make, results: Path, content: str) -> None:
    encoder, data = make_encoder(), collection()
    first = evaluate({"plain": encoder}, {"tiny": data}, results=results, baselines=())
    (file,) = results.rglob("*.json")
    file.write_text(content)
    assert evaluate({"plain": encoder}, {"tiny": data}, results=results, baselines=()).rows == first.rows
    assert json.loads(file.read_text())["format"] == 1


def test_seeds_are_one_row_with_spread(make_encoder: Make) -> None:
    encoder, data = make_encoder(), collection()
    models = {7: with_heads(encoder, 1), 8: with_heads(encoder, 2)}
    comparison = evaluate({"plain": encoder, "heads": models}, {"tiny": data}, results=None, baselines=())
    row = comparison["heads"]
    by_seed = [ndcg_at_10(model, data) for model in models.values()]
    assert row.seeds == (7, 8)
    assert len(set(row.digests)) == 2
    assert row.average["ndcg@10"] == pytest.approx(np.mean(by_seed), abs=1e-5)
    assert row.spread["average"] == pytest.approx(np.std(np.mean(by_seed, axis=1), ddof=1), abs=1e-5)
    gains = np.mean(by_seed, axis=0) - ndcg_at_10(encoder, data)
    assert row.difference is not None
    assert row.difference.points == pytest.approx(gains.mean(), abs=1e-6)
    assert " ± " in str(comparison)
    twice = evaluate({"plain": encoder, "heads": [models[7], models[7]]}, {"tiny": data}, results=None, baselines=())
    assert "heads: 2 models were given, 1 different." in twice.notes


def test_a_model_that_did_not_move_is_said_to(make_encoder: Make) -> None:
    encoder = make_encoder()
    comparison = evaluate(
        {"plain": encoder, "fresh": asymmetric_model(encoder)}, {"tiny": collection()}, results=None, baselines=()
    )
    row = comparison["fresh"]
    assert row.verdict == "marginal"
    assert row.difference is not None
    assert (row.difference.points, row.difference.p) == (0.0, 1.0)
    assert "did not move" in row.next_steps[0]
    kept = evaluate({"plain": encoder, "kept": encoder}, {"tiny": collection()}, results=None, baselines=())
    assert kept["kept"].next_steps == ()  # fit has left it alone: no learning rate is to blame
    assert "kept and plain are the same model." in kept.notes


def test_queries_on_training_documents_are_told_from_others(make_encoder: Make) -> None:
    encoder, data = make_encoder(), collection()
    models = {"plain": encoder, "heads": with_heads(encoder, 1)}
    expected = dict(zip(sorted(data.qrels["test"]), ndcg_at_10(encoder, data), strict=True))
    renumbered = replace(
        data,
        corpus={f"other-{key}": text.upper() for key, text in data.corpus.items()},
        qrels={"train": {q: {f"other-{d}": g for d, g in own.items()} for q, own in data.qrels["train"].items()}},
    )
    for train in (data.qrels["train"], renumbered, {"tiny": data}):
        comparison = evaluate(models, {"tiny": data}, results=None, train=train, baselines=())
        assert comparison.queries["tiny"]["seen"] == ["q0", "q1", "q4"]  # d0 and d2
        groups = comparison["plain"].groups["tiny"]
        assert (groups["seen"].queries, groups["unseen"].queries) == (3, 3)
        assert groups["seen"].score == pytest.approx(np.mean([expected[q] for q in ("q0", "q1", "q4")]), abs=1e-6)
        assert comparison["heads"].groups["tiny"]["unseen"].difference is not None
        assert "tiny, unseen" in comparison.to_markdown()
    everything = {f"t{number}": {document: 1} for number, document in enumerate(data.corpus)}
    models = {"plain": encoder, "heads": with_heads(encoder, 1)}
    row = evaluate(models, {"tiny": data}, train=everything, results=None, baselines=())["heads"]
    assert row.groups["tiny"]["seen"].difference == row.differences["tiny"]  # of the same queries


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        ({"tinny": collection()}, ValueError, "train names 1 data set not evaluated: tinny"),
        (replace(collection(), qrels={"test": {}}), ValueError, "no split 'train'"),
        (3, TypeError, "not a int"),
        ({"q": {"7": 1, "9": 1}}, ValueError, "train names 2 documents, none of which tiny has"),
        ("nowhere.zip", FileNotFoundError, "nowhere.zip"),
    ],
)
def test_training_data_are_looked_at_before_anything_is_evaluated(
    make_encoder: Make, monkeypatch: pytest.MonkeyPatch, train: Any, error: type[Exception], message: str
) -> None:
    no_runs(monkeypatch)
    with pytest.raises(error, match=message):
        evaluate({"plain": make_encoder()}, {"tiny": collection()}, results=None, train=train)


def test_all_pairs_of_a_file_count_as_training_data(make_encoder: Make, tmp_path: Path) -> None:
    data, file = collection(), tmp_path / "pairs.csv"
    file.write_text("query,positive\n" + "".join(f"query {key},{text}\n" for key, text in data.corpus.items()))
    found = evaluate({"plain": make_encoder()}, {"tiny": data}, results=None, train=file, baselines=())
    assert found.queries["tiny"]["seen"] == [f"q{i}" for i in range(6)]
    file.write_text("_id,text\nd0,alone\n")
    with pytest.raises(ValueError, match=r"pairs.csv holds documents alone: no query was trained on"):
        evaluate({"plain": make_encoder()}, {"tiny": data}, results=None, train=file, baselines=())


@pytest.mark.parametrize(
    "options", [{"document": False}, {"query": False}, {"shared": True}, {"hidden_features": None}]
)
def test_models_of_all_shapes_are_evaluated(make_encoder: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    data, model = collection(), asymmetric_model(make_encoder(), init="random", **options)
    comparison = evaluate({"heads": model}, {"tiny": data}, results=None, baselines=())
    found = comparison.queries["tiny"]["scores"]["heads"]["ndcg@10"][0]
    assert found == pytest.approx(ndcg_at_10(model, data), abs=1e-6)
    model.save_pretrained(str(tmp_path / "model"))
    assert model_fingerprint(SentenceTransformer(str(tmp_path / "model"), device="cpu")) == model_fingerprint(model)


def test_several_data_sets_are_averaged(make_encoder: Make) -> None:
    encoder, data = make_encoder(), collection()
    half = replace(data, qrels={"test": {q: data.qrels["test"][q] for q in ("q0", "q1")}})
    comparison = evaluate(
        {"plain": encoder, "heads": with_heads(encoder, 1)}, {"all": data, "two": half}, results=None, baselines=()
    )
    row = comparison["heads"]
    assert row.average["ndcg@10"] == pytest.approx(np.mean([row.scores[name]["ndcg@10"] for name in ("all", "two")]))
    assert set(row.differences) == {"all", "two"}
    assert "Avg nDCG@10" in comparison.to_markdown()


def test_the_table_in_three_forms(make_encoder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    encoder, data = make_encoder(), collection()
    models = {"plain": encoder, "heads": [with_heads(encoder, 1), with_heads(encoder, 2)]}
    comparison = evaluate(models, {"tiny": data}, results=None, train=data.qrels["train"], compressed=("int8", 8))
    narrow = comparison.to_markdown(wide=False).splitlines()
    assert narrow[0] == "| Model | Avg NDCG@10 | vs Baseline |"
    assert narrow[2] == f"| plain | {comparison['plain'].average['ndcg@10']:.4f} |  |"
    assert comparison.to_markdown().startswith("\n".join(narrow))
    for text in (str(comparison), comparison.to_markdown()):
        for part in ("nDCG@10", "MAP@100", "MRR@10", "recall@100", "verdict", "8 dims", "6 queries", "12 documents"):
            assert part in text
        assert f"mteb {comparison.versions['mteb']}" in text
    comparison.to_json(tmp_path / "comparison.json")
    assert Comparison.load(tmp_path / "comparison.json") == comparison


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}', '{"format": 99, "versions": {"st_asym": "9.0"}}'])
def test_a_file_that_is_no_comparison_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "comparison.json"
    path.write_text(content)
    with pytest.raises(
        ValueError, match=r"format 99.*9\.0" if "99" in content else "is not a comparison .* evaluate --json"
    ):
        Comparison.load(path)
    with pytest.raises(FileNotFoundError, match=r"^There is no file .*nope\.json\.$"):
        Comparison.load(tmp_path / "nope.json")


def test_the_random_state_is_left_alone(make_encoder: Make) -> None:
    encoder = make_encoder()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluate({"plain": encoder}, {"tiny": collection()}, results=None)
    assert torch.equal(torch.rand(2), expected)


def test_without_mteb_it_says_what_to_install(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ImportError, match=r"st_asym\[eval\]"):
        evaluate({"plain": make_encoder()}, "SciFact")


def test_names_are_loaded_when_they_are_asked_for() -> None:
    assert st_asym.evaluate is evaluate
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = st_asym.evaluat


@pytest.mark.parametrize(
    ("models", "error", "message"),
    [
        ({}, ValueError, "no models"),
        ({"a": []}, ValueError, "'a' has no models"),
        ({"a": 3}, TypeError, "not a int"),
        (["a"], TypeError, '{"name": model, ...}'),
        ({"": "path"}, TypeError, "name of a model"),
    ],
)
def test_what_is_no_model_is_refused(models: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        evaluate(models, {"tiny": collection()}, results=None)
    assert message in str(caught.value)


@pytest.mark.slow
def test_real_abstracts_score_as_by_the_formula(real_encoder: SentenceTransformer, shared_data: Path) -> None:
    data = load_data(shared_data / "scifact.zip")
    judged = dict(list(data.qrels["test"].items())[:10])
    wanted = {document for documents in judged.values() for document in documents}
    corpus = {key: text for key, text in data.corpus.items() if key in wanted or int(key) % 211 == 0}
    part = replace(data, corpus=corpus, qrels={"test": judged})
    comparison = evaluate({"MiniLM": real_encoder}, {"SciFact": part}, results=None, baselines=())
    found = comparison.queries["SciFact"]["scores"]["MiniLM"]["ndcg@10"][0]
    assert found == pytest.approx(ndcg_at_10(real_encoder, part), abs=1e-6)


def test_a_file_of_pairs_is_trained_on_without_the_queries_that_are_judged(make_encoder: Make, tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    file.write_text("query,document\n" + "".join(f"query {i},answers {i}\n" for i in range(40)))
    whole, part = as_retrieval_data(file), as_retrieval_data(file, hold_out_test=True)
    assert part.qrels["test"] == load_data(file).qrels["test"]
    assert part.qrels["test"].keys() | part.qrels["train"].keys() == whole.qrels["train"].keys()
    model = asymmetric_model(make_encoder())
    for name, data in (("whole", whole), ("part", part)):
        model.save_pretrained(str(tmp_path / name))
        save_provenance(tmp_path / name, model, data=data)
    found = {
        name: evaluate(
            {"plain": make_encoder(), name: str(tmp_path / name)}, file, results=None, train=file, baselines=()
        )
        for name in ("whole", "part")
    }
    assert found["whole"].notes[0].startswith("whole was trained on all queries of clicks, those judged here included")
    assert not any("was trained on" in note for note in found["part"].notes)
    assert found["part"].queries["clicks"]["seen"] == []  # each query has a document of its own
    (tmp_path / "whole" / "st_asym.json").write_text("{")
    # The model itself is as good as before.
    evaluate({"whole": str(tmp_path / "whole")}, file, results=None, baselines=())


def test_no_test_is_held_out_of_pairs_that_have_none_or_one() -> None:
    data = RetrievalData({"q": "a"}, {"d": "b", "e": "c"}, {"train": {"q": {"d": 1}}})
    with pytest.raises(ValueError, match=r"Of 1 query, [01] fall among those for the test .*: give more pairs"):
        as_retrieval_data(data, hold_out_test=True)
    assert as_retrieval_data(collection(), hold_out_test=True).qrels == as_retrieval_data(collection()).qrels


def test_without_a_cache_of_its_own_nothing_is_encoded_again(tiny_encoder: SentenceTransformer) -> None:
    texts = {name: f"{name} of no other test" for name in ("red", "big", "small")}
    data = RetrievalData({"q": texts["red"]}, {"d": texts["big"], "e": texts["small"]}, {"test": {"q": {"d": 1}}})
    options: dict[str, Any] = {"results": None, "baselines": ()}
    encoded = count_encoded(tiny_encoder)
    first = evaluate({"plain": tiny_encoder}, {"tiny": data}, **options)
    before = encoded()
    assert before >= 3
    assert evaluate({"plain": tiny_encoder}, {"tiny": data}, **options).queries == first.queries
    assert encoded() == before


@pytest.mark.parametrize("one", ["1", 1.0, np.int64(1)])
def test_grades_that_stand_for_integers_are_read_as_by_fit(make_encoder: Make, one: Any) -> None:
    data, models = collection(), {"plain": make_encoder()}
    qrels = {
        query: {key: one if grade == 1 else grade for key, grade in own.items()}
        for query, own in data.qrels["test"].items()
    }
    given = replace(data, qrels={**data.qrels, "test": qrels})
    found, expected = (evaluate(models, {"tiny": each}, results=None, baselines=()) for each in (given, data))
    assert found["plain"].average == expected["plain"].average
    given = replace(data, qrels={"test": {"q0": {"d0": 0.5}}})
    with pytest.raises(ValueError, match=r"1 grade in the split 'test' of tiny not a whole number: q0 d0"):
        evaluate(models, {"tiny": given}, results=None)


def test_the_splits_of_a_data_set_are_one_collection(make_encoder: Make) -> None:
    rows = [{"query": f"query {key}", "positive": text} for key, text in collection().corpus.items()]
    splits = DatasetDict(train=Dataset.from_list(rows[4:]), test=Dataset.from_list(rows[:4]))
    found = evaluate({"plain": make_encoder()}, splits, results=None, baselines=())
    (name,) = found.queries
    assert len(found.queries[name]["ids"]) == 4
    found = evaluate({"plain": make_encoder()}, {"mine": splits}, results=None, train={"mine": splits}, baselines=())
    assert found.queries["mine"]["seen"] == []


@pytest.mark.parametrize("split", ["train", "dev", "all"])
def test_of_the_file_that_is_judged_all_but_test_was_trained_on(make_encoder: Make, tmp_path: Path, split: str) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("query,positive\n" + "".join(f"query {i},frozen text {i}\n" for i in range(60)))
    found = evaluate({"plain": make_encoder()}, file, results=None, train=file, split=split, baselines=())
    trained = {query for part in ("train", "dev") for query in load_data(file).qrels[part]}
    assert set(found.queries["pairs"]["seen"]) == trained & set(found.queries["pairs"]["ids"])


def test_a_folder_of_mteb_that_cannot_be_made_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(13, "Permission denied", f"/nonexistent/.cache/{name}")

    monkeypatch.setattr("importlib.import_module", refuse)
    with pytest.raises(OSError, match=r"MTEB's folder cannot be made .*/\.cache/mteb'\): set MTEB_CACHE"):
        require_mteb()
