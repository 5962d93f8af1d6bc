"""Products of any irreps, in e3nn's memory order: the numbers of e3nn itself."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import gradgradcheck

from equimol.tensor_products import TENSOR_PRODUCTS
from equimol.tensor_products.from_irreps import from_irreps

AWKWARD = [
    ("8x0e+3x1o+2x1e+5x2e", "0e+1o+2e"),
    ("2x1o+3x1o+0e+2x1o", "2x2e+0o+1e"),
    ("0o", "3x1e + 0o + 2x0e"),
    ("4x2e+2x0o+1x3o", "2x1o+1o+1x1e"),
]
AWKWARD_PAIRS = [
    ("8x0e+3x1o+2x1e+5x2e", "2x1o+9x0e+7x1e"),
    ("2x1o+3x1o+0e+2x1o", "4x2e+0o+3x1e"),
    ("0o", "1e"),
    ("2x2e+2x2e", "3x1o+1x2o"),
]
FILTERS = [None, "3x2e+1o+1x1e"]
# What reaches natural irreps from natural irreps is even, what reaches the others is odd.
FILTER_OF_COUPLINGS = {"all": None, "even": "0e+1o+2e+3o", "odd": "1e+2o+3e"}


@pytest.fixture(scope="module")
def o3():
    """e3nn.o3 with its tables in float64: it rounds them to the default dtype when a product is built."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        o3 = pytest.importorskip("e3nn.o3", reason="these numbers are compared with e3nn's")

    def build(function):
        def in_float64(*args, **kwargs):
            default_dtype = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            try:
                return function(*args, **kwargs)
            finally:
                torch.set_default_dtype(default_dtype)

        return in_float64

    names = ("TensorProduct", "FullTensorProduct", "ElementwiseTensorProduct")
    return SimpleNamespace(Irreps=o3.Irreps, Irrep=o3.Irrep, **{name: build(getattr(o3, name)) for name in names})


def uvu_peer(o3, irreps1, irreps2, irreps_out=None, shared=True, order=lambda instructions: instructions, couplings=(0, 1)):
    """The product that NequIP builds. ``order`` permutes the finished instructions."""
    irreps1, irreps2 = o3.Irreps(irreps1), o3.Irreps(irreps2)
    middle, instructions = [], []
    for n1, (mul, ir1) in enumerate(irreps1):
        for n2, (_, ir2) in enumerate(irreps2):
            for ir in ir1 * ir2:
                if (irreps_out is None or ir in o3.Irreps(irreps_out)) and (ir1.l + ir2.l + ir.l) % 2 in couplings:
                    instructions.append((n1, n2, len(middle)))
                    middle.append((mul, ir))
    middle, places, _ = o3.Irreps(middle).sort()
    instructions = order([(n1, n2, places[n], "uvu", True) for n1, n2, n in instructions])
    return o3.TensorProduct(irreps1, irreps2, middle, instructions, shared_weights=shared, internal_weights=False)


def build_peer(o3, mode, irreps1, irreps2, irreps_out=None):
    if mode == "uvu":
        return uvu_peer(o3, irreps1, irreps2, irreps_out)
    kind = {"full": o3.FullTensorProduct, "elementwise": o3.ElementwiseTensorProduct}[mode]
    return kind(irreps1, irreps2, None if irreps_out is None else [ir for _, ir in o3.Irreps(irreps_out)])


def assert_equal_to(peer, product, random, batch=(5,)):
    """The same irreps, and the same numbers for the same inputs and shared weights."""
    assert product.irreps_in1 == str(peer.irreps_in1)
    assert product.irreps_in2 == str(peer.irreps_in2)
    assert product.irreps_out == str(peer.irreps_out)
    assert product.weight_numel == peer.weight_numel
    inputs = [random(*batch, peer.irreps_in1.dim), random(*batch, peer.irreps_in2.dim)]
    if product.weight_numel:
        inputs.append(random(product.weight_numel))
    torch.testing.assert_close(product(*inputs), peer(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("irreps_out", FILTERS)
@pytest.mark.parametrize(("irreps1", "irreps2"), AWKWARD)
@pytest.mark.parametrize("mode", ["full", "uvu"])
def test_it_gives_the_numbers_of_e3nn(o3, random, mode, irreps1, irreps2, irreps_out):
    peer = build_peer(o3, mode, irreps1, irreps2, irreps_out)
    assert_equal_to(peer, from_irreps(irreps1, irreps2, irreps_out, mode=mode), random)


@pytest.mark.parametrize("irreps_out", FILTERS)
@pytest.mark.parametrize(("irreps1", "irreps2"), AWKWARD_PAIRS)
def test_paired_channels_give_the_numbers_of_e3nn(o3, random, irreps1, irreps2, irreps_out):
    peer = build_peer(o3, "elementwise", irreps1, irreps2, irreps_out)
    assert_equal_to(peer, from_irreps(irreps1, irreps2, irreps_out, mode="elementwise"), random)


@pytest.mark.parametrize("mode", ["full", "elementwise", "uvu"])
@pytest.mark.parametrize("name", sorted(TENSOR_PRODUCTS))
def test_every_product_of_the_table_gives_the_numbers_of_e3nn(o3, random, name, mode):
    irreps1, irreps2 = "3x2e+2x1o+0e+2x1o", "2x1o+1x2e+5x0e"
    irreps_out = FILTER_OF_COUPLINGS[TENSOR_PRODUCTS[name].couples]
    product = from_irreps(irreps1, irreps2, irreps_out, mode=mode, product=name)
    assert product.product == name
    assert_equal_to(build_peer(o3, mode, irreps1, irreps2, irreps_out), product, random)


@pytest.mark.parametrize("name", ["clebsch_gordan", "complete_grid"])
def test_pseudotensors_couple_as_in_e3nn(o3, random, name):
    irreps1, irreps2 = "2x1e+3x0o+2x2o+1o", "1e+2o+2x1o"
    assert_equal_to(uvu_peer(o3, irreps1, irreps2), from_irreps(irreps1, irreps2, mode="uvu", product=name), random)


@pytest.mark.parametrize("harmonics", ["0e+1o+2e", "2x0e+2x1o+3x2e"])
@pytest.mark.parametrize("name", ["clebsch_gordan", "complete_grid"])
def test_weights_may_differ_along_the_batch(o3, random, name, harmonics):
    irreps1, irreps_out = "4x0e+3x1o+2x1e", "0e+1o+1e+2e"
    peer = uvu_peer(o3, irreps1, harmonics, irreps_out, shared=False)
    product = from_irreps(irreps1, harmonics, irreps_out, mode="uvu", product=name)
    x, y, w = random(6, peer.irreps_in1.dim), random(6, peer.irreps_in2.dim), random(6, product.weight_numel)
    torch.testing.assert_close(product(x, y, w), peer(x, y, w), rtol=1e-12, atol=1e-12)


def test_weights_sorted_by_their_output_as_in_mace_can_be_reordered(o3, random):
    irreps1, irreps2 = "4x0e+4x1o+4x2e", "0e+1o+2e"
    peer = uvu_peer(o3, irreps1, irreps2, order=lambda instructions: sorted(instructions, key=lambda i: i[2]))
    product = from_irreps(irreps1, irreps2, mode="uvu")
    x, y, w = random(3, peer.irreps_in1.dim), random(3, peer.irreps_in2.dim), random(product.weight_numel)
    by_output = sorted(product.instructions, key=lambda i: i.out)
    theirs = dict(zip(by_output, w.split([i.weight_shape[0] * i.weight_shape[1] for i in by_output]), strict=True))
    ours = torch.cat([theirs[i] for i in product.instructions])
    assert not torch.equal(ours, w)
    torch.testing.assert_close(product(x, y, ours), peer(x, y, w), rtol=1e-12, atol=1e-12)


def test_instructions_are_those_of_e3nn(o3):
    irreps1, irreps2, irreps_out = "4x0e+3x1o", "2x0e+1o+2e", "0e+1o"
    peer = uvu_peer(o3, irreps1, irreps2, irreps_out)
    product = from_irreps(irreps1, irreps2, irreps_out, mode="uvu")
    assert [tuple(i) for i in product.instructions] == [(i.i_in1, i.i_in2, i.i_out, i.path_shape) for i in peer.instructions]


def test_couplings_leave_out_some_paths(o3, random):
    irreps1, irreps2 = "4x0e+3x1o+2x1e", "0e+1o+2e"
    peer = uvu_peer(o3, irreps1, irreps2, couplings=(0,))
    assert_equal_to(peer, from_irreps(irreps1, irreps2, mode="uvu", product="gaunt_grid", couplings="even"), random)


@pytest.mark.parametrize("mode", ["full", "elementwise", "uvu"])
def test_irreps_may_be_objects_of_e3nn(o3, mode):
    irreps1, irreps2 = o3.Irreps("2x0e+3x1o"), o3.Irreps("4x1o+1e")
    product = from_irreps(irreps1, irreps2, o3.Irreps("8x0e+1o"), mode=mode)
    assert product.irreps_out == from_irreps(str(irreps1), str(irreps2), "0e+1o", mode=mode).irreps_out
    assert product.irreps_out == from_irreps(irreps1, irreps2, [o3.Irrep("0e"), "1o"], mode=mode).irreps_out


@pytest.mark.parametrize("name", ["clebsch_gordan", "complete_grid"])
@pytest.mark.parametrize("mode", ["full", "uvu"])
def test_leading_dimensions_broadcast(random, mode, name):
    product = from_irreps("2x0e+3x1o", "2x1o+0e", mode=mode, product=name)
    x, y = random(4, 1, 11), random(3, 7)
    weights = (random(4, 3, product.weight_numel),) if mode == "uvu" else ()
    z = product(x, y, *weights)
    assert z.shape[:2] == (4, 3)
    for n in range(4):
        for m in range(3):
            torch.testing.assert_close(z[n, m], product(x[n, 0], y[m], *(w[n, m] for w in weights)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["full", "elementwise", "uvu"])
def test_an_empty_batch_stays_empty_and_float32_stays_float32(mode):
    product = from_irreps("2x0e+2x1o", "3x1o+0e", mode=mode)
    weights = (torch.zeros(product.weight_numel),) if mode == "uvu" else ()
    z = product(torch.zeros(0, 8), torch.zeros(0, 10), *weights)
    assert len(z) == 0 and z.dtype == torch.float32
    assert not product.state_dict()


@pytest.mark.parametrize("name", ["clebsch_gordan", "complete_grid"])
def test_first_and_second_derivatives_are_right(random, name):
    product = from_irreps("2x1o+0e", "2x1e+0o", mode="uvu", product=name)
    inputs = random(7), random(7), random(product.weight_numel)
    assert gradgradcheck(product, tuple(a.requires_grad_() for a in inputs))


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("1o", "1o"), {"mode": "uvw"}, "mode must be one of .* got 'uvw'; did you mean 'uvu'"),
        (("1o", "1o"), {"mode": "full", "product": "gaunt_gird"}, "product must be one of .* did you mean 'gaunt_grid'"),
        (("2x1o", "1o+2x0e"), {"mode": "elementwise"}, "got 2 in 2x1o and 3 in 1x1o\\+2x0e; use mode='full'"),
        (("2x1o", "1o", "3o+1o"), {"mode": "full"}, "got 3o\\+1o; reached are: 0e\\+1e\\+2e"),
        (("0e", "1o"), {"mode": "full", "couplings": "odd"}, "reached are: none"),
        (("1o", "1o"), {"mode": "uvu", "product": "gaunt_grid"}, "GauntGrid has only couplings .* \\(1, 1, 1\\)"),
        (("1y", "1o"), {"mode": "uvu"}, "term '1y'"),
    ],
)
def test_what_cannot_be_built_raises_with_its_reason(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        from_irreps(*arguments, **settings)


def test_weights_and_features_of_another_length_are_refused():
    uvu, full = (from_irreps("2x1o", "1o+0e", mode=mode) for mode in ("uvu", "full"))
    x, y, w = torch.zeros(3, 6), torch.zeros(3, 4), torch.zeros(uvu.weight_numel)
    assert uvu(x, y, w).shape[:-1] == full(x, y).shape[:-1] == (3,)
    with pytest.raises(ValueError, match="x must be .* a feature of irreps 2x1o"):
        uvu(x[:, 1:], y, w)
    with pytest.raises(ValueError, match="y must be .* a feature of irreps 1x1o"):
        uvu(x, y[:, 1:], w)
    with pytest.raises(ValueError, match="weights must be"):
        uvu(x, y, w[1:])
    with pytest.raises(ValueError, match="needs weights"):
        uvu(x, y)
    with pytest.raises(ValueError, match="has no weights"):
        full(x, y, w)
