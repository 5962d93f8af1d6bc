"""Compute the data set that `equimol demo` trains on: GFN2-xTB energies and forces of ethanolamine (2-aminoethanol).

Twenty independent Langevin trajectories, 300 K and 600 K in turn, each from a random conformer with its own seed; 20 frames of each,
100 fs apart. The last trajectories are therefore independent of the first ones, and both temperatures occur at any end of the file.
Isolated atoms come first (`config_type=IsolatedAtom`). Takes about fifteen minutes on one core; needs `pip install tblite 'ase>=3.29'`.
"""

import argparse
import io
import lzma
from pathlib import Path

import ase.io
import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import BFGS

OUTPUT = Path(__file__).parents[1] / "equimol" / "demo_data" / "ethanolamine_gfn2.xyz.xz"
MULTIPLICITY = {"H": 2, "C": 3, "N": 4, "O": 3}  # ground states of the free atoms
TEMPERATURES = (300.0, 600.0)  # K
TIMESTEP = 0.5  # fs
EQUILIBRATION = 2000  # steps, 1 ps
STRIDE = 200  # steps between frames, 100 fs


def calculator(multiplicity: int = 1):
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", multiplicity=multiplicity, accuracy=0.1, verbosity=0)


def ethanolamine(torsions: tuple[float, float, float, float]) -> Atoms:
    """HO-CH2-CH2-NH2 with standard bond lengths and angles; torsions in degrees: O-C-C-N, H-O-C-C, and the two H-N-C-C."""
    backbone, hydroxyl, amine1, amine2 = torsions
    c1, c2 = np.zeros(3), np.array([1.52, 0.0, 0.0])
    above = np.array([0.0, 1.0, 0.0])  # only fixes the plane of the first torsion
    o = placed(c1, c2, above, 1.42, 110, 0)
    n = placed(c2, c1, o, 1.46, 111, backbone)
    carbons_hydrogens = [placed(c1, c2, n, 1.09, 109, backbone + turn) for turn in (120, -120)]
    carbons_hydrogens += [placed(c2, c1, o, 1.09, 109, backbone + turn) for turn in (120, -120)]
    others = [placed(o, c1, c2, 0.97, 107, hydroxyl), placed(n, c2, c1, 1.01, 109, amine1), placed(n, c2, c1, 1.01, 109, amine2)]
    return Atoms("CCONH7", positions=[c1, c2, o, n, *carbons_hydrogens, *others])


def placed(bonded: np.ndarray, second: np.ndarray, third: np.ndarray, length: float, angle: float, torsion: float) -> np.ndarray:
    """Position of a new atom at `length` from `bonded`, with the angle new-bonded-second and the torsion new-bonded-second-third."""
    angle, torsion = np.radians(angle), np.radians(torsion)
    axis = (second - bonded) / np.linalg.norm(second - bonded)
    normal = np.cross(third - second, axis)
    normal /= np.linalg.norm(normal)
    inplane = np.cross(axis, normal)
    return bonded + length * (np.cos(angle) * axis + np.sin(angle) * (np.cos(torsion) * inplane + np.sin(torsion) * normal))


def random_conformer(random: np.random.Generator) -> Atoms:
    """A relaxed conformer whose torsions start from staggered values."""
    backbone, hydroxyl, amine = random.choice([60, 180, 300], size=3)
    atoms = ethanolamine((backbone, hydroxyl, amine, amine + 120))
    atoms.calc = calculator()
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    return atoms


def trajectory(index: int, frames: int) -> list[Atoms]:
    """Labelled frames of one Langevin run; the index decides temperature, conformer and all random numbers."""
    random = np.random.default_rng(index)
    temperature = TEMPERATURES[index % len(TEMPERATURES)]
    atoms = random_conformer(random)
    thermalize_momenta(atoms, temperature, rng=random)
    # fixcm=True would disturb the distribution of so small a molecule; the centre of mass may wander, frozen() brings it back.
    friction = 0.01 / ase.units.fs
    dynamics = Langevin(atoms, TIMESTEP * ase.units.fs, temperature_K=temperature, friction=friction, fixcm=False, rng=random)
    dynamics.run(EQUILIBRATION)
    labelled = []
    for _ in range(frames):
        dynamics.run(STRIDE)
        labelled.append(frozen(atoms, config_type=f"md_{temperature:.0f}K", trajectory=index))
    return labelled


def isolated_atoms() -> list[Atoms]:
    """One atom of each element in its ground state, for the reference energies."""
    frames = []
    for symbol, multiplicity in MULTIPLICITY.items():
        atoms = Atoms(symbol, positions=[[0.0, 0.0, 0.0]], calculator=calculator(multiplicity))
        frames.append(frozen(atoms, config_type="IsolatedAtom"))
    return frames


def frozen(atoms: Atoms, **info) -> Atoms:
    """A copy that keeps energy (eV) and forces (eV/Å) and forgets velocities. The molecule's centre of mass is put at the origin."""
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    copy = Atoms(atoms.get_chemical_symbols(), positions=atoms.positions - atoms.get_center_of_mass(), info=info)
    copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
    return copy


def write(path: Path, frames: list[Atoms]) -> None:
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    path.write_bytes(lzma.compress(text.getvalue().encode(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=20)
    parser.add_argument("--frames", type=int, default=20, help="per trajectory")
    parser.add_argument("--out", type=Path, default=OUTPUT)
    options = parser.parse_args()
    frames = isolated_atoms()
    for index in range(options.trajectories):
        frames += trajectory(index, options.frames)
        print(f"trajectory {index}: {len(frames)} frames, last energy {frames[-1].get_potential_energy():.4f} eV", flush=True)
    write(options.out, frames)
    print(f"{options.out}: {len(frames)} frames, {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
