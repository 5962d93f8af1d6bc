"""DeePMD-kit's systems, mixed systems and LMDB give the very frames of an extxyz file; damaged twins give one clear error each."""

import lzma
import pickle
import shutil
from pathlib import Path

import ase
import ase.io
import lmdb
import msgpack
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from equimol.data import AtomicGraph, DataError, read
from equimol.models.lennard_jones import LennardJones, LennardJonesConfig
from equimol.training.config import load_config
from equimol.training.prepare import data_files, read_data

TYPE_MAP = ["H", "O", "C"]


def structures(symbols: str = "COOH", count: int = 3, pbc: bool = True, seed: int = 0) -> list[ase.Atoms]:
    """With labels that a virial gives back: numbers of few digits, a symmetric stress."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        base = np.arange(3 * len(symbols)).reshape(-1, 3) * [0.0, 0.0, 0.4] + rng.normal(size=(len(symbols), 3)) * 0.05
        atoms = ase.Atoms(symbols, base.round(6), cell=[[4, 0, 0], [1, 5, 0], [0, 0.5, 6 + index]] if pbc else None, pbc=pbc)
        stress = {"stress": rng.normal(size=6).round(4)} if pbc else {}
        forces = rng.normal(size=base.shape).round(6)
        atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - index, forces=forces, **stress)
        made.append(atoms)
    return made


def arrays(atoms: ase.Atoms) -> dict[str, np.ndarray]:
    """One frame under DeePMD-kit's names; the virial is minus stress times volume."""
    found = {"coord": atoms.positions, "energy": np.array(atoms.get_potential_energy()), "force": atoms.get_forces()}
    if atoms.pbc.any():
        found |= {"box": atoms.cell.array, "virial": -atoms.get_stress(voigt=False) * atoms.get_volume()}
    return found


def write_system(folder: Path, frames: list[ase.Atoms], sets: int = 1) -> Path:
    folder.mkdir(parents=True)
    (folder / "type.raw").write_text("".join(f"{TYPE_MAP.index(symbol)}\n" for symbol in frames[0].symbols))
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP) + "\n")
    if not frames[0].pbc.any():
        (folder / "nopbc").touch()
    for index, some in enumerate(np.array_split(np.arange(len(frames)), sets)):
        write_set(folder / f"set.{index:03}", [arrays(frames[k]) for k in some])
    return folder


def write_set(place: Path, frames: list[dict[str, np.ndarray]]) -> None:
    place.mkdir()
    for key in frames[0]:
        np.save(place / f"{key}.npy", np.stack([frame[key].reshape(-1) for frame in frames]))
    np.save(place / "atom_ener.npy", np.full((len(frames), 1), np.nan))  # there in some systems, of no use here


def write_mixed(folder: Path, frames: list[ase.Atoms]) -> Path:
    """All structures in one set, the small ones filled up with atoms of type -1 that carry nonsense."""
    atoms = max(map(len, frames))
    filled = []
    for frame in frames:
        gap = atoms - len(frame)
        types = np.array([TYPE_MAP.index(symbol) for symbol in frame.symbols] + [-1] * gap)
        found = arrays(frame)
        found |= {key: np.concatenate([found[key], np.full((gap, 3), np.nan)]) for key in ("coord", "force")}
        filled.append(found | {"real_atom_types": types})
    folder.mkdir()
    (folder / "type.raw").write_text("0\n" * atoms)
    (folder / "type_map.raw").write_text("\n".join(TYPE_MAP))
    write_set(folder / "set.000", filled)
    return folder


def packed(array: np.ndarray) -> dict:
    return {"type": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()}


def entries(frames: list[ase.Atoms]) -> dict[bytes, dict]:
    """What an LMDB holds, not yet packed."""
    plural = {"coord": "coords", "box": "cells", "energy": "energies", "force": "forces", "virial": "virials"}
    found: dict[bytes, dict] = {}
    for index, frame in enumerate(frames):
        types = np.array([TYPE_MAP.index(symbol) for symbol in frame.symbols], dtype=np.int32)
        values = {plural[key]: packed(array) for key, array in arrays(frame).items()}
        found[b"%012d" % index] = {"atom_types": packed(types), **values, "atom_numbs": np.bincount(types, minlength=3).tolist()}
    return found | {b"__metadata__": {"nframes": len(frames), "frame_idx_fmt": "012d", "type_map": TYPE_MAP}}


def write_lmdb(path: Path, content: dict, subdir: bool = True) -> Path:
    with lmdb.open(str(path), map_size=1 << 22, subdir=subdir) as database, database.begin(write=True) as transaction:
        for key, value in content.items():
            transaction.put(key, value if isinstance(value, bytes) else msgpack.packb(value))
    return path


def assert_same_frames(found, tmp_path: Path, frames: list[ase.Atoms]) -> None:
    """As the extxyz file of the same structures is read."""
    ase.io.write(tmp_path / "twin.xyz", frames)
    for mine, twin in zip(found, read(tmp_path / "twin.xyz"), strict=True):
        np.testing.assert_array_equal(mine.numbers, twin.numbers)
        np.testing.assert_array_equal(mine.pbc, twin.pbc)
        assert mine.labels.keys() == twin.labels.keys()
        for ours, theirs in [
            (mine.positions, twin.positions),
            (mine.cell, twin.cell),
            *((mine.labels[k], twin.labels[k]) for k in twin.labels),
        ]:
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


# --- whole data


@pytest.mark.parametrize("pbc", [True, False], ids=["crystal", "molecule"])
def test_a_system_gives_the_frames_of_its_twin_set_after_set(tmp_path, pbc):
    frames = structures(count=5, pbc=pbc)
    found = read(write_system(tmp_path / "system", frames, sets=2))
    assert_same_frames(found, tmp_path, frames)
    assert [frame.source for frame in found][2:4] == [f"{tmp_path / 'system' / 'set.000'}:2", f"{tmp_path / 'system' / 'set.001'}:0"]
    assert found.report.used["energy"] == {"energy": 5} and found.report.count("stress") == (5 if pbc else 0)


def test_a_mixed_system_gives_them_without_its_padding(tmp_path):
    frames = structures("COOH", 2) + structures("CO", 2, seed=1) + structures("HOH", 1, seed=2)
    assert_same_frames(read(write_mixed(tmp_path / "mixed", frames)), tmp_path, frames)


@pytest.mark.parametrize("subdir", [True, False], ids=["folder", "file"])
def test_an_lmdb_gives_them_too(tmp_path, subdir):
    frames = structures("COOH", 2) + structures("CO", 2, pbc=False)
    path = write_lmdb(tmp_path / "data.lmdb", entries(frames), subdir)
    found = read(path)
    assert_same_frames(found, tmp_path, frames)
    assert found[3].source == f"{path}:3"
    if not subdir:
        (tmp_path / "data.lmdb.xz").write_bytes(lzma.compress(path.read_bytes()))
        assert_same_frames(read(tmp_path / "data.lmdb.xz"), tmp_path, frames)


def test_a_folder_of_systems_is_read_in_sorted_order_at_any_depth(tmp_path):
    b, a = structures("CO", 2), structures("COOH", 2, seed=1)
    write_system(tmp_path / "all" / "b", b)
    write_system(tmp_path / "all" / "a" / "deep", a)
    (tmp_path / "all" / "c").symlink_to(tmp_path / "all" / "b")  # one and the same: read once
    found = read(tmp_path / "all")
    assert_same_frames(found, tmp_path, a + b)
    assert_same_frames(read([tmp_path / "all" / "b", tmp_path / "all" / "a"]), tmp_path, b + a)


def test_single_precision_flat_energies_and_matrices_are_fine(tmp_path):
    frames = structures()
    place = write_system(tmp_path / "system", frames) / "set.000"
    for key, shape in (("energy", (3,)), ("box", (3, 3, 3)), ("coord", (3, 4, 3))):
        np.save(place / f"{key}.npy", np.load(place / f"{key}.npy").reshape(shape).astype(np.float32))
    for mine, atoms in zip(read(tmp_path / "system"), frames, strict=True):
        assert mine.positions.dtype == np.float64 and mine.labels["energy"] == atoms.get_potential_energy()
        np.testing.assert_allclose(mine.positions, atoms.positions, atol=1e-6)


def test_charge_and_multiplicity_are_taken_along(tmp_path):
    system = write_system(tmp_path / "system", structures())
    np.save(system / "set.000" / "charge_spin.npy", [[-1.0, 2.0]] * 3)
    assert read(system)[2].info == {"charge": -1.0, "spin": 2.0}


def test_a_label_that_an_lmdb_calls_filled_in_is_none(tmp_path):
    content = entries(structures())
    content[b"000000000001"]["find_force"] = 0.0
    found = read(write_lmdb(tmp_path / "data.lmdb", content))
    assert "forces" not in found[1].labels and found.report.count("forces") == 2


def test_arrays_of_an_lmdb_may_be_packed_by_msgpack_numpy(tmp_path):
    content = entries(structures())
    for key, frame in content.items():
        if key != b"__metadata__":
            frame |= {name: {k.encode(): v for k, v in part.items()} for name, part in frame.items() if isinstance(part, dict)}
    assert_same_frames(read(write_lmdb(tmp_path / "data.lmdb", content)), tmp_path, structures())


def test_the_virial_is_minus_the_derivative_by_the_strain(tmp_path):
    """So that the stress read is that of the potential whose energies were strained, and negative in a crystal that wants to expand."""
    argon, model = bulk("Ar", "fcc", a=4.9, cubic=True), LennardJones(LennardJonesConfig())
    argon.rattle(0.05, seed=0)

    def results(strain: np.ndarray) -> dict[str, np.ndarray]:
        turned = np.eye(3) + strain
        graph = AtomicGraph.build(argon.positions @ turned, argon.numbers, argon.cell.array @ turned, argon.pbc, model.cutoff)
        return {name: value.detach().numpy() for name, value in model(graph).items()}

    virial, step = np.zeros((3, 3)), 1e-5
    for i, j in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[i, j] = step
        virial[i, j] = (results(-strain)["energy"] - results(strain)["energy"]).item() / (2 * step)
    frame = {"coord": argon.positions, "box": argon.cell.array, "energy": np.array(0.0), "virial": virial}
    folder = tmp_path / "argon"
    folder.mkdir()
    (folder / "type.raw").write_text("0 0 0 0")
    (folder / "type_map.raw").write_text("Ar")
    write_set(folder / "set.000", [frame])
    stress = read(folder)[0].labels["stress"]
    np.testing.assert_allclose(stress, results(np.zeros((3, 3)))["stress"][0], rtol=1e-6, atol=1e-8)
    assert (np.diag(stress) < -0.01).all() and (np.diag(frame["virial"]) > 0).all()


def test_training_takes_a_folder_and_hashes_what_is_in_it(tmp_path):
    system = write_system(tmp_path / "system", structures(count=20))
    write_lmdb(tmp_path / "valid.lmdb", entries(structures(count=2, seed=1)))
    config = load_config(None, [f"data={system}", f"valid={tmp_path / 'valid.lmdb'}", "test=2"])
    data = read_data(config)
    assert {name: len(frames) for name, frames in data.frames.items()} == {"train": 18, "valid": 2, "test": 2}
    names = [file.name for file in data_files(config)]
    assert names[-1] == "data.mdb" and names[:2] == ["atom_ener.npy", "box.npy"] and "lock.mdb" not in names
    assert read_data(config).checksum == data.checksum
    np.save(system / "set.000" / "energy.npy", np.zeros(20))
    assert read_data(config).checksum != data.checksum


# --- public data


def test_the_public_lmdb_holds_the_frames_of_the_public_extxyz(shared_data):
    found = read(shared_data / "formats" / "deepmd_water.lmdb")
    twins = read(shared_data / "deepmd_water" / "train_data_0-2.xyz.xz")[240:260]
    for mine, twin in zip(found, twins, strict=True):
        np.testing.assert_array_equal(mine.numbers, twin.numbers)
        np.testing.assert_allclose(mine.positions, twin.positions, atol=1e-8)
        np.testing.assert_allclose(mine.cell, twin.cell, atol=1e-8)
        np.testing.assert_allclose(mine.labels["forces"], twin.labels["forces"], atol=1e-8)
        assert mine.labels["energy"] == twin.labels["energy"]


# --- damaged twins: one error each, naming file and frame


@pytest.fixture
def system(tmp_path) -> Path:
    return write_system(tmp_path / "system", structures())


def altered(path: Path, index: tuple, value: float) -> None:
    array = np.load(path)
    array[index] = value
    np.save(path, array)


@pytest.mark.parametrize("key", ["coord", "box", "energy", "force", "virial"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_none(system, key, value):
    altered(system / "set.000" / f"{key}.npy", (1, 0), value)
    with pytest.raises(DataError, match=rf"system/set\.000:1: {key}"):
        read(system)


@pytest.mark.parametrize("key", ["coord", "box", "energy", "force", "virial"])
def test_a_truncated_array(system, key):
    path = system / "set.000" / f"{key}.npy"
    for length in (path.stat().st_size - 8, 100, 4, 0):
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(DataError, match=rf"set\.000/{key}\.npy: no complete npy array"):
            read(system)


@pytest.mark.parametrize("key", ["coord", "box", "energy", "force", "virial"])
def test_an_array_of_objects_is_never_unpickled(system, key, tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    np.save(system / "set.000" / f"{key}.npy", np.array([Trap()] * 3), allow_pickle=True)
    with pytest.raises(DataError, match=rf"set\.000/{key}\.npy: no complete npy array"):
        read(system)
    (system / "set.000" / f"{key}.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match=rf"set\.000/{key}\.npy: no complete npy array"):
        read(system)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("key", ["box", "energy", "force", "virial"])
def test_arrays_of_different_numbers_of_frames(system, key):
    path = system / "set.000" / f"{key}.npy"
    np.save(path, np.load(path)[:2])
    with pytest.raises(DataError, match=rf"{key}\.npy: must be \[3 frames as in coord\.npy, \d+ numbers\], got shape \(2, \d+\)"):
        read(system)


@pytest.mark.parametrize("key", ["coord", "box", "energy", "force", "virial"])
def test_arrays_of_another_number_of_atoms(system, key):
    np.save(system / "set.000" / f"{key}.npy", np.zeros((3, 15)))
    with pytest.raises(DataError, match=rf"{key}\.npy: must be .* numbers\], got shape \(3, 15\)"):
        read(system)


@pytest.mark.parametrize("array", [np.array("text"), np.zeros((3, 12), dtype=complex), np.float64(1)], ids=["text", "complex", "scalar"])
def test_an_array_of_something_else(system, array):
    np.save(system / "set.000" / "force.npy", array)
    with pytest.raises(DataError, match=r"force\.npy: must be"):
        read(system)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("type_map.raw", r"type_map\.raw: no such file, .* one element symbol per line, type 0 first"),
        ("set.000/coord.npy", r"coord\.npy: no such file; every set of a system needs it"),
        ("set.000/box.npy", r"box\.npy: no such file; add it, or the empty file .*nopbc if these are molecules"),
        ("type.raw", "is a folder; name the files in it"),
    ],
)
def test_a_missing_file(system, name, message):
    (system / name).unlink()
    with pytest.raises(DataError, match=message):
        read(system)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("type_map.raw", "H O", r"set\.000:0: type 2 is not in the type_map H O; add its element"),
        ("type_map.raw", "H OW C", r"set\.000:0: type 1 is 'OW' in the type_map, which is no element"),
        ("type_map.raw", "H X C", r"type 1 is 'X' in the type_map"),
        ("type.raw", "2 1 1", r"coord\.npy: must be \[frames, 9 numbers\], got shape \(3, 12\)"),
        ("type.raw", "2 1 1 C", r"type\.raw: must hold one whole number for each atom, got '2 1 1 C'"),
        ("type.raw", "", r"type\.raw: must hold one whole number"),
        ("type.raw", "2 1 1 -2", r"type -2 is not in the type_map"),
    ],
)
def test_types_that_are_no_elements(system, name, text, message):
    (system / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read(system)


def test_text_that_is_none(system):
    (system / "type_map.raw").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"type_map\.raw: cannot be read as text"):
        read(system)


def test_a_box_without_a_volume(system):
    np.save(system / "set.000" / "box.npy", np.zeros((3, 9)))
    with pytest.raises(DataError, match=r"set\.000:0: box must span a volume, .* \(systems of molecules have a file nopbc\)"):
        read(system)


def test_a_system_without_frames(system):
    shutil.rmtree(system / "set.000")
    with pytest.raises(DataError, match=r"a system without frames, it has no folder set\.\*; convert raw text"):
        read(system)
    (system / "set.000").mkdir()
    for key, width in (("coord", 12), ("box", 9)):
        np.save(system / "set.000" / f"{key}.npy", np.zeros((0, width)))
    with pytest.raises(DataError, match="holds no structure"):
        read(system)


def test_frames_that_belong_to_no_system_are_not_passed_over(tmp_path):
    write_system(tmp_path / "all" / "a", structures())
    (write_system(tmp_path / "all" / "b", structures()) / "type.raw").unlink()
    with pytest.raises(DataError, match=r"b/set\.000/coord\.npy: belongs to no system, .*b has no type\.raw"):
        read(tmp_path / "all")


def test_mixed_types_in_some_sets_only(tmp_path):
    system = write_system(tmp_path / "system", structures(count=4), sets=2)
    np.save(system / "set.001" / "real_atom_types.npy", np.zeros((2, 4), dtype=int))
    with pytest.raises(DataError, match=r"set\.000: has no real_atom_types\.npy, though set\.001 has one"):
        read(system)


def test_mixed_types_that_are_none(tmp_path):
    path = write_mixed(tmp_path / "mixed", structures()) / "set.000" / "real_atom_types.npy"
    types = np.load(path)
    for value, message in (
        (3, "type 3 is not in the type_map H O C"),
        (-2, "type -2 is not in"),
        (-1, "must hold atoms, .* got 0 of int64"),
    ):
        np.save(path, np.where(np.arange(3)[:, None] == 1, value, types))
        with pytest.raises(DataError, match=rf"set\.000:1: {message}"):
            read(tmp_path / "mixed")
    np.save(path, types.astype(float))
    with pytest.raises(DataError, match=r"set\.000:0: must hold atoms, each with a whole number as its type"):
        read(tmp_path / "mixed")


def test_an_lmdb_that_is_cut_off(tmp_path):
    path = write_lmdb(tmp_path / "data.lmdb", entries(structures("C" * 300, 6)), subdir=False)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2 + 100, 8192):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=rf"data\.lmdb: the file is cut off, {length} of {len(whole)} bytes are there; copy it again"):
            read(path)
    for damaged in (whole[:4096], whole[:100], b"no LMDB at all" * 1000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"data\.lmdb: cannot be read as LMDB"):
            read(path)


def test_an_lmdb_with_a_damaged_page(tmp_path):
    path = write_lmdb(tmp_path / "data.lmdb", entries(structures("C" * 300, 6)), subdir=False)
    whole, refused = path.read_bytes(), 0
    for page in range(2, len(whole) // 4096):
        path.write_bytes(whole[: 4096 * page] + b"\x5a" * 4096 + whole[4096 * (page + 1) :])
        try:
            read(path)
        except DataError as error:
            assert "data.lmdb:" in str(error)
            refused += 1
    assert refused > 6  # damage in the middle of an array shows in no check


def test_a_folder_that_is_an_lmdb_by_name_alone(tmp_path):
    (tmp_path / "data.lmdb").mkdir()
    with pytest.raises(DataError, match=r"data\.lmdb: cannot be read as LMDB"):
        read(tmp_path / "data.lmdb")


def test_an_lmdb_of_another_kind_is_refused_with_the_reason(tmp_path):
    with pytest.raises(DataError, match=r"tables\.lmdb: no LMDB of DeePMD-kit, OC20 or ASE, .* its first is b'1'"):
        read(write_lmdb(tmp_path / "tables.lmdb", {b"1": pickle.dumps("graph")}, subdir=False))
    with pytest.raises(DataError, match=r"other\.lmdb, entry __metadata__: no msgpack table"):
        read(write_lmdb(tmp_path / "other.lmdb", {b"__metadata__": pickle.dumps({})}))
    with pytest.raises(DataError, match=r"more\.lmdb: no LMDB of DeePMD-kit: __metadata__ says nframes=None"):
        read(write_lmdb(tmp_path / "more.lmdb", {b"__metadata__": {"length": 3}}))
    with pytest.raises(DataError, match=r"its first is b''"):
        read(write_lmdb(tmp_path / "empty.lmdb", {}))


def test_an_lmdb_without_a_type_map_takes_one_from_beside_it(tmp_path):
    content = entries(structures())
    del content[b"__metadata__"]["type_map"]
    path = write_lmdb(tmp_path / "data.lmdb", content)
    with pytest.raises(DataError, match=r"data\.lmdb/type_map\.raw: no such file, .* write it with one element symbol per line"):
        read(path)
    (path / "type_map.raw").write_text("H\nO\nC\n")
    assert_same_frames(read(path), tmp_path, structures())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coords": "far"}, "coord is no array of numbers"),
        ({"coords": None}, "has no coord, only atype,"),
        ({"coords": packed(np.zeros((3, 3)))}, r"coord of 4 atoms must be 12 numbers, got shape \(3, 3\)"),
        ({"forces": {"type": "O", "shape": [1], "data": bytes(8)}}, "force is no array of numbers"),
        ({"forces": {"type": "float64", "shape": [4, 3], "data": bytes(95)}}, "force is no array of numbers"),
        ({"forces": {"type": "float64", "shape": [5, 3], "data": bytes(96)}}, "force is no array of numbers"),
        ({"forces": packed(np.full((4, 3), np.nan))}, "force holds NaN"),
        ({"energies": "low"}, "energy is no array of numbers"),
        ({"cells": packed(np.eye(2))}, r"box of 4 atoms must be 9 numbers"),
        ({"cells": packed(np.ones((3, 3)))}, "box must span a volume"),
        ({"atom_types": packed(np.array([0, 1, 2, 3]))}, "type 3 is not in the type_map H O C"),
        ({"atom_types": packed(np.array([], dtype=int))}, "coord of 0 atoms must be 0 numbers"),
    ],
)
def test_a_wrong_entry_of_an_lmdb(tmp_path, change, message):
    content = entries(structures())
    content[b"000000000001"] |= change
    with pytest.raises(DataError, match=rf"data\.lmdb:1: {message}"):
        read(write_lmdb(tmp_path / "data.lmdb", content))


def test_frames_of_an_lmdb_that_are_missing_or_too_many(tmp_path):
    content = entries(structures())
    frame = content.pop(b"000000000001")
    with pytest.raises(DataError, match=r"a\.lmdb:1: the frame is missing, __metadata__ announces 3"):
        read(write_lmdb(tmp_path / "a.lmdb", content))
    with pytest.raises(DataError, match=r"b\.lmdb:3: a frame too many, __metadata__ announces 3"):
        read(write_lmdb(tmp_path / "b.lmdb", {**content, b"000000000001": frame, b"000000000003": frame}))
    with pytest.raises(DataError, match=r"c\.lmdb:1: has no coord, only atype"):
        read(write_lmdb(tmp_path / "c.lmdb", {**content, b"000000000001": {"atom_types": frame["atom_types"]}}))
    with pytest.raises(DataError, match=r"d\.lmdb:1: no msgpack table"):
        read(write_lmdb(tmp_path / "d.lmdb", {**content, b"000000000001": msgpack.packb(frame)[:-30]}))
