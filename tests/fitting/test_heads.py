from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fitting_helpers import QUICK, bench_of, both_sides, rotated

from st_asym.fitting.heads import dialled, heads_state, load_heads
from st_asym.fitting.training import train_heads


@pytest.mark.parametrize("system", ["asymmetric", "iso_pred", "respred"])
def test_the_ends_of_the_dial_are_exact_and_0_is_the_untouched_encoder(tmp_path: Path, system: str) -> None:
    encoder, data = rotated(20)
    bench = bench_of(encoder, data, tmp_path, system)
    settings = QUICK if system == "asymmetric" else type(QUICK)(epochs=2, contrastive="in-batch", learning_rate=1e-2)
    stage = bench.stage(settings)
    untouched, begin = both_sides(encoder, data), both_sides(stage.model, data)
    untouched /= np.linalg.norm(untouched, axis=1, keepdims=True)
    train_heads(bench, stage, data.qrels["train"])
    end, trained = heads_state(stage.model), both_sides(stage.model, data)
    assert np.abs(trained - untouched).max() > 0.01
    for dial, expected in ((0.0, begin), (1.0, trained)):
        load_heads(stage.model, dialled(stage.start, end, dial))
        assert np.array_equal(both_sides(stage.model, data), expected)
    np.testing.assert_allclose(begin, untouched, atol=1e-6)
    load_heads(stage.model, dialled(stage.start, end, 0.5))
    halfway = both_sides(stage.model, data)
    assert np.abs(halfway - untouched).mean() < np.abs(trained - untouched).mean()


def test_states_are_copies() -> None:
    model = torch.nn.Linear(2, 2)
    state = heads_state(model)
    with torch.no_grad():
        model.weight.add_(1.0)
    assert not torch.equal(state["weight"], model.weight)
    load_heads(model, state)
    assert torch.equal(state["weight"], model.weight)
    assert model.weight.requires_grad
