from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from evaluation_helpers import collection, ndcg_at_10, with_heads
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer

from st_asym import BeirModel, evaluate
from st_asym.data import RetrievalData
from st_asym.evaluation.tasks import benchmarks

Make = Callable[..., SentenceTransformer]


def write_beir(folder: Path, data: RetrievalData) -> Path:
    (folder / "qrels").mkdir(parents=True)
    rows = {"corpus": data.corpus, "queries": data.queries}
    for name, texts in rows.items():
        lines = [json.dumps({"_id": key, "title": "", "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    for split, judged in data.qrels.items():
        lines = [f"{q}\t{d}\t{grade}" for q, documents in judged.items() for d, grade in documents.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


def test_a_folder_a_zip_and_a_collection_score_the_same(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    data = collection()
    folder = write_beir(tmp_path / "tiny", data)
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*.*"):
            file.write(path, path.relative_to(tmp_path))
    comparison = evaluate({"plain": tiny_encoder}, [folder, str(archive), data], results=None)
    assert list(comparison.data) == ["tiny", "packed", "data set 3"]
    assert len({facts["version"] for facts in comparison.data.values()}) == 1
    for own in comparison.queries.values():
        assert own["scores"]["plain"]["ndcg@10"][0] == pytest.approx(ndcg_at_10(tiny_encoder, data), abs=1e-6)


def test_all_pairs_of_a_data_set_are_judged(tiny_encoder: SentenceTransformer) -> None:
    pairs = Dataset.from_dict({"query": ["red head", "big text"], "positive": ["small red head", "vector"]})
    comparison = evaluate({"plain": tiny_encoder}, pairs, results=None, baselines=())
    assert comparison.data["data set 1"]["queries"] == 2
    assert comparison.data["data set 1"]["documents"] == 2


def test_names_of_mteb_are_found_without_the_hub() -> None:
    (task,) = benchmarks("SciFact", "test")
    assert task.name == "SciFact"
    assert "mteb/scifact@" in task.version


def test_without_a_network_it_says_what_to_give(
    tiny_encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'mteb/scifact' on the Hub")

    monkeypatch.setattr(AbsTaskRetrieval, "load_data", unreachable)
    with pytest.raises(OSError, match=r"SciFact cannot be read from the Hub \(Couldn't reach.*path of a BEIR folder"):
        evaluate({"plain": tiny_encoder}, "SciFact", results=None, baselines=())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SciFacts", "neither a file or folder here nor a task of MTEB: Did you mean: 'SciFact'?"),
        ("clicks.cvs", "'clicks.cvs' is neither a file or folder here nor a task of MTEB."),
        ("STSBenchmark", "not of retrieval"),
        ("CQADupstackRetrieval", "aggregate of 12 tasks"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        benchmarks([name], "test")


def test_nothing_or_the_same_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        benchmarks([], "test")
    with pytest.raises(ValueError, match="1 name given to more than one data set: SciFact"):
        benchmarks(["SciFact", "SciFact"], "test")
    with pytest.raises(ValueError, match="A data set is called 'average'"):
        benchmarks({"average": collection()}, "test")


@pytest.mark.parametrize("name", ["query", "document", "Retrieval"])
def test_a_data_set_may_be_called_like_a_prompt(tiny_encoder: SentenceTransformer, name: str) -> None:
    tiny_encoder.prompts = {"query": "red ", "document": "big small "}
    scores = [evaluate({"m": tiny_encoder}, {one: collection()}, results=None, baselines=()) for one in (name, "tiny")]
    assert scores[0].rows[0].average == scores[1].rows[0].average


def test_a_local_collection_is_encoded_as_the_library_does(
    make_encoder: Make, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """Not with the prompts for a type of task, which neither ``encode_query`` nor ``fit`` takes."""
    encoder = make_encoder()
    encoder.prompts = {"query": "red ", "passage": "big small "}
    expected = evaluate({"m": encoder}, collection(), results=None, baselines=()).rows[0].average
    assert not [one for one in (*caplog.messages, *(str(each.message) for each in recwarn)) if "passage" in one]
    encoder.prompts |= {"Retrieval": "vector ", "Retrieval-query": "text "}
    assert evaluate({"m": encoder}, collection(), results=None, baselines=()).rows[0].average == expected


def test_what_is_left_out_is_said_of_its_data_set(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    bare = replace(data, qrels={"test": {**data.qrels["test"], "t0": {"d0": 0}}})
    found = evaluate({"m": tiny_encoder}, {"whole": data, "bare": bare}, results=None, baselines=())
    assert found.notes[0] == "1 query without a relevant document left out: t0 (bare)."


class TwoSplits(AbsTaskRetrieval):
    """A task as MTEB has them: titles apart, several splits."""

    metadata = TaskMetadata(
        name="TwoSplits",
        description="",
        dataset={"path": "two-splits", "revision": "1"},
        type="Retrieval",
        eval_splits=["dev", "test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, *_: Any, **__: Any) -> None:
        data = collection()
        rows = [
            {"id": key, **dict(zip(("title", "text"), text.split(), strict=True))} for key, text in data.corpus.items()
        ]
        queries = Dataset.from_list([{"id": key, "text": text} for key, text in data.queries.items()])
        judged = {"test": data.qrels["test"], "dev": {"t0": {"d0": 1}}}
        self.dataset = {"default": {}}
        for split, qrels in judged.items():
            self.dataset["default"][split] = {
                "corpus": Dataset.from_list(rows),
                "queries": queries.filter(lambda row, qrels=qrels: row["id"] in qrels),
                "relevant_docs": qrels,
                "top_ranked": None,
            }
        self.data_loaded = True


class Graded(TwoSplits):
    """A task of one's own, in which a grade may change."""

    grade = 1

    def load_data(self, *_: Any, **__: Any) -> None:
        super().load_data()
        self.dataset["default"]["test"]["relevant_docs"]["q0"] = {"d0": 1, "d1": self.grade}


class GradedOld(Graded):
    """The same in the form of MTEB 1."""

    def load_data(self, *_: Any, **__: Any) -> None:
        data = collection()
        self.corpus = dict.fromkeys(("dev", "test"), data.corpus)
        self.queries = dict.fromkeys(("dev", "test"), data.queries)
        judged = {query: {"d0": 1, "d1": self.grade} for query in data.queries}
        self.relevant_docs = dict.fromkeys(("dev", "test"), judged)
        self.data_loaded = True


@pytest.mark.parametrize("kind", [Graded, GradedOld])
def test_what_is_judged_anew_in_a_task_of_one_s_own_is_measured_anew(
    tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Graded]
) -> None:
    found = []
    for grade in (1, 3):
        monkeypatch.setattr(kind, "grade", grade)
        own = [evaluate({"plain": tiny_encoder}, kind(), results=where, baselines=()) for where in (tmp_path, None)]
        assert own[0].rows == own[1].rows
        found.append(own[0].rows[0].average)
    assert found[0] != found[1]


def test_each_split_of_a_task_is_a_data_set(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    comparison = evaluate({"plain": tiny_encoder}, TwoSplits(), results=None, train=data, baselines=())
    assert list(comparison.data) == ["TwoSplits (default, dev)", "TwoSplits (default, test)"]
    own = comparison.queries["TwoSplits (default, test)"]
    assert own["scores"]["plain"]["ndcg@10"][0] == pytest.approx(ndcg_at_10(tiny_encoder, data), abs=1e-6)
    assert own["seen"] == ["q0", "q1", "q4"]


@pytest.mark.parametrize(
    ("judged", "message"),
    [
        ({"q0": {"d0": 1, "d99": 1}, "nobody": {"d1": 1}}, "names 2 queries or documents that do not exist"),
        ({}, "no query of the split 'test' has a relevant document"),
        ({"q0": {"d0": 0}}, "no query of the split 'test' has a relevant document"),
    ],
)
def test_a_split_that_cannot_be_judged_is_refused(judged: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmarks({"tiny": replace(collection(), qrels={"test": judged})}, "test")


def test_a_missing_split_names_those_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"tiny has no split 'dev' to evaluate on; it has test, train\. Give one of"):
        benchmarks({"tiny": collection()}, "dev")


def test_an_empty_split_names_those_that_are_not() -> None:
    data = replace(collection(), qrels={"train": {"q0": {"d0": 1}}, "dev": {"q1": {"d0": 0}}, "test": {}})
    with pytest.raises(
        ValueError, match=r"'test' has a relevant document\. Queries of train have one: give split train"
    ):
        benchmarks({"tiny": data}, "test")


def test_the_queries_of_all_splits_are_judged_together(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    comparison = evaluate({"plain": tiny_encoder}, {"tiny": data}, results=None, split="all", baselines=())
    assert comparison.queries["tiny"]["ids"] == sorted({*data.qrels["train"], *data.qrels["test"]})


def test_queries_without_answers_and_documents_without_text_are_counted(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    data.corpus["d12"] = "  "
    data.qrels["test"]["t0"] = {"d1": 0}
    comparison = evaluate({"plain": tiny_encoder}, {"tiny": data}, results=None, baselines=())
    assert comparison.data["tiny"]["queries"] == 6
    assert comparison.data["tiny"]["documents"] == 13
    assert "1 query without a relevant document left out: t0." in comparison.notes
    assert "1 document without text kept: d12." in comparison.notes


def test_a_query_does_not_find_itself(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    alone = replace(data, queries={**data.queries, "d7": data.corpus["d7"]}, qrels={"test": {"d7": {"d8": 1}}})
    without = replace(alone, corpus={key: text for key, text in data.corpus.items() if key != "d7"})
    comparison = evaluate({"plain": tiny_encoder}, {"tiny": alone}, results=None, baselines=())
    found = comparison.queries["tiny"]["scores"]["plain"]["ndcg@10"][0]
    assert found == pytest.approx(ndcg_at_10(tiny_encoder, without), abs=1e-6)
    assert found[0] > ndcg_at_10(tiny_encoder, alone)[0]
    assert any("1 query has the id of a document" in note for note in comparison.notes)


def test_ids_that_are_the_same_by_chance_hide_no_relevant_document(tiny_encoder: SentenceTransformer) -> None:
    data = collection()
    chance = replace(data, queries={"d0": "big red", "d1": "text"}, qrels={"test": {"d0": {"d0": 1}, "d1": {"d2": 1}}})
    comparison = evaluate({"plain": tiny_encoder}, {"tiny": chance}, results=None, baselines=())
    found = comparison.queries["tiny"]["scores"]["plain"]["ndcg@10"][0]
    assert found == pytest.approx(ndcg_at_10(tiny_encoder, chance), abs=1e-6)


def test_beir_gives_the_scores_of_mteb(make_encoder: Make) -> None:
    pytest.importorskip("beir")
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir.retrieval.search.dense import DenseRetrievalExactSearch

    model, data = with_heads(make_encoder(), 1), collection()
    search = DenseRetrievalExactSearch(BeirModel(model), batch_size=4, show_progress_bar=False)
    retriever = EvaluateRetrieval(search, k_values=[10, 100], score_function="cos_sim")
    documents = {
        key: dict(zip(("title", "text"), text.split(" ", 1), strict=True)) for key, text in data.corpus.items()
    }
    run = retriever.retrieve(documents, {key: data.queries[key] for key in data.qrels["test"]})
    ndcg, mean_average_precision, recall, _ = retriever.evaluate(data.qrels["test"], run, retriever.k_values)
    row = evaluate({"heads": model}, {"tiny": data}, results=None, baselines=())["heads"]
    assert ndcg["NDCG@10"] == pytest.approx(row.average["ndcg@10"], abs=1e-5)
    assert mean_average_precision["MAP@100"] == pytest.approx(row.average["map@100"], abs=1e-5)
    assert recall["Recall@100"] == pytest.approx(row.average["recall@100"], abs=1e-5)


def test_the_adapter_takes_each_side_to_its_head(make_encoder: Make) -> None:
    model = with_heads(make_encoder(), 1)
    adapter = BeirModel(model)
    assert (adapter.encode_queries(["red head"], batch_size=2) == model.encode_query(["red head"])).all()
    documents = adapter.encode_corpus([{"title": "red", "text": "head"}, {"text": "head"}])
    assert documents == pytest.approx(model.encode_document(["red head", "head"]), abs=1e-6)
    for side, encode in (
        ("query", adapter.encode_queries),
        ("document", lambda _: adapter.encode_corpus([{"text": "a"}])),
    ):
        weight = next(layer.linear.weight for layer in model[-2].sub_modules[side])
        with torch.no_grad():
            weight.fill_(float("nan"))
        with pytest.raises(ValueError, match=f"not finite for 1 of 1 texts \\({side} side, rows 0\\)"):
            encode(["red head"])
    with pytest.raises(TypeError, match="not a str"):
        BeirModel("all-MiniLM-L6-v2")  # type: ignore[arg-type]


def test_files_are_called_as_they_are_less_their_endings(tiny_encoder: SentenceTransformer, tmp_path: Path) -> None:
    pairs = "query,document\n" + "".join(f"query {i},answers {i}\n" for i in range(3))
    names = ("clicks.2024-01.csv", "clicks.2024-02.csv", "one/week.csv", "other/week.csv")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(pairs)
    comparison = evaluate(
        {"plain": tiny_encoder}, [tmp_path / name for name in names], results=None, split="all", baselines=()
    )
    assert list(comparison.data) == ["clicks.2024-01", "clicks.2024-02", "one/week", "other/week"]
