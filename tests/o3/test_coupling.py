"""Couplings: e3nn's 3j symbols, the Gaunt coefficients in closed form, and the list of paths."""

import itertools
import math

import pytest
import torch

from equimol.o3 import (
    Path,
    bracket_coefficient,
    coupling_paths,
    gaunt_coefficient,
    gauss_legendre_grid,
    natural_layout,
    parse_irreps,
    spherical_harmonics,
    wigner_3j,
    wigner_d,
)


def triples(lmax: int, lmax_out: int | None = None):
    for l1, l2 in itertools.product(range(lmax + 1), repeat=2):
        for l3 in range(abs(l1 - l2), min(l1 + l2, lmax if lmax_out is None else lmax_out) + 1):
            yield l1, l2, l3


def test_3j_symbols_are_those_of_e3nn(e3nn_o3):
    for ls in triples(8):
        torch.testing.assert_close(wigner_3j(*ls), e3nn_o3.wigner_3j(*ls, dtype=torch.float64), rtol=0, atol=1e-12)


def test_3j_symbols_have_norm_one_also_where_factorials_are_huge():
    for ls in [*triples(4), (20, 17, 12), (25, 25, 50)]:
        assert wigner_3j(*ls).norm().item() == pytest.approx(1, abs=1e-13)


def test_3j_symbols_of_one_pair_of_degrees_are_orthogonal():
    stacked = torch.cat([math.sqrt(2 * l3 + 1) * wigner_3j(3, 2, l3) for l3 in range(1, 6)], dim=-1).flatten(0, 1)
    torch.testing.assert_close(stacked.T @ stacked, torch.eye(35, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("ls", [(1, 1, 1), (1, 2, 3), (2, 2, 1), (3, 2, 4)])
def test_3j_symbols_are_invariant_under_rotations(ls, rotations):
    d1, d2, d3 = (wigner_d(rotations[0], l) for l in ls)
    turned = torch.einsum("ai,bj,ck,ijk->abc", d1, d2, d3, wigner_3j(*ls))
    torch.testing.assert_close(turned, wigner_3j(*ls), rtol=0, atol=1e-13)


@pytest.mark.parametrize("ls", [(1, 1, 1), (1, 2, 3), (2, 3, 4)])
def test_a_permutation_of_the_degrees_permutes_the_axes_with_the_sign_of_odd_ones(ls):
    sign = (-1) ** sum(ls)
    torch.testing.assert_close(wigner_3j(ls[1], ls[0], ls[2]), sign * wigner_3j(*ls).permute(1, 0, 2), rtol=0, atol=1e-14)
    torch.testing.assert_close(wigner_3j(ls[0], ls[2], ls[1]), sign * wigner_3j(*ls).permute(0, 2, 1), rtol=0, atol=1e-14)


def test_the_odd_coupling_of_vectors_is_their_cross_product(vectors):
    a, b = vectors[:10], vectors[10:]
    product = torch.einsum("ni,nj,ijk->nk", a, b, wigner_3j(1, 1, 1))
    torch.testing.assert_close(product, torch.linalg.cross(a, b) / math.sqrt(6))


def test_a_changed_3j_symbol_does_not_change_the_next():
    wigner_3j(1, 1, 2).zero_()
    assert wigner_3j(1, 1, 2).norm() > 0.9


@pytest.mark.parametrize("ls", [(1, 1, 3), (2, 0, 1), (0, -1, 1)])
def test_degrees_that_do_not_couple_are_refused(ls):
    with pytest.raises(ValueError, match="do not couple"):
        wigner_3j(*ls)


# Numbers of nonzero elements of all 3j symbols of L x L, all and even paths, to 2L and to L: what sparse products may count on.
@pytest.mark.parametrize(
    ("lmax", "full", "full_even", "kept", "kept_even"), [(1, 27, 21, 16, 10), (2, 244, 162, 137, 83), (3, 1132, 708, 611, 353)]
)
def test_3j_symbols_are_sparse_without_rounding_noise(lmax, full, full_even, kept, kept_even):
    def nonzeros(degrees, only_even):
        return sum(int(wigner_3j(*ls).count_nonzero()) for ls in degrees if not (only_even and sum(ls) % 2))

    assert [nonzeros(triples(lmax, 2 * lmax), even) for even in (False, True)] == [full, full_even]
    assert [nonzeros(triples(lmax), even) for even in (False, True)] == [kept, kept_even]


def test_integrals_of_three_harmonics_are_gaunt_coefficients_times_3j_symbols_with_sign_plus():
    lmax = 4
    points, weights = gauss_legendre_grid(4 * lmax)
    y = spherical_harmonics(points, 2 * lmax, "integral")
    low = y[:, : (lmax + 1) ** 2]
    integrals = torch.einsum("pi,pj,pk->ijk", low * weights[:, None], low, y)
    for l1, l2 in itertools.product(range(lmax + 1), repeat=2):
        for l3 in range(2 * lmax + 1):
            block = integrals[l1**2 : (l1 + 1) ** 2, l2**2 : (l2 + 1) ** 2, l3**2 : (l3 + 1) ** 2]
            g = gaunt_coefficient(l1, l2, l3)
            expected = g * wigner_3j(l1, l2, l3) if g else torch.zeros_like(block)
            torch.testing.assert_close(block, expected, rtol=0, atol=1e-13)


def test_gaunt_coefficients_vanish_exactly_for_odd_and_broken_triples():
    for l1, l2, l3 in itertools.product(range(9), repeat=3):
        couples = abs(l1 - l2) <= l3 <= l1 + l2 and (l1 + l2 + l3) % 2 == 0
        assert (gaunt_coefficient(l1, l2, l3) > 1e-3) if couples else (gaunt_coefficient(l1, l2, l3) == 0)


def test_gaunt_coefficients_have_their_published_values():
    assert gaunt_coefficient(1, 1, 0) == pytest.approx(math.sqrt(3 / (4 * math.pi)), rel=1e-15)
    assert gaunt_coefficient(1, 1, 2) == pytest.approx(0.6910, abs=5e-5)
    assert gaunt_coefficient(40, 40, 40) > 0


@pytest.mark.parametrize(
    ("lmax", "full", "even", "odd", "kept", "kept_even"),
    [(1, 6, 5, 1, 5, 4), (2, 19, 14, 5, 15, 11), (3, 44, 30, 14, 34, 23), (4, 85, 55, 30, 65, 42), (6, 231, 140, 91, 175, 106)],
)
def test_the_number_of_paths_is_known(lmax, full, even, odd, kept, kept_even):
    layout = natural_layout(lmax, 1)
    to_all, to_lmax = range(2 * lmax + 1), range(lmax + 1)
    assert [len(coupling_paths(layout, layout, to_all, kind)) for kind in ("all", "even", "odd")] == [full, even, odd]
    assert [len(coupling_paths(layout, layout, to_lmax, kind)) for kind in ("all", "even")] == [kept, kept_even]


def test_paths_know_their_blocks_and_parity():
    paths = coupling_paths(parse_irreps("0e+1o+1e"), parse_irreps("1o"), [1, 0])
    assert paths == [
        Path(l1=0, l2=1, l3=1, i1=0, i2=0, p3=-1),
        Path(l1=1, l2=1, l3=0, i1=1, i2=0, p3=1),
        Path(l1=1, l2=1, l3=1, i1=1, i2=0, p3=1),
        Path(l1=1, l2=1, l3=0, i1=2, i2=0, p3=-1),
        Path(l1=1, l2=1, l3=1, i1=2, i2=0, p3=-1),
    ]


def test_even_paths_of_natural_layouts_keep_the_parity_of_the_harmonics():
    layout = natural_layout(3, 1)
    assert all(path.p3 == (-1) ** path.l3 for path in coupling_paths(layout, layout, range(7), "even"))
    assert all(path.p3 == -((-1) ** path.l3) for path in coupling_paths(layout, layout, range(7), "odd"))


def test_an_unknown_kind_of_coupling_is_refused():
    with pytest.raises(ValueError, match="'evn'"):
        coupling_paths(natural_layout(1, 1), natural_layout(1, 1), [0], "evn")


def test_brackets_of_harmonics_are_3j_symbols_with_their_coefficient():
    """∫ r·(∇Y_l1 × ∇Y_l2) Y_l3, by a quadrature that is exact for it: every odd coupling, no even one."""
    lmax, lmax_out = 4, 8
    points, weights = gauss_legendre_grid(2 * lmax + lmax_out)
    values = spherical_harmonics(points, lmax_out, "integral")
    axes = torch.eye(3, dtype=torch.float64)
    gradients = torch.stack(
        [torch.func.jvp(lambda p: spherical_harmonics(p, lmax, "integral"), (points,), (axis.expand_as(points),))[1] for axis in axes],
        dim=-1,
    )  # [points, harmonics, 3]
    for l1, l2, l3 in triples(lmax, lmax_out):
        a, b = gradients[:, l1**2 : (l1 + 1) ** 2, None], gradients[:, None, l2**2 : (l2 + 1) ** 2]
        bracket = (torch.linalg.cross(*torch.broadcast_tensors(a, b)) * points[:, None, None]).sum(-1)
        block = torch.einsum("pij,pk,p->ijk", bracket, values[:, l3**2 : (l3 + 1) ** 2], weights)
        torch.testing.assert_close(block, bracket_coefficient(l1, l2, l3) * wigner_3j(l1, l2, l3), rtol=0, atol=1e-11)
        assert (bracket_coefficient(l1, l2, l3) > 0) == bool((l1 + l2 + l3) % 2)


def test_no_odd_coupling_is_lost_by_accident():
    assert all(bracket_coefficient(*ls) > 0.01 for ls in triples(12) if sum(ls) % 2)
