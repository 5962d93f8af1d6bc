"""The contract of a potential, and the one place where derivatives are taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.ops import scatter_sum


class Potential(nn.Module, ABC):
    """What trainers, calculators and benchmarks know of a model.

    Results are float64 whatever the dtype of the parameters, which :attr:`dtype` tells. A subclass sets the attributes below
    and, where it is listed in ``MODELS``, keeps its frozen settings in ``config``.
    """

    cutoff: float  # Å; interactions are exactly zero beyond
    hops: int  # edges that information travels: LAMMPS needs ghosts to cutoff * hops
    elements: tuple[int, ...]  # atomic numbers that the model knows, ascending
    inputs: tuple[str, ...] = ()  # per-system inputs beyond the structure: "charge", "spin"
    outputs: tuple[str, ...] = ("energy", "forces", "stress", "energies")
    conservative: bool = True  # forces are the exact derivative of the energy
    recompute: bool | None = None  # in training, keep features between layers alone and compute the rest again; None: it cannot
    traceable: bool = False  # nothing but operations of tensors between `indices` and the energy: can be compiled
    config: Any

    @abstractmethod
    def forward(self, graph: AtomicGraph) -> dict[str, Tensor]:
        """Energy [systems], energies [atoms], forces [atoms, 3] and stress [systems, 3, 3]: eV, Å, float64.

        Stress has ASE's sign (positive wants to contract) and is NaN for systems without a volume or a periodic direction.
        """

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """All that :func:`equimol.models.build` needs to make this model again, weights apart. JSON-able."""

    def freeze(self) -> Potential:
        """This model for inference alone: evaluation mode, no gradients of weights, products of weights computed once.

        Changing weights afterwards would go unnoticed; take a copy if you want to train on.
        """
        for module in self.modules():
            if not isinstance(module, Potential) and hasattr(module, "freeze"):
                module.freeze()
        return self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters; energy sums and geometry are float64 always."""
        return next((p.dtype for p in self.parameters()), torch.float64)

    def check_elements(self, numbers: Int[Tensor, " atoms"]) -> None:
        """Raises ValueError, naming them, if there are elements that the model was not made for."""
        known = torch.zeros(max(120, int(numbers.max()) + 1 if len(numbers) else 0), dtype=torch.bool, device=numbers.device)
        known[list(self.elements)] = True
        if len(numbers) and not bool(known[numbers].all()):
            missing = sorted(set(numbers.tolist()) - set(self.elements))
            raise ValueError(
                f"the model knows {_symbols(self.elements)}, the structure has {_symbols(missing)} too; train with these elements"
            )


def _symbols(numbers: list[int] | tuple[int, ...]) -> str:
    return " ".join(chemical_symbols[z] if z < len(chemical_symbols) else f"Z={z}" for z in numbers)


class Edges(NamedTuple):
    """What indices are made of inside a program; all up to the cutoff, sorted by receiver."""

    displacements: Float[Tensor, "edges 3"]
    senders: Int[Tensor, " edges"]
    receivers: Int[Tensor, " edges"]
    reverse: Int[Tensor, " edges"]  # the edge that runs the other way
    atoms: int | torch.SymInt


class ConservativePotential(Potential):
    """A potential whose forces and stress are derivatives of a sum of atomic energies."""

    size_names: tuple[str, ...] = ()  # of arrays of indices, that an exported program must be told; see `indices_within`

    @abstractmethod
    def atomic_energies(
        self,
        displacements: Float[Tensor, "edges 3"],
        numbers: Int[Tensor, " atoms"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        indices: dict[str, Tensor],
        system: Int[Tensor, " atoms"],
    ) -> tuple[Float[Tensor, " atoms"], Tensor]:
        """Energies [atoms] and the last features [atoms, ...]: pure tensors in, pure tensors out, as compiled and exported.

        Features are invariant under rotations, and what the energies are read from; [atoms, 0] of a model that learns nothing.

        Args:
            displacements: sender minus receiver, Å, float64; the model casts them to its own dtype.
            numbers: atomic numbers.
            senders, receivers: edges, sorted by receiver; some may be longer than the cutoff and count nothing.
            indices: what :meth:`indices` gave.
            system: which system each atom belongs to.
        """

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        """Integer tensors derived from the graph (angles, segments): eager, without gradient. Most models need none.

        ``uniform``: of such shapes that the same operations serve every graph, as tracing wants, if need be by padding.
        """
        return {}

    def indices_within(self, edges: Edges, sizes: Sequence[int | torch.SymInt]) -> tuple[dict[str, Tensor], list[Int[Tensor, ""]]]:
        """What :meth:`indices` gives, made by operations of tensors whose sizes are given; and which sizes would have been enough.

        For one system in an exported program, whose arrays cannot have sizes that follow from what is in them: ``sizes`` are as many
        as ``size_names``, and where one is less than what is needed, the indices are of no use.
        """
        return chosen_data_set(getattr(self, "config", None), edges.senders), []

    def energies_and_slope(
        self, displacements: Float[Tensor, "edges 3"], *others, create_graph: bool, counted: Bool[Tensor, " atoms"] | None = None
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "edges 3"]]:
        """Energies in float64 and the derivative of their sum with respect to the displacements; zero of atoms that are not counted."""
        energies, slope, _ = self._differentiated(displacements, *others, create_graph=create_graph, counted=counted)
        return energies, slope

    def _differentiated(
        self, displacements: Tensor, *others, create_graph: bool, counted: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energies, their slope, and the last features."""
        with torch.enable_grad():
            displacements = displacements.detach().requires_grad_()
            energies, features = self.atomic_energies(displacements, *others)
            energies = energies.double() if counted is None else torch.where(counted, energies.double(), 0.0)
            (slope,) = torch.autograd.grad(
                energies.sum(), displacements, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
        return energies, slope, features

    def hessian(self, graph: AtomicGraph) -> Float[Tensor, "coordinates coordinates"]:
        """Second derivatives of the energy of one structure, eV/Å², rows and columns atom by atom, x y z: a derivative for each coordinate.

        Exact to the last digits in float64 alone, which is why other models are refused with ValueError, as are several structures.
        """
        if self.dtype != torch.float64 or len(graph.cell) != 1:
            raise ValueError(f"a Hessian needs a model in float64 and one structure, got {self.dtype} and {len(graph.cell)}")
        self.check_elements(graph.numbers)
        atoms, others = len(graph.numbers), (graph.numbers, graph.senders, graph.receivers, self.indices(graph), graph.system)
        with torch.enable_grad():
            displacements = graph.displacements().detach().requires_grad_()
            energies, _ = self.atomic_energies(displacements, *others)
            (slope,) = torch.autograd.grad(energies.sum(), displacements, create_graph=True, allow_unused=True, materialize_grads=True)
            gradient = (scatter_sum(slope, graph.senders, atoms) - scatter_sum(slope, graph.receivers, atoms)).flatten()
            rows = []
            for one in gradient:
                if not one.requires_grad:  # atoms that nothing reaches
                    rows.append(torch.zeros_like(gradient))
                    continue
                (found,) = torch.autograd.grad(one, displacements, retain_graph=True)
                rows.append((scatter_sum(found, graph.senders, atoms) - scatter_sum(found, graph.receivers, atoms)).flatten())
        return torch.stack(rows).detach()

    def forward(self, graph: AtomicGraph) -> dict[str, Tensor]:
        return self.results_and_features(graph)[0]

    def results_and_features(self, graph: AtomicGraph) -> tuple[dict[str, Tensor], Tensor]:
        """What :meth:`forward` gives, and the last features [atoms, ...], without gradient."""
        if torch.is_inference_mode_enabled():
            raise RuntimeError("forces are derivatives, which torch.inference_mode() forbids; use torch.no_grad() or nothing")
        displacements, others = self._arguments(graph)
        energies, slope, features = self._differentiated(displacements, *others, create_graph=self.training)
        results = self.results(graph, displacements, energies if self.training else energies.detach(), slope)
        return results, features.detach()

    @torch.no_grad()
    def energy_and_features(self, graph: AtomicGraph) -> tuple[Float[Tensor, " systems"], Tensor]:
        """Energies in float64 and the last features [atoms, ...], without any derivative: a third of the time of :meth:`forward`."""
        displacements, others = self._arguments(graph)
        energies, features = self.atomic_energies(displacements, *others)
        return scatter_sum(energies.double(), graph.system, len(graph.cell)), features

    def _arguments(self, graph: AtomicGraph) -> tuple[Tensor, tuple]:
        """What :meth:`atomic_energies` takes: displacements, and the others."""
        self.check_elements(graph.numbers)
        return graph.displacements().detach(), (graph.numbers, graph.senders, graph.receivers, self.indices(graph), graph.system)

    def results(
        self,
        graph: AtomicGraph,
        displacements: Float[Tensor, "edges 3"],
        energies: Float[Tensor, " atoms"],
        slope: Float[Tensor, "edges 3"],
    ) -> dict[str, Tensor]:
        """What :meth:`forward` gives, from energies of atoms and their slope."""
        atoms, systems = len(graph.numbers), len(graph.cell)
        # r_e = x_sender - x_receiver: the energy falls along -slope for the sender and along +slope for the receiver
        forces = scatter_sum(slope, graph.receivers, atoms) - scatter_sum(slope, graph.senders, atoms)
        virial = scatter_sum(slope[:, :, None] * displacements[:, None], graph.system[graph.receivers], systems)
        volume = _volume(graph)
        meaningful = (volume > 0) & graph.pbc.any(1)
        stress = (virial + virial.mT) / (2 * torch.where(meaningful, volume, 1))[:, None, None]
        return {
            "energy": scatter_sum(energies, graph.system, systems),
            "energies": energies,
            "forces": forces,
            # NaN only now: divided by NaN, the gradients of the other systems of a batch would be NaN too
            "stress": torch.where(meaningful[:, None, None], stress, torch.nan),
        }


class DirectPotential(Potential):
    """A model that predicts forces beside the energy. They are no derivative of it: molecular dynamics does not conserve energy.

    One that predicts stress too has it among its ``outputs``.
    """

    outputs = ("energy", "forces", "energies")
    conservative = False

    @abstractmethod
    def atomic_outputs(
        self,
        displacements: Float[Tensor, "edges 3"],
        numbers: Int[Tensor, " atoms"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
        indices: dict[str, Tensor],
        system: Int[Tensor, " atoms"],
    ) -> tuple[Float[Tensor, " atoms"], Float[Tensor, "atoms 3"]] | tuple[Tensor, Tensor, Float[Tensor, "systems 3 3"]]:
        """Energies and forces of atoms, and stress where it is predicted; arguments as those of ``ConservativePotential``."""

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        """Integer tensors derived from the graph: eager, without gradient; see ``ConservativePotential``."""
        return {}

    def forward(self, graph: AtomicGraph) -> dict[str, Tensor]:
        self.check_elements(graph.numbers)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):  # results of an evaluation are plain numbers
            energies, forces, *stress = self.atomic_outputs(
                graph.displacements().detach(), graph.numbers, graph.senders, graph.receivers, self.indices(graph), graph.system
            )
        energies, systems = energies.double(), len(graph.cell)
        nothing = torch.full((systems, 3, 3), torch.nan, dtype=torch.float64, device=energies.device)
        meaningful = (_volume(graph) > 0) & graph.pbc.any(1)
        return {
            "energy": scatter_sum(energies, graph.system, systems),
            "energies": energies,
            "forces": forces.double(),
            "stress": torch.where(meaningful[:, None, None], stress[0].double(), nothing) if stress else nothing,
        }


def _volume(graph: AtomicGraph) -> Float[Tensor, " systems"]:
    """Å³, as a triple product: a determinant has no kernel in exported C++ models."""
    a, b, c = graph.cell.unbind(1)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


class Configured:
    """Mixed into a model that is listed in ``MODELS``: its class name and its settings describe it."""

    name: str

    def description(self) -> dict[str, Any]:
        return {"name": self.name, "config": asdict(self.config)}


class ConfiguredPotential(Configured, ConservativePotential):
    """A conservative model that is listed in ``MODELS``."""


def data_set_indices(config: Any, graph: AtomicGraph) -> dict[str, Tensor]:
    """Which of ``config.data_sets`` each system belongs to, if there are any; ``config.data_set`` says it for all.

    Raises ValueError where a structure names none of them.
    """
    if not config.data_sets:
        return {}
    if config.data_set is not None:
        return {"data_set": torch.full((len(graph.cell),), config.data_set, device=graph.numbers.device)}
    return {"data_set": whole_numbers(graph, "data_set", 0, config.data_sets)}


def chosen_data_set(config: Any, like: Int[Tensor, " n"]) -> dict[str, Tensor]:
    """The data set of one system, of a model that is for one of several."""
    chosen = getattr(config, "data_set", None)
    return {} if chosen is None else {"data_set": like.new_full((1,), chosen)}


def whole_numbers(graph: AtomicGraph, name: str, low: int, high: int) -> Int[Tensor, " systems"]:
    """An input of each system that must be one of low..high-1. Raises ValueError where it is not."""
    values = graph[name].round().long()
    if bool(((values < low) | (values >= high) | ((values - graph[name]).abs() > 1e-6)).any()):
        raise ValueError(
            f"{name} must be a whole number from {low} to {high - 1}, got {graph[name].tolist()}; state it for every structure"
        )
    return values
