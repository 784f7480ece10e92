"""The examples in docstrings run, and README's Python runs as it stands."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import st_asym

ROOT = Path(__file__).resolve().parents[1]
# The page of the frameworks is run with these, by tests/frameworks.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "frameworks")]
WITH_PYTHON = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]
MODULES = [st_asym.__name__, *(info.name for info in pkgutil.walk_packages(st_asym.__path__, "st_asym."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    names = {"asymmetric_model": st_asym.asymmetric_model}
    failures, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert failures == 0


def test_every_public_name_has_an_example() -> None:
    for name in st_asym.__all__:
        item = getattr(st_asym, name)
        if not (isinstance(item, type) and issubclass(item, Exception)):
            assert ">>>" in item.__doc__ or "Use :func:`" in item.__doc__, name


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_the_python_of_the_pages(
    page: Path, real_encoder_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks).replace("sentence-transformers/all-MiniLM-L6-v2", real_encoder_path)
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})  # noqa: S102 - our own page
