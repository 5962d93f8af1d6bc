"""A conservative model as one compiled program of energies and their slope, in training too, for graphs of any sizes.

PyTorch's compiler has no second derivatives, which training on forces needs. So the first is traced into the program (``make_fx``), and
the compiler differentiates that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, fx
from torch.fx.experimental import _config as fx_config
from torch.fx.experimental.proxy_tensor import make_fx

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConservativePotential

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of energies, forces and gradients relative to the largest


class Compiled:
    """Gives what the model itself gives for a graph, and follows its weights.

    Compilation takes two minutes or more, and on a CPU needs a C++ compiler. One program serves graphs of all sizes, but for those with a
    single atom or slot, and on a CPU with more or fewer than 4096 slots, where PyTorch's compiler sums in another way: another for each.

    Args:
        model: stays as it is, and is called without its Python code from now on.
        examples: at least two graphs of different sizes, on which the program is checked.

    Raises:
        ValueError: the model cannot be traced, or the program gives other numbers.
    """

    def __init__(self, model: ConservativePotential, examples: Sequence[AtomicGraph]) -> None:
        if not model.traceable:
            raise ValueError("this model cannot be compiled: of the models in MODELS, escaip can")
        self.model = model
        self.program = torch.compile(trace(model, examples[0]), dynamic=True)
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


def trace(model: ConservativePotential, graph: AtomicGraph) -> fx.GraphModule:
    """Atomic energies and their slope with respect to displacements, as a graph of PyTorch's operations for any sizes.

    It holds the parameters themselves, and can be differentiated with respect to them.
    """

    def energies_and_slope(displacements: Tensor, *others):
        return model.energies_and_slope(displacements, *others, create_graph=True)

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
