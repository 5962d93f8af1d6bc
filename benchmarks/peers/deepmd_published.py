"""What the published DPA3 models give for small crystals and molecules: golden numbers for tests/convert/test_published.py.

    PEER/bin/python benchmarks/peers/deepmd_published.py MODEL.pth [MODEL.pth ...]

The models are frozen programs: the source distribution of matcalc 0.7.0 (PyPI) has two among its tests,
2025-03-14-dpa3-openlam.pth and 2025-03-14-dpa3-mptrj.pth. They are run by themselves, without deepmd-kit. Only for files that you trust:
a frozen program is executed. Needs torch, numpy and ase.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

GOLDEN = Path(__file__).parents[2] / "tests" / "convert" / "dpa3_published.json"


def structures() -> list[Atoms]:
    """Rattled crystals and boxes of molecules, of many elements, none with so many close neighbours that it matters which are dropped."""
    rng = np.random.default_rng(0)
    found = [bulk(name, cubic=True) for name in ("Si", "Fe", "Cu", "Al", "W")] + [bulk("Mg"), bulk("Ti")]
    found += [bulk(name, "rocksalt", a=a, cubic=True) for name, a in (("NaCl", 5.64), ("MgO", 4.21), ("TiN", 4.24), ("PbS", 5.94))]
    found += [bulk(name, "zincblende", a=a, cubic=True) for name, a in (("GaAs", 5.65), ("SiC", 4.36), ("CuCl", 5.42))]
    found.append(bulk("CsCl", "cesiumchloride", a=4.12, cubic=True))
    for name in ("H2O", "CH3CH2OH", "C6H6", "SO2", "HCN"):
        atoms = molecule(name)
        atoms.set_cell(np.diag(np.ptp(atoms.positions, axis=0) + 4.7))
        atoms.pbc = True
        found.append(atoms)
    for atoms in found:
        atoms.positions += 0.06 * rng.normal(size=atoms.positions.shape)
        atoms.wrap()
    return found


def main(paths: list[str]) -> None:
    torch.set_num_threads(1)
    golden = {}
    for path in map(Path, paths):
        model = torch.jit.load(path, map_location="cpu")
        symbols = [str(symbol) for symbol in model.get_type_map()]
        rows = []
        for atoms in structures():
            types = torch.tensor([[symbols.index(symbol) for symbol in atoms.get_chemical_symbols()]])
            result = model(torch.tensor(atoms.positions)[None], types, torch.tensor(atoms.cell[:]).reshape(1, 9))
            rows.append(
                {
                    "numbers": atoms.numbers.tolist(),
                    "positions": atoms.positions.tolist(),
                    "cell": atoms.cell[:].tolist(),
                    "energy": float(result["energy"].reshape(-1)[0]),
                    "forces": result["force"][0].tolist(),
                    "virial": result["virial"][0].tolist(),
                }
            )
        golden[path.name] = rows
        print(path.name, len(rows), "structures")
    GOLDEN.write_text(json.dumps(golden))


if __name__ == "__main__":
    main(sys.argv[1:])
