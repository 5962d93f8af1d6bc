"""What holds for every tensor product of the table."""

import subprocess
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from equimol.o3 import layout_dim, layout_slices, natural_layout, parse_irreps, rotate, wigner_3j
from equimol.tensor_products import TENSOR_PRODUCTS


@pytest.fixture(params=sorted(TENSOR_PRODUCTS))
def kind(request):
    return TENSOR_PRODUCTS[request.param]


@pytest.fixture(params=["channels", "harmonics"])
def product(request, kind):
    """Two features of two channels, or a feature of two channels with harmonics of one."""
    channels = 2 if request.param == "channels" else 1
    return kind(natural_layout(2, 2), natural_layout(1, channels), degrees_of(kind, 2), couplings=kind.couples)


def degrees_of(kind, lmax):
    """0..lmax, without 0 where there are only odd couplings, none of which ends there."""
    return list(range(1 if kind.couples == "odd" else 0, lmax + 1))


def arguments(product, random, *batch):
    return (
        random(*batch, layout_dim(product.in1)),
        random(*batch, layout_dim(product.in2)),
        random(*batch, product.num_weights, product.channels),
    )


def reference(product, x, y, path_weights):
    """Sum over paths of W_p t_p (x (x) y)_l3 for an unbatched pair, as the definition has it."""
    blocks = [torch.zeros(2 * b.l + 1, b.channels, dtype=x.dtype) for b in product.out]
    for number, (path, t) in enumerate(product.coefficients().items()):
        xp = x[layout_slices(product.in1)[path.i1]].view(2 * path.l1 + 1, -1)
        yp = y[layout_slices(product.in2)[path.i2]].view(2 * path.l2 + 1, -1).expand(-1, product.channels)
        coupled = torch.einsum("ijk,ic,jc->kc", wigner_3j(path.l1, path.l2, path.l3), xp, yp)
        blocks[product.out_blocks[number]] += path_weights[number] * t * coupled
    return torch.cat([b.flatten() for b in blocks])


def test_rotating_both_inputs_rotates_the_output(product, random, rotation):
    x, y, w = arguments(product, random, 5)
    rotated = product(rotate(x, product.in1, rotation), rotate(y, product.in2, rotation), w)
    torch.testing.assert_close(rotated, rotate(product(x, y, w), product.out, rotation), rtol=1e-11, atol=1e-11)


def test_product_is_linear_in_each_input(product, random):
    x, y, w = arguments(product, random, 3)
    x2, y2, _ = arguments(product, random, 3)
    torch.testing.assert_close(product(2 * x + x2, y, w), 2 * product(x, y, w) + product(x2, y, w), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(product(x, 2 * y + y2, w), 2 * product(x, y, w) + product(x, y2, w), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rank", [None, 2])
def test_coefficients_and_path_weights_describe_the_product(kind, random, rank):
    product = kind(natural_layout(2, 2), natural_layout(3, 2), degrees_of(kind, 3), couplings=kind.couples, rank=rank)
    x, y, w = arguments(product, random)
    assert len(product.coefficients()) == len(product.paths)
    torch.testing.assert_close(product(x, y, w), reference(product, x, y, product.path_weights(w)), rtol=0, atol=1e-12)
    ones = torch.ones(len(product.paths), 1, dtype=torch.float64)
    torch.testing.assert_close(product(x, y, torch.ones_like(w)), reference(product, x, y, ones), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [None, 1, 3])
def test_unit_variance_in_gives_unit_variance_out(kind, random, rank):
    product = kind(natural_layout(2, 8), natural_layout(3, 8), degrees_of(kind, 3), couplings=kind.couples, rank=rank)
    x, y, w = arguments(product, random, 2000)
    z = product(x, y, torch.ones_like(w[0]))
    for block, part in zip(product.out, layout_slices(product.out), strict=True):
        assert z[:, part].square().mean().item() == pytest.approx(1, abs=0.08), block


def test_first_and_second_derivatives_are_right(kind, random):
    product = kind(natural_layout(1, 1), natural_layout(1, 1), degrees_of(kind, 1), couplings=kind.couples)
    inputs = tuple(a.requires_grad_() for a in arguments(product, random, 2))
    assert gradcheck(product, inputs)
    assert gradgradcheck(product, inputs)


def test_derivatives_are_right_with_harmonics_and_shared_weights(kind, random):
    product = kind(natural_layout(1, 2), natural_layout(1, 1), degrees_of(kind, 1), couplings=kind.couples)
    x, y, _ = arguments(product, random, 2)
    w = random(product.num_weights, 2)
    assert gradgradcheck(product, (x.requires_grad_(), y.requires_grad_(), w.requires_grad_()))


def test_float32_agrees_with_float64(product, random):
    x, y, w = arguments(product, random, 20)
    single = product(x.float(), y.float(), w.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), product(x, y, w), rtol=1e-5, atol=2e-5)
    assert product.float()(x.float(), y.float(), w.float()).dtype == torch.float32


COMPILED = """
import torch
from equimol.o3 import layout_dim, natural_layout
from equimol.tensor_products import TENSOR_PRODUCTS

for name, kind in TENSOR_PRODUCTS.items():
    product = kind(natural_layout(2, 2), natural_layout(1, 2), [1, 2], couplings=kind.couples)
    inputs = [torch.randn(3, n, dtype=torch.float64) for n in (layout_dim(product.in1), layout_dim(product.in2), 2 * product.num_weights)]
    inputs[2] = inputs[2].view(3, product.num_weights, 2)
    inputs = [a.requires_grad_() for a in inputs]
    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), product(*inputs), rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(f(*inputs).square().sum(), inputs) for f in (compiled, product)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    print(name)
"""


def test_every_product_compiles_as_a_whole_with_its_first_derivatives():
    # in a process of its own: the checks of annotations that wrap every function in tests cannot be compiled
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=False)
    assert run.stdout.split() == list(TENSOR_PRODUCTS), run.stderr[-2000:]


def test_leading_dimensions_broadcast(product, random):
    x, y, w = arguments(product, random, 4)
    shared = product(x, y, w[0])
    for n in range(4):
        torch.testing.assert_close(shared[n], product(x[n], y[n], w[0]))
        torch.testing.assert_close(product(x, y[0], w)[n], product(x[n], y[0], w[n]))
    torch.testing.assert_close(product(x[:, None], y, w[:, None]), torch.stack([product(x[n], y, w[n]) for n in range(4)]))


def test_an_empty_batch_stays_empty(product, random):
    x, y, w = arguments(product, random, 0)
    assert product(x, y, w).shape == (0, layout_dim(product.out))


@pytest.mark.parametrize("wrong", ["x", "y", "weights", "channels"])
def test_a_wrong_shape_is_named(product, random, wrong):
    x, y, w = arguments(product, random, 3)
    inputs = {"x": (x[:, 1:], y, w), "y": (x, y[:, 1:], w), "weights": (x, y, w[:, 1:]), "channels": (x, y, w[..., :1])}[wrong]
    with pytest.raises(ValueError, match=f"{'weights' if wrong == 'channels' else wrong} must be"):
        product(*inputs)


@pytest.mark.parametrize(
    ("in1", "in2", "out", "message"),
    [
        ("2x0e+3x1o", "0e+1o", 1, "in1 needs one or more blocks"),
        ("2x0e+2x1o", "3x0e+3x1o", 1, "in2 must have 1 or 2 channels"),
        ("2x0e+2x1o", "0e+1o", 3, "cannot be reached"),
        ("2x0e+2x1o", "0e+1o", -1, "out_degrees must be"),
        ("2x0e+2x1o", "0e+1o", [1, 1], "out_degrees must be"),
    ],
)
def test_layouts_that_do_not_fit_raise_when_built(kind, in1, in2, out, message):
    with pytest.raises(ValueError, match=message):
        kind(parse_irreps(in1), parse_irreps(in2), out, couplings=kind.couples)


def test_some_out_degrees_alone_equal_those_of_the_full_product(kind, random):
    full = kind(natural_layout(2, 2), natural_layout(2, 1), degrees_of(kind, 3), couplings=kind.couples)
    some = kind(natural_layout(2, 2), natural_layout(2, 1), [3, 1], couplings=kind.couples)
    x, y, w = arguments(full, random, 3)
    z = full(x, y, torch.ones_like(w))
    parts = zip(full.out, layout_slices(full.out), strict=True)
    expected = torch.cat([z[:, part] for block, part in parts if block.l in (1, 3)], -1)
    torch.testing.assert_close(some(x, y, torch.ones(3, some.num_weights, 2, dtype=torch.float64)), expected)


def test_rank_weights_have_the_degrees_of_freedom_of_their_blocks(kind):
    product = kind(natural_layout(3, 1), natural_layout(3, 1), degrees_of(kind, 5), couplings=kind.couples, rank=1)
    assert product.num_weights == 4 + 4 + len(product.out)
    blocks_in = 3 if kind.couples == "odd" else 4  # no odd coupling has a degree 0
    assert product.degrees_of_freedom == 2 * blocks_in + len(product.out) - 2


@pytest.mark.parametrize("pseudo", [False, True])
def test_interactability_lists_every_coupling_and_which_are_missing(kind, pseudo):
    in1 = parse_irreps("0e+1o+1e+2o" if pseudo else "0e+1o+2e")
    product = kind(in1, natural_layout(2, 1), degrees_of(kind, 2), couplings=kind.couples)
    table = product.interactability()
    assert set(table) >= set(product.paths)
    for path, strength in table.items():
        odd = (path.l1 + path.l2 + path.l3) % 2
        assert (strength != 0) == (kind.couples in ("all", ("even", "odd")[odd]))


def test_costs_are_counted_per_pair(kind):
    one, two = (kind(natural_layout(2, c), natural_layout(2, c), degrees_of(kind, 2), couplings=kind.couples) for c in (2, 4))
    assert 0 < one.flops() < two.flops() <= 2 * one.flops()
    assert two.bytes() == 2 * one.bytes() == 4 * sum(layout_dim(layout) for layout in (two.in1, two.in2, two.out))
    assert one.bytes(torch.float64) == 2 * one.bytes()


def test_half_precision_is_computed_in_single(product, random):
    x, y, w = (a.bfloat16() for a in arguments(product, random, 20))
    z = product(x, y, w)
    assert z.dtype == torch.bfloat16
    torch.testing.assert_close(z, product(x.float(), y.float(), w.float()).bfloat16(), rtol=0, atol=0)


def test_mixed_dtypes_are_refused(product, random):
    x, y, w = arguments(product, random, 2)
    with pytest.raises(ValueError, match="must have one dtype"):
        product(x, y.float(), w)


def test_the_state_dict_is_empty(product):
    assert not product.state_dict()
