"""What Windows lacks or refuses is taken away: everything that is saved, read and kept works without it."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_asym import (
    EmbeddingCache,
    Settings,
    asymmetric_model,
    attach_heads,
    export_side,
    fit,
    save_heads,
    save_provenance,
    verify,
)
from st_asym.data.files import check_place, new_folder, write_text
from st_asym.evaluation.run_folder import Asked
from st_asym.trust import folder as folder_module
from st_asym.trust.folder import Folder
from st_asym.trust.provenance import keep_what_is_not_ours

PAIRS = [("red head", "big red head"), ("small text", "the small text"), ("query", "answers query")]
MISSING = (
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_DIRECTORY",
    "O_CLOEXEC",
    "getuid",
    "geteuid",
    "fork",
    "chown",
    "uname",
)


def open_below(path: Path) -> list[str]:
    """Files below a path that this process has open or mapped."""
    names = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    names += [line.split(None, 5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()]
    return [name for name in names if name == str(path) or name.startswith(f"{path}/")]


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch, patch_os: Callable[[str, Callable[..., Any]], None]) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc to see which files are open")
    for name in MISSING:
        monkeypatch.delattr(os, name, raising=False)
    for name in ("fcntl", "resource", "pwd", "grp"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(folder_module, "_OPEN", os.O_RDONLY)

    class Library(ctypes.CDLL):
        def __init__(self, name: Any, *arguments: Any, **options: Any) -> None:
            if name is None:
                raise TypeError("LoadLibrary() argument 1 must be str, not None")
            super().__init__(name, *arguments, **options)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    _refuse_open_files(patch_os)


def _refuse_open_files(patch_os: Callable[[str, Callable[..., Any]], None]) -> None:
    """Nothing that is open is renamed or removed, and nothing is renamed onto what is there."""
    rename, replace, unlink = os.rename, os.replace, os.unlink

    def check(path: Any) -> None:
        if isinstance(path, str | os.PathLike) and open_below(Path(path).resolve()):
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))

    def careful_rename(source: Any, target: Any, **options: Any) -> None:
        check(source)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", str(target))
        rename(source, target, **options)

    def careful_replace(source: Any, target: Any, **options: Any) -> None:
        check(source)
        check(target)
        replace(source, target, **options)

    def careful_unlink(path: Any, **options: Any) -> None:
        check(path)
        unlink(path, **options)

    patch_os("rename", careful_rename)
    patch_os("replace", careful_replace)
    patch_os("unlink", careful_unlink)


@pytest.mark.usefixtures("windows")
def test_fit_saves_what_verifies_and_can_be_fitted_again(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    settings = Settings(epochs=1)
    options: dict[str, Any] = {"settings": settings, "cache": tmp_path / "vectors", "show_progress_bar": False}
    for _ in range(2):
        fit(tiny_encoder, PAIRS, output_dir=tmp_path / "model", **options)
        assert verify(tmp_path / "model").provenance is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "vectors"]


@pytest.mark.usefixtures("windows")
def test_heads_and_exports(tmp_path: Path, make_encoder: Callable[..., SentenceTransformer]) -> None:
    model = asymmetric_model(make_encoder(), init="random").eval()
    for _ in range(2):
        save_heads(model, tmp_path / "heads")
    again = attach_heads(make_encoder(), tmp_path / "heads")
    assert np.array_equal(again.encode_query(["red"]), model.encode_query(["red"]))
    export_side(model, "query", tmp_path / "query")
    verify(tmp_path / "query")


@pytest.mark.usefixtures("windows")
def test_a_large_cache_is_read_through(tmp_path: Path, tiny_encoder: SentenceTransformer) -> None:
    cache = EmbeddingCache(tmp_path / "vectors")
    texts = [f"{a} {b} {c}" for a in "abcdefghij" for b in "abcdefghij" for c in "abcdef"]
    cache.fill(tiny_encoder, texts)
    cache.store._environment._touched = 1 << 40
    cache.store._environment.used_bytes = lambda: 1 << 40  # type: ignore[method-assign]
    assert cache.get(tiny_encoder, texts).shape == (600, 16)
    assert EmbeddingCache(tmp_path / "vectors").fill(tiny_encoder, texts) == 0


@pytest.mark.usefixtures("windows")
def test_a_model_that_is_in_use_is_not_replaced_and_the_new_one_is_kept(
    tmp_path: Path, tiny_encoder: SentenceTransformer
) -> None:
    def save() -> None:
        with new_folder(tmp_path / "model", lambda _: None, keep_what_is_not_ours) as new:
            model = asymmetric_model(tiny_encoder)
            model.save_pretrained(str(new))
            save_provenance(new, model)

    save()
    message = r"may have it open\. The result is whole, in \S+model\.new\."
    with (tmp_path / "model" / "model.safetensors").open("rb"), pytest.raises(PermissionError, match=message):
        save()
    verify(tmp_path / "model")
    verify(tmp_path / "model.new")
    save()
    check_place(tmp_path / "model")


@pytest.mark.usefixtures("windows")
def test_a_file_that_is_being_read_is_replaced_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "table.md", "old")
    reader = path.open()
    monkeypatch.setattr("time.sleep", lambda _: reader.close())
    write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.usefixtures("windows")
def test_a_link_is_not_followed_where_the_system_would(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text('{"key": 1}')
    folder = Folder(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="no longer a plain file"):
        folder.open("config.json")


def test_data_on_another_drive_are_named_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def relpath(*_: Any) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    (tmp_path / "pairs.csv").touch()
    monkeypatch.setattr("os.path.relpath", relpath)
    content = Asked(str(tmp_path / "pairs.csv")).as_json(tmp_path / "run")
    assert content is not None
    assert Asked.of_json(content, tmp_path / "run").tasks == [str(tmp_path / "pairs.csv")]
