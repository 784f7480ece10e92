"""The example for corpora beyond one machine, on a local Ray of two workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from st_asym import EmbeddingCache, encoder_fingerprint

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - else its workers wait for the other tests
ray = pytest.importorskip("ray")
import embed_with_ray  # noqa: E402

SCRIPT = Path(embed_with_ray.__file__)
# Those of the tiny encoder.
WORDS = ["answers", "big", "document", "encoder", "frozen", "head", "learns", "query", "red", "small", "text", "vector"]
TEXTS = [" ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(1 + i % 9)) for i in range(300)]
TEXTS += [
    "007",
    "2024-01-01",
    "",
    " ",
    "two\nlines",
    "line\u2028separator \x85 and \x00 end\x00",
    "é ü 漢字",
    "x " * 2000,
]
DISTINCT = len(set(TEXTS))
NEW = ["a new text", "another new text"]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    # As from the script itself; the workers could not import it.
    ray.cloudpickle.register_pickle_by_value(embed_with_ray)
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def encoder(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder on disk, whose documents have a prompt."""
    path = str(tmp_path_factory.mktemp("encoder"))
    transformer = Transformer(str(tiny_bert), max_seq_length=32)
    modules = [transformer, Pooling(16, "mean"), Normalize()]
    SentenceTransformer(modules=modules, prompts={"query": "query ", "document": "document "}).save(path)
    return path


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> Path:
    path.write_text(
        "".join(json.dumps({"id": i, column: text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts))
    )
    return path


def write_parquet(path: Path, texts: list[str], column: str = "text") -> Path:
    pq.write_table(pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=50)
    return path


def check(folder: Path, encoder: str, texts: list[str]) -> None:
    """Import the shards, and compare with the plain encoder."""
    keys = [key for path in folder.glob("*.parquet") for key in pq.read_table(path).column("key").to_pylist()]
    assert len(keys) == len(set(keys)) == len(set(texts))
    cache, model = EmbeddingCache(folder.with_name("checked")), SentenceTransformer(encoder)
    assert cache.import_parquet(folder) == len(keys)
    found = cache.get(model, texts, prompt="document ", task="document")
    assert np.abs(found - model.encode_document(texts)).max() <= 1e-6


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder: str) -> Path:
    """A folder where the script has embedded all texts, as it stands."""
    folder = tmp_path_factory.mktemp("finished")
    corpus = write_parquet(folder / "corpus.parquet", [*TEXTS, *reversed(TEXTS)])
    arguments = [str(corpus), str(folder / "shards"), "--encoder", encoder, "--shards", "5"]
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--cache", str(folder / "cache")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert f"{DISTINCT} of {DISTINCT} distinct texts encoded" in process.stdout
    assert f"{DISTINCT} vectors imported into EmbeddingCache(" in process.stdout
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_the_script_gives_the_vectors_of_the_encoder_and_goes_on_where_it_was_interrupted(
    finished: Path, tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(list((finished / "shards").iterdir())) == 5
    assert len(EmbeddingCache(finished / "cache")) == DISTINCT
    check(finished / "shards", encoder, TEXTS)
    # One shard was not reached, another was being written, and the corpus has grown since; it is JSONL now.
    monkeypatch.setattr(embed_with_ray, "RANGE_BYTES", 1000)
    folder = shutil.copytree(finished / "shards", tmp_path / "shards")
    lost, *rest = folder.glob("*.parquet")
    missing = pq.read_metadata(lost).num_rows
    lost.rename(folder / "_0.writing")
    before = {path: path.read_bytes() for path in rest}
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [*TEXTS, *NEW, *TEXTS, *NEW], "body")
    counts = embed_with_ray.embed(corpus, folder, encoder, column="body", shards=5, workers=1)
    assert counts == {"distinct": DISTINCT + len(NEW), "encoded": missing + len(NEW)}
    assert len(list(folder.iterdir())) == 5
    assert sum(path.read_bytes() == content for path, content in before.items()) >= len(rest) - len(NEW)
    check(folder, encoder, [*TEXTS, *NEW])


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_refuses_what_it_cannot_use(tmp_path: Path, encoder: str) -> None:
    for corpus in (write_jsonl(tmp_path / "c.jsonl", TEXTS), write_parquet(tmp_path / "c.parquet", TEXTS)):
        with pytest.raises(ValueError, match=rf"{corpus} has no column 'body', but \['id', 'text'\]: name one of them"):
            embed_with_ray.embed(corpus, tmp_path / "shards", encoder, column="body")
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing\.jsonl"):
        embed_with_ray.embed(tmp_path / "missing.jsonl", tmp_path / "shards", encoder)
    (tmp_path / "c.csv").write_text("text\n")
    with pytest.raises(ValueError, match=r"c\.csv must be a \.jsonl file, or a \.parquet file or folder"):
        embed_with_ray.embed(tmp_path / "c.csv", tmp_path / "shards", encoder)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0123456789ab-00000-of-00064.parquet").touch()
    with pytest.raises(ValueError, match=r"is not one of 64 shards of the encoder .*: use another folder, or the"):
        embed_with_ray.embed(tmp_path / "c.jsonl", tmp_path / "shards", encoder)


def test_every_line_of_a_jsonl_file_belongs_to_one_range(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", TEXTS)
    path.write_bytes(b"\n" + path.read_bytes().rstrip(b"\n"))
    for size in (1, 7, 64, 1000, 1 << 20):
        ranges = [(start, start + size) for start in range(0, path.stat().st_size, size)]
        rows = [row for start, end in ranges for _, row in embed_with_ray.json_rows(path, start, end)]
        assert [row["text"] for row in rows] == TEXTS


def test_names_the_line_that_has_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    for bad in ('{"text": 5}', '{"text": null}', '{"other": "a"}', '{"text": "\\ud800"}'):
        path.write_text(f'{{"text": "fine"}}\n{bad}\n')
        batch = {"start": np.array([0]), "end": np.array([1000])}
        with pytest.raises(ValueError, match=r"for 'text' in the line at byte 17, not a text"):
            list(embed_with_ray.read_ranges(batch, path, "text"))


def test_equal_texts_meet_in_one_shard() -> None:
    half = len(TEXTS) // 2
    dealt: dict[str, set[int]] = {}
    for part in (TEXTS[:half], TEXTS[half:], TEXTS):
        table = embed_with_ray.deal(pa.table({"text": part}), 7)
        assert table.num_rows == len(set(part))
        for row in table.to_pylist():
            dealt.setdefault(row["text"], set()).add(row["shard"])
    assert all(len(shards) == 1 for shards in dealt.values())
    assert set.union(*dealt.values()) == set(range(7))
    for bad in ([1, 2], ["a", None]):
        with pytest.raises(ValueError, match=r"The column has (1|None), not a text"):
            embed_with_ray.deal(pa.table({"text": bad}), 7)


def test_a_damaged_shard_is_named_and_another_encoder_is_noticed(tmp_path: Path, encoder: str) -> None:
    fingerprint = encoder_fingerprint(SentenceTransformer(encoder))
    writer = embed_with_ray.ShardWriter(encoder, fingerprint, tmp_path, 1)
    group = pa.table({"shard": [0, 0], "text": ["red", "big"]})
    assert writer(group) == {"distinct": [2], "encoded": [2]}
    assert writer(group) == {"distinct": [2], "encoded": [0]}
    (shard,) = tmp_path.iterdir()
    shard.write_bytes(shard.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{shard} is not a whole Parquet file"):
        writer(group)
    with pytest.raises(ValueError, match="is not the encoder that the driver has"):
        embed_with_ray.ShardWriter(encoder, "00" * 32, tmp_path, 1)
