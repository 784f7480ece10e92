"""Vectors of any source, with ids or rows, become heads by the gate of ``fit``, or are left alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from fitting_helpers import DIMENSION, QUICK, rotated
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from st_asym import Heads, attach_heads, fit, fit_vectors, verify
from st_asym.data import RetrievalData
from st_asym.fitting.fit import rehearsed
from st_asym.fitting.fit_vectors import UnitRows, _read
from st_asym.fitting.report import FitReport
from st_asym.losses.documents import Relevance

COUNT = 60
# The closed forms and one that trains.
FEW = replace(QUICK, sides="both", init="pairs", contrastive="in-batch")
ONE = replace(FEW, whitening=1.0, epochs=1)


@pytest.fixture
def pairs() -> tuple[Any, Any]:
    """Queries, and documents that are their vectors turned: row i answers row i."""
    encoder, data = rotated(COUNT)
    return tuple(encoder.encode(list(texts.values())) for texts in (data.queries, data.corpus))


RELEVANT = {row: [row] for row in range(COUNT)}


def quick(queries: Any, documents: Any, relevant: Any = RELEVANT, **options: Any) -> Any:
    return fit_vectors(queries, documents, relevant, **{"settings": ONE, "show_progress_bar": False, **options})


def found_at_once(heads: Heads, queries: Any, documents: Any) -> float:
    nearest = (heads.query(queries) @ heads.document(documents).T).argmax(axis=1)
    return float((nearest == np.arange(len(queries))).mean())


def test_they_are_fitted_kept_saved_and_applied(pairs: Any, tmp_path: Path) -> None:
    queries, documents = pairs
    result = quick(queries, documents, settings=FEW)
    assert result.report.first_line.startswith("Trained heads are kept: nDCG@10 of held-out queries +")
    assert "to the untouched vectors" in result.report.first_line
    assert "encode" not in str(result.report)
    assert found_at_once(result.heads, queries, documents) > found_at_once(Heads(DIMENSION), queries, documents) + 0.2
    heads = Heads.load(result.save(tmp_path / "heads"))
    assert np.array_equal(heads.query(queries), result.heads.query(queries))
    # Their length does not matter, in training nor afterwards.
    np.testing.assert_allclose(heads.query(7 * queries), heads.query(queries), atol=1e-6)
    scaled = queries * np.linspace(1, 9, COUNT)[:, None].astype(np.float32), 3 * documents
    again = quick(*scaled, settings=FEW)
    np.testing.assert_allclose(again.heads.query(queries), heads.query(queries), atol=1e-4)


def test_rows_are_no_texts() -> None:
    random = np.random.default_rng(0)
    queries, documents = random.standard_normal((2, COUNT, DIMENSION))
    assert "BM25" not in str(quick(queries, documents).report), "that row 12 answers row 12"


def test_the_decision_is_that_of_fit(tmp_path: Path) -> None:
    encoder, data = rotated(COUNT)
    model = SentenceTransformer(modules=[*encoder, Normalize()], device="cpu")
    # In the order of rows, also where ids are sorted.
    queries, corpus = ({f"{key[0]}{int(key[1:]):02}": key for key in texts} for texts in (data.queries, data.corpus))
    relevant = {query: {document: 1} for query, document in zip(queries, corpus, strict=True)}
    renamed = RetrievalData(queries, corpus, {"train": relevant})
    options: Any = {"settings": FEW, "show_progress_bar": False}
    with_texts = fit(model, renamed, output_dir=tmp_path / "model", cache=tmp_path / "cache", **options)
    arrays = [model.encode(list(texts.values())) for texts in (queries, corpus)]
    ids: Any = {"query_ids": list(queries), "document_ids": np.array(list(corpus))}
    result = quick(*arrays, relevant, settings=FEW, **ids)
    assert result.report.chosen is not None
    assert with_texts.report.chosen is not None
    assert result.report.chosen.choice == with_texts.report.chosen.choice
    assert result.report.chosen.gain == pytest.approx(with_texts.report.chosen.gain, abs=1e-6)
    expected = with_texts.model.encode_query(list(queries.values()))
    np.testing.assert_allclose(result.heads.query(arrays[0]), expected, atol=1e-4)


def test_what_cannot_be_learnt_leaves_the_vectors_alone(pairs: Any, tmp_path: Path) -> None:
    queries, documents = pairs
    answers = np.random.default_rng(0).permutation(COUNT)
    result = quick(queries, documents, {row: [int(answers[row])] for row in range(COUNT)}, settings=FEW)
    assert result.report.first_line.startswith("No heads are kept, and the vectors are best left as they are: ")
    assert result.heads.query_layers == result.heads.document_layers == ()
    np.testing.assert_allclose(
        result.heads.query(queries), queries / np.linalg.norm(queries, axis=1, keepdims=True), atol=1e-6
    )
    with pytest.raises(ValueError, match="No heads were kept"):
        result.save(tmp_path / "heads")


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_caller_may_have_switched_gradients_off(pairs: Any, tmp_path: Path, off: Any) -> None:
    encoder, data = rotated(20)
    expected = quick(*pairs).heads.query(pairs[0])
    with off():
        found = quick(*pairs)
        options: Any = {"settings": ONE, "cache": tmp_path / "cache", "show_progress_bar": False}
        assert fit(encoder, data, output_dir=tmp_path / "model", **options).report.log
        assert not torch.is_grad_enabled()
    assert np.array_equal(found.heads.query(pairs[0]), expected)


def npy(array: Any, folder: Path) -> Path:
    np.save(folder / "vectors.npy", array)
    return folder / "vectors.npy"


def mapped(array: Any, folder: Path) -> Any:
    return np.load(npy(array, folder), mmap_mode="r")


def arrow(array: Any) -> Any:
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.ravel()), array.shape[1])


SOURCES: dict[str, Any] = {
    "numpy": lambda array, _: array,
    "memmap": mapped,
    "path": npy,
    "text path": lambda array, folder: str(npy(array, folder)),
    "torch": lambda array, _: torch.from_numpy(array).requires_grad_(),
    "Arrow": lambda array, _: arrow(array),
    "slice of Arrow": lambda array, _: arrow(np.concatenate([array[:3], array]))[3:],
    "chunked Arrow": lambda array, _: pyarrow.chunked_array([arrow(array[:7]), arrow(array[7:])]),
    "column": lambda array, _: pyarrow.table({"v": pyarrow.chunked_array([arrow(array)])})["v"],
    "float64": lambda array, _: array.astype(np.float64),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_read_as_it_is(source: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((20, DIMENSION)).astype(np.float32)
    rows = UnitRows(SOURCES[source](array, tmp_path), "documents")
    rows.check()
    assert rows.shape == array.shape
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[[3, 1]], unit[[3, 1]], atol=1e-6)
    np.testing.assert_allclose(rows[2:5], unit[2:5], atol=1e-6)
    np.testing.assert_allclose(rows[:], unit, atol=1e-6)


@pytest.mark.parametrize("contrastive", ["corpus", "in-batch"])
def test_documents_on_disk_give_what_documents_in_memory_give(
    pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contrastive: Any
) -> None:
    queries, documents = pairs
    settings = replace(ONE, contrastive=contrastive)
    monkeypatch.setattr("st_asym.fitting.fit_vectors._AT_ONCE", 7 * DIMENSION)
    monkeypatch.setattr("st_asym.fitting.candidates._DOCUMENTS_PER_STEP", 16)
    monkeypatch.setattr("st_asym.fitting.vectors.SEARCHED", 30)
    in_memory = quick(queries, documents, settings=settings)
    on_disk = quick(queries, npy(documents, tmp_path), settings=settings)
    assert on_disk.report.evidence == in_memory.report.evidence
    assert np.array_equal(on_disk.heads.document(documents), in_memory.heads.document(documents))


def test_hard_negatives_are_searched_in_stretches(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(ONE, hard_negatives=2)
    whole = quick(*pairs, settings=settings)
    monkeypatch.setattr("st_asym.fitting.vectors._PORTION", 7)
    parts = quick(*pairs, settings=settings)
    assert np.array_equal(whole.heads.query(pairs[0]), parts.heads.query(pairs[0]))


def test_dev_queries_are_judged_on_and_not_trained_on(pairs: Any) -> None:
    queries, documents = pairs
    train, dev = ({row: {row: 2} for row in RELEVANT if (row % 3 == 0) is judged} for judged in (False, True))
    report = quick(queries, documents, train, dev=dev).report
    assert report.counts == {"documents": COUNT, "train": 40, "dev": 20}
    assert report.chosen.seen.queries + report.chosen.unseen.queries == 60, "all, each held out once"
    assert report.held_out[2] == "The dev queries are like the training queries: all count alike."
    moved = queries.copy()
    moved[::3] += 4
    unlike = quick(moved, documents, train, dev=dev).report
    assert not unlike.kept
    assert "bear out by themselves" not in " ".join(unlike.held_out)
    wrong = ({row: [(row + 1) % COUNT] for row in judged} for judged in (train, dev))
    nothing = quick(moved, documents, next(wrong), dev=next(wrong)).report
    assert (nothing.kept, nothing.by_dev) == (False, False)
    assert "bear out by themselves" not in " ".join(nothing.held_out)
    with pytest.raises(ValueError, match=r"1 query is in relevant and in dev: 1"):
        quick(queries, documents, train, dev={1: [1]})


def test_where_dev_queries_decide_alone_the_report_says_so_and_is_of_these(pairs: Any) -> None:
    train, dev = ({row: [row] for row in RELEVANT if (row % 3 == 0) is judged} for judged in (False, True))
    del dev[0]  # too few to say whether they are like the training queries
    report = quick(*pairs, train, dev=dev).report
    assert (report.by_dev, report.kept) == (True, False)
    assert "no trained heads beat it on the dev queries, beyond noise" in report.first_line
    given, cut, why = report.held_out
    assert given.startswith("19 dev queries: 0 seen, 19 whose")
    assert cut.startswith("40 training queries were held out, each once, in 5 cuts")
    assert why.startswith("The dev queries decide alone")
    assert {one.cuts for one in report.candidates} == {1}
    # What comes after, such as BM25, is told of their queries alone.
    vectors, data = _read(*pairs, train, dev, None, None, 0)
    again = FitReport(ONE, counts=report.counts)
    options: dict[str, Any] = {"deadline": math.inf, "trials": 0, "show_progress_bar": False}
    _, parts, judged = rehearsed(vectors, data, again, DIMENSION, None, **options)
    assert (len(parts), len(judged)) == (6, 1)
    few = quick(*pairs, train, dev=dict(list(dev.items())[:4])).report
    assert few.held_out[1].startswith("Fewer than 5 dev queries cannot show a gain: give more, or none")


@pytest.mark.parametrize(
    ("labels", "turn", "expected"), [("judged", 0, True), ("judged", 1, False), ("titles", 0, False)]
)
def test_a_likely_gain_may_be_enough_only_where_people_judged_and_labels_are_no_accident(
    pairs: Any, monkeypatch: pytest.MonkeyPatch, labels: str, turn: int, expected: bool
) -> None:
    asked: list[bool] = []
    fitting = sys.modules["st_asym.fitting.fit"]  # of which the face of the room shows the function
    decide = fitting.decide

    def spy(*args: Any, sound: bool, **options: Any) -> Any:
        asked.append(sound)
        return decide(*args, sound=sound, **options)

    monkeypatch.setattr(fitting, "decide", spy)
    relevant = {row: [(row + turn) % COUNT] for row in RELEVANT}
    vectors, data = _read(*pairs, relevant, None, None, None, 0)
    options: dict[str, Any] = {"deadline": math.inf, "trials": 0, "show_progress_bar": False}
    report = FitReport(ONE, counts={"train": COUNT})
    rehearsed(vectors, replace(data, labels=labels), report, DIMENSION, None, **options)
    assert asked == [expected]


def test_queries_that_are_alike_are_one_in_the_decision(pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twins by their vectors, and queries about one document."""
    known: list[Any] = []
    fitting = sys.modules["st_asym.fitting.fit"]
    for name in ("decide", "are_sound"):
        original = getattr(fitting, name)

        def spy(*args: Any, original: Any = original, **options: Any) -> Any:
            known.append(options["groups"] if "groups" in options else args[1])
            return original(*args, **options)

        monkeypatch.setattr(fitting, name, spy)
    queries, documents = pairs
    twice = np.concatenate([queries, queries[:1]])
    quick(twice, documents, {**RELEVANT, COUNT: [7], 5: [3]})
    assert len(known) == 2
    for groups in known:
        assert groups[0] == groups[COUNT] == groups[7]
        assert groups[3] == groups[5]
        assert len(set(groups.values())) == COUNT - 2


def test_equal_vectors_are_one_document_and_own_documents_no_results(pairs: Any) -> None:
    queries, documents = pairs
    twins = np.concatenate([documents, documents[[4, 9, 4]]])
    ids = [f"d{row}" for row in range(COUNT)] + ["a", "b", "q7"]
    vectors, data = _read(
        queries, twins, {f"q{row}": [f"d{row}"] for row in range(COUNT)}, None,
        [f"q{row}" for row in range(COUNT)], ids, 0,
    )  # fmt: skip
    assert vectors.no_negatives == {4: {60: 1, 62: 1}, 7: {62: 1}, 9: {61: 1}}
    assert vectors.own == {7: 62}
    assert data.corpus[4] == "4"  # type: ignore[index]
    twice = np.concatenate([queries, queries[:1]])
    _, data = _read(twice, documents, {0: [0], COUNT: [1]}, None, None, None, 0)
    assert len(set(data.queries.values())) == 1


def spoilt(array: Any, row: int, value: float) -> Any:
    array = array.copy()
    array[row] = value
    return array


def with_null(array: Any) -> Any:
    values = array.ravel().tolist()
    values[2 * DIMENSION] = None
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values, pyarrow.float32()), DIMENSION)


WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "nan": (lambda q, d: (q, spoilt(d, 5, np.nan), RELEVANT), ValueError, "Row 5 of documents is not finite"),
    "zero": (lambda q, d: (spoilt(q, 3, 0), d, RELEVANT), ValueError, "Row 3 of queries is zero"),
    "dimensions": (lambda q, d: (q[:, :8], d, RELEVANT), ValueError, "queries have 8 dimensions and documents 12"),
    "flat": (lambda q, d: (q[0], d, RELEVANT), ValueError, r"one vector a row, not \(12,\)"),
    "empty": (lambda q, d: (q, d[:0], RELEVANT), ValueError, r"not \(0, 12\)"),
    "int8": (lambda q, d: (q, d.astype(np.int8), RELEVANT), TypeError, "documents must hold float16"),
    "lists": (lambda q, d: (q.tolist(), d, RELEVANT), TypeError, "queries must be an array of shape"),
    "path": (lambda q, _: (q, "vectors.parquet", RELEVANT), ValueError, r"only .npy files"),
    "no file": (lambda q, _: (q, "nowhere.npy", RELEVANT), FileNotFoundError, "nowhere.npy"),
    "null": (lambda q, d: (q, with_null(d), RELEVANT), ValueError, "Row 2 of documents has a missing value"),
    "list array": (lambda q, _: (q, pyarrow.array([[1.0]]), RELEVANT), TypeError, "fixed-size lists, not of list"),
    "row": (lambda q, d: (q, d, {0: [60]}), ValueError, "60 is no row: without document_ids, .* from 0 to 59"),
    "negative row": (lambda q, d: (q, d, {-1: [0]}), ValueError, "-1 is no row: without query_ids"),
    "text row": (lambda q, d: (q, d, {"q1": [0]}), ValueError, "'q1' is no row"),
    "no mapping": (lambda q, d: (q, d, [(0, 0)]), TypeError, "relevant must map queries"),
    "one document": (lambda q, d: (q, d, {0: 3}), TypeError, r"relevant\[0\] is 3: give a list"),
    "one text": (lambda q, d: (q, d, {0: "d3"}), TypeError, r"relevant\[0\] is 'd3': give a list"),
    "half a grade": (lambda q, d: (q, d, {0: {3: 0.5}}), TypeError, "whole numbers"),
    "nothing relevant": (lambda q, d: (q, d, {0: {3: 0}}), ValueError, r"relevant\[0\] has no document"),
    "all relevant": (lambda q, d: (q, d, {0: range(COUNT)}), ValueError, r"relevant\[0\] has every document"),
    "integers": (lambda q, d: (q, d.astype(">i8"), RELEVANT), TypeError, "float32 or float64, not >i8."),
}


def test_the_order_of_bytes_does_not_matter(pairs: Any) -> None:
    little, big = (quick(*(side.astype(order) for side in pairs), settings=ONE) for order in ("<f4", ">f4"))
    assert np.array_equal(big.heads.query(pairs[0]), little.heads.query(pairs[0]))


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong: str, pairs: Any) -> None:
    arguments, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message):
        quick(*arguments(*pairs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {"epochs": 2}}, r"settings must be Settings\(...\) or None, got {'epochs': 2}"),
        ({"expected_unseen": "0.3"}, "expected_unseen must be a number or None, got '0.3'"),
        ({"max_seconds": "10"}, "max_seconds must be a number or None, got '10'"),
        ({"trials": "1"}, "trials must be a whole number, got '1'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ],
)
def test_arguments_of_another_kind_are_named(pairs: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        quick(*pairs, **options)
    with pytest.raises(TypeError, match=message):
        fit("an/encoder", [("a", "b")], output_dir=tmp_path / "model", **options)


def test_ids_that_do_not_fit_are_named(pairs: Any) -> None:
    names = [f"d{row}" for row in range(COUNT)]
    relevant = {row: [f"d{row}"] for row in range(COUNT)}
    with pytest.raises(ValueError, match=r"document_ids has 59 ids for 60 vectors"):
        quick(*pairs, relevant, document_ids=names[1:])
    with pytest.raises(ValueError, match=r"document_ids has 'd1' twice, in rows 1 and 5"):
        quick(*pairs, relevant, document_ids=[*names[:5], "d1", *names[6:]])
    with pytest.raises(
        ValueError, match=r"1 judged id is not in document_ids: 'd99' is the first of them, .* begins with 'd0'"
    ):
        quick(*pairs, {**relevant, 0: ["d99"]}, document_ids=names)
    with pytest.raises(ValueError, match=r"Row 2 of documents \('d2'\) is not finite"):
        quick(pairs[0], spoilt(pairs[1], 2, np.inf), relevant, document_ids=names)


@pytest.mark.parametrize(
    "form", [torch.tensor, np.array, pyarrow.array, pandas.Series, iter], ids=lambda form: form.__name__
)
def test_ids_of_every_form_are_found(pairs: Any, form: Callable[[list[int]], Any]) -> None:
    relevant = {row + 100: [row + 500] for row in RELEVANT}
    ids = {"query_ids": [row + 100 for row in RELEVANT], "document_ids": [row + 500 for row in RELEVANT]}
    dev = {key: relevant.pop(key) for key in range(100, 120)}
    report = quick(*pairs, relevant, dev=dev, **{name: form(own) for name, own in ids.items()}).report
    assert report.counts == {"documents": COUNT, "train": 40, "dev": 20}


@pytest.mark.parametrize("content", ["text", "nothing", "half", "objects", "npz"])
def test_a_file_that_is_no_array_is_named(pairs: Any, tmp_path: Path, content: str) -> None:
    path = npy(pairs[1], tmp_path)
    whole = path.read_bytes()
    if content == "objects":
        np.save(path, np.array([None, 1], dtype=object))
    elif content == "npz":
        np.savez(tmp_path / "several.npz", pairs[1])
        path.write_bytes((tmp_path / "several.npz").read_bytes())
    else:
        path.write_bytes({"text": b"no array at all", "nothing": b"", "half": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match=r"documents is the path .*vectors.npy, which is no whole .npy file"):
        quick(pairs[0], path)


def test_ids_of_ten_million_rows_are_no_lists() -> None:
    relevance = Relevance({0: [9_999_999]}, range(10_000_000), {0: [3, -1]})  # type: ignore[arg-type, dict-item, list-item]
    assert relevance.of(torch.tensor([0])).columns.tolist() == [9_999_999, 3]


def test_saved_with_their_encoder_they_are_attached_to_it_and_to_no_other(tmp_path: Path) -> None:
    encoder, data = rotated(COUNT)
    model = SentenceTransformer(modules=[*encoder, Normalize()], device="cpu", prompts={"query": ""})
    queries, documents = (model.encode(list(texts.values())) for texts in (data.queries, data.corpus))
    result = quick(queries, documents, settings=FEW)
    path = result.save(tmp_path / "heads")
    assert verify(path).kind == "heads"
    with pytest.raises(ValueError, match=r"were fitted on vectors, and do not say by which encoder"):
        attach_heads(model, path)
    with pytest.raises(ValueError, match="does not end in a Normalize"):
        result.save(path, encoder=encoder)
    cut = SentenceTransformer(modules=[*encoder, Normalize()], device="cpu", truncate_dim=DIMENSION // 2)
    with pytest.raises(ValueError, match=r"cuts its vectors to 6 dimensions .* fit on vectors that are not cut"):
        result.save(path, encoder=cut)
    attached = attach_heads(model, result.save(path, encoder=model))
    texts = list(data.queries.values())
    np.testing.assert_allclose(attached.encode_query(texts), result.heads.query(queries), atol=1e-6)
    other = SentenceTransformer(modules=[*rotated(COUNT, seed=1)[0], Normalize()], device="cpu")
    with pytest.raises(ValueError, match="another encoder"):
        attach_heads(other, path)


def test_rows_that_are_alike_in_their_first_numbers_are_not_the_same() -> None:
    vectors = np.ones((3, 40), dtype=np.float32)
    vectors[1, -1] = 2
    rows = UnitRows(vectors, "documents")
    rows.check()
    assert rows.same(range(3)) == {0: [2], 2: [0]}
    assert rows.same([0, 1]) == {0: [2]}


def test_training_queries_with_the_vector_of_a_dev_query_are_left_out() -> None:
    random = np.random.default_rng(0)
    documents = random.standard_normal((40, 8)).astype(np.float32)
    queries = documents + random.standard_normal((40, 8)).astype(np.float32)
    relevant, dev = {row: [row] for row in range(40)}, {40 + row: [row] for row in range(10)}
    both = np.concatenate([queries, queries[:10]])
    report = fit_vectors(both, documents, relevant, dev=dev, settings=QUICK, show_progress_bar=False).report
    assert report.counts["train"] == 30
    assert report.notes == ("10 queries of relevant left out, with the vector of one of dev (0, 1, 2, 3, 4, ...).",)
    with pytest.raises(ValueError, match="each has the vector of a query of dev"):
        fit_vectors(both, documents, {0: [0], 1: [1]}, dev=dev, settings=QUICK, show_progress_bar=False)
