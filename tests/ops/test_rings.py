"""Products and polynomials of signals on rings: those at all points, and so are their derivatives."""

import pytest
import torch

from equimol.o3 import natural_layout
from equimol.ops import Polynomial, RingProduct, kernels, ring_polynomial, ring_product
from equimol.ops import rings as ops_rings
from equimol.ops.rings import at_points, plain_ring_polynomial
from equimol.ops.signals import plain_signal_product
from equimol.tensor_products.gaunt_grid import GauntGrid

RING_TERMS = ((0, 0, 0, 1), (1, 2, 1, 1), (2, 1, 1, -1))


def rings(random, lmaxes, pairs, quarter):
    """A form with signals of values and both gradients, of which the last has no order 0, and numbers in the place of harmonics."""
    entries = [
        [
            [
                (l * l + l + m, m if signal < 2 else -m, (l + m + signal) % 2 == 0)
                for l in range(lmax + 1)
                for m in range(-l, l + 1)
                if m or signal < 2
            ]
            for signal in range(signals)
        ]
        for lmax, signals in zip(lmaxes, (3, 3, 2), strict=True)
    ]
    form = RingProduct(RING_TERMS, entries, [(lmax + 1) ** 2 for lmax in lmaxes])
    angles = (torch.arange(quarter, dtype=torch.float64) + 0.5) * torch.pi / 2 / quarter
    most = max(lmaxes)
    waves = torch.stack([torch.sin(-m * angles) if m < 0 else torch.cos(m * angles) for m in range(-most, most + 1)])
    functions = [random(pairs, sum(map(len, role))) / 4 for role in form.entries]
    return form, (*functions, waves)


@pytest.mark.parametrize(("lmaxes", "pairs", "quarter"), [((2, 1, 3), 2, 3), ((1, 3, 0), 1, 1), ((3, 3, 2), 3, 5)])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("rows", "channels"), [(5, 3), (2, 70), (0, 2)])
@pytest.mark.parametrize("choice", ["off", "require"])
def test_rings_are_the_plain_product_at_their_points(lmaxes, pairs, quarter, rank, rows, channels, choice, random, monkeypatch):
    """With all derivatives to the second: 70 channels are more than are taken at a time, 5 angles more than stay in registers."""
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    form, constants = rings(random, lmaxes, pairs, quarter)
    inputs = [random(rows, size, channels).requires_grad_() for size in form.sizes[:2]]
    inputs += [random(rank, size, channels).requires_grad_() for size in form.sizes if rank]
    results = []
    for function in (
        lambda x, y, *factors: ring_product(form, x, y, factors or None, constants),
        lambda x, y, *factors: plain_signal_product(x, y, factors or None, at_points(form.entries, form.sizes, constants), form.terms),
    ):
        z = function(*inputs)
        first = torch.autograd.grad(z.square().sum(), inputs, create_graph=True)
        results.append((z, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)))
    for mine, plain in zip(*results, strict=True):
        scale = float(plain.detach().abs().max()) if plain.numel() else 1.0
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-13 * scale)


def test_analysis_on_rings_undoes_synthesis():
    product = GauntGrid(natural_layout(3, 1), natural_layout(0, 1), 3)
    form = product._rings.form
    tables = at_points(form.entries, form.sizes, [table.exact for table in product._rings.constants])
    synthesis, analysis = tables[0][0], tables[2][0]  # [points, 16]
    torch.testing.assert_close(analysis.T @ synthesis, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-13)


def test_shapes_that_rings_do_not_fit_are_named(random):
    form, constants = rings(random, (1, 1, 1), 1, 2)
    with pytest.raises(
        ValueError, match=r"features, factors and tables must agree, expected torch.float64 \[..., 4, 2\] on cpu, got .* \[3, 3, 2\]"
    ):
        ring_product(form, random(3, 4, 2), random(3, 3, 2), None, constants)


#: a cube, a product of three signals of two features, and what occurs in two results; of features with three signals each
CUBES = Polynomial(
    (
        (1, ((0, 0), (0, 0), (0, 0)), 0),
        (-1, ((0, 1), (1, 2), (0, 0)), 1),
        (2.5, ((1, 1), (1, 1)), 1),
        (1, ((0, 2),), 0),
    ),
    (0, 1),
    2,
)


@pytest.mark.parametrize(("rows", "channels"), [(4, 3), (2, 70), (0, 2)])
@pytest.mark.parametrize("choice", ["off", "require"])
def test_polynomials_are_the_plain_ones(rows, channels, choice, random, monkeypatch):
    """With all derivatives to the second."""
    monkeypatch.setenv("EQUIMOL_KERNELS", choice)
    form, constants = rings(random, (2, 1, 2), 2, 3)
    inputs = [random(rows, size, channels).requires_grad_() for size in form.sizes[:2]]
    results = []
    for function in (ring_polynomial, plain_ring_polynomial):
        z = function(CUBES, form.entries, form.sizes, inputs, constants)
        first = torch.autograd.grad(z.square().sum(), inputs, create_graph=True)
        results.append((z, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), inputs)))
    for mine, plain in zip(*results, strict=True):
        scale = float(plain.detach().abs().max()) if plain.numel() else 1.0
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-13 * scale)


def test_derivatives_of_polynomials(random, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    form, constants = rings(random, (1, 1, 1), 1, 2)
    inputs = [random(2, 4, 2).requires_grad_() for _ in range(2)]

    def function(*tensors):
        return ring_polynomial(CUBES, form.entries, form.sizes, tensors, constants)

    assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", ["ring_product", "ring_polynomial"])
def test_nothing_else_is_written(random, name):
    """Nor read: NaN on both sides of every array."""
    form, constants = rings(random, (1, 2, 2), 2, 3)
    rows, channels, filler, sizes, wholes = 5, 19, 40, form.sizes, []

    def between(tensor):
        whole = torch.full((tensor.numel() + 2 * filler,), float("nan"), dtype=tensor.dtype)
        whole[filler:-filler] = tensor.flatten()
        wholes.append(whole)
        return whole[filler:-filler].view_as(tensor)

    x, y = (between(random(rows, size, channels)) for size in sizes[:2])
    factors = [between(random(1, size, channels)) for size in sizes]
    tables = [between(table) for table in constants]
    z = between(torch.zeros(rows, sizes[2], channels, dtype=torch.float64))
    if name == "ring_product":
        kernel = kernels.find_kernel("signals", name, z, form.terms, form.entries, sizes, 2, 3, True)
        by_c = between(torch.zeros(5, 1, sizes[2], channels, dtype=torch.float64))
        kernels.run(kernel, 5, 1, rows, channels, 1, 1, 1, x, y, between(random(rows, sizes[2], channels)), *factors, *tables, z, by_c)
        expected = plain_signal_product(x, y, tuple(factors), at_points(form.entries, sizes, tables), form.terms)
    else:
        kernel = kernels.find_kernel("signals", name, z, CUBES.terms, form.entries, sizes, 2, 3)
        kernels.run(kernel, rows, 1, rows, channels, 1, 1, 0, x, y, 0, 0, 0, 0, *tables, z, 0)
        expected = plain_ring_polynomial(CUBES, form.entries, sizes, [x, y], tables)
    for whole in wholes:
        assert whole[:filler].isnan().all() and whole[-filler:].isnan().all() and whole[filler:-filler].isfinite().all()
    torch.testing.assert_close(z, expected)


def test_what_has_no_kernel_is_named_where_one_is_required(random, monkeypatch):
    monkeypatch.setenv("EQUIMOL_KERNELS", "require")
    monkeypatch.setattr(ops_rings, "LONGEST", 20)
    form, constants = rings(random, (1, 1, 1), 1, 2)
    x = random(2, 4, 2)
    with pytest.raises(RuntimeError, match="EQUIMOL_KERNELS=require, but signals has no kernel: it would be too long, at so high degrees"):
        ring_product(form, x, x, None, constants)
    with pytest.raises(RuntimeError, match="has no kernel: it would be too long"):
        ring_polynomial(CUBES, form.entries, form.sizes, [x, x], constants)
