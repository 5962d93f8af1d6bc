"""AtomicGraph: one structure, or a batch of them, and the directed edges between its atoms."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch_geometric.data import Data

from equimol.data.neighbors import Edges, has_volume, neighbor_list
from equimol.data.properties import INPUTS, PROPERTIES, Property


class AtomicGraph(Data):
    """One structure (or a batch of them) and the directed edges between its atoms; the message runs sender -> receiver.

    Made by `AtomicGraph.build`, batched by PyG's `Batch` and `DataLoader`. Every property and every input is always there, NaN where
    nobody stated it, because PyG drops what the first graph of a batch lacks; `energy_present` and so on say which labels are real, for
    each structure, or for each atom (`forces_present`: not those of atoms that are held in place).
    """

    positions: Float64[Tensor, "atoms 3"]  # Å
    numbers: Int64[Tensor, "atoms"]  # atomic numbers
    cell: Float64[Tensor, "systems 3 3"]  # Å, rows are lattice vectors; zeros for a molecule
    pbc: Bool[Tensor, "systems 3"]
    senders: Int64[Tensor, "edges"]
    receivers: Int64[Tensor, "edges"]  # ascending
    shifts: Int64[Tensor, "edges 3"]  # lattice multiples
    charge: Float64[Tensor, "systems"]  # e
    spin: Float64[Tensor, "systems"]  # multiplicity 2S+1
    energy: Float64[Tensor, "systems"]
    forces: Float64[Tensor, "atoms 3"]
    stress: Float64[Tensor, "systems 3 3"]
    num_nodes: int  # stored: PyG gives a batch no `batch` where it has to be inferred

    @classmethod
    def build(
        cls,
        positions: Any,  # [atoms, 3] Å
        numbers: Any,  # [atoms]
        cell: Any,  # [3, 3] Å, rows are vectors; None or zeros for a molecule
        pbc: Any,  # bool or three
        cutoff: float | int,  # Å
        labels: Mapping[str, Any] | None = None,  # energy (), forces [atoms, 3], stress [3, 3]
        fixed: Any = None,  # [atoms] bool: held in place, so that their forces are no labels
        edges: Edges | None = None,  # those within the cutoff, where they are known; else they are looked for
        **inputs: Any,  # charge, spin
    ) -> "AtomicGraph":
        """The graph of one structure, checked. Arrays are copied; tensors keep their device and their gradient."""
        positions, numbers, cell, pbc = _structure(positions, numbers, cell, pbc)
        plain_cell, plain_pbc = cell.detach().cpu().numpy(), pbc.cpu().numpy()
        if edges is None:
            edges = neighbor_list(positions.detach().cpu().numpy(), plain_cell, plain_pbc, float(cutoff))
        labels = {name: value for name, value in (labels or {}).items() if value is not None}
        _reject_unknown("label", labels, PROPERTIES)
        _reject_unknown("input", inputs, INPUTS)
        if "stress" in labels and not has_volume(plain_cell, plain_pbc):
            raise ValueError("a stress needs a cell with a volume and a periodic direction; leave the stress of this structure out")
        device = positions.device
        graph = cls(positions=positions, numbers=numbers, cell=cell[None], pbc=pbc[None], num_nodes=len(numbers))
        for name, values in edges._asdict().items():
            graph[name] = torch.from_numpy(values).to(device)
        for name in INPUTS:
            graph[name] = _stated(name, INPUTS[name], inputs.get(name), len(numbers)).to(device)
        for name in PROPERTIES:
            graph[name] = _stated(name, PROPERTIES[name], labels.get(name), len(numbers)).to(device)
            graph[f"{name}_present"] = torch.full((len(graph[name]),), name in labels, device=device)
        if fixed is not None:
            graph.forces_present &= ~_held(fixed, len(numbers)).to(device)
        return graph

    def without_labels(self) -> "AtomicGraph":
        """The same structure with every label absent."""
        bare = copy.copy(self)
        for name in PROPERTIES:
            bare[name] = torch.full_like(self[name], torch.nan)
            bare[f"{name}_present"] = torch.zeros_like(self[f"{name}_present"])
        return bare

    @property
    def num_systems(self) -> int:
        """How many structures the graph holds."""
        return self.cell.shape[0]

    @property
    def system(self) -> Int64[Tensor, "atoms"]:
        """The structure each atom belongs to, 0 to num_systems - 1, ascending."""
        if self.batch is None:
            return torch.zeros(self.num_nodes, dtype=torch.int64, device=self.positions.device)
        return self.batch

    def displacements(self) -> Float64[Tensor, "edges 3"]:
        """Vector from receiver to sender of every edge, Å. Computed here, in torch, so that forces and stress are exact derivatives."""
        shifts = self.shifts.to(self.cell.dtype)
        if self.num_systems == 1:  # molecular dynamics: no cell per edge
            images = shifts @ self.cell[0]
        else:
            images = torch.einsum("ei,eij->ej", shifts, self.cell[self.system[self.receivers]])
        return self.positions[self.senders] + images - self.positions[self.receivers]

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What PyG adds to an entry of the next graph in a batch: atoms are counted on, nothing else is."""
        return self.num_nodes if key in ("senders", "receivers") else super().__inc__(key, value, *args, **kwargs)


def _structure(positions: Any, numbers: Any, cell: Any, pbc: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    positions = _tensor(positions, torch.float64)
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"positions must be [atoms, 3], got {tuple(positions.shape)}; pass one structure per graph")
    if len(positions) == 0:
        raise ValueError("a structure must have atoms, got none; remove it from the data")
    device = positions.device
    numbers = _tensor(numbers, torch.int64).to(device)
    if numbers.shape != positions.shape[:1]:
        raise ValueError(f"numbers must be [{len(positions)}] for as many positions, got {list(numbers.shape)}; give one per position")
    if numbers.min() < 1 or numbers.max() > 118:
        raise ValueError(f"numbers must be atomic numbers 1 to 118, got {sorted(set(numbers.tolist()))}; remove dummy atoms (X)")
    cell = torch.zeros(3, 3, dtype=torch.float64, device=device) if cell is None else _tensor(cell, torch.float64).to(device)
    if cell.shape != (3, 3):
        raise ValueError(f"cell must be [3, 3] with lattice vectors as rows, got {tuple(cell.shape)}; pass one structure per graph")
    pbc = _tensor(pbc, torch.bool).to(device)
    if pbc.shape not in ((), (3,)):
        raise ValueError(f"pbc must be one bool or three, got {tuple(pbc.shape)}; say which directions are periodic")
    return positions, numbers, cell, pbc.expand(3).clone()


def _tensor(values: Any, dtype: torch.dtype) -> Tensor:
    """A tensor that shares no memory with an array: simulators move their atoms in place."""
    return values.to(dtype) if isinstance(values, Tensor) else torch.tensor(np.asarray(values), dtype=dtype)


def _held(fixed: Any, num_atoms: int) -> Tensor:
    held = _tensor(fixed, torch.bool)
    if held.shape != (num_atoms,):
        raise ValueError(f"fixed must be one bool for each of {num_atoms} atoms, got shape {list(held.shape)}; true holds an atom in place")
    return held


def _stated(name: str, prop: Property, value: Any, num_atoms: int) -> Tensor:
    """The quantity with a leading axis for systems where it is one per system; NaN where it is not stated."""
    shape = prop.label_shape(num_atoms)
    if value is None:
        tensor = torch.full(shape, torch.nan, dtype=torch.float64)
    else:
        tensor = _tensor(value, torch.float64)
        if tensor.shape != shape:
            wanted = f"{name} of {num_atoms} atoms must be {list(shape)} in {prop.unit}"
            raise ValueError(f"{wanted}, got {list(tensor.shape)}; pass one structure per graph")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} must be finite, got NaN or infinity; leave it out where it is unknown")
    return tensor if prop.per == "atom" else tensor[None]


def _reject_unknown(kind: str, given: Mapping[str, Any], table: Mapping[str, Property]) -> None:
    unknown = sorted(set(given) - set(table))
    if unknown:
        raise ValueError(f"unknown {kind} {unknown[0]!r}; known are {', '.join(table)} (a new one is a row of equimol.data.properties)")
