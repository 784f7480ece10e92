from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from st_asym.losses.isotropy import covariance, sigreg, uniformity


def sigreg_of(vectors: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return sigreg(vectors, torch.randn(vectors.shape[1], 512, generator=generator))


MEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "covariance": covariance,
    "sigreg": sigreg_of,
    "uniformity": uniformity,
}
measures = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def uniform(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cone(n: int, d: int) -> Tensor:
    """Directions around the first axis, with a cosine of about 0.7 to it."""
    axis = torch.zeros(d)
    axis[0] = 1.0
    return axis + torch.nn.functional.normalize(uniform(n, d))


@measures
@pytest.mark.parametrize("d", [2, 3, 16, 384, 768])
@pytest.mark.parametrize("n", [32, 256])
def test_collapsed_is_worse_than_a_cone_and_a_cone_worse_than_uniform(
    measure: Callable[[Tensor], Tensor], n: int, d: int
) -> None:
    collapsed = torch.ones(n, d)
    assert measure(collapsed) > measure(cone(n, d)) > measure(uniform(n, d))


@measures
@given(n=st.integers(2, 40), d=st.integers(2, 40), seed=st.integers(0, 10_000))
def test_permutation_and_length_leave_it_unchanged(
    measure: Callable[[Tensor], Tensor], n: int, d: int, seed: int
) -> None:
    vectors = uniform(n, d, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    lengths = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) + 0.5
    torch.testing.assert_close(measure(vectors[order] * lengths), measure(vectors), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("measure", [covariance, uniformity])
@given(n=st.integers(2, 40), d=st.integers(2, 40), seed=st.integers(0, 10_000))
def test_rotation_leaves_it_unchanged(measure: Callable[[Tensor], Tensor], n: int, d: int, seed: int) -> None:
    vectors = uniform(n, d, seed)
    rotation = torch.linalg.qr(uniform(d, d, seed + 1)).Q
    torch.testing.assert_close(measure(vectors @ rotation), measure(vectors), rtol=1e-4, atol=1e-5)


def test_rotation_leaves_sigreg_unchanged_when_its_directions_turn_too_and_nearly_so_with_many() -> None:
    vectors = cone(64, 16)
    rotation = torch.linalg.qr(uniform(16, 16, 1)).Q
    directions = uniform(16, 4096, 2)
    exact = sigreg(vectors @ rotation, rotation.T @ directions)
    torch.testing.assert_close(exact, sigreg(vectors, directions), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sigreg(vectors @ rotation, directions), sigreg(vectors, directions), rtol=0.05, atol=0.0)


@measures
@pytest.mark.parametrize(
    "vectors",
    [
        torch.randn(1, 8),
        torch.randn(1, 8).expand(5, 8),
        torch.zeros(4, 8),
        torch.cat([torch.randn(3, 8), torch.zeros(1, 8)]),
        torch.randn(6, 1),
        torch.randn(4, 8) * 1e-20,
        torch.randn(4, 8) * 1e30,
    ],
    ids=["one", "duplicates", "all zero", "one zero", "one dimension", "tiny", "huge"],
)
def test_value_and_gradient_are_finite(measure: Callable[[Tensor], Tensor], vectors: Tensor) -> None:
    vectors = vectors.clone().requires_grad_()
    value = measure(vectors)
    value.backward()
    assert value.isfinite()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


@measures
def test_a_zero_vector_gets_no_gradient(measure: Callable[[Tensor], Tensor]) -> None:
    vectors = torch.cat([torch.randn(7, 8), torch.zeros(1, 8)]).requires_grad_()
    measure(vectors).backward()
    assert vectors.grad is not None
    assert torch.count_nonzero(vectors.grad[-1]) == 0
    assert torch.count_nonzero(vectors.grad[:-1]) > 0


@measures
def test_half_precision_is_computed_in_float32_and_double_stays_double(measure: Callable[[Tensor], Tensor]) -> None:
    vectors = cone(64, 32).bfloat16()
    assert torch.equal(measure(vectors), measure(vectors.float()))
    assert measure(vectors).dtype == torch.float32
    assert measure(vectors.double()).dtype == torch.float64


@measures
def test_gradient_is_that_of_the_value(measure: Callable[[Tensor], Tensor]) -> None:
    for shape in ((5, 3), (3, 5)):
        assert torch.autograd.gradcheck(measure, uniform(*shape).double().requires_grad_())


@given(n=st.integers(2, 12), d=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_covariance_is_the_formula_on_either_side_of_n_equals_d(n: int, d: int, seed: int) -> None:
    vectors = uniform(n, d, seed).double()
    unit = torch.nn.functional.normalize(vectors)
    cosines = torch.stack([unit[i] @ unit[j] for i, j in itertools.permutations(range(n), 2)])
    expected = cosines.pow(2).mean() - 1 / d + cosines.mean().pow(2)
    torch.testing.assert_close(covariance(vectors), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 8)), 64])
@pytest.mark.parametrize("d", [4, 32])
def test_covariance_of_uniform_directions_is_zero_on_average_at_every_batch_size(n: int, d: int) -> None:
    values = torch.stack([covariance(uniform(n, d, seed).double()) for seed in range(3_000)])
    second_part = 2 / (d * n * (n - 1))
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - second_part) < 5 * error


@pytest.mark.parametrize(("n", "d"), [(2, 4), (64, 384), (500, 16)])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e30])
def test_covariance_of_coinciding_vectors(n: int, d: int, scale: float) -> None:
    vectors = uniform(1, d).expand(n, d) * scale
    assert covariance(vectors).item() == pytest.approx(2 - 1 / d, rel=1e-5)


def test_covariance_of_unit_vectors_is_the_squared_distance_of_the_second_moment_from_the_identity() -> None:
    n, d = 4_000, 8
    unit = torch.nn.functional.normalize(cone(n, d).double())
    second_moment = d * unit.T @ unit / n
    distance = (second_moment - torch.eye(d)).pow(2).sum() / d**2
    mean_cosine = (unit.sum(dim=0).pow(2).sum() - n) / (n * (n - 1))
    assert (covariance(unit) - mean_cosine.pow(2)).item() == pytest.approx(distance.item(), rel=1e-2)


def test_sigreg_is_the_integral_of_its_formula() -> None:
    vectors = torch.nn.functional.normalize(uniform(5, 3).double())
    direction = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    z = (vectors[:, 1] * math.sqrt(3)).tolist()

    def integrand(t: float) -> float:
        real = sum(math.cos(t * value) for value in z) / len(z) - math.exp(-t * t / 2)
        imaginary = sum(math.sin(t * value) for value in z) / len(z)
        return (real**2 + imaginary**2) * math.exp(-t * t / 2)

    expected, _ = quad(integrand, -math.inf, math.inf)
    assert sigreg(vectors, direction).item() == pytest.approx(expected, rel=1e-4)
    assert sigreg(vectors, direction, knots=200).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("n", [16, 64, pytest.param(512, marks=pytest.mark.slow)])
def test_sigreg_has_its_documented_floor_and_ceiling(n: int) -> None:
    unit_integral = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    floors = [n * sigreg(uniform(n, 768, seed), uniform(768, 256, seed + 1)).item() for seed in range(20)]
    assert sum(floors) / len(floors) == pytest.approx(unit_integral, rel=0.05)
    collapsed = sigreg(torch.ones(n, 768), uniform(768, 4096, 3)).item()
    assert collapsed == pytest.approx(unit_integral, rel=0.05)


def test_uniformity_is_the_formula_of_wang_and_isola() -> None:
    vectors = uniform(12, 5)
    unit = torch.nn.functional.normalize(vectors)
    expected = torch.pdist(unit).pow(2).mul(-2).exp().mean().log()
    torch.testing.assert_close(uniformity(vectors), expected)
