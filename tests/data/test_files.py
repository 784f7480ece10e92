"""What is written is there as a whole or not at all, and replaces nothing that it must not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from st_asym.data.files import check_place, new_folder, take_over, write_text


def anything(_: Path) -> None:
    """Whatever is there may be replaced."""


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "table.md", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("table.md", "old")]
    write_text(path, "new \ud800", errors="replace")
    assert path.read_text() == "new ?"


def test_a_folder_is_no_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder: name a file"):
        write_text(tmp_path, "text")
    assert list(tmp_path.parent.glob(f".{tmp_path.name}*")) == []


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "card").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "card", "a card")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "card").is_symlink()


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    output = tmp_path / "model"
    for text in ("first", "second"):
        with new_folder(output, anything) as new:
            new.mkdir()
            (new / "weights").write_text(text)
    with pytest.raises(OSError, match="disk full"), new_folder(output, anything) as new:
        new.mkdir()
        raise OSError("disk full")
    assert (output / "weights").read_text() == "second"
    assert list(tmp_path.iterdir()) == [output]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(tmp_path: Path) -> None:
    output = tmp_path / "model"
    output.mkdir()
    with pytest.raises(FileNotFoundError), new_folder(output, anything):
        pass  # nothing was made
    assert list(tmp_path.iterdir()) == [output]


def test_what_came_into_the_place_meanwhile_stays(tmp_path: Path) -> None:
    output = tmp_path / "model"

    def empty(place: Path) -> None:
        if place.exists() and any(place.iterdir()):
            raise FileExistsError("taken")

    with pytest.raises(FileExistsError, match="taken"), new_folder(output, empty) as new:
        new.mkdir()
        output.mkdir()
        (output / "thesis.txt").write_text("years")
    assert (output / "thesis.txt").read_text() == "years"
    assert list(tmp_path.iterdir()) == [output]


def put_many(output: Path, name: str, done: list[str]) -> None:
    for _ in range(200):
        with new_folder(output, anything) as new:
            new.mkdir()
            for file in ("a", "b"):
                (new / file).write_text(name)
    done.append(name)


def test_two_that_write_to_one_place_leave_one_whole_folder(tmp_path: Path) -> None:
    output = tmp_path / "model"
    done: list[str] = []
    writers = [threading.Thread(target=put_many, args=(output, name, done)) for name in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(done) == ["x", "y"]
    assert (output / "a").read_text() == (output / "b").read_text()
    assert list(tmp_path.iterdir()) == [output]


def test_threads_may_write_one_file(tmp_path: Path) -> None:
    texts = [letter * 100_000 for letter in "abcdefgh"]
    errors: list[Exception] = []

    def write(text: str) -> None:
        try:
            for _ in range(10):
                write_text(tmp_path / "table.md", text)
        except Exception as error:  # the thread would swallow it
            errors.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert (tmp_path / "table.md").read_text() in texts
    assert len(list(tmp_path.iterdir())) == 1


def test_a_long_name_is_written_as_well(tmp_path: Path) -> None:
    assert write_text(tmp_path / ("n" * 250), "text").read_text() == "text"


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_what_is_put_there_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "model", anything) as new:
            (new / "0_Dense").mkdir(parents=True)
            for name in ("model.safetensors", "0_Dense/model.safetensors"):
                save_file({"a": np.ones(3)}, new / name)
                (new / name).chmod(0o600)
            (new / "0_Dense").chmod(0o700)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*")}
    assert modes["model.safetensors"] == 0o666 & ~umask
    assert modes["0_Dense"] == 0o777 & ~umask


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk  # type: ignore[misc]
    subprocess.run(["/bin/umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("writer", ["safetensors", "python"])
def test_a_full_disk_is_told_in_one_line(small_disk: Path, writer: str) -> None:
    output = small_disk / "model"
    message = r"model could not be written: No space left.* Make room"
    with pytest.raises(OSError, match=message) as error, new_folder(output, anything) as new:
        new.mkdir()
        if writer == "safetensors":
            save_file({"a": np.ones(1 << 20)}, new / "model.safetensors")
        else:
            (new / "vocab.txt").write_bytes(bytes(1 << 23))
    assert error.value.errno == errno.ENOSPC
    assert "\n" not in str(error.value)
    assert list(small_disk.iterdir()) == []


def test_a_place_is_checked_before_anything_is_done(tmp_path: Path, small_disk: Path) -> None:
    check_place(tmp_path / "not" / "yet" / "there", 1000)
    assert not (tmp_path / "not").exists()
    with pytest.raises(OSError, match=r"takes 95 MB, and 1 MB are free there\. Nothing was done yet"):
        check_place(small_disk / "model", 95_000_000)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written: Not a directory"):
        check_place(tmp_path / "file" / "model")
    with pytest.raises(OSError, match="cannot be written: File name too long"):
        check_place(tmp_path / ("n" * 300))
    subprocess.run(["/bin/mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="cannot be written: Read-only file system"):
        check_place(small_disk / "model")


def test_a_place_that_others_own_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot be written: Permission denied"):
        check_place(tmp_path / "model")


def test_a_result_that_cannot_be_put_into_its_place_is_left_beside_it(
    tmp_path: Path, patch_os: Callable[[str, Callable[..., Any]], None]
) -> None:
    """As on Windows, where a folder of open files cannot be renamed."""
    output = tmp_path / "model"
    output.mkdir()
    rename = os.rename

    def refuse(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        if Path(source) == output:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        rename(source, target)

    patch_os("rename", refuse)
    with (
        pytest.raises(
            PermissionError, match=r"could not be replaced .* may have it open.*is whole, in \S+model\.new\."
        ),
        new_folder(output, anything) as new,
    ):
        new.mkdir()
        (new / "weights").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.new"]
    assert (tmp_path / "model.new" / "weights").is_file()


def test_what_the_new_folder_does_not_replace_is_taken_over(tmp_path: Path) -> None:
    earlier, new = tmp_path / "earlier", tmp_path / "new"
    for name in ("own", "both", "same", "notes/a.txt", "module/own", "module/mine.txt"):
        (earlier / name).parent.mkdir(parents=True, exist_ok=True)
        (earlier / name).write_text("theirs")
    (earlier / "empty").mkdir()
    (earlier / "link").symlink_to("/nonexistent")
    (new / "module").mkdir(parents=True)
    (new / "both").write_text("new")
    (new / "same").write_text("theirs")
    kept = take_over(earlier, new, {"own", "module/own"})
    assert kept == ["both", "empty", "link", "module", "notes", "same"]
    found = {path.relative_to(new).as_posix() for path in new.rglob("*") if not path.is_dir() or path.name == "empty"}
    assert found == {"both", "both.earlier", "same", "notes/a.txt", "module/mine.txt", "empty", "link"}
    assert (new / "both").read_text() == "new"
    assert (new / "link").is_symlink()
    assert take_over(earlier, new, {"own", "module/own", "both"}) == ["empty", "link", "module", "notes", "same"]


def test_it_is_copied_where_nothing_can_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr("os.link", refuse)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "notes").write_text("mine")
    (tmp_path / "new").mkdir()
    take_over(tmp_path / "earlier", tmp_path / "new", ())
    shutil.rmtree(tmp_path / "earlier")
    assert (tmp_path / "new" / "notes").read_text() == "mine"


def test_a_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    assert write_text(tmp_path / "new" / "folder" / "file.json", "{}").read_text() == "{}"
