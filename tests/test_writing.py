"""What is written is there as a whole or not at all, and replaces nothing that it must not."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from st_asym.writing import new_folder, write_text


def anything(_: Path) -> None:
    """Whatever is there may be replaced."""


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "table.md", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("table.md", "old")]
    write_text(path, "new \ud800", errors="replace")
    assert path.read_text() == "new ?"


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
