"""torch-sim: many structures at once, in one call of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Batch

from equimol.data.graph import AtomicGraph
from equimol.interfaces.ase import own_copy
from equimol.models import Potential
from equimol.models.fingerprint import device_of

try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:
    raise ImportError("torch-sim is not installed here; get it with: pip install 'equimol[torchsim]'") from error


class EquiMolModel(ModelInterface):
    """Energy, forces and stress of a potential for torch-sim, detached, in the state's dtype.

    It keeps a frozen copy of the model. `dtype` is the model's, as of the calculator of ASE; torch-sim wants states of that dtype.
    Charges and spins are read from a state that has them.
    """

    def __init__(
        self,
        model_or_path: Potential | str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        data_set: str | None = None,
    ) -> None:
        super().__init__()
        self.model = own_copy(model_or_path, device, dtype, data_set)
        self._device, self._dtype = device_of(self.model), self.model.dtype
        self._compute_forces, self._compute_stress = True, "stress" in self.model.outputs
        self._memory_scales_with = "n_atoms_x_density"

    @ModelInterface.compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        if wanted and "stress" not in self.model.outputs:
            raise NotImplementedError("this model predicts no stress; use one whose forces are derivatives of the energy")
        self._compute_stress = bool(wanted)

    @ModelInterface.compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = bool(wanted)

    def forward(self, state: Any, **_: Any) -> dict[str, torch.Tensor]:
        """Energy [systems], forces [atoms, 3], stress [systems, 3, 3]; stress is zero without a volume: torch-sim wants numbers."""
        if isinstance(state, dict):
            from torch_sim.state import SimState

            state = SimState(**state, masses=torch.ones_like(state["positions"][:, 0]))
        counts = torch.bincount(state.system_idx, minlength=len(state.cell)).tolist()
        pbc = torch.as_tensor(state.pbc).expand(3)
        parts = (x.detach().double().cpu().split(counts) for x in (state.positions, state.atomic_numbers))
        graphs = [
            AtomicGraph.build(positions, numbers.long(), cell, pbc, self.model.cutoff, **self._inputs(state, n))
            for n, (positions, numbers, cell) in enumerate(zip(*parts, state.cell.detach().double().mT.cpu().contiguous(), strict=True))
        ]
        out = self.model(Batch.from_data_list(graphs).to(self._device))
        found = {"energy": out["energy"]}
        if self._compute_forces:
            found["forces"] = out["forces"]
        if self._compute_stress:
            found["stress"] = out["stress"].nan_to_num(0.0) if not bool(pbc.any()) else out["stress"]
        return {name: value.detach().to(device=state.positions.device, dtype=state.positions.dtype) for name, value in found.items()}

    def _inputs(self, state: Any, n: int) -> dict[str, float]:
        """Charge and spin of a structure, where the model wants them."""
        return {name: float(getattr(state, name)[n]) for name in self.model.inputs if getattr(state, name, None) is not None}
