"""MACE for inference: tables in the place of radial networks."""

import copy

import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.models import build_model, core
from equimol.testing import example_structures


def frozen_and_exact(**settings):
    torch.manual_seed(0)
    model = build_model("mace", preset="nano", elements=[1, 6, 8], **settings)
    return copy.deepcopy(model).freeze(), copy.deepcopy(model).double()


@pytest.mark.parametrize("product", ["clebsch_gordan", "gaunt_grid"])
def test_tables_are_as_exact_as_float32(product):
    frozen, exact = frozen_and_exact(product=product)
    assert all(layer.table is not None for layer in core(frozen).layers)
    for structure in example_structures(exact.elements):
        graph = AtomicGraph.build(**structure, cutoff=exact.cutoff)
        ours, theirs = frozen(graph), exact(graph)
        for name in ("energies", "forces"):
            size = 1 + theirs[name].detach().abs().max()
            assert (ours[name] - theirs[name]).abs().max() < 1e-5 * size, name


def test_edges_beyond_the_cutoff_count_nothing():
    frozen, _ = frozen_and_exact()
    structure = example_structures(frozen.elements)[0]
    near, far = (frozen(AtomicGraph.build(**structure, cutoff=frozen.cutoff + skin)) for skin in (0.0, 1.5))
    torch.testing.assert_close(near["forces"], far["forces"], atol=1e-6, rtol=1e-6)


def test_float64_keeps_the_network():
    frozen, exact = frozen_and_exact()
    graph = AtomicGraph.build(**example_structures(exact.elements)[0], cutoff=exact.cutoff)
    torch.testing.assert_close(frozen.double()(graph)["forces"], exact(graph)["forces"].detach(), atol=1e-13, rtol=1e-12)
