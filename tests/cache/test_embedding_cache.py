import errno
import logging
import pickle
import random
import shutil
import timeit
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks import sigkill
from cache_helpers import save_tiny_bert, tiny_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from st_asym import CacheError, EmbeddingCache, asymmetric_model, encoder_fingerprint, record_keys
from st_asym.cache import encoding as filling_module
from st_asym.cache.embedding_cache import open_cache
from st_asym.cache.encoding import batches

TEXTS = ["a bad cab", "deaf", "", "a bad cab", " ", "x" * 100_000, "a", "é ü", "bad\ncab", "bad cab"]


@pytest.fixture(scope="module")
def encoder(bert: Path) -> SentenceTransformer:
    return tiny_bert(bert)


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


class Counting:
    """Count the texts that an encoder tokenizes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        original = SentenceTransformer.preprocess

        def preprocess(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            self.texts += inputs
            return original(model, inputs, *args, **kwargs)

        monkeypatch.setattr(SentenceTransformer, "preprocess", preprocess)


def close(a: Any, b: Any) -> bool:
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-6)


def test_gives_what_the_encoder_gives(cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    assert cache.fill(encoder, TEXTS) == len(set(TEXTS))
    found = cache.get(encoder, TEXTS)
    assert found.dtype == np.float32
    assert close(found, encoder.encode(TEXTS))
    assert cache.fill(encoder, TEXTS) == 0
    assert len(cache) == len(set(TEXTS))


def test_encodes_each_distinct_text_once(
    cache: EmbeddingCache, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    cache.fill(encoder, iter(TEXTS))
    cache.embed(encoder, [*TEXTS, "new", "new"])
    cache.fill(asymmetric_model(encoder), TEXTS)
    assert Counter(counting.texts) == Counter({*TEXTS, "new"})


def test_prompts_precisions_and_options_are_kept_apart(cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    short = {"text": {"max_length": 4}}
    cache.fill(encoder, ["abc def"])
    cache.fill(encoder, ["abc def"], prompt="query: ")
    cache.fill(encoder, ["abc def"], processing_kwargs=short)
    assert cache.fill(encoder, ["abc def"], prompt="", task="query") == 0
    assert close(cache.get(encoder, ["abc def"], prompt="query: "), encoder.encode(["abc def"], prompt="query: "))
    assert close(
        cache.get(encoder, ["abc def"], processing_kwargs=short), encoder.encode(["abc def"], processing_kwargs=short)
    )
    with pytest.raises(KeyError, match="1 of 1 texts are not in the cache, the first in row 0: 'abc def'"):
        cache.get(encoder, ["abc def"], precision="bf16")
    assert len(cache) == 3
    # A prompt is not a text that begins with it.
    with pytest.raises(KeyError):
        cache.get(encoder, ["query: abc def"])


def test_an_encoder_that_tells_queries_from_documents_has_both(
    cache: EmbeddingCache, encoder: SentenceTransformer
) -> None:
    text = ["a text of some more words"]
    encoder[0].query_length = 5
    try:
        for task in ("query", "document"):
            assert cache.fill(encoder, text, task=task) == 1
            assert close(cache.get(encoder, text, task=task), encoder.encode(text, task=task))
        assert not close(cache.get(encoder, text, task="query"), cache.get(encoder, text, task="document"))
    finally:
        encoder[0].query_length = None


def test_bf16_is_close(cache: EmbeddingCache, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = encoder.encode(TEXTS)
    cache.fill(encoder, TEXTS, precision="bf16")
    found = cache.get(encoder, TEXTS, precision="bf16")
    assert ((found * plain).sum(axis=1) > 0.999).all()
    monkeypatch.setattr(filling_module, "has_bfloat16", lambda _: False)
    assert close(cache.embed(encoder, ["without hardware"], precision="bf16"), encoder.encode(["without hardware"]))
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'bf16', got 'fp8'"):
        cache.fill(encoder, TEXTS, precision="fp8")  # type: ignore[arg-type]


def test_a_processor_with_bfloat16_uses_it(encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling_module, "has_bfloat16", lambda _: True)
    with filling_module.encoding(encoder, precision="bf16", devices=None) as encode:
        assert not close(encode(["abc"], 1), encoder.encode(["abc"]))


def test_a_processor_that_emulates_bfloat16_does_not_have_it() -> None:
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(768, 768, dtype=dtype)
        seconds.append(min(timeit.repeat(lambda matrix=matrix: matrix @ matrix, number=1, repeat=4)))
    if max(seconds) > 2 * min(seconds):  # so that it can be told
        assert filling_module.has_bfloat16(torch.device("cpu")) == (seconds[1] < seconds[0])


def test_several_encoders_side_by_side(cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    other = SentenceTransformer(modules=[BoW(["a", "bad", "cab"])])
    cache.fill(encoder, TEXTS)
    cache.fill(other, TEXTS)
    assert cache.get(other, TEXTS[:1]).tolist() == other.encode(TEXTS[:1]).tolist()
    facts = cache.stats()
    assert {(e["dimension"], e["vectors"]) for e in facts["encoders"]} == {(32, 9), (3, 9)}
    assert facts["vectors"] == len(cache) == 18
    assert encoder_fingerprint(other).startswith(
        next(e["fingerprint"] for e in facts["encoders"] if e["name"] == "BoW")
    )
    assert cache.remove(encoder) == 9
    assert len(cache) == 9
    with pytest.raises(KeyError):
        cache.get(encoder, TEXTS)
    assert close(cache.get(other, TEXTS), other.encode(TEXTS))


def test_no_texts(cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    assert cache.fill(encoder, []) == 0
    assert cache.get(encoder, []).shape == cache.embed(encoder, []).shape == (0, 0)


@pytest.mark.parametrize("bad", [5, None, 1.5, ("a", "b"), b"bytes", ["list"]])
def test_names_the_row_of_what_is_not_a_string(cache: EmbeddingCache, encoder: SentenceTransformer, bad: Any) -> None:
    for call in (cache.fill, cache.get, cache.embed):
        with pytest.raises(TypeError, match=r"Row 2 is .* the cache holds vectors of strings"):
            call(encoder, ["a", "b", bad])


def test_names_the_row_that_the_encoder_cannot_encode(cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    with pytest.raises(TypeError):
        encoder.encode(["\ud800"])
    with pytest.raises(ValueError, match=r"Row 1, '\\ud800 lone', cannot be encoded"):
        cache.fill(encoder, ["fine", "\ud800 lone", "fine too"])
    words = SentenceTransformer(modules=[BoW(["\ud800", "a"])])
    assert cache.embed(words, ["\ud800 a", "a"]).tolist() == words.encode(["\ud800 a", "a"]).tolist()


def test_refuses_a_string_that_is_encoded_as_a_picture(
    cache: EmbeddingCache, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it names may change, and with it the vector."""
    picture = "https://example.org/a.png"
    assert cache.fill(encoder, [picture]) == 1  # a text, for an encoder of texts
    monkeypatch.setattr(SentenceTransformer, "modalities", ["text", "image"])
    for ask in (cache.fill, cache.get, cache.embed):
        with pytest.raises(ValueError, match=r"Row 1, 'https.*', is read by this encoder as the image that it names"):
            ask(encoder, ["a", picture])
    assert cache.fill(encoder, ["a picture: https://example.org/a.png", "a.png"]) == 2


def test_float16_keeps_three_digits(tmp_path: Path, encoder: SentenceTransformer) -> None:
    cache = EmbeddingCache(tmp_path, dtype="float16")
    found = cache.embed(encoder, TEXTS)
    assert found.dtype == np.float32
    assert np.abs(found - encoder.encode(TEXTS)).max() < 5e-4
    assert (cache.get(encoder, TEXTS) == found).all()


def test_a_damaged_vector_is_encoded_anew_with_a_warning(
    tmp_path: Path, encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    plain = encoder.encode(TEXTS)
    stored = EmbeddingCache(tmp_path).embed(encoder, TEXTS)
    path = tmp_path / "data.mdb"
    content = bytearray(path.read_bytes())
    content[content.index(stored[1].tobytes()) + 5] ^= 16
    path.write_bytes(content)
    cache = EmbeddingCache(tmp_path)
    with pytest.raises(KeyError, match="the first in row 1"):
        cache.get(encoder, TEXTS)
    with caplog.at_level(logging.WARNING, "st_asym"):
        assert close(cache.embed(encoder, TEXTS), plain)
    assert "1 of 10 vectors" in caplog.text
    assert close(cache.get(encoder, TEXTS), plain)
    assert len(cache) == len(set(TEXTS))


def test_commits_as_it_goes(
    cache: EmbeddingCache, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was encoded before an error stays."""
    monkeypatch.setattr(filling_module, "_MOST_TEXTS", 2)
    monkeypatch.setattr(filling_module, "_COMMIT_SECONDS", 0.0)
    with pytest.raises(ValueError, match="Row 0"):
        cache.fill(encoder, ["\ud800", *(f"text {letter}" for letter in "abcdef")])
    assert len(cache) == 6
    monkeypatch.setattr(filling_module, "_COMMIT_SECONDS", 1e9)
    with pytest.raises(ValueError, match="Row 0"):
        cache.fill(encoder, ["\ud800", *(f"other text {letter}" for letter in "abcdef")])
    assert len(cache) == 12


def test_refuses_to_pass_its_limit(tmp_path: Path, encoder: SentenceTransformer) -> None:
    cache = EmbeddingCache(tmp_path, max_bytes=1 << 17)
    with pytest.raises(CacheError, match="reached its limit, max_bytes=131072"):
        for start in range(0, 10_000, 50):
            cache.fill(
                encoder,
                [f"{n:05} ".translate(str.maketrans("0123456789", "abcdefghij")) for n in range(start, start + 50)],
            )
    assert len(cache) == start
    assert cache.stats()["bytes"] <= 1 << 17


def test_a_read_only_cache_answers_and_says_what_is_missing(
    tmp_path: Path, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    EmbeddingCache(tmp_path).fill(encoder, TEXTS)
    monkeypatch.setattr("os.access", lambda *_: False)
    cache = EmbeddingCache(tmp_path)
    assert close(cache.embed(encoder, TEXTS), encoder.encode(TEXTS))
    with pytest.raises(CacheError, match=r"1 texts are missing in .*, which cannot be written to"):
        cache.embed(encoder, [*TEXTS, "new"])


def test_another_process_opens_it_itself(cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    cache.fill(encoder, TEXTS)
    other = pickle.loads(pickle.dumps(cache))  # noqa: S301 - our own
    assert repr(other) == repr(cache)
    assert close(other.get(encoder, TEXTS), cache.get(encoder, TEXTS))


@pytest.mark.slow
def test_the_librarys_pool_fills_it_and_the_encoder_stays_where_it_was(
    cache: EmbeddingCache, encoder: SentenceTransformer
) -> None:
    assert cache.fill(encoder, TEXTS, devices=["cpu", "cpu"]) == len(set(TEXTS))
    assert close(cache.get(encoder, TEXTS), encoder.encode(TEXTS))


def test_parquet_goes_out_and_in(tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer) -> None:
    cache.fill(encoder, TEXTS)
    assert cache.export_parquet(tmp_path / "vectors.parquet", encoder) == len(set(TEXTS))
    other = EmbeddingCache(tmp_path / "other")
    assert other.import_parquet(tmp_path / "vectors.parquet") == len(set(TEXTS))
    assert (other.get(encoder, TEXTS) == cache.get(encoder, TEXTS)).all()
    assert [e["name"] for e in other.stats()["encoders"]] == [e["name"] for e in cache.stats()["encoders"]]
    assert other.import_parquet(tmp_path / "vectors.parquet") == len(set(TEXTS))
    assert len(other) == len(set(TEXTS))


def test_imports_shards_that_were_embedded_elsewhere(
    tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer
) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, part in enumerate((TEXTS[:5], TEXTS[5:])):
        keys = record_keys(encoder_fingerprint(encoder), part)
        pq.write_table(pa.table({"key": keys, "vector": list(encoder.encode(part))}), folder / f"{number}.parquet")
    assert cache.import_parquet(folder) == len(TEXTS)
    assert close(cache.get(encoder, TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("kind", [pa.large_list, pa.list_view, pa.large_list_view])
def test_imports_lists_of_any_kind(
    tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer, kind: Any
) -> None:
    keys = record_keys(encoder_fingerprint(encoder), TEXTS)
    vectors = pa.array(encoder.encode(TEXTS).tolist(), kind(pa.float32()))
    pq.write_table(pa.table({"key": keys, "vector": vectors}), tmp_path / "vectors.parquet")
    assert cache.import_parquet(tmp_path / "vectors.parquet") == len(TEXTS)
    assert close(cache.get(encoder, TEXTS), encoder.encode(TEXTS))


def test_refuses_parquet_that_it_cannot_use(
    tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer
) -> None:
    def refuse(message: str, **columns: Any) -> None:
        pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=message):
            cache.import_parquet(tmp_path / "bad.parquet")

    keys = record_keys(encoder_fingerprint(encoder), ["a", "b"])
    refuse("but not 'vector'", key=keys)
    refuse("not 32 bytes long", key=[b"short", b"er"], vector=[[1.0], [2.0]])
    refuse("different dimensions", key=keys, vector=[[1.0], [2.0, 3.0]])
    refuse("without a vector", key=keys, vector=[[1.0], None])
    refuse("not finite", key=keys, vector=[[1.0], [float("nan")]])
    refuse("'vector' of type string: it must be a list of floats", key=keys, vector=["a", "b"])
    refuse("'vector' of type list", key=keys, vector=[["a"], ["b"]])
    with pytest.raises(ValueError, match="has no vectors of this encoder"):
        cache.export_parquet(tmp_path / "none.parquet", encoder)
    assert len(cache) == 0


def _shards(folder: Path, encoder: SentenceTransformer) -> list[Path]:
    """Three shards of twenty texts each."""
    folder.mkdir()
    paths = [folder / f"{number}.parquet" for number in range(3)]
    for number, path in enumerate(paths):
        part = EmbeddingCache(folder / "caches" / str(number))
        part.fill(encoder, [f"{'abc'[number]} {'x' * length}" for length in range(20)])
        part.export_parquet(path, encoder)
    return paths


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_shard_is_named_and_nothing_is_imported(
    tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer, share: float
) -> None:
    middle = _shards(tmp_path / "shards", encoder)[1]
    content = middle.read_bytes()
    middle.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"1\.parquet is not a whole Parquet file: .* Nothing was imported"):
        cache.import_parquet(tmp_path / "shards")
    assert len(cache) == 0
    middle.write_bytes(content)
    assert cache.import_parquet(tmp_path / "shards") == len(cache) == 60


def test_flipped_bits_in_a_shard_never_give_a_wrong_vector(
    tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer
) -> None:
    path = _shards(tmp_path / "shards", encoder)[0]
    cache.import_parquet(path)
    keys, expected = next(cache.store.records(next(iter(cache.store.groups()))))
    content, chance = path.read_bytes(), random.Random(0)  # noqa: S311 - no secret
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        other = EmbeddingCache(tmp_path / str(number))
        try:
            other.import_parquet(path)
        except ValueError:
            refused += 1
            assert len(other) == 0
            continue
        found = other.store.get(keys)
        assert not found.missing
        assert np.array_equal(found.vectors, expected)
    assert refused > 40


def test_a_foreign_file_among_shards_is_named_and_nothing_is_imported(
    tmp_path: Path, cache: EmbeddingCache, encoder: SentenceTransformer
) -> None:
    folder = tmp_path / "shards"
    _shards(folder, encoder)
    pq.write_table(pa.table({"id": [1], "text": ["theirs"]}), folder / "theirs.parquet")
    with pytest.raises(ValueError, match=r"theirs\.parquet has the columns \['id', 'text'\], but not 'key'"):
        cache.import_parquet(folder)
    assert len(cache) == 0
    keys = record_keys(encoder_fingerprint(encoder), ["a", "b"])
    pq.write_table(pa.table({"key": keys, "vector": [[1.0], [2.0]]}), folder / "theirs.parquet")
    with pytest.raises(ValueError, match=r"theirs\.parquet has vectors of 1 dimensions .* have 32\. Nothing was"):
        cache.import_parquet(folder)
    assert len(cache) == 0
    (folder / "theirs.parquet").unlink()
    (folder / "_half_written.parquet").write_bytes(b"PAR1")
    (folder / "notes.txt").write_text("not a shard")
    assert cache.import_parquet(folder) == 60


def test_says_that_there_is_nothing_to_import(tmp_path: Path, cache: EmbeddingCache) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*missing\.parquet"):
        cache.import_parquet(tmp_path / "missing.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no file whose name ends in \.parquet"):
        cache.import_parquet(tmp_path / "empty")


ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)


@given(
    a=st.tuples(ANY_TEXT, ANY_TEXT, st.sampled_from(["fp32", "bf16"]), st.sampled_from([None, "query", "document"])),
    b=st.tuples(ANY_TEXT, ANY_TEXT, st.sampled_from(["fp32", "bf16"]), st.sampled_from([None, "query", "document"])),
)
def test_different_texts_have_different_keys(a: tuple[Any, ...], b: tuple[Any, ...]) -> None:
    def key(prompt: str, text: str, precision: str, task: str | None) -> bytes:
        (only,) = record_keys("ab" * 32, [text], prompt=prompt, task=task, precision=precision)
        return only

    assert (key(*a) == key(*b)) == (a == b)
    assert key(*a)[:12] == bytes.fromhex("ab" * 12)


def test_keys_never_change() -> None:
    """A cache filled by one version is read by the next; change the format of the store if this must change."""
    (key,) = record_keys("00" * 32, ["text"], prompt="query: ")
    assert key.hex() == "0000000000000000000000009a8ca2c77cea49d90ddd84b3ee4e7a91dfec1182"


@given(
    sizes=st.lists(st.integers(0, 400), max_size=60),
    budget=st.integers(1, 500),
    limit=st.one_of(st.none(), st.integers(1, 64)),
    workers=st.integers(1, 3),
)
def test_batches_hold_every_text_once_within_the_budget(
    sizes: list[int], budget: int, limit: int | None, workers: int
) -> None:
    texts = ["x" * size for size in sizes]
    rows: list[int] = []
    for block, batch_size in batches(texts, max_tokens=limit, batch_tokens=budget, on_cpu=True, workers=workers):
        tokens = min(max(sizes[row] for row in block) // 3 + 2, limit or 1000)
        assert batch_size == 1 or batch_size * tokens <= budget
        rows += block
    assert sorted(rows) == list(range(len(texts)))
    assert [sizes[row] for row in rows] == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    """The script has two hundred: examples/benchmarks/sigkill.py."""
    totals = sigkill.run(20, tmp_path)
    assert totals["kills"] == 20
    assert totals["while_filling"] >= 10
    assert totals["committed"] > 0
    assert totals["lost"] == totals["wrong"] == totals["miscounted"] == 0


@settings(max_examples=10)
@given(portions=st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=8), max_size=5))
def test_any_order_of_fills_gives_the_same_vectors(
    tmp_path_factory: pytest.TempPathFactory, portions: Iterable[list[str]]
) -> None:
    cache, model, seen = EmbeddingCache(tmp_path_factory.mktemp("c")), sigkill.tiny_encoder(4), set()
    for portion in portions:
        assert cache.fill(model, portion) == len(set(portion) - seen)
        seen.update(portion)
        shuffled = random.Random(0).sample(sorted(seen), len(seen))  # noqa: S311 - no secret
        if shuffled:
            assert close(cache.get(model, shuffled), model.encode(shuffled))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_tiny_bert(tmp_path / "bert")
    model = tiny_bert(tmp_path / "bert")
    with torch.no_grad():
        model.transformers_model.embeddings.word_embeddings.weight.fill_(float("nan"))
    cache = EmbeddingCache(tmp_path / "cache")
    with pytest.raises(ValueError, match="not finite for 2 of 2 texts"):
        cache.fill(model, ["a", "b"])
    assert len(cache) == 0


def test_what_a_fill_loses_with_its_folder_is_encoded_again(
    tmp_path: Path, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("st_asym.cache.encoding._COMMIT_SECONDS", 0.0)
    cache, texts = EmbeddingCache(tmp_path / "vectors"), ["a", "b c", "d e f", "g h i j"]
    put, calls = cache.store.put, []

    def put_and_clear(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            shutil.rmtree(tmp_path / "vectors")
        put(*arguments)

    monkeypatch.setattr(cache.store, "put", put_and_clear)
    assert cache.fill(encoder, texts, batch_tokens=1) == 5
    assert cache.get(encoder, texts).shape == (4, 32)


def test_an_export_that_fails_leaves_what_was_there(
    tmp_path: Path, encoder: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, path = EmbeddingCache(tmp_path / "vectors"), tmp_path / "vectors.parquet"
    cache.fill(encoder, ["a", "b"])
    assert cache.export_parquet(path, encoder) == 2
    before = path.read_bytes()

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.store, "records", full)
    with pytest.raises(OSError, match=r"vectors.parquet could not be written: .*Make room"):
        cache.export_parquet(path, encoder)
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"vectors", "vectors.parquet"}


def test_the_usual_place_that_cannot_be_written_is_named_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied", "/nonexistent/hf/assets")

    monkeypatch.setattr("huggingface_hub.cached_assets_path", refuse)
    with pytest.raises(CacheError, match=r"Permission denied.*: name another with cache=, .* --cache, or set HF_HOME"):
        open_cache(None)
