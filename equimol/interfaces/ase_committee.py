"""A committee: several models for the same thing, whose mean is the answer and whose disagreement tells how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes

from equimol.interfaces.ase import EquiMolCalculator
from equimol.models import Potential


class CommitteeCalculator(Calculator):
    """The mean of the members' results for ASE, and their spread.

    `results` has beside the usual ones, after any calculation, the sample standard deviations "energy_spread" (eV), "forces_spread"
    [atoms, 3] (eV/Å), and "stress_spread" [6] (eV/Å³) where there is a stress. Differences of a model that was trained several times
    say nothing of what none of them could learn.
    """

    def __init__(self, models_or_paths: Sequence[Potential | str | Path], **settings: Any) -> None:
        """`settings` are those of `EquiMolCalculator`, the same for all. Raises ValueError for fewer than two models."""
        super().__init__()
        if isinstance(models_or_paths, (str, Path)) or len(models_or_paths) < 2:
            raise ValueError(f"a committee needs two models or more, got {models_or_paths!r}; use EquiMolCalculator for one")
        self.members = [EquiMolCalculator(model, **settings) for model in models_or_paths]
        common = set.intersection(*(set(member.implemented_properties) for member in self.members))
        self.implemented_properties = [name for name in EquiMolCalculator.implemented_properties if name in common]

    check_state = EquiMolCalculator.check_state

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes) -> None:
        super().calculate(atoms, properties or ["energy"], system_changes)
        self.results = {}
        for member in self.members:
            member.calculate(self.atoms, properties, system_changes)
        for name in self.implemented_properties:
            if not all(name in member.results for member in self.members):
                continue
            values = np.array([member.results[name] for member in self.members])
            mean = values.mean(axis=0)
            self.results[name] = mean if values.ndim > 1 else float(mean)
            if name in ("energy", "forces", "stress"):
                spread = values.std(axis=0, ddof=1)
                self.results[f"{name}_spread"] = spread if values.ndim > 1 else float(spread)
