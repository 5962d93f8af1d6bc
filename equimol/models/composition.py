"""Potentials made of potentials: sums, and shifts to the reference energies of a level of theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from equimol.data.graph import AtomicGraph
from equimol.models.base import ConservativePotential, DirectPotential, Potential
from equimol.models.uncertainty import WithUncertainty

#: eV by atomic number, or that by the name of a data set
References = Mapping[int, float] | Mapping[str, Mapping[int, float]]


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
        self.size_names = tuple(f"{n}.{name}" for n, m in enumerate(members) for name in m.size_names)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return {f"{n}.{key}": value for n, m in enumerate(self.members) for key, value in m.indices(graph, uniform).items()}

    def indices_within(self, edges, sizes):
        found, needed, given = {}, [], list(sizes)
        for n, member in enumerate(self.members):
            own, enough = member.indices_within(edges, [given.pop(0) for _ in member.size_names])
            found |= {f"{n}.{key}": value for key, value in own.items()}
            needed += enough
        return found, needed

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
        references: eV for each atomic number of ``inner``, usually of the isolated atoms; of a model of several data sets, in their order,
            {name: {atomic number: eV}}: levels of theory count energies from different zeros.
        scale: eV, usually the root mean square of the training forces times 1 Å.
        shift: eV per atom, usually the mean of what remains after the references.
    """

    def __init__(self, inner: Potential, references: References, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        self.data_sets = tuple(references) if is_by_data_set(references) else ()
        tables = list(references.values()) if self.data_sets else [references]
        tables = [{int(z): float(e) for z, e in sorted(table.items(), key=lambda item: int(item[0]))} for table in tables]
        missing = sorted(set(inner.elements) - set.intersection(*(set(table) for table in tables)))
        if missing:
            raise ValueError(f"references must name every element of the model, got none for {missing}; give their energies in eV")
        if self.data_sets and len(self.data_sets) != getattr(getattr(core(inner), "config", None), "data_sets", 0):
            raise ValueError(
                f"references of {len(self.data_sets)} data sets need a model of as many, which is told them apart: "
                f"dpa3, nequip or scale_shift_mace with data_sets={len(self.data_sets)}"
            )
        self.references = dict(zip(self.data_sets, tables, strict=True)) if self.data_sets else tables[0]
        self.inner, self.scale, self.shift = inner, float(scale), float(shift)
        self.cutoff, self.hops, self.elements, self.inputs = inner.cutoff, inner.hops, inner.elements, inner.inputs
        self.traceable = inner.traceable
        # a plain attribute: as a buffer it would follow .float() and lose the totals' digits
        size = max(max(table) for table in tables) + 1
        self._table = torch.tensor([[table.get(z, 0.0) + self.shift for z in range(size)] for table in tables], dtype=torch.float64)

    def indices(self, graph: AtomicGraph, uniform: bool = False) -> dict[str, Tensor]:
        return self.inner.indices(graph, uniform)

    def _totals(self, numbers: Tensor, energies: Tensor, indices: dict[str, Tensor], system: Tensor) -> Tensor:
        table = self._table.to(numbers.device)
        references = table[indices["data_set"][system], numbers] if self.data_sets else table[0][numbers]
        return references + self.scale * energies.double()

    def description(self) -> dict[str, Any]:
        def plain(table: dict[int, float]) -> dict[str, float]:
            return {str(z): e for z, e in table.items()}

        references = {name: plain(self.references[name]) for name in self.data_sets} if self.data_sets else plain(self.references)
        return {"name": "shifted", "references": references, "scale": self.scale, "shift": self.shift, "inner": self.inner.description()}


class Shifted(_Shift, ConservativePotential):
    __doc__ = _Shift.__doc__

    def __init__(self, inner: ConservativePotential, references: References, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(inner, references, scale, shift)
        self.size_names = inner.size_names

    def indices_within(self, edges, sizes):
        return self.inner.indices_within(edges, sizes)

    def atomic_energies(self, displacements, numbers, senders, receivers, indices, system):
        energies, features = self.inner.atomic_energies(displacements, numbers, senders, receivers, indices, system)
        return self._totals(numbers, energies, indices, system), features


class ShiftedDirect(_Shift, DirectPotential):
    """The same for a model with direct forces, which are scaled like the energies, as is a predicted stress."""

    def __init__(self, inner: Potential, references: References, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(inner, references, scale, shift)
        self.outputs = inner.outputs

    def atomic_outputs(self, displacements, numbers, senders, receivers, indices, system):
        energies, *others = self.inner.atomic_outputs(displacements, numbers, senders, receivers, indices, system)
        return self._totals(numbers, energies, indices, system), *(self.scale * value.double() for value in others)


def shifted(inner: Potential, references: References, scale: float = 1.0, shift: float = 0.0) -> Shifted | ShiftedDirect:
    """The one of the two that suits the model."""
    return (ShiftedDirect if isinstance(inner, DirectPotential) else Shifted)(inner, references, scale, shift)


def core(model: Potential) -> Potential:
    """The model itself, out of its sum (where it stands first), its shift and its uncertainty."""
    if isinstance(model, Sum):
        return core(model.members[0])
    return core(model.inner) if isinstance(model, (_Shift, WithUncertainty)) else model


def is_by_data_set(references: Any) -> bool:
    """Whether there is a table of energies for each of several data sets."""
    return isinstance(references, Mapping) and any(isinstance(table, Mapping) for table in references.values())


def by_number(references: Mapping[str, Any]) -> References:
    """Reference energies from a file, whose keys are text: {"8": eV}, or that for each data set."""
    if is_by_data_set(references):
        return {name: {int(z): float(energy) for z, energy in table.items()} for name, table in references.items()}
    return {int(z): float(energy) for z, energy in references.items()}


def data_sets(model: Potential) -> tuple[str, ...]:
    """Names of the data sets that a model tells apart, in the order of its encoding; none of a model for one level of theory."""
    inner = model.inner if isinstance(model, WithUncertainty) else model
    inner = inner.members[0] if isinstance(inner, Sum) else inner
    return inner.data_sets if isinstance(inner, _Shift) else ()
