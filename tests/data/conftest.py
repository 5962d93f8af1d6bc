"""Structures in every format: what was written in one must be read as from any other."""

import json
import pickle
import zlib
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import ase
import ase.io
import lmdb
import msgpack
import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.singlepoint import SinglePointCalculator

KCAL = units.kcal / units.mol


def make_molecules(symbols: str = "COH2", count: int = 3, seed: int = 0) -> list[ase.Atoms]:
    """Conformations of one molecule with energy and forces."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        atoms = ase.Atoms(symbols)
        atoms.positions = np.arange(len(atoms))[:, None] * [0.3, 0.8, 0.2] + rng.normal(size=(len(atoms), 3)) * 0.05
        atoms.calc = SinglePointCalculator(atoms, energy=-114.0 - index, forces=rng.normal(size=(len(atoms), 3)))
        made.append(atoms)
    return made


def make_crystals(count: int = 3, seed: int = 0) -> list[ase.Atoms]:
    """Periodic structures with energy, forces, stress, and a tag for each atom."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        atoms = ase.Atoms("CuOCu", rng.uniform(0, 4, size=(3, 3)), cell=[[4, 0, 0], [1, 5, 0], [0, 0.5, 6 + index]], pbc=True)
        atoms.set_tags([0, 1, 2])
        stress, forces = rng.normal(size=6), rng.normal(size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - index, forces=forces, stress=stress)
        made.append(atoms)
    return made


# --- one writer per format, with the schema of its origin


def write_extxyz(path: Path, frames: list[ase.Atoms]) -> None:
    ase.io.write(path, frames, format="extxyz")


def write_spice(path: Path, frames: list[ase.Atoms]) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")
    with h5py.File(path, "w") as file:
        for number, some in enumerate(by_atoms(frames)):
            group = file.create_group(f"molecule{number}")
            group["atomic_numbers"] = some[0].numbers.astype(np.int16)
            group["smiles"] = [b"[C:1](=[O:2])([H:3])[H:4]"]
            group["subset"] = [b"made up"]
            values = {
                "conformations": (np.array([one.positions for one in some]) / units.Bohr, "bohr"),
                "dft_total_energy": (np.array([one.get_potential_energy() for one in some]) / units.Hartree, "hartree"),
                "formation_energy": (np.full(len(some), -1.0), "hartree"),
                "dft_total_gradient": (-np.array([one.get_forces() for one in some]) * units.Bohr / units.Hartree, "hartree/bohr"),
            }
            for key, (array, unit) in values.items():
                group[key] = array
                group[key].attrs["units"] = unit


def write_ani1x(path: Path, frames: list[ase.Atoms]) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")
    with h5py.File(path, "w") as file:
        for number, some in enumerate(by_atoms(frames)):
            group = file.create_group(f"molecule{number}")
            group["atomic_numbers"] = some[0].numbers.astype(np.uint8)
            group["coordinates"] = np.array([one.positions for one in some])
            group["wb97x_dz.energy"] = np.array([one.get_potential_energy() for one in some]) / units.Hartree
            group["wb97x_dz.forces"] = np.array([one.get_forces() for one in some]) / units.Hartree
            group["wb97x_tz.energy"] = np.array([np.nan] * (len(some) - 1) + [-1.0])


def write_ani2x(path: Path, frames: list[ase.Atoms], symbols: bool = False) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")
    with h5py.File(path, "w") as file:
        group = file.create_group("set/004")
        group["species"] = [s.encode() for s in frames[0].symbols] if symbols else np.array([one.numbers for one in frames])
        group["coordinates"] = np.array([one.positions for one in frames])
        group["energies"] = np.array([one.get_potential_energy() for one in frames]) / units.Hartree
        group["forces"] = np.array([one.get_forces() for one in frames]) / units.Hartree


def write_npz(path: Path, frames: list[ase.Atoms]) -> None:
    energies = np.array([[one.get_potential_energy() / KCAL] for one in frames])
    arrays = {"R": np.array([one.positions for one in frames]), "F": np.array([one.get_forces() / KCAL for one in frames])}
    np.savez(path, z=frames[0].numbers.astype(np.uint8), E=energies, **arrays)


def write_rmd17(path: Path, frames: list[ase.Atoms]) -> None:
    arrays = {"coords": np.array([one.positions for one in frames]), "forces": np.array([one.get_forces() / KCAL for one in frames])}
    energies = np.array([one.get_potential_energy() / KCAL for one in frames])
    np.savez(path, nuclear_charges=frames[0].numbers, energies=energies, old_indices=np.arange(len(frames)), **arrays)


def write_mptrj(path: Path, frames: list[ase.Atoms]) -> None:
    path.write_text(json.dumps({"mp-1": {f"mp-1-0-{n}": mptrj_entry(one) for n, one in enumerate(frames)}}))


def mptrj_entry(atoms: ase.Atoms) -> dict:
    scaled = atoms.get_scaled_positions(wrap=False)
    sites = [
        {"species": [{"element": symbol, "occu": 1.0}], "abc": abc.tolist(), "xyz": xyz.tolist(), "label": symbol, "properties": {}}
        for symbol, abc, xyz in zip(atoms.symbols, scaled, atoms.positions, strict=True)
    ]
    energy = atoms.get_potential_energy()
    return {
        "structure": {"@class": "Structure", "lattice": {"matrix": atoms.cell.tolist(), "pbc": [True] * 3}, "sites": sites},
        "uncorrected_total_energy": energy,
        "corrected_total_energy": energy - 1.0,
        "energy_per_atom": energy / len(atoms),
        "force": atoms.get_forces().tolist(),
        "stress": (atoms.get_stress(voigt=False) / (-0.1 * units.GPa)).tolist(),
        "magmom": None,
        "bandgap": 0.0,
        "mp_id": "mp-1",
    }


def oc20_record(atoms: ase.Atoms) -> bytes:
    """As OC20's preprocessing pickles it: everything a float32 tensor or a plain number."""
    from torch_geometric.data import Data

    fields = {
        "cell": torch.tensor(atoms.cell.array[None]),
        "pos": torch.tensor(atoms.positions),
        "atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.float32),
        "natoms": len(atoms),
        "tags": torch.tensor(atoms.get_tags(), dtype=torch.float32),
        "fixed": torch.tensor([1.0] + [0.0] * (len(atoms) - 1)),
        "edge_index": torch.zeros(2, 0, dtype=torch.long),
        "y": atoms.get_potential_energy(),
        "force": torch.tensor(atoms.get_forces()),
        "sid": 7,
        "fid": 3,
    }
    return pickle.dumps(Data(**fields), protocol=-1)


def write_oc20(path: Path, frames: list[ase.Atoms]) -> None:
    entries = {str(n).encode(): oc20_record(one) for n, one in enumerate(frames)}
    put(path, {**entries, b"length": pickle.dumps(len(frames))})


def write_aselmdb(path: Path, frames: list[ase.Atoms]) -> None:
    put(path, {**{str(n + 1).encode(): aselmdb_row(one) for n, one in enumerate(frames)}, b"nextid": packed(len(frames) + 1)})


def aselmdb_row(atoms: ase.Atoms, **more) -> bytes:
    table = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": atoms.cell.array, "pbc": atoms.pbc, "tags": atoms.get_tags()}
    results = {key: np.asarray(value) if np.ndim(value) else value for key, value in atoms.calc.results.items()}
    stamps = {"mtime": 1.0, "ctime": 1.0, "user": "me", "unique_id": "a", "calculator": "unknown", "calculator_parameters": {}}
    return packed({**table, **results, **stamps, "key_value_pairs": {"group": "a"}, "data": {"sid": 7}, **more})


def packed(content) -> bytes:
    from ase.io.jsonio import encode

    return zlib.compress(encode(content).encode())


def put(path: Path, entries: dict[bytes, bytes]) -> None:
    with lmdb.open(str(path), map_size=1 << 24, subdir=False, lock=False) as database, database.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, value)


def write_deepmd(path: Path, frames: list[ase.Atoms]) -> None:
    def pack(array) -> dict:
        array = np.asarray(array)
        return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}

    entries = {}
    for index, atoms in enumerate(frames):
        table = {"atom_types": pack(atoms.numbers), "coords": pack(atoms.positions), "energies": pack(atoms.get_potential_energy())}
        table |= {"forces": pack(atoms.get_forces()), "cells": pack(atoms.cell.array)}
        table["virials"] = pack(-atoms.get_stress(voigt=False) * atoms.get_volume())
        entries[b"%012d" % index] = msgpack.packb(table)
    symbols = list(ase.data.chemical_symbols)
    metadata = msgpack.packb({"nframes": len(frames), "frame_idx_fmt": "012d", "type_map": symbols})
    put(path, {**entries, b"__metadata__": metadata})


def write_s2ef(path: Path, frames: list[ase.Atoms]) -> None:
    write_extxyz(path, frames)
    path.with_suffix(".txt").write_text("".join(f"random7,frame{n},{-10.0 - n}\n" for n in range(len(frames))))


def by_atoms(frames: list[ase.Atoms]) -> list[list[ase.Atoms]]:
    return [list(some) for _, some in groupby(frames, key=lambda one: str(one.symbols))]


# name of the file -> writer, structures it can hold, labels that survive in it
WRITERS: dict[str, tuple[Callable, Callable, tuple[str, ...]]] = {
    "spice.hdf5": (write_spice, make_molecules, ("energy", "forces")),
    "ani1x.h5": (write_ani1x, make_molecules, ("energy", "forces")),
    "ani2x.h5": (write_ani2x, make_molecules, ("energy", "forces")),
    "md17.npz": (write_npz, make_molecules, ("energy", "forces")),
    "rmd17.npz": (write_rmd17, make_molecules, ("energy", "forces")),
    "mptrj.json": (write_mptrj, make_crystals, ("energy", "forces", "stress")),
    "oc20.lmdb": (write_oc20, make_crystals, ("energy", "forces")),
    "deepmd.lmdb": (write_deepmd, make_crystals, ("energy", "forces", "stress")),
    "rows.aselmdb": (write_aselmdb, make_crystals, ("energy", "forces", "stress")),
    "s2ef.extxyz": (write_s2ef, make_crystals, ("energy", "forces", "stress")),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path) -> tuple[Path, list[ase.Atoms], tuple[str, ...]]:
    """A file of each format, the structures in it, and which of their labels the format can state."""
    writer, make, labels = WRITERS[request.param]
    writer(tmp_path / request.param, make())
    return tmp_path / request.param, make(), labels


@pytest.fixture
def write(tmp_path):
    """write("spice.hdf5") -> path of a file with the usual structures, or with those given."""

    def make(name: str, frames: list[ase.Atoms] | None = None) -> Path:
        writer, structures, _ = WRITERS[name]
        writer(tmp_path / name, structures() if frames is None else frames)
        return tmp_path / name

    make.molecules, make.crystals = make_molecules, make_crystals
    make.put, make.oc20_record, make.aselmdb_row, make.packed = put, oc20_record, aselmdb_row, packed
    make.mptrj_entry, make.extxyz, make.ani2x = mptrj_entry, write_extxyz, write_ani2x
    return make
