import errno
import gc
import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from cache_helpers import python
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import in_a_process

from st_asym.cache.lmdb_file import CacheError
from st_asym.cache.store import _FORMAT_KEY, GROUP_BYTES, Floats, VectorStore, _pack_json

GROUP = b"g" * GROUP_BYTES


def key(number: int, group: bytes = GROUP) -> bytes:
    return group + hashlib.blake2b(str(number).encode(), digest_size=20).digest()


def vectors(numbers: Iterable[int], dimension: int = 48) -> Floats:
    """The vector of each number, the same in every process."""
    rows = np.asarray(list(numbers), np.float32)[:, None]
    return np.sin(rows * 0.37 + np.arange(dimension, dtype=np.float32)[None, :]).astype(np.float32)


def put(store: VectorStore, numbers: Iterable[int], group: bytes = GROUP, dimension: int = 48) -> None:
    numbers = list(numbers)
    store.put([key(number, group) for number in numbers], vectors(numbers, dimension), "test")


def wrong(store: VectorStore, numbers: Iterable[int], dimension: int = 48) -> tuple[list[int], list[int]]:
    """Rows that are there with another vector than they should have, and those that are not there."""
    numbers = list(numbers)
    found = store.get([key(number) for number in numbers])
    if not found.vectors.size:
        return [], found.missing
    present = np.setdiff1d(np.arange(len(numbers)), found.missing)
    differ = (found.vectors[present] != vectors(numbers, dimension)[present]).any(axis=1)
    return present[differ].tolist(), found.missing


def reopened(directory: Path, **options: Any) -> VectorStore:
    """The store in a process of its own, as it were: no handle of this one is left."""
    gc.collect()
    return VectorStore(directory, **options)


def test_gives_back_what_was_put(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(100))
    assert wrong(store, range(100)) == ([], [])
    assert store.get([key(3), key(1000), key(3)]).missing == [1]
    assert len(store) == 100
    assert store.groups() == {GROUP: {"name": "test", "dimension": 48, "vectors": 100}}
    del store
    assert wrong(reopened(tmp_path), range(100)) == ([], [])


def test_nothing_in_nothing_out(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    store.put([], np.empty((0, 48), np.float32), "test")
    assert len(store) == 0
    assert store.get([]).vectors.size == 0
    assert store.get([key(0)]).missing == [0]
    assert store.remove(GROUP) == 0
    assert list(store.records(GROUP)) == []


def test_putting_again_replaces_and_counts_once(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(10))
    store.put([key(0)], vectors([5]), "test")
    assert len(store) == 10
    assert np.array_equal(store.get([key(0)]).vectors, vectors([5]))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc")
def test_pages_that_were_read_are_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VectorStore(tmp_path)
    put(store, range(4000), dimension=384)
    keys = [key(n) for n in range(4000)]

    def mapped() -> int:
        parts = Path("/proc/self/smaps").read_text().split(str(tmp_path.resolve() / "data.mdb") + "\n")[1:]
        return sum(int(part.split("Rss:")[1].split()[0]) for part in parts)

    monkeypatch.setattr("st_asym.cache.lmdb_file._MOST_MAPPED", 1 << 40)
    store.get(keys)
    assert mapped() > 5000
    monkeypatch.setattr("st_asym.cache.lmdb_file._MOST_MAPPED", 1 << 20)
    store.get(keys)
    assert mapped() < 1000
    assert np.array_equal(store.get(keys[:9]).vectors, vectors(range(9), 384))


def test_float16_is_remembered_and_rounds(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, dtype="float16")
    put(store, range(10))
    found = store.get([key(n) for n in range(10)]).vectors
    assert found.dtype == np.float32
    assert np.array_equal(found, vectors(range(10)).astype(np.float16).astype(np.float32))
    del store
    assert reopened(tmp_path).dtype == np.float16
    with pytest.raises(ValueError, match="holds float16 vectors, so it cannot be opened with dtype='float32'"):
        VectorStore(tmp_path, dtype="float32")
    with pytest.raises(ValueError, match="65,504"):
        VectorStore(tmp_path).put([key(0)], np.full((1, 48), 1e6, np.float32), "test")


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "int8"}, "dtype must be"), ({"max_bytes": 10}, "at least")]
)
def test_refuses_impossible_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorStore(tmp_path, **options)


def test_a_group_has_one_dimension(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(3))
    with pytest.raises(CacheError, match="vectors of 48 dimensions for this encoder, and now it gave 32"):
        put(store, range(3, 6), dimension=32)
    put(store, range(3), group=b"h" * GROUP_BYTES, dimension=32)
    assert len(store) == 6


def test_removes_one_group_and_uses_its_space_again(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(2000))
    put(store, range(50), group=b"h" * GROUP_BYTES)
    size = store.size()
    assert store.remove(GROUP) == 2000
    assert len(store) == 50
    assert list(store.groups()) == [b"h" * GROUP_BYTES]
    put(store, range(3000, 4500))
    assert store.size() <= size + (1 << 17)


def test_records_come_in_batches_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.cache.store.PORTION", 30)
    store = VectorStore(tmp_path)
    put(store, range(100))
    put(store, range(10), group=b"h" * GROUP_BYTES)
    batches = list(store.records(GROUP))
    assert [len(keys) for keys, _ in batches] == [30, 30, 30, 10]
    by_key = {k: v for keys, rows in batches for k, v in zip(keys, rows, strict=True)}
    assert sorted(by_key) == list(by_key)
    assert all(np.array_equal(by_key[key(n)], vectors([n])[0]) for n in range(100))


@settings(max_examples=15)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.lists(st.integers(0, 40), unique=True, max_size=20)),
            st.tuples(st.just("remove"), st.none()),
            st.tuples(st.just("reopen"), st.none()),
        ),
        max_size=12,
    )
)
def test_is_a_dictionary_on_disk(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]]) -> None:
    directory, expected = tmp_path_factory.mktemp("store"), set()
    store = VectorStore(directory)
    for step, numbers in steps:
        if step == "put":
            put(store, numbers)
            expected.update(numbers)
        elif step == "remove":
            assert store.remove(GROUP) == len(expected)
            expected.clear()
        else:
            del store
            store = reopened(directory)
        assert len(store) == len(expected)
        assert wrong(store, range(41)) == ([], sorted(set(range(41)) - expected))


def test_grows_beyond_its_first_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.cache.lmdb_file._FIRST_MAP", 1 << 17)
    store = VectorStore(tmp_path)
    for start in range(0, 4000, 500):
        put(store, range(start, start + 500))
    assert wrong(store, range(4000)) == ([], [])


def test_sees_what_another_process_added_beyond_its_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_asym.cache.lmdb_file._FIRST_MAP", 1 << 17)
    store = VectorStore(tmp_path)
    put(store, range(10))
    context = multiprocessing.get_context("fork")
    child = context.Process(target=put, args=(store, range(10, 5000)))
    child.start()
    child.join()
    assert child.exitcode == 0
    assert wrong(store, range(5000)) == ([], [])
    put(store, range(5000, 5010))
    assert len(store) == 5010


def test_two_writers_that_both_grow_it_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making the file longer must not cut off what the other has added meanwhile."""
    monkeypatch.setattr("st_asym.cache.lmdb_file._FIRST_MAP", 1 << 16)
    store = VectorStore(tmp_path)

    def write(first: int) -> None:
        for start in range(first, first + 4000, 200):
            put(store, range(start, start + 200))

    children = [multiprocessing.get_context("fork").Process(target=write, args=(n,)) for n in (0, 4000)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert wrong(store, range(8000)) == ([], [])


def test_goes_on_after_a_fork_in_both_processes(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(10))
    child = multiprocessing.get_context("fork").Process(target=put, args=(store, range(10, 20)))
    child.start()
    put(store, range(20, 30))
    child.join()
    assert child.exitcode == 0
    assert wrong(store, range(30)) == ([], [])


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)

    def write(first: int) -> None:
        for start in range(first, first + 600, 20):
            put(VectorStore(tmp_path), range(start, start + 20))

    children = [multiprocessing.get_context("fork").Process(target=write, args=(n,)) for n in (0, 400)]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        assert wrong(store, range(1000))[0] == []
    assert [child.exitcode for child in children] == [0, 0]
    assert wrong(store, range(1000)) == ([], [])
    assert len(store) == 1000


def test_threads_share_it(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(100))
    errors = []

    def work(number: int) -> None:
        try:
            put(store, range(number * 100, number * 100 + 100))
            assert wrong(store, range(100)) == ([], [])
        except Exception as error:  # the thread would swallow it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store) == 500


@pytest.mark.slow
def test_reads_a_directory_that_it_may_not_write() -> None:
    # pytest keeps its own folders from other users.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    put(VectorStore(folder / "store"), range(10))
    for lock in (True, False):
        if not lock:
            (folder / "store" / "lock.mdb").unlink()
        for path in (folder / "store").iterdir():
            path.chmod(0o444)
        (folder / "store").chmod(0o555)
        ran = python(
            f"""
            from st_asym.cache.store import CacheError, VectorStore
            import numpy as np
            store = VectorStore({str(folder / "store")!r})
            print(store.read_only, len(store), store.get([{key(3)!r}]).missing)
            try:
                store.put([{key(3)!r}], np.zeros((1, 48), np.float32), "test")
            except CacheError as error:
                print(error)
            try:
                VectorStore({str(folder / "store" / "new")!r})
            except CacheError as error:
                print(error)
            """,
            nobody=True,
        )
        (folder / "store").chmod(0o755)
        lines = ran.stdout.splitlines()
        assert lines[:1] == ["True 10 []"], ran.stderr
        assert "cannot be written to" in lines[1]
        assert "cannot be made" in lines[2]
    shutil.rmtree(folder)


def test_refuses_to_pass_its_limit_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, max_bytes=1 << 22)
    with pytest.raises(CacheError, match="reached its limit, max_bytes=4194304: raise it, or make room"):
        for start in range(0, 100_000, 100):
            put(store, range(start, start + 100))
    kept = len(store)
    assert kept == start >= 1000
    assert store.size() <= 1 << 22
    assert (tmp_path / "data.mdb").stat().st_blocks * 512 <= 1 << 22
    assert wrong(store, range(kept)) == ([], [])
    put(VectorStore(tmp_path), range(kept, kept + 2000))
    assert wrong(store, range(kept + 2000)) == ([], [])


def test_makes_room_under_its_limit(tmp_path: Path) -> None:
    store = VectorStore(tmp_path, max_bytes=1 << 20)
    for round_ in range(5):
        put(store, range(round_ * 1000, round_ * 1000 + 1000))
        store.remove(GROUP)
    assert len(store) == 0


def full(directory: Path) -> None:
    with pytest.raises(CacheError, match=r"could not be opened: the disk is full\."):
        VectorStore(directory)


def test_says_that_the_disk_is_full_and_keeps_what_it_has(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        store = VectorStore(disk)
        with pytest.raises(CacheError, match=r"could not be written: the disk is full\. Everything that was committed"):
            for start in range(0, 100_000, 100):
                put(store, range(start, start + 100))
        assert wrong(store, range(start)) == ([], [])
        assert len(store) == start >= 1000
        del store
        assert wrong(reopened(disk), range(start)) == ([], [])
        store = VectorStore(disk)
        store.remove(GROUP)
        put(store, range(100))
        (disk / "rest").write_bytes(bytes(shutil.disk_usage(disk).free))
        # A lock file of LMDB's is a hole, and writing into it would be the end of the process.
        (disk / "begun").mkdir()
        (disk / "begun" / "lock.mdb").touch()
        os.truncate(disk / "begun" / "lock.mdb", 65664)
        for name in ("new", "begun"):
            assert in_a_process(full, disk / name) == 0
        del store
        reopened(tmp_path / "other")
    finally:
        subprocess.run(["/bin/umount", "-l", str(disk)], check=True)


def test_says_that_a_write_failed_and_keeps_what_it_has(tmp_path: Path) -> None:
    """The limit on the size of files stands for any failing write."""
    store = VectorStore(tmp_path)
    put(store, range(1000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.size(), before[1]))
    try:
        with pytest.raises(CacheError, match=r"could not be written: .*Everything that was committed before is intact"):
            put(store, range(1000, 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert wrong(store, range(2000)) == ([], list(range(1000, 2000)))
    put(store, range(1000, 2000))
    assert wrong(store, range(2000)) == ([], [])


def test_refuses_another_format_and_says_the_way_out(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as environment, environment.begin(write=True) as txn:
        txn.put(_FORMAT_KEY, _pack_json(_FORMAT_KEY, {"version": 0, "dtype": "float32"}))
    with pytest.raises(CacheError, match="in format 0, this st_asym reads format 1: use another directory"):
        VectorStore(tmp_path)


def test_refuses_a_foreign_file(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "a")) as environment, environment.begin(write=True) as txn:
        txn.put(b"theirs", b"x")
    with pytest.raises(CacheError, match="not a vector cache of this library: use another directory"):
        VectorStore(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(CacheError, match=r"damaged .* Delete .*data\.mdb"):
        VectorStore(tmp_path / "b")


def test_a_damaged_vector_is_missing_and_can_be_put_again(tmp_path: Path) -> None:
    store = VectorStore(tmp_path)
    put(store, range(100))
    del store
    path = tmp_path / "data.mdb"
    content = path.read_bytes()
    at = content.index(vectors([7]).tobytes()) + 21
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    store = reopened(tmp_path)
    found = store.get([key(n) for n in range(100)])
    assert found.missing == found.damaged == [7]
    assert sum(len(keys) for keys, _ in store.records(GROUP)) == 99
    put(store, [7])
    assert wrong(store, range(100)) == ([], [])
    assert len(store) == 100


def test_the_record_of_another_key_is_damaged(tmp_path: Path) -> None:
    """A misled pointer shows a whole record, but not that of the key."""
    store = VectorStore(tmp_path)
    put(store, [1, 2])
    with store._environment._handle.begin(write=True) as txn:
        txn.put(key(1), txn.get(key(2)))
    assert store.get([key(1), key(2)]).damaged == [0]


def cut(directory: Path, share: float) -> int:
    """A store of 300 vectors whose file ends after a share of what is used; how long it is then."""
    store = VectorStore(directory)
    put(store, range(300))
    left = int(store.size() * share)
    del store
    gc.collect()
    os.truncate(directory / "data.mdb", left)
    return left


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_mended_or_refused(tmp_path: Path, share: float) -> None:
    cut(tmp_path, share)
    assert _survey(tmp_path) in ("mended", "refused")


def test_a_file_cut_short_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(tmp_path, 0.5)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CacheError, match="its file ends too early"):
        VectorStore(tmp_path)


def test_a_file_cut_short_is_called_damaged_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left = cut(tmp_path, 0.9999)
    for _ in range(2):
        with pytest.raises(CacheError, match=r"damaged \(its file ends too early\)\. Delete"):
            VectorStore(tmp_path)
    assert caplog.messages == []
    assert (tmp_path / "data.mdb").stat().st_size == left


def test_a_place_that_cannot_be_a_cache_is_a_cache_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clicks.csv").write_text("query,document")
    with pytest.raises(
        CacheError, match=r"clicks\.csv cannot be made or looked into: it is a file, and a cache is a folder"
    ):
        VectorStore(tmp_path / "clicks.csv")

    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(CacheError, match=r"cannot be made or looked into: .*Permission denied"):
        VectorStore(tmp_path / "of another user")


def test_flipped_bits_never_give_a_wrong_vector(tmp_path: Path) -> None:
    """A tree that leads astray may lose what is put into it, which ``EmbeddingCache.embed`` refuses to go on with."""
    store = VectorStore(tmp_path / "store")
    put(store, range(300))
    used = store.size()
    del store
    outcomes = []
    content = (tmp_path / "store" / "data.mdb").read_bytes()
    chance = random.Random(0)  # noqa: S311 - no secret
    for number in range(40):
        damaged = bytearray(content)
        for _ in range(8):
            damaged[chance.randrange(used)] ^= 1 << chance.randrange(8)
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "data.mdb").write_bytes(damaged[:used])
        os.truncate(directory / "data.mdb", len(content))  # a hole, as the file has it
        outcomes.append(_survey(directory))
    assert "wrong" not in outcomes
    assert set(outcomes) <= {"mended", "refused", "still missing"}


def _survey(directory: Path) -> str:
    """What a forked process finds in a store that may end it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            os.write(write, _outcome(directory).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        outcome = pipe.read()
    _, status = os.waitpid(child, 0)
    return outcome if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


def _outcome(directory: Path) -> str:
    expected = vectors(range(300))
    keys = [key(number) for number in range(300)]
    try:
        store = VectorStore(directory)
        for _ in range(2):
            found = store.get(keys)
            rows = np.setdiff1d(np.arange(300), found.missing)
            if found.vectors.size and not np.array_equal(found.vectors[rows], expected[rows]):
                return "wrong"
            store.put(keys, expected, "test")
        return "mended" if not store.get(keys).missing else "still missing"
    except CacheError:
        return "refused"
    except Exception as error:  # reported to the test
        return repr(error)


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_plain_file_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    put(VectorStore(tmp_path / "other"), range(3))
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / name
    if kind == "link":
        path.symlink_to(tmp_path / "other" / name)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(CacheError, match=rf"{name} is no plain file"):
        VectorStore(tmp_path / "store")


def test_a_tree_that_leads_in_a_circle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = VectorStore(tmp_path)
    put(store, range(3))

    class Circle:
        def set_range(self, _: bytes) -> bool:
            return True

        def iternext(self, *, values: bool) -> Iterable[bytes]:  # noqa: ARG002
            while True:
                yield from sorted(key(n) for n in range(3))

    class Transaction:
        def cursor(self) -> Circle:
            return Circle()

    monkeypatch.setattr(store._environment, "run", lambda job, **_: job(Transaction()))
    with pytest.raises(lmdb.CorruptedError, match="not in order"):
        list(store.records(GROUP))
