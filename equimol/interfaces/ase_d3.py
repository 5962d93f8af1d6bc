"""Dispersion by the DFT-D3 method of Grimme et al. (2010, doi:10.1063/1.3382344), added to a model that was trained without it."""

from __future__ import annotations

from typing import Any

from ase.calculators.calculator import Calculator
from ase.calculators.mixing import SumCalculator

from equimol.interfaces.ase import EquiMolCalculator


class WithD3(SumCalculator):
    """A calculator plus D3 for a density functional, by simple-dftd3. Wrong for models whose labels hold dispersion already.

    Args:
        calculator: an `EquiMolCalculator`, or a committee.
        functional: what the labels of the model were computed with, such as "PBE" or "B97M"; simple-dftd3 knows its parameters.
        damping: "d3bj" (Becke and Johnson), "d3zero" or another that simple-dftd3 has.

    Raises:
        ImportError: simple-dftd3 is not installed.
    """

    def __init__(self, calculator: Calculator, functional: str, damping: str = "d3bj", **settings: Any) -> None:
        try:
            from dftd3.ase import DFTD3
        except ImportError as error:
            raise ImportError("D3 needs simple-dftd3; get it with: pip install 'equimol[d3]'") from error
        super().__init__([calculator, DFTD3(method=functional, damping=damping, **settings)])
        self.implemented_properties = [*self.implemented_properties, "free_energy"]

    check_state = EquiMolCalculator.check_state  # charge and spin in atoms.info too

    def calculate(self, atoms, properties, system_changes):
        super().calculate(atoms, [name for name in properties if name != "free_energy"] or ["energy"], system_changes)
        if "energy" in self.results:
            self.results["free_energy"] = self.results["energy"]
