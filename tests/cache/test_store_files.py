"""The files of a store come to nothing but corruption without being called so, and are noticed when they go."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from cache_helpers import python, tiny_bert
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from st_asym import CachedSentenceTransformer, CacheError, EmbeddingCache
from st_asym.cache.store import GROUP_BYTES, KEY_BYTES, VectorStore

KEYS = [b"g" * GROUP_BYTES + bytes([row]) * (KEY_BYTES - GROUP_BYTES) for row in range(3)]
VECTORS = np.eye(3, dtype=np.float32)
TEXTS = ["a", "bad", "cab"]


def filled(directory: Path) -> Path:
    VectorStore(directory).put(KEYS, VECTORS, "test")
    return directory


def is_intact(directory: Path) -> None:
    found = VectorStore(directory).get(KEYS)
    assert np.array_equal(found.vectors, VECTORS)


def error_of(job: Callable[[], Any]) -> str:
    """The error of a job in a process of its own, which must not advise to delete anything."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            job()
        except CacheError as error:
            os.write(write, str(error).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        error = pipe.read()
    os.waitpid(child, 0)
    assert "Delete" not in error
    assert "damaged" not in error
    return error


def test_little_address_space_is_no_damage(tmp_path: Path) -> None:
    os.truncate(filled(tmp_path) / "data.mdb", 1 << 40)  # a hole, as of a large cache
    gc.collect()

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 39, -1))
        VectorStore(tmp_path)

    error = error_of(job)
    assert "bytes of address space, and the system refuses them" in error
    assert "intact" in error
    os.truncate(tmp_path / "data.mdb", 1 << 24)
    is_intact(tmp_path)


def test_growth_without_address_space_keeps_what_it_has(tmp_path: Path) -> None:
    filled(tmp_path)

    def full(_: Any) -> None:
        raise lmdb.MapFullError

    def job() -> None:
        store = VectorStore(tmp_path)
        used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), -1))
        with pytest.raises(CacheError, match="the system refuses them"):
            store._environment._resize(1 << 40)
        store.put(KEYS, VECTORS, "test")
        with pytest.raises(CacheError, match="the system refuses them"):
            store._environment.run(full, write=True)
        store.put(KEYS, VECTORS, "test")
        store._environment._grow(None, lmdb.MapFullError())

    assert "bytes of address space, and the system refuses them" in error_of(job)
    is_intact(tmp_path)


def test_too_many_open_files_are_no_damage(tmp_path: Path) -> None:
    filled(tmp_path)
    gc.collect()

    def job() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        VectorStore(tmp_path)

    assert "Too many open files. That says nothing against its files" in error_of(job)
    is_intact(tmp_path)


def test_a_lock_that_may_not_be_opened_is_no_damage() -> None:
    if os.getuid():
        pytest.skip("needs a user whom files do not belong to")
    folder = Path(tempfile.mkdtemp())  # pytest keeps its own from other users
    filled(folder)
    gc.collect()
    folder.chmod(0o777)
    (folder / "data.mdb").chmod(0o666)
    (folder / "lock.mdb").chmod(0o600)

    def job() -> None:
        os.setgid(65534)
        os.setuid(65534)
        VectorStore(folder)

    assert "Permission denied. That says nothing" in error_of(job)
    is_intact(folder)
    shutil.rmtree(folder)


def test_a_lock_of_another_lmdb_is_named_alone(tmp_path: Path) -> None:
    filled(tmp_path)
    gc.collect()
    script = "import lmdb, sys; e = lmdb.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with (tmp_path / "lock.mdb").open("r+b") as file:
            file.write(b"another!" * 4)
        with pytest.raises(CacheError, match=r"delete \S+lock\.mdb, and nothing else"):
            VectorStore(tmp_path)
        holder.communicate("")
    is_intact(tmp_path)


def test_the_same_file_under_another_path_is_no_damage(tmp_path: Path) -> None:
    store = VectorStore(filled(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    os.link(tmp_path / "a" / "data.mdb", tmp_path / "b" / "data.mdb")
    with pytest.raises(CacheError, match=rf"open under another path, {tmp_path / 'a'}. Use one path"):
        VectorStore(tmp_path / "b")
    is_intact(tmp_path / "a")
    # With its lock as well, as through a bind mount, it is the same store.
    os.link(tmp_path / "a" / "lock.mdb", tmp_path / "b" / "lock.mdb")
    is_intact(tmp_path / "b")
    VectorStore(tmp_path / "b").put([KEYS[0]], VECTORS[:1], "test")
    assert len(store) == len(VectorStore(tmp_path / "b")) == 3


def test_through_a_bind_mount_it_is_the_same_store(tmp_path: Path) -> None:
    store = VectorStore(filled(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    mount = ["/bin/mount", "--bind", str(tmp_path / "a"), str(tmp_path / "b")]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        is_intact(tmp_path / "b")
        assert len(store) == 3
    finally:
        subprocess.run(["/bin/umount", "-l", str(tmp_path / "b")], check=True)


@pytest.fixture(scope="module")
def encoder(bert: Path) -> SentenceTransformer:
    return tiny_bert(bert).requires_grad_(False)


def in_another_process(directory: Path) -> int:
    """How many vectors another process finds."""
    script = """
import lmdb, sys
with lmdb.open(sys.argv[1], create=False) as environment, environment.begin() as txn:
    keys = [bytes(key) for key in txn.cursor().iternext(values=False)]
    assert b"format" in keys, keys
    print(sum(len(key) == 32 for key in keys))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout)


LOSSES: dict[str, Callable[[Path], Any]] = {
    "deleted": shutil.rmtree,
    "emptied": lambda folder: [path.unlink() for path in folder.iterdir()],
    "data deleted": lambda folder: (folder / "data.mdb").unlink(),
    "moved": lambda folder: folder.rename(folder.with_name("aside")),
    "replaced": lambda folder: (
        folder.rename(folder.with_name("aside")),
        shutil.copytree(folder.with_name("aside"), folder),
        (folder / "data.mdb").unlink(),
    ),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("use", ["the same", "a new one", "a cached model"])
def test_what_is_filled_after_a_loss_is_there_for_others(
    tmp_path: Path, encoder: SentenceTransformer, lose: Callable[[Path], Any], use: str
) -> None:
    directory = tmp_path / "cache"
    cache = EmbeddingCache(directory, dtype="float16")
    cache.fill(encoder, TEXTS)
    lose(directory)
    if use == "a cached model":
        CachedSentenceTransformer(encoder, cache).encode([*TEXTS, "new"])
    else:
        later = cache if use == "the same" else EmbeddingCache(directory, dtype="float16")
        assert later.fill(encoder, [*TEXTS, "new"]) == 4
        assert len(later) == len(cache) == 4
    assert in_another_process(directory) == 4
    assert EmbeddingCache(directory).stats()["dtype"] == "float16"


def test_what_is_lost_is_not_found_any_more(
    tmp_path: Path, encoder: SentenceTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    cache.fill(encoder, TEXTS)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(KeyError, match="3 of 3 texts are not in the cache"):
        cache.get(encoder, TEXTS)
    assert "was deleted or replaced while it was open" in caplog.text


def test_a_loss_between_encoding_and_commit_is_noticed(tmp_path: Path, encoder: SentenceTransformer) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    cache.fill(encoder, TEXTS)
    hook = encoder[1].register_forward_hook(lambda *_: shutil.rmtree(tmp_path / "cache"))
    try:
        cache.fill(encoder, ["new"])
    finally:
        hook.remove()
    assert in_another_process(tmp_path / "cache") == 1


def test_a_loss_within_the_commit_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VectorStore(tmp_path / "cache")
    put = VectorStore._put

    def delete_once(self: VectorStore, *arguments: Any) -> None:
        monkeypatch.undo()
        shutil.rmtree(tmp_path / "cache")
        put(self, *arguments)

    monkeypatch.setattr(VectorStore, "_put", delete_once)
    store.put(KEYS, VECTORS, "test")
    assert in_another_process(tmp_path / "cache") == 3


def test_a_directory_that_somebody_clears_all_the_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VectorStore(tmp_path / "cache")
    monkeypatch.setattr(VectorStore, "_put", lambda *_: shutil.rmtree(tmp_path / "cache"))
    with pytest.raises(CacheError, match="deleted or replaced again and again"):
        store.put(KEYS, VECTORS, "test")


def test_a_cache_of_another_kind_in_its_place_is_refused(tmp_path: Path, encoder: SentenceTransformer) -> None:
    cache = EmbeddingCache(tmp_path / "cache")
    cache.fill(encoder, TEXTS)
    EmbeddingCache(tmp_path / "other", dtype="float16")
    (tmp_path / "cache").rename(tmp_path / "aside")
    (tmp_path / "other").rename(tmp_path / "cache")
    with pytest.raises(ValueError, match="holds float16 vectors"):
        cache.fill(encoder, TEXTS)


def test_a_new_lock_is_taken_up(tmp_path: Path) -> None:
    store = VectorStore(filled(tmp_path))
    (tmp_path / "lock.mdb").unlink()
    store.put([KEYS[0]], VECTORS[:1], "test")
    assert (tmp_path / "lock.mdb").is_file()
    assert store._environment.is_in_place


def test_a_lost_directory_that_cannot_be_made_again_is_an_error(tmp_path: Path) -> None:
    words = SentenceTransformer(modules=[BoW(["a"])])
    cache = EmbeddingCache(tmp_path / "folder" / "cache")
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "folder").write_text("in the way")
    for _ in range(2):
        with pytest.raises(CacheError, match="cannot be made"):
            cache.fill(words, ["a"])
    (tmp_path / "folder").unlink()
    assert cache.fill(words, ["a"]) == 1
    assert in_another_process(tmp_path / "folder" / "cache") == 1


def test_its_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        filled(tmp_path / "cache")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()} == {0o664}


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 8192])
def test_a_file_that_is_cut_while_it_is_open_does_not_end_the_process(tmp_path: Path, size: int) -> None:
    ran = python(
        f"""
        import os
        import numpy as np
        from st_asym.cache.lmdb_file import CacheError
        from st_asym.cache.store import VectorStore

        store, keys = VectorStore({str(tmp_path)!r}), [bytes(31) + bytes([i]) for i in range(200)]
        store.put(keys, np.ones((200, 64), np.float32), "encoder")
        os.truncate({str(tmp_path / "data.mdb")!r}, {size})
        try:
            print(len(store.get(keys).missing))
        except CacheError as error:
            print("is damaged" in str(error))
        """
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[-1] == ("200" if size == 0 else "True")
