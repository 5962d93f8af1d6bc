"""Potentials made of potentials: sums, and shifts to the reference energies of a level of theory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConservativePotential, DirectPotential, Potential


class Sum(ConservativePotential):
    """Adds the energies of its members; forces and stress follow from one differentiation. Elements are those all know."""

    def __init__(self, *members: ConservativePotential) -> None:
        super().__init__()
        if not members:
            raise ValueError("a sum needs at least one potential, got none")
        self.members = nn.ModuleList(members)
        self.cutoff, self.hops = max(m.cutoff for m in members), max(m.hops for m in members)
        self.elements = tuple(sorted(set.intersection(*(set(m.elements) for m in members))))
        self.inputs = tuple(dict.fromkeys(name for m in members for name in m.inputs))
        self.traceable = all(m.traceable for m in members)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return {f"{n}.{key}": value for n, m in enumerate(self.members) for key, value in m.indices(graph, uniform).items()}

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        total, features = 0, None
        for n, member in enumerate(self.members):
            own = {key.removeprefix(f"{n}."): value for key, value in indices.items() if key.startswith(f"{n}.")}
            energies, last = member.atomic_energies(displacements, numbers, senders, receivers, own, system)
            total = total + energies.double()
            features = last if features is None else features  # those of the first member
        return total, features

    def description(self) -> dict[str, Any]:
        return {"name": "sum", "members": [m.description() for m in self.members]}


class _Shift(Potential):
    """E_i = references[Z_i] + shift + scale * inner_i, summed in float64: totals of 1e5 eV would drown forces in float32.

    Args:
        inner: predicts energies (and forces, where those are no derivatives) of order one.
        references: eV for each atomic number of ``inner``, usually of the isolated atoms.
        scale: eV, usually the root mean square of the training forces times 1 Å.
        shift: eV per atom, usually the mean of what remains after the references.
    """

    def __init__(self, inner: Potential, references: dict[int, float], scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.references = {int(z): float(e) for z, e in sorted(references.items())}
        missing = sorted(set(inner.elements) - set(self.references))
        if missing:
            raise ValueError(f"references must name every element of the model, got none for {missing}; give their energies in eV")
        self.inner, self.scale, self.shift = inner, float(scale), float(shift)
        self.cutoff, self.hops, self.elements, self.inputs = inner.cutoff, inner.hops, inner.elements, inner.inputs
        self.traceable = inner.traceable
        # a plain attribute: as a buffer it would follow .float() and lose the totals' digits
        self._table = torch.tensor([self.references.get(z, 0.0) + self.shift for z in range(max(self.references) + 1)], dtype=torch.float64)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return self.inner.indices(graph, uniform)

    def _totals(self, numbers: Tensor, energies: Tensor) -> Tensor:
        return self._table.to(numbers.device)[numbers] + self.scale * energies.double()

    def description(self) -> dict[str, Any]:
        references = {str(z): e for z, e in self.references.items()}
        return {"name": "shifted", "references": references, "scale": self.scale, "shift": self.shift, "inner": self.inner.description()}


class Shifted(_Shift, ConservativePotential):
    __doc__ = _Shift.__doc__

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        energies, features = self.inner.atomic_energies(displacements, numbers, senders, receivers, indices, system)
        return self._totals(numbers, energies), features


class ShiftedDirect(_Shift, DirectPotential):
    """The same for a model with direct forces, which are scaled like the energies, as is a predicted stress."""

    def __init__(self, inner: Potential, references: dict[int, float], scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(inner, references, scale, shift)
        self.outputs = inner.outputs

    def atomic_outputs(self, displacements, numbers, senders, receivers, indices, system):
        energies, *others = self.inner.atomic_outputs(displacements, numbers, senders, receivers, indices, system)
        return self._totals(numbers, energies), *(self.scale * value.double() for value in others)


def shifted(inner: Potential, references: dict[int, float], scale: float = 1.0, shift: float = 0.0) -> Shifted | ShiftedDirect:
    """The one of the two that suits the model."""
    return (ShiftedDirect if isinstance(inner, DirectPotential) else Shifted)(inner, references, scale, shift)


def core(model: Potential) -> Potential:
    """The model itself, out of its sum (where it stands first) and its shift."""
    if isinstance(model, Sum):
        return core(model.members[0])
    return core(model.inner) if isinstance(model, _Shift) else model
