"""OpenMM: `MLPotential("equimol")` of openmmml, which finds it by an entry point."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from ase import Atoms, units

from equimol.interfaces.ase import EquiMolCalculator

try:
    import openmm
    from openmm import unit
    from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory
except ImportError as error:
    raise ImportError("OpenMM or openmmml is not installed here; get them with: pip install 'equimol[openmm]'") from error

KJ_PER_MOL = units.kJ / units.mol  # eV


class EquiMolPotentialFactory(MLPotentialImplFactory):
    """What openmmml calls: MLPotential("equimol", model="model.equimol")."""

    def createImpl(self, name: str, model: Any = None, **settings: Any) -> MLPotentialImpl:
        if model is None:
            raise ValueError('MLPotential("equimol") needs a model: MLPotential("equimol", model="model.equimol")')
        return EquiMolPotential(EquiMolCalculator(model, **settings))


class EquiMolPotential(MLPotentialImpl):
    """Adds a potential to a system. All atoms of the topology, or those that are listed, must have elements that the model knows."""

    def __init__(self, calculator: EquiMolCalculator) -> None:
        self.calculator = calculator

    def addForces(
        self, topology: Any, system: Any, atoms: Iterable[int] | None, forceGroup: int, info: dict[str, float] | None = None, **_: Any
    ) -> None:
        """`info` is that of ASE's atoms: total charge and spin multiplicity, for a model that wants them."""
        members = list(topology.atoms())
        chosen = members if atoms is None else [members[i] for i in atoms]
        nameless = [atom.index for atom in chosen if atom.element is None]
        if nameless:
            raise ValueError(f"every atom needs an element, atom {nameless[0]} of the topology has none; remove virtual sites")
        structure = Atoms([atom.element.atomic_number for atom in chosen], positions=np.zeros((len(chosen), 3)), info=dict(info or {}))
        structure.pbc = topology.getPeriodicBoxVectors() is not None
        if structure.pbc.any():
            structure.cell = topology.getPeriodicBoxVectors().value_in_unit(unit.angstrom)
        self.calculator.check(structure)
        structure.calc = self.calculator
        force = openmm.PythonForce(partial(compute, structure))
        force.setForceGroup(forceGroup)
        force.setUsesPeriodicBoundaryConditions(bool(structure.pbc.any()))
        if atoms is not None:
            force.setParticles(list(atoms))
        system.addForce(force)


def compute(structure: Atoms, state: Any) -> tuple[float, np.ndarray]:
    """Energy in kJ/mol and forces in kJ/mol/nm at the positions of a state."""
    structure.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    if structure.pbc.any():
        structure.cell = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.angstrom)
    return structure.get_potential_energy() / KJ_PER_MOL, structure.get_forces() * 10 / KJ_PER_MOL
