"""What tests of the cache share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT, which no test changes."""
    from cache_helpers import save_tiny_bert  # loads the libraries, for tests of the cache alone

    return save_tiny_bert(tmp_path_factory.mktemp("bert"))
