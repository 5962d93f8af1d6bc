"""A conservative model as one compiled program of energies and their slope, in training too, for graphs of any sizes.

PyTorch's compiler has no second derivatives, which training on forces needs. So the first is traced into the program (``make_fx``), and
the compiler differentiates that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx.experimental import _config as fx_config
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as tree

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConservativePotential

COMPONENTS = 3  # of a vector: the largest size of an argument that is the same for every graph
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of energies, forces and gradients relative to the largest


class Compiled:
    """Gives what the model itself gives for a graph, and follows its weights.

    Compilation takes two minutes or more, and on a CPU needs a C++ compiler. One program serves graphs of all sizes, but for a
    single atom, and on a CPU with more or fewer than 4096 slots, where PyTorch's compiler sums in another way: another for each.

    Args:
        model: stays as it is, and is called without its Python code from now on.
        examples: at least two graphs of different sizes, on which the program is checked.

    Raises:
        ValueError: the model cannot be traced, or the program gives other numbers.
    """

    def __init__(self, model: ConservativePotential, examples: Sequence[AtomicGraph]) -> None:
        if not model.traceable:
            raise ValueError("this model cannot be compiled: of the models in MODELS, escaip and dpa3 can")
        self.model = model
        # without its rewriting of patterns, of which one makes derivatives of DPA3 wrong by up to 3 % (PyTorch 2.13)
        self.program = torch.compile(trace(model, examples[0]), dynamic=True, options={"pattern_matcher": False})
        for graph in examples:
            self._check(graph)

    def __call__(self, graph: AtomicGraph) -> dict[str, Tensor]:
        self.model.check_elements(graph.numbers)
        arguments = _arguments(self.model, graph)
        energies, slope = self.program(*arguments)
        return self.model.results(graph, arguments[0], energies, slope)

    def _check(self, graph: AtomicGraph) -> None:
        ours, plain = self(graph), self.model(graph)
        for name in ("energies", "forces"):
            self._compare(name, ours[name], plain[name])
        if self.model.training:
            self._compare("gradients of weights", self._gradients(ours), self._gradients(plain))

    def _compare(self, name: str, ours: Tensor, plain: Tensor) -> None:
        error = float((ours - plain).detach().abs().max())
        if not error <= TOLERANCE[self.model.dtype] * (1 + float(plain.detach().abs().max())):
            raise ValueError(f"the compiled program differs from the model by {error:.1e} in {name}; train without compile")

    def _gradients(self, results: dict[str, Tensor]) -> Float[Tensor, " weights"]:
        """Of a loss of energies and forces, those of all weights in a row."""
        loss = results["energies"].sum() + results["forces"].square().sum()
        weights = [p for p in self.model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return torch.cat([gradient.flatten() for gradient in found])


def export(model: ConservativePotential, graph: AtomicGraph) -> torch.export.ExportedProgram:
    """Atomic energies and their slope as a program of PyTorch's operations alone, for graphs of any sizes.

    It takes what `atomic_energies` takes, with the indices of ``model.indices(graph, uniform=True)``.

    Args:
        model: stays as it is; the program has its weights of now.
        graph: an example, with two systems or more and several atoms and edges.

    Raises:
        ValueError: a size of the example would be a constant of the program.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    arguments = _arguments(model, graph)
    sizes = tree.tree_map(lambda x: dict.fromkeys(range(x.ndim), torch.export.Dim.AUTO), arguments)
    program = torch.export.export(trace(model, graph, create_graph=False), arguments, dynamic_shapes=sizes, strict=False)
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.graph_signature.user_inputs:
            constant = [size for size in node.meta["val"].shape if isinstance(size, int) and size > COMPONENTS]
            if constant:
                raise ValueError(f"sizes must be free in an exported program, got {constant} of {node.name} as constants; see trace")
    return program


def trace(model: ConservativePotential, graph: AtomicGraph, create_graph: bool = True) -> fx.GraphModule:
    """Atomic energies and their slope with respect to displacements, as a graph of PyTorch's operations for any sizes.

    It holds the parameters themselves, and can be differentiated with respect to them if ``create_graph``.
    """

    def energies_and_slope(displacements: Tensor, *others):
        return model.energies_and_slope(displacements, *others, create_graph=create_graph)

    with fx_config.patch(use_duck_shape=False):  # equal sizes of the example are a coincidence
        traced = make_fx(energies_and_slope, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*_arguments(model, graph))
    for node in list(traced.graph.nodes):
        if node.target == torch.ops.aten.detach.default:  # autograd's own, of what it saves: they would cut second derivatives
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _arguments(model: ConservativePotential, graph: AtomicGraph) -> tuple:
    """All by themselves in memory: a program is compiled for strides, and for what a view is a view of."""
    indices = {name: values.clone(memory_format=torch.contiguous_format) for name, values in model.indices(graph, uniform=True).items()}
    others = (values.clone() for values in (graph.numbers, graph.senders, graph.receivers))
    return graph.displacements().detach(), *others, indices, graph.system.clone()
