"""The ASE calculator: any potential in any script that knows ASE."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.data import chemical_symbols

from equimol.data.graph import AtomicGraph
from equimol.data.labels import KEYS
from equimol.data.properties import INPUTS
from equimol.models import find_device, for_data_set
from equimol.models.base import ConservativePotential, Potential
from equimol.models.file import as_dtype, load
from equimol.models.fingerprint import device_of
from equimol.models.uncertainty import ENERGY_UNCERTAINTY

_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))  # ASE's order: xx, yy, zz, yz, xz, xy


class EquiMolCalculator(Calculator):
    """Energy, per-atom energies, forces and stress of a potential, for ASE; and `energy_uncertainty`, where the model has one.

    Stress exists only where the model gives one, and the cell has a volume and a periodic direction; elsewhere ASE's
    PropertyNotImplementedError is raised.
    The calculator keeps a frozen copy of a model it is given: training it further does not reach the calculator. Without `device`,
    a file is loaded onto a GPU if there is one and a model stays where it is. `skin` (Å) is how much farther than the cutoff
    neighbours are looked for, so that the list serves until an atom has moved half of it; the results do not depend on it.
    `data_set` names one of those that a model of several levels of theory was trained on; without, `atoms.info` tells which.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012  (ASE's own declaration)

    def __init__(
        self,
        model_or_path: Potential | str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        skin: float = 0.5,
        data_set: str | None = None,
    ):
        super().__init__()
        if not skin >= 0:
            raise ValueError(f"skin must be zero or more (Å), got {skin}; 0.5 suits molecular dynamics")
        self.model = own_copy(model_or_path, device, dtype, data_set)
        if "stress" not in self.model.outputs:
            self.implemented_properties = [name for name in self.implemented_properties if name != "stress"]
        if ENERGY_UNCERTAINTY in self.model.outputs:
            self.implemented_properties = [*self.implemented_properties, ENERGY_UNCERTAINTY]
        self.skin = float(skin)
        self._neighbors: SkinList | None = None

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation, exactly: ASE's own check overlooks atoms.info and takes longer than the integrator."""
        if self.atoms is None:
            return list(all_changes)
        old, new = self.atoms, atoms
        same = {
            "positions": np.array_equal(old.positions, new.positions),
            "numbers": np.array_equal(old.numbers, new.numbers),
            "cell": np.array_equal(old.cell.array, new.cell.array),
            "pbc": np.array_equal(old.pbc, new.pbc),
            "info": read_inputs(old) == read_inputs(new),
        }
        return [name for name, unchanged in same.items() if not unchanged]

    def calculate(self, atoms: Atoms | None = None, properties: list[str] | None = None, system_changes: list[str] = all_changes) -> None:
        """Fill `results` with everything the model gives: one call yields all properties."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        self.results = {}  # nothing of another structure, should the next lines fail
        out = self.model(self._graph(self.atoms))
        energy, forces = out["energy"].item(), _numpy(out["forces"])
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            raise CalculationFailed(
                f"the model gave an energy of {energy} eV and forces up to {np.abs(forces).max()} eV/Å "
                f"for {self.atoms.get_chemical_formula()}; look for atoms that are too close, and go back to the last good structure"
            )
        self.results = {"energy": energy, "free_energy": energy, "forces": forces, "energies": _numpy(out["energies"])}
        if ENERGY_UNCERTAINTY in out:
            self.results[ENERGY_UNCERTAINTY] = out[ENERGY_UNCERTAINTY].item()
        if self.atoms.pbc.any() and abs(np.linalg.det(self.atoms.cell.array)) > 0 and "stress" in out:
            stress = _numpy(out["stress"]).reshape(3, 3)
            if np.isfinite(stress).all():
                self.results["stress"] = stress[_VOIGT]

    def get_hessian(self, atoms: Atoms) -> np.ndarray:
        """Second derivatives of the energy [3 atoms, 3 atoms], eV/Å², by differentiation; needs dtype="float64".

        Raises:
            ValueError: the model is not in float64, or its forces are no derivatives of the energy.
        """
        if not isinstance(self.model, ConservativePotential):
            raise ValueError("a Hessian needs forces that are derivatives of the energy, and those of this model are not")
        return _numpy(self.model.hessian(self._graph(atoms)))

    def _graph(self, atoms: Atoms) -> AtomicGraph:
        positions = atoms.positions
        if not np.isfinite(positions).all():
            first = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
            raise ValueError(f"positions must be finite, got {positions[first]} for atom {first}; what gave them broke before this")
        inputs = {name: value for name, value in read_inputs(atoms).items() if name in self.model.inputs}
        key = (atoms.numbers.tobytes(), atoms.cell.array.tobytes(), atoms.pbc.tobytes(), tuple(inputs.items()))
        if self._neighbors is None or not self._neighbors.serves(key, positions):
            self.check(atoms)
            self._neighbors = SkinList(key, positions, atoms.numbers, atoms.cell.array, atoms.pbc, inputs, self.model, self.skin)
        return self._neighbors.graph(positions)

    def check(self, atoms: Atoms) -> None:
        """Raises ValueError for a structure that the model has no answer for: no atoms, unknown elements, no cell where it is periodic."""
        if len(atoms) == 0:
            raise ValueError("there must be at least one atom, got none; check how the structure was read")
        unknown = sorted(set(atoms.numbers.tolist()) - set(self.model.elements))
        if unknown:
            known = ", ".join(chemical_symbols[z] for z in self.model.elements)
            names = ", ".join(chemical_symbols[z] for z in unknown)
            raise ValueError(f"the model does not know {names}; it knows {known}: train a model on data with {names}")
        periodic = atoms.cell.array[atoms.pbc]
        if len(periodic) and np.linalg.matrix_rank(periodic) < len(periodic):
            raise ValueError(
                f"periodic directions {atoms.pbc.tolist()} need cell vectors that are neither zero nor parallel, "
                f"got {atoms.cell.tolist()}; set atoms.cell, or atoms.pbc = False for a molecule"
            )


class SkinList:
    """Neighbours within cutoff + skin of one structure; `graph` cuts them down to the cutoff for atoms that have moved a little.

    Serves while cell, elements, periodicity and inputs (the key) are the same and no atom has moved more than half the skin.
    """

    def __init__(
        self,
        key: tuple,
        positions: np.ndarray,
        numbers: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        inputs: dict[str, float],
        model: Potential,
        skin: float,
    ):
        self.key, self.built_at, self.cutoff = key, positions.copy(), model.cutoff
        self.reach2 = (skin / 2) ** 2
        self.wide = AtomicGraph.build(self.built_at, numbers, cell, pbc, model.cutoff + skin, **inputs).to(device_of(model))
        self.offsets = (self.wide.shifts.to(self.wide.cell.dtype) @ self.wide.cell[0]).mT.contiguous()  # [3, edges], Å

    def serves(self, key: tuple, positions: np.ndarray) -> bool:
        """Whether every pair within the cutoff is sure to be in the list."""
        if key != self.key:
            return False
        moved = positions - self.built_at
        return float(np.einsum("ij,ij->i", moved, moved).max()) <= self.reach2

    def graph(self, positions: np.ndarray) -> AtomicGraph:
        """The graph at these positions, with the edges that a fresh list at the model's cutoff would have."""
        wide = self.wide
        here = torch.tensor(positions, dtype=torch.float64, device=wide.cell.device)
        columns = here.mT.contiguous()  # [3, atoms]: sums over three columns are much faster than sums of three in each row
        displacements = columns.index_select(1, wide.senders) - columns.index_select(1, wide.receivers) + self.offsets
        near = (displacements.square().sum(dim=0) < self.cutoff**2).nonzero().squeeze(1)
        graph = copy.copy(wide)
        graph.positions = here
        for name in ("senders", "receivers", "shifts"):
            graph[name] = wide[name].index_select(0, near)
        return graph


def read_inputs(atoms: Atoms) -> dict[str, float]:
    """Total charge (e) and spin multiplicity from atoms.info, those that are there, in the spellings that data sets use."""
    found: dict[str, float] = {}
    for name in INPUTS:
        key = next((key for key in KEYS[name] if atoms.info.get(key) is not None), None)
        if key is None:
            continue
        try:
            found[name] = float(atoms.info[key])
        except (TypeError, ValueError) as error:
            raise ValueError(f"atoms.info[{key!r}] must be a number, got {atoms.info[key]!r}") from error
    return found


def own_copy(model_or_path: Potential | str | Path, device: Any, dtype: Any, data_set: str | None) -> Potential:
    """A frozen copy of a model, or that of a file, for a simulator: what happens to the one given does not reach it."""
    if isinstance(model_or_path, (str, Path)):
        model = load(model_or_path, device=find_device(device or "auto"), dtype=dtype)
    elif isinstance(model_or_path, Potential):
        wanted = model_or_path.dtype if dtype is None else as_dtype(dtype)
        model = copy.deepcopy(model_or_path).to(device=find_device(device or device_of(model_or_path)), dtype=wanted)
    else:
        raise TypeError(f"the calculator takes a Potential or the path of a model file, got {type(model_or_path).__name__}")
    return (model if data_set is None else for_data_set(model, data_set)).freeze()


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().to(device="cpu", dtype=torch.float64).numpy()
