"""i-PI: a driver for its Python client, which takes this file by its path.

    i-pi-driver-py -m custom -P $(python -c "import equimol.interfaces.ipi as f; print(f.__file__)") -u -a ADDRESS \
        -o template=start.xyz,model=model.equimol

The template gives elements and periodicity; positions and cell come from i-PI, in whose units all is returned.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from equimol.interfaces.ase import EquiMolCalculator

try:
    from ipi.pes._ase import ASEDriver
    from ipi.utils.units import unit_to_internal
except ImportError as error:
    raise ImportError("i-PI is not installed here; get it with: pip install 'equimol[ipi]'") from error

__DRIVER_NAME__ = "equimol"
__DRIVER_CLASS__ = "EquiMolDriver"


class EquiMolDriver(ASEDriver):
    """A potential as a driver of i-PI: energy, forces, and the virial of a template that is periodic.

    Args:
        template: a structure that ASE reads.
        model: a model file.
        device, dtype, data_set: those of the calculator of ASE.
    """

    def __init__(self, template: str, model: str, *args: Any, device: str | None = None, dtype: str | None = None, **kwargs: Any) -> None:
        self.settings = {"model_or_path": model, "device": device, "dtype": dtype, "data_set": kwargs.pop("data_set", None)}
        super().__init__(template, *args, **kwargs)

    def check_parameters(self) -> None:
        super().check_parameters()
        self.ase_calculator = EquiMolCalculator(**self.settings)
        self.ase_calculator.check(self.template_ase)

    def compute_structure(self, cell: np.ndarray, pos: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, str]:
        """Energy, forces, virial (zero without a stress) and nothing more, in the units of i-PI; vectors of its cells are columns."""
        atoms = self.template_ase.copy()
        cell, atoms.positions = self.convert_units(cell, pos)
        if atoms.pbc.any():
            atoms.cell = cell
        atoms.calc = self.ase_calculator
        energy, forces, virial = atoms.get_potential_energy(), atoms.get_forces(), np.zeros((3, 3))
        if "stress" in atoms.calc.results:
            virial = -atoms.get_volume() * atoms.get_stress(voigt=False)
        energy, virial = (unit_to_internal("energy", "electronvolt", x) for x in (energy, virial))
        return float(energy), unit_to_internal("force", "ev/ang", forces), virial, ""
