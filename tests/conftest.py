"""Encoders for the tests: tiny random ones for shapes and plumbing, the real one where the claim is about real text."""

from __future__ import annotations

import gc
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: one thread each, and for what they start
    os.environ["OMP_NUM_THREADS"] = "1"

from hypothesis import settings

if TYPE_CHECKING:  # the process that only hands out tests to workers need not wait for them
    from sentence_transformers import SentenceTransformer

WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small", "text", "vector"]
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("thorough", max_examples=100, deadline=None)
settings.load_profile("quick")  # another by --hypothesis-profile
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish() -> None:
    """Each training run collects garbage: not among the objects of all modules that were imported until here."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def make_encoder(tiny_bert: Path) -> Callable[..., SentenceTransformer]:
    """Build a tiny encoder that ends in ``pooling``, ``normalize`` or ``dense``."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    def make(ending: str = "normalize", **options: object) -> SentenceTransformer:
        transformer = Transformer(str(tiny_bert), max_seq_length=32)
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


# Reads one line of JSON a call, and answers with one.
_WITHOUT_ST_ASYM = """
import contextlib, io, json, sys, traceback
sys.modules["st_asym"] = None
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    code, *arguments = json.loads(line)
    sys.argv, printed, error = ["-c", *arguments], io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(printed):
            exec(code, {"__name__": "__main__", "sys": sys})
    except BaseException:
        error = traceback.format_exc()
    print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)
"""


@pytest.fixture(scope="session")
def run_without_st_asym(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Run code in another process, that has never imported st_asym and cannot, and return what it prints.

    It is one process for all tests of a worker: the libraries are imported once.
    """
    log = tmp_path_factory.mktemp("without_st_asym") / "log.txt"
    command = [sys.executable, "-c", _WITHOUT_ST_ASYM]
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None

        def run(code: str, *arguments: str) -> str:
            process.stdin.write(json.dumps([code, *arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, log.read_text()
            printed, error = json.loads(answer)
            assert not error, error
            return printed

        yield run
        process.stdin.close()
