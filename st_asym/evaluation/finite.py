"""Vectors that are not finite, which no ranking would show."""

from __future__ import annotations

from typing import Any

import torch

from st_asym.data.collection import first_few


def check_finite(vectors: Any, name: str, side: str) -> None:
    """Refuse to rank by vectors that are NaN or infinite.

    Args:
        vectors: Shape ``(n, d)``, or a list of ``n`` vectors.
        name: Whose they are.
        side: Of which side, ``"query"`` or ``"document"``.

    Raises:
        ValueError: It counts them and names the first rows.
    """
    table = torch.stack(list(vectors)) if isinstance(vectors, list | tuple) and vectors else torch.as_tensor(vectors)
    finite = torch.isfinite(table).flatten(1).all(dim=1) if table.ndim > 1 else torch.isfinite(table)
    if finite.all():
        return
    wrong = torch.nonzero(~finite).flatten().tolist()
    raise ValueError(
        f"{name} gives vectors that are not finite for {len(wrong):,} of {len(finite):,} texts ({side} side, rows "
        f"{first_few(wrong)}): there is nothing to rank by. Its weights are damaged, or its training has diverged."
    )
