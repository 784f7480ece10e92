from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import skew
from torch import Tensor

from st_asym.diagnosis.geometry import (
    effective_rank,
    hubness,
    isoscore,
    mean_cosine,
    mean_norm,
    sample,
    spectrum,
)
from st_asym.losses.isotropy import uniformity

shapes = {"n": st.integers(2, 30), "d": st.integers(2, 30), "seed": st.integers(0, 10_000)}


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(normal(n, d, seed))


@given(**shapes)
def test_rotation_and_order_change_nothing(n: int, d: int, seed: int) -> None:
    vectors = unit(n, d, seed)
    rotation = torch.linalg.qr(normal(d, d, seed + 1)).Q
    turned = (vectors @ rotation)[torch.randperm(n)]
    torch.testing.assert_close(spectrum(turned), spectrum(vectors), rtol=1e-6, atol=1e-9)
    for figure in (mean_norm, mean_cosine):
        assert figure(turned) == pytest.approx(figure(vectors), abs=1e-9)
    for of_spectrum in (isoscore, effective_rank):
        assert of_spectrum(spectrum(turned)) == pytest.approx(of_spectrum(spectrum(vectors)), rel=1e-4)


@given(**shapes)
def test_mean_cosine_is_the_mean_over_pairs(n: int, d: int, seed: int) -> None:
    vectors = unit(n, d, seed)
    cosines = [float(vectors[i] @ vectors[j]) for i, j in itertools.permutations(range(n), 2)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(cosines), abs=1e-9)


@given(**shapes)
def test_the_spectrum_is_that_of_the_covariance_on_either_side_of_n_equals_d(n: int, d: int, seed: int) -> None:
    vectors = normal(n, d, seed)
    expected = np.linalg.eigvalsh(np.cov(vectors.numpy(), rowvar=False, bias=True))[::-1]
    np.testing.assert_allclose(spectrum(vectors).numpy(), expected, atol=1e-9)


@given(**shapes)
def test_isoscore_is_the_formula_of_the_paper(n: int, d: int, seed: int) -> None:
    variances = spectrum(normal(n, d, seed))
    scaled = variances * math.sqrt(d) / variances.norm()
    defect = (scaled - 1).norm() / math.sqrt(2 * (d - math.sqrt(d)))
    share = (d - defect**2 * (d - math.sqrt(d))) ** 2 / d**2
    assert isoscore(variances) == pytest.approx(float((d * share - 1) / (d - 1)), abs=1e-9)


@given(**shapes)
def test_effective_rank_is_the_entropy_of_the_singular_values(n: int, d: int, seed: int) -> None:
    vectors = normal(n, d, seed)
    values = np.linalg.svd((vectors - vectors.mean(dim=0)).numpy(), compute_uv=False)
    shares = values / values.sum()
    shares = shares[shares > 1e-12]
    assert effective_rank(spectrum(vectors)) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


@pytest.mark.parametrize("axes", [1, 3, 8])
def test_known_distributions(axes: int) -> None:
    vectors = torch.zeros(4_000, 8, dtype=torch.float64)
    vectors[:, :axes] = normal(4_000, axes)
    variances = spectrum(vectors)
    assert isoscore(variances) == pytest.approx((axes - 1) / 7, abs=0.01)
    assert effective_rank(variances) == pytest.approx(axes, rel=0.01)


def test_vectors_that_coincide_have_no_rank_and_no_isotropy() -> None:
    variances = spectrum(torch.ones(5, 3))
    assert isoscore(variances) == 0.0
    assert effective_rank(variances) == 0.0
    assert mean_norm(torch.nn.functional.normalize(torch.ones(5, 3))) == pytest.approx(1.0)


def test_a_sample_is_always_the_same_and_without_repetition() -> None:
    vectors = torch.arange(5_000.0).unsqueeze(1)
    assert torch.equal(sample(vectors, 100), sample(vectors, 100))
    assert len(sample(vectors, 100).unique()) == 100
    many = unit(3_000, 4)
    assert uniformity(sample(many, 2_048)).item() == pytest.approx(uniformity(many).item(), rel=0.02)


@given(k=st.integers(1, 12), **shapes)
def test_hubness_counts_occurrences_over_the_lists_of_all_others(n: int, d: int, seed: int, k: int) -> None:
    vectors = unit(n, d, seed)
    counts = [0] * n
    for row in range(n):
        others = sorted((other for other in range(n) if other != row), key=lambda o: -float(vectors[row] @ vectors[o]))
        for other in others[:k]:
            counts[other] += 1
    assert sum(counts) == n * min(k, n - 1)
    assert hubness(vectors, k) == pytest.approx(float(skew(counts)) if max(counts) > min(counts) else 0.0)


def test_directions_around_an_axis_have_hubs_in_many_dimensions_and_even_ones_have_none() -> None:
    for d, cone_has_hubs in ((3, False), (300, True)):
        directions = unit(1_000, d)
        axis = torch.eye(d, dtype=torch.float64)[0]
        assert hubness(directions) < 0.6
        assert (hubness(torch.nn.functional.normalize(directions + axis)) > 1.4) == cone_has_hubs
