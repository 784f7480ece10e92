"""Every command line of README, CONTRIBUTING and docs/ is a command that there is, with options that it has."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from st_asym.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
COMMANDS: Any = typer.main.get_command(app)


def command_lines() -> list[list[str]]:
    """The words of each command, comments left out, those joined by && apart."""
    lines = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in re.sub(r"\s# .*", "", line).split(" && ") if part.strip()]


LINES = command_lines()


def of(*first: str) -> list[Any]:
    found = [pytest.param(line, id=" ".join(line)[:70]) for line in LINES if tuple(line[: len(first)]) == first]
    assert found, first
    return found


def test_there_is_no_command_that_nothing_here_looks_at() -> None:
    known = {("st-asym",), ("python", "-c"), ("python", "-m"), ("source",), ("pip", "install"), ("pytest",), ("curl",)}
    for line in LINES:
        assert {tuple(line[:1]), tuple(line[:2])} & known or line[1].startswith("examples/"), line


@pytest.mark.parametrize("line", of("st-asym"))
def test_st_asym_takes_the_line(line: list[str]) -> None:
    _, name, *arguments = line
    COMMANDS.commands[name].make_context(name, arguments)  # reads and checks, and runs nothing


@pytest.mark.parametrize("code", [code for code in INLINE if code.startswith("st-asym ")])
def test_st_asym_in_the_text(code: str) -> None:
    _, name, *arguments = shlex.split(code)
    known = {option for parameter in COMMANDS.commands[name].params for option in parameter.opts}
    assert {word for word in arguments if word.startswith("-")} <= known


@pytest.mark.parametrize("code", sorted({code for code in INLINE if code.startswith("--") and "=" not in code}))
def test_an_option_in_the_text_is_one_of_some_command(code: str) -> None:
    option = code.split()[0]
    known = {name for command in COMMANDS.commands.values() for one in command.params for name in one.opts}
    examples = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "examples").rglob("*.py"))
    assert option in known or re.search(rf'add_argument\(\s*"{option}"', examples)


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=" ".join(line)[:70]) for line in LINES if "examples/" in " ".join(line[:2])]
)
def test_the_examples_take_the_line(line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / line[1]
    assert script.is_file()
    monkeypatch.setattr(sys, "argv", line[1:])
    try:
        example = importlib.import_module(script.stem)
    except ModuleNotFoundError as error:
        pytest.skip(f"{script.name} needs what is not installed here: {error}")
    example.parse_options()


@pytest.mark.parametrize("line", of("python", "-c"))
def test_python_lines_compile(line: list[str]) -> None:
    compile(line[2], "README.md", "exec")


@pytest.mark.parametrize("line", of("pip", "install"))
def test_what_is_installed_is_offered(line: list[str]) -> None:
    if line[2] == "-c":
        assert (ROOT / line[3]).is_file()
    (extras,) = re.fullmatch(r"(?:\.|st_asym)\[([\w,]+)\]", line[-1]).groups()  # type: ignore[union-attr]
    offered = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = \[", offered, re.MULTILINE), extra


def test_files_that_are_named_are_there() -> None:
    for name in re.findall(r"`(examples/[\w/]+\.\w+)`", TEXT):
        assert (ROOT / name).is_file(), name
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), (page.name, link)


def test_the_readme_is_for_the_first_ten_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
