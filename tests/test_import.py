from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.mark.slow
def test_importing_the_package_adds_little_to_sentence_transformers() -> None:
    code = (
        "import json, sys, sentence_transformers\n"
        "before = set(sys.modules)\n"
        "from st_asym import CachedSentenceTransformer, IsotropyLoss, asymmetric_model, watch\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    packages = set(json.loads(output)) - set(sys.stdlib_module_names)
    assert packages <= {"st_asym", "lmdb"}, packages


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, st_asym.cli; print('torch' in sys.modules, 'AsymmetricProjection' in dir(sys.modules['st_asym']))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "True"]


def test_the_public_names_of_the_design_are_there() -> None:
    import st_asym

    names = {"AsymmetricProjection", "asymmetric_model", "IsotropyLoss", "EmbeddingCache", "CachedSentenceTransformer"}
    assert names <= set(st_asym.__all__)
    assert all(hasattr(st_asym, name) for name in st_asym.__all__)


def test_the_process_without_st_asym_cannot_import_it(run_without_st_asym: Callable[..., str]) -> None:
    with pytest.raises(AssertionError, match="import of st_asym halted"):
        run_without_st_asym("import st_asym")
    assert run_without_st_asym("print(sys.argv[1:], 'st_asym.heads' in sys.modules)", "a") == "['a'] False\n"
