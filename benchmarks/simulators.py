"""The same potential in every simulator: how far its energies, forces and stress are from those of the ASE calculator.

    python benchmarks/simulators.py                      # all engines; those that are not installed here keep their rows
    python benchmarks/simulators.py ipi openmm --models mace

Small models with random weights in float64, eight molecules of water in a sheared cell. Engines need environments of their own
(`pip install 'equimol[torchsim]'` and so on): run it in each. `results/simulators.csv` has a row for each engine and model: the largest
differences in eV/atom, eV/Å and eV/Å³, or the reason why there are none.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import write
from ase.io.lammpsdata import Prism, write_lammps_data
from ase.stress import full_3x3_to_voigt_6_stress

import equimol
from equimol.data.graph import AtomicGraph
from equimol.interfaces.ase import EquiMolCalculator
from equimol.models import Potential

RESULTS = Path(__file__).parent / "results" / "simulators.csv"
COLUMNS = ("engine", "model", "energy", "forces", "stress", "reason", "versions")
MODELS = {
    "mace": {"channels": 4, "lmax_edge": 1, "radial_width": 8, "readout_width": 4},
    "escaip": {"width": 8, "layers": 1, "heads": 1, "legendre": (4, 2, 2), "radial_basis": 8, "radial_width": 8, "element_width": 4}
    | {"neighbors": 8, "cutoff": 3.5},
    "dpa3": {"layers": 2, "width": 8, "bond_width": 6, "angle_width": 4, "readout": (8, 8), "cutoff": 4.0, "angle_cutoff": 3.0},
    "nequip": {"hidden": ("4x0e", "4x0e+4x1o", "4x0e"), "lmax_edge": 1, "radial_hidden": (8,), "readout_width": 4, "cutoff": 4.0},
    "scale_shift_mace": {"channels": 4, "lmax_edge": 1, "radial_widths": (8,), "readout_width": 4, "cutoff": 4.0},
}
Numbers = tuple[float, np.ndarray, np.ndarray | None]  # energy, forces [atoms, 3], stress [3, 3] where the engine has one


def build(name: str) -> Potential:
    torch.manual_seed(0)
    settings = {"cutoff": 4.0, **MODELS[name]}
    return equimol.build_model(name, elements=[1, 8], references={1: -13.6, 8: -2042.0}, **settings).double().eval()


def water(sheared: bool = True) -> Atoms:
    """Eight molecules in a cell that is smaller than what a model of several layers reaches; its first vectors are as OpenMM wants them."""
    rng, positions = np.random.default_rng(0), []
    for corner in np.ndindex(2, 2, 2):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        positions += list(np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) @ turn + 3.1 * np.array(corner))
    cell = [[6.2, 0, 0], [0.6, 6.5, 0], [0.3, -0.5, 6.8]] if sheared else np.diag([6.2, 6.5, 6.8])
    return Atoms([8, 1, 1] * 8, positions, cell=cell, pbc=True)


def asking(calculator: EquiMolCalculator, atoms: Atoms) -> Numbers:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)


def by_torchsim(model: Potential, file: Path, atoms: Atoms, folder: Path) -> Numbers:
    import torch_sim

    from equimol.interfaces.torchsim import EquiMolModel

    state = torch_sim.io.atoms_to_state([atoms, atoms * (2, 1, 1)], torch.device("cpu"), torch.float64)
    out = EquiMolModel(file)(state)
    return float(out["energy"][0]), out["forces"][: len(atoms)].numpy(), out["stress"][0].numpy()


def by_ipi(model: Potential, file: Path, atoms: Atoms, folder: Path) -> Numbers:
    from ipi.utils.units import unit_to_internal, unit_to_user

    from equimol.interfaces.ipi import EquiMolDriver

    write(folder / "start.xyz", atoms)
    driver = EquiMolDriver(str(folder / "start.xyz"), str(file))
    cell, positions = (unit_to_internal("length", "angstrom", x) for x in (atoms.cell.array.T, atoms.positions))
    energy, forces, virial, _ = driver(cell, positions)
    stress = -np.reshape(unit_to_user("energy", "electronvolt", virial), (3, 3)) / atoms.get_volume()
    return float(unit_to_user("energy", "electronvolt", energy)), unit_to_user("force", "ev/ang", forces), stress.T


def by_openmm(model: Potential, file: Path, atoms: Atoms, folder: Path) -> Numbers:
    import openmm
    from openmm import app, unit
    from openmmml import MLPotential

    topology = app.Topology()
    chain = topology.addChain()
    residue = topology.addResidue("all", chain)
    for symbol in atoms.symbols:
        topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
    topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in atoms.cell.array / 10] * unit.nanometer)
    system = MLPotential("equimol", model=str(file)).createSystem(topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(atoms.positions / 10)
    state = context.getState(getEnergy=True, getForces=True)
    per_mole = units.kJ / units.mol
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * per_mole
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer) * per_mole / 10
    return energy, forces, None


def by_metatomic(model: Potential, file: Path, atoms: Atoms, folder: Path) -> Numbers:
    from equimol.interfaces.metatomic import export_metatomic  # isort: skip  (before what it imports)
    from metatomic_ase import MetatomicCalculator

    atoms = atoms.copy()
    atoms.calc = MetatomicCalculator(export_metatomic(model, folder / "model.pt"))
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)


def by_package(model: Potential, file: Path, atoms: Atoms, folder: Path) -> Numbers:
    from equimol.interfaces.package import OpenStructure, Package

    graph = AtomicGraph.build(atoms.positions, atoms.numbers, atoms.cell.array, True, model.cutoff)
    out = Package(_package(model, folder))(OpenStructure.of(graph, model.elements))
    return float(out.energy), out.forces.numpy(), -out.virial.numpy() / atoms.get_volume()


def by_lammps(ranks: int) -> Callable[..., Numbers]:
    def run(model: Potential, file: Path, atoms: Atoms, folder: Path) -> Numbers:
        from equimol.interfaces.lammps.build import NAME, build_plugin, environment

        package = _package(model, folder)
        if not (folder.parent / NAME).is_file():
            build_plugin(folder.parent)
        write_lammps_data(folder / "in.data", atoms, specorder=["H", "O"], masses=True, atom_style="atomic")
        (folder / "in.lmp").write_text(
            f"units metal\natom_style atomic\nread_data in.data\nplugin load {folder.parent / NAME}\npair_style equimol\n"
            f"pair_coeff * * {package} H O\nthermo_style custom step pe pxx pyy pzz pyz pxz pxy\nthermo_modify norm no format float %.17g\n"
            "dump 1 all custom 1 out.dump id fx fy fz\ndump_modify 1 sort id format float %.17g\nrun 0\n"
        )
        programs = Path(sys.prefix) / "bin"
        command = [programs / "mpirun", "-n", str(ranks), programs / "lmp", "-in", "in.lmp", "-log", "none"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **environment()})
        lines = [line.split() for line in done.stdout.splitlines()]
        if done.returncode:
            raise RuntimeError(next((" ".join(words) for words in lines if words[:1] == ["ERROR:"]), done.stderr[-200:]))
        numbers = np.array(lines[next(n for n, words in enumerate(lines) if words[:2] == ["Step", "PotEng"]) + 1], dtype=float)
        prism, (xx, yy, zz, yz, xz, xy) = Prism(atoms.cell.array), -numbers[2:] / 1.6021765e6
        stress = prism.tensor2_to_ase(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
        return numbers[1], prism.vector_to_ase(np.loadtxt(folder / "out.dump", skiprows=9)[:, 1:]), stress

    return run


def _package(model: Potential, folder: Path) -> Path:
    from equimol.interfaces.package import export_package

    path = folder / "model.pt2"
    return path if path.is_file() else export_package(model, path)


#: what runs each, and the module whose absence keeps it from running here
ENGINES: dict[str, tuple[Callable[..., Numbers], str]] = {
    "torch-sim": (by_torchsim, "torch_sim"),
    "i-PI": (by_ipi, "ipi"),
    "OpenMM": (by_openmm, "openmmml"),
    "metatomic": (by_metatomic, "metatomic_ase"),
    "AOTInductor": (by_package, "torch"),
    "LAMMPS, 1 rank": (by_lammps(1), "lammps"),
    "LAMMPS, 2 ranks": (by_lammps(2), "lammps"),
    "LAMMPS, 4 ranks": (by_lammps(4), "lammps"),
}


def compare(engine: str, name: str, folder: Path) -> dict[str, str]:
    """A row of the table."""
    run, _ = ENGINES[engine]
    model, atoms = build(name), water()
    file = equimol.save(model, folder / "model.equimol")
    energy, forces, stress = asking(EquiMolCalculator(file), atoms)
    row = dict.fromkeys(COLUMNS, "") | {"engine": engine, "model": name, "versions": f"torch {torch.__version__}"}
    try:
        mine = run(model, file, atoms, folder)
    except (RuntimeError, ValueError, PropertyNotImplementedError) as error:
        return row | {"reason": " ".join(str(error).split())[:200]}
    row |= {"energy": f"{abs(mine[0] - energy) / len(atoms):.1e}", "forces": f"{np.abs(mine[1] - forces).max():.1e}"}
    if mine[2] is None:
        return row | {"reason": "this engine asks for no stress"}
    return row | {"stress": f"{np.abs(full_3x3_to_voigt_6_stress(mine[2] - stress)).max():.1e}"}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="*", help=f"of {', '.join(ENGINES)} those that begin so (default: all)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--csv", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    rows = {}
    if options.csv.is_file():
        with options.csv.open() as file:
            rows = {(row["engine"], row["model"]): row for row in csv.DictReader(file)}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            folder = Path(scratch) / name
            folder.mkdir()
            for engine, (_, package) in ENGINES.items():
                if options.engines and not any(engine.lower().startswith(word.lower()) for word in options.engines):
                    continue
                if importlib.util.find_spec(package) is None:
                    print(f"{engine}: {package} is not installed here")
                    continue
                rows[engine, name] = compare(engine, name, folder)
                print(*(f"{key} {value}" for key, value in rows[engine, name].items() if value), sep=", ", flush=True)
                with options.csv.open("w", newline="") as file:
                    table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                    table.writeheader()
                    table.writerows(rows[key] for key in sorted(rows))


if __name__ == "__main__":
    main()
