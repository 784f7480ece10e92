"""Encoders for the tests: tiny random ones for shapes and plumbing, the real one where the claim is about real text."""

from __future__ import annotations

import atexit
import copy
import functools
import gc
import importlib.metadata
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="st_asym-assets-")  # vectors do not go where the user's are
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: one thread each, and for what they start
    os.environ["OMP_NUM_THREADS"] = "1"

import jinja2
from hypothesis import settings
from without_st_asym import answer

if TYPE_CHECKING:  # the process that only hands out tests to workers need not wait for them
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer

WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small", "text", "vector"]
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")  # another by --hypothesis-profile
_WITHOUT_ST_ASYM = pytest.StashKey[tuple[BaseProcess, Connection]]()
atexit.register(shutil.rmtree, os.environ["HF_ASSETS_CACHE"], ignore_errors=True)
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# What the library does anew for each model is done once: it reads which packages there are, and compiles its card.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)
jinja2.Environment.compile = functools.cache(jinja2.Environment.compile)  # type: ignore[method-assign]


def pytest_collection_finish() -> None:
    """Each training run collects garbage: not among the objects of all modules that were imported until here."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Heads, dropout and shuffles the same in each run: a test that passes by luck fails for everybody or nobody."""
    from transformers import set_seed

    set_seed(0)


@pytest.fixture(autouse=True)
def no_areas_under_abstention_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of an evaluation by MTEB goes into figures of its own that nobody here looks at."""
    if (metrics := sys.modules.get("mteb._evaluators.retrieval_metrics")) is not None:
        monkeypatch.setattr(metrics, "nauc", lambda *_: 0.0, raising=False)


@pytest.fixture(autouse=True)
def no_pictures_in_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of the time of a small fit goes into the picture in its card, which the tests of cards look at."""
    monkeypatch.setattr("st_asym.report.card.find_spec", lambda _: None)


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots are made and not rendered, which takes most of the time of a page: for what stands beside them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _self, target, **_: target.write(b"<svg/>"))


@pytest.fixture(scope="session", autouse=True)
def no_seeds_of_absent_devices() -> None:
    """Each seeding of torch notes, with a traceback, that CUDA is to be seeded once it is there."""
    import torch

    if not torch.cuda.is_available():
        torch.cuda.manual_seed_all = lambda _: None


@pytest.fixture
def patch_os(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Put a function into the place of one of ``os``, also where pathlib of Python 3.10 keeps the original."""

    def patch(name: str, function: Callable[..., Any]) -> None:
        monkeypatch.setattr(os, name, function)
        if (accessor := getattr(pathlib, "_NormalAccessor", None)) is not None:
            monkeypatch.setattr(accessor, name, staticmethod(function))

    return patch


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved BERT of two layers and 16 dimensions with random weights and dropout."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_transformer(tiny_bert: Path) -> Transformer:
    """The one that is copied: loading it takes ten times as long."""
    from sentence_transformers.base.modules import Transformer

    return Transformer(str(tiny_bert), max_seq_length=32)


@pytest.fixture
def make_encoder(tiny_transformer: Transformer) -> Callable[..., SentenceTransformer]:
    """Build a tiny encoder that ends in ``pooling``, ``normalize`` or ``dense``."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling

    def make(ending: str = "normalize", **options: object) -> SentenceTransformer:
        transformer = copy.deepcopy(tiny_transformer)
        modules = [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]
        if ending == "normalize":
            modules.append(Normalize())
        if ending == "dense":
            torch.manual_seed(1)
            modules.append(Dense(16, 12))
        return SentenceTransformer(modules=modules, device="cpu", **options)

    return make


@pytest.fixture
def tiny_encoder(make_encoder: Callable[..., SentenceTransformer]) -> SentenceTransformer:
    return make_encoder()


@pytest.fixture(scope="session")
def real_encoder_path() -> str:
    from packaged_encoder import packaged_encoder

    try:
        return packaged_encoder()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def real_encoder(real_encoder_path: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(real_encoder_path, device="cpu")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the shared collections are not at {SHARED_DATA}")
    return SHARED_DATA


def pytest_collection(session: pytest.Session) -> None:
    """Split off the process of ``run_without_st_asym`` while st_asym is not imported, and the libraries are."""
    if session.config.getoption("dist", "no") != "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        return  # the workers have theirs
    gc.disable()  # nothing that is imported is garbage
    import sentence_transformers  # noqa: F401

    fork = sys.platform == "linux" and "st_asym" not in sys.modules
    context = multiprocessing.get_context("fork" if fork else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs, ours), daemon=True)
    process.start()
    theirs.close()
    session.config.stash[_WITHOUT_ST_ASYM] = process, ours


@pytest.fixture(scope="session")
def run_without_st_asym(pytestconfig: pytest.Config) -> Callable[..., str]:
    """Run code in another process, that has never imported st_asym and cannot, and return what it prints.

    It is one process for all tests of a worker: the libraries are imported once.
    """
    _, connection = pytestconfig.stash[_WITHOUT_ST_ASYM]

    def run(code: str, *arguments: str) -> str:
        connection.send((code, *arguments))
        assert connection.poll(300)
        printed, error = connection.recv()
        assert not error, error
        return str(printed)

    return run
