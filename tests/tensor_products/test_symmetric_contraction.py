"""The symmetric contraction spans every equivariant polynomial, each once."""

import itertools
import math
from collections import Counter

import pytest
import torch

from equimol.o3 import natural_layout, wigner_3j
from equimol.tensor_products import SymmetricContraction
from equimol.tensor_products.symmetric_contraction import symmetric_basis


def number_of_invariant_polynomials(lmax: int, order: int, l_out: int) -> int:
    """Multiplicity of degree l_out in the symmetric power, by counting weights m (characters of SO(3)), parity by parity."""
    variables = [(l, m) for l in range(lmax + 1) for m in range(-l, l + 1)]
    weights: Counter[int] = Counter()
    for chosen in itertools.combinations_with_replacement(variables, order):
        if (sum(l for l, _ in chosen) + l_out) % 2 == 0:
            weights[sum(m for _, m in chosen)] += 1
    return weights[l_out] - weights[l_out + 1]


@pytest.mark.parametrize(
    ("lmax", "order", "l_out"), [(1, 2, 0), (1, 3, 1), (2, 2, 2), (2, 3, 0), (2, 3, 1), (3, 3, 0), (3, 3, 1), (2, 4, 0)]
)
def test_the_basis_is_complete(lmax, order, l_out):
    assert len(symmetric_basis(lmax, order, l_out)) == number_of_invariant_polynomials(lmax, order, l_out)


def test_each_basis_polynomial_has_unit_mean_square():
    torch.manual_seed(0)
    x = torch.randn(40_000, 9, dtype=torch.float64)
    for order, l_out in [(1, 1), (2, 0), (2, 2), (3, 1)]:
        tuples = torch.tensor(list(itertools.combinations_with_replacement(range(9), order)))
        monomials = x[:, tuples].prod(-1)
        values = torch.einsum("pkm,nm->npk", symmetric_basis(2, order, l_out), monomials)
        torch.testing.assert_close(values.square().mean((0, 2)), torch.ones(values.shape[1], dtype=torch.float64), rtol=0.15, atol=0)


def test_second_order_scalars_are_the_squared_norms():
    basis = symmetric_basis(2, 2, 0)
    x = torch.arange(1.0, 10.0, dtype=torch.float64)
    tuples = list(itertools.combinations_with_replacement(range(9), 2))
    values = basis[:, 0] @ torch.tensor([float(x[i] * x[j]) for i, j in tuples], dtype=torch.float64)
    # E[(|x_l|^2)^2] = (2l+1)(2l+3) for 2l+1 standard normal variables
    expected = [float(x[l * l : (l + 1) ** 2].square().sum()) / math.sqrt((2 * l + 1) * (2 * l + 3)) for l in range(3)]
    torch.testing.assert_close(values.abs(), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("lmax", [0, 1, 2])
@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("degrees", [[0], [0, 1], [1], [2], [0, 2]])
def test_evaluation_equals_the_sum_over_monomials(lmax, correlation, degrees):
    if max(degrees) > correlation * lmax:
        pytest.skip("no such degree among so many copies")
    torch.manual_seed(0)
    size = (lmax + 1) ** 2
    product = SymmetricContraction(natural_layout(lmax, 3), degrees, correlation, 2).double()
    x, w = torch.randn(5, 3 * size, dtype=torch.float64), torch.randn(2, product.num_weights, 3, dtype=torch.float64)
    species = torch.tensor([0, 1, 1, 0, 1])
    expected, first = [], 0
    for l in degrees:
        bases = [symmetric_basis(lmax, nu, l) for nu in range(1, correlation + 1)]
        total = torch.zeros(5, 2 * l + 1, 3, dtype=torch.float64)
        for nu, basis in enumerate(bases, 1):
            tuples = torch.tensor(list(itertools.combinations_with_replacement(range(size), nu)))
            monomials = x.view(5, size, 3)[:, tuples].prod(2)  # [atoms, monomials, channels]
            weights = w[:, first : first + len(basis)][species]
            first += len(basis)
            total = total + torch.einsum("apc,pkm,amc->akc", weights, basis, monomials) / math.sqrt(max(len(basis), 1))
        expected.append(total.flatten(1))
    torch.testing.assert_close(product(x, w, species), torch.cat(expected, -1))


def test_contains_the_coupling_of_a_vector_pair_through_an_odd_intermediate():
    """(A_1 x A_2)_2e' etc.: a cubic vector that needs l1+l2+l12 odd on the way still lies in the span."""
    torch.manual_seed(0)
    a = torch.randn(200, 9, dtype=torch.float64)
    odd = torch.einsum("na,nb,abc->nc", a[:, 1:4], a[:, 4:9], wigner_3j(1, 2, 2))
    target = torch.einsum("na,nb,abc->nc", odd, a[:, 4:9], wigner_3j(2, 2, 1))
    tuples = torch.tensor(list(itertools.combinations_with_replacement(range(9), 3)))
    values = torch.einsum("pkm,nm->nkp", symmetric_basis(2, 3, 1), a[:, tuples].prod(-1)).flatten(0, 1)
    solution = torch.linalg.lstsq(values, target.flatten()[:, None]).solution
    assert float(target.abs().max()) > 0.1
    torch.testing.assert_close((values @ solution)[:, 0], target.flatten(), rtol=0, atol=1e-10)
