"""Blocks of rows change no number, whatever is batched."""

import pytest
import torch

from equimol.o3 import layout_dim, natural_layout
from equimol.tensor_products import row_blocks
from equimol.tensor_products.gaunt_fourier import GauntFourier
from equimol.tensor_products.matrix import MatrixProduct


@pytest.mark.parametrize("kind", [MatrixProduct, GauntFourier])
@pytest.mark.parametrize("batch_w", [(), (7,), (1,)])
def test_a_product_is_the_same_in_blocks_and_at_once(kind, batch_w, random, monkeypatch):
    product = kind(natural_layout(2, 2), natural_layout(1, 2), 2, couplings=kind.couples, rank=2)
    shapes = (7, layout_dim(product.in1)), (7, layout_dim(product.in2)), (*batch_w, product.num_weights, 2)
    inputs = [random(*shape).requires_grad_() for shape in shapes]
    results = []
    for cached in (2**17, 100):  # all seven rows, or a few at a time
        monkeypatch.setattr(row_blocks, "CACHED_NUMBERS", cached)
        z = product(*inputs)
        results.append((z, *torch.autograd.grad(z.square().sum(), inputs)))
    torch.testing.assert_close(*results, rtol=1e-13, atol=1e-13)
