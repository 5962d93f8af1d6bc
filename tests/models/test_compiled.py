"""A traced and a compiled model against the model itself."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from equimol.data.graph import AtomicGraph
from equimol.models import build_model
from equimol.models.compiled import Compiled, _arguments, export, trace
from equimol.testing import example_structures

SETTINGS = {
    # more numbers than PyTorch's compiler takes for a small outer product, of which it makes another program
    "escaip": {"width": 8, "layers": 1, "heads": 1, "legendre": (4, 2, 2), "radial_basis": 8, "radial_width": 8, "element_width": 4}
    | {"neighbors": 5},
    "dpa3": {"width": 8, "bond_width": 6, "angle_width": 4, "readout": (8, 32)} | {"threshold": 2.5},
}


@pytest.fixture(scope="module", params=SETTINGS)
def model(request):
    torch.manual_seed(0)
    return build_model(request.param, elements=[1, 6, 8], **SETTINGS[request.param]).double().train()


def batches(model):
    """Of different numbers of structures, atoms and neighbours, an atom alone among them."""
    graphs = [AtomicGraph.build(**structure, cutoff=model.cutoff) for structure in example_structures(model.elements)]
    return [Batch.from_data_list([graphs[n] for n in some]) for some in ((0, 1), (1, 0, 2, 3), (2, 2, 2), (0,), (1, 1))]


def with_gradients(model, results):
    """Energies, forces and what a loss of both makes of the weights."""
    model.zero_grad()
    (results["energy"].square().sum() + results["forces"].square().sum()).backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]  # of DPA3, not all are used
    return [results["energies"].detach(), results["forces"].detach(), *found]


def test_a_traced_model_serves_graphs_of_any_size(model):
    """Second derivatives included, and with weights that were changed since."""
    first, *others = batches(model)
    traced = trace(model, first)
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    compiled = Compiled.__new__(Compiled)
    compiled.model, compiled.program = model, traced
    for graph in (first, *others):
        compiled._check(graph)
        for mine, plain in zip(with_gradients(model, compiled(graph)), with_gradients(model, model(graph)), strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_one_compilation_serves_graphs_of_any_size(model):
    """Or two of escaip: PyTorch's compiler sums in another way from 4096 slots on."""
    first, *others = batches(model)
    compiled = Compiled(model, [first, others[0]])
    with_gradients(model, compiled(first))
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 40, 45)
    others += [  # down to few neighbours and up to all, in cells that hold twelve atoms to 1000 Å³
        AtomicGraph.build(
            np.cbrt(80.0 * n) * rng.random((n, 3)), rng.choice(model.elements, n), np.cbrt(80.0 * n) * np.eye(3), True, model.cutoff
        )
        for n in sizes
    ]
    with_gradients(model, compiled(max(others, key=lambda graph: len(graph.numbers))))
    with torch.compiler.set_stance("fail_on_recompile"):
        for graph in (first, *others):
            for mine, plain in zip(with_gradients(model, compiled(graph)), with_gradients(model, model(graph)), strict=True):
                torch.testing.assert_close(mine, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_an_exported_model_serves_graphs_of_any_size(model):
    """Energies and forces of a program without Python: its operations are PyTorch's own."""
    first, *others = batches(model)
    program = export(model, first)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)} == {"aten"}
    for graph in (first, *others):
        arguments = _arguments(model, graph)
        ours, plain = program.module()(*arguments), model.energies_and_slope(*arguments, create_graph=False)
        for mine, expected in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_a_program_that_gives_other_numbers_is_refused(model):
    compiled = Compiled.__new__(Compiled)
    compiled.model, compiled.program = model, lambda *arguments: (torch.zeros(14), torch.zeros_like(arguments[0]))
    with pytest.raises(ValueError, match="the compiled program differs from the model by .* in energies; train without compile"):
        compiled._check(batches(model)[0])


def test_models_that_cannot_be_traced_say_so():
    model = build_model("mace", elements=[1])
    with pytest.raises(ValueError, match="this model cannot be compiled"):
        Compiled(model, [])
