from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _few_objects_to_collect() -> Iterator[None]:
    """As in :func:`st_asym.fit`: each training run collects garbage."""
    gc.freeze()
    yield
    gc.unfreeze()
