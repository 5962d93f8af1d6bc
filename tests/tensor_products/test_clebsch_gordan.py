"""The Clebsch-Gordan product against e3nn, and what only it can do."""

import pytest
import torch

from equimol.o3 import format_irreps, layout_dim, layout_slices, natural_layout, parse_irreps, rotate, to_e3nn
from equimol.tensor_products import ClebschGordan


@pytest.mark.parametrize("sum_paths", [True, False])
@pytest.mark.parametrize("couplings", ["all", "even", "odd"])
def test_it_equals_the_uvu_product_of_e3nn(random, couplings, sum_paths):
    o3 = pytest.importorskip("e3nn.o3")
    in1, in2 = parse_irreps("3x0e+3x1o+3x1e+3x2e"), parse_irreps("0e+1o+2e+3o")
    product = ClebschGordan(in1, in2, [1, 2, 3], couplings=couplings, sum_paths=sum_paths)
    instructions = [(p.i1, p.i2, out, "uvu", True) for p, out in zip(product.paths, product.out_blocks, strict=True)]
    layouts = [format_irreps(layout) for layout in (in1, in2, product.out)]
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # e3nn rounds its coefficients to the default dtype when it is built
    try:
        peer = o3.TensorProduct(*layouts, instructions, shared_weights=False, internal_weights=False)
    finally:
        torch.set_default_dtype(default_dtype)
    x, y, w = random(5, layout_dim(in1)), random(5, layout_dim(in2)), random(5, product.num_weights, 3)
    expected = peer(to_e3nn(x, in1), to_e3nn(y, in2), w.flatten(1))
    torch.testing.assert_close(to_e3nn(product(x, y, w), product.out), expected, rtol=0, atol=1e-12)


def test_odd_couplings_and_pseudotensors_are_equivariant(random, rotation):
    in1, in2 = parse_irreps("2x0e+2x1o+2x1e"), parse_irreps("2x1o+2x2e")
    product = ClebschGordan(in1, in2, 2, sum_paths=False)
    x, y, w = random(4, layout_dim(in1)), random(4, layout_dim(in2)), random(product.num_weights, 2)
    rotated = product(rotate(x, in1, rotation), rotate(y, in2, rotation), w)
    torch.testing.assert_close(rotated, rotate(product(x, y, w), product.out, rotation), rtol=1e-11, atol=1e-11)


def test_two_vectors_couple_to_their_cross_product(random):
    vector = natural_layout(1, 1)[1:]
    product = ClebschGordan(vector, vector, [1])
    x, y = random(3), random(3)
    z = product(x, y, torch.ones(1, 1, dtype=torch.float64))
    cross = torch.linalg.cross(x, y)
    torch.testing.assert_close(z.abs(), cross.abs() * (3 / 6) ** 0.5)
    assert format_irreps(product.out) in ("1e", "1x1e")


def test_paths_kept_apart_add_up_to_the_sum(random):
    in1, in2 = natural_layout(2, 2), natural_layout(2, 1)
    apart, summed = (ClebschGordan(in1, in2, 2, sum_paths=s) for s in (False, True))
    assert len(apart.out) == len(apart.paths) == apart.num_weights
    x, y, w = random(layout_dim(in1)), random(layout_dim(in2)), random(apart.num_weights, 2)
    total = [torch.zeros(layout_dim((b,)), dtype=torch.float64) for b in summed.out]
    scale = summed.coefficients()
    for path, t, out, part in zip(apart.paths, apart.coefficients().values(), summed.out_blocks, layout_slices(apart.out), strict=True):
        total[out] += apart(x, y, w)[part] * scale[path] / t
    torch.testing.assert_close(torch.cat(total), summed(x, y, w))


def test_a_rank_below_one_or_paths_kept_apart_raise():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        ClebschGordan(natural_layout(1, 2), natural_layout(1, 2), 1, rank=0)
    with pytest.raises(ValueError, match="pass sum_paths=True"):
        ClebschGordan(natural_layout(1, 2), natural_layout(1, 2), 1, couplings="even", rank=1, sum_paths=False)


def test_free_path_weights_are_all_degrees_of_freedom():
    product = ClebschGordan(natural_layout(3, 1), natural_layout(3, 1), 6)
    assert product.num_weights == product.degrees_of_freedom == 44
    enough = ClebschGordan(natural_layout(1, 1), natural_layout(1, 1), 1, couplings="even", rank=6)
    assert enough.degrees_of_freedom == len(enough.paths)
