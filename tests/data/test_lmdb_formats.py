"""LMDBs of OC20 and ASE: what their records mean, that nothing in a pickle runs, and damaged entries."""

import pickle

import ase.io
import numpy as np
import pytest
import torch

from equimol.data import DataError, read


class Attack:
    """Pickles into a call that would leave a trace."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.trace}",)


def changed(record: bytes, **fields) -> bytes:
    graph = pickle.loads(record)
    for key, value in fields.items():
        graph[key] = value
    return pickle.dumps(graph)


# --- OC20


def test_tags_and_fixed_atoms_of_oc20_are_kept(write):
    path = write("oc20.lmdb")
    frame = read(path)[0]
    assert frame.fixed.tolist() == [True, False, False] and frame.info["sid"] == 7 and frame.info["fid"] == 3
    assert read(path, fixed="tags")[0].fixed.tolist() == [True, False, False]
    assert read(path, fixed="none")[0].fixed is None
    assert frame.pbc.all() and frame.graph(3.0).forces_present.tolist() == [False, True, True]


def test_records_of_the_first_pyg_are_read_as_well(write):
    """Before version 2 the numbers lay in the graph itself."""
    from torch_geometric.data import Data

    path = write("oc20.lmdb")
    fields = {"pos": torch.rand(2, 3), "atomic_numbers": torch.tensor([29.0, 8.0]), "cell": 9 * torch.eye(3)[None], "y": -1.5}
    old = Data.__new__(Data)
    old.__dict__.update({**fields, "force": torch.ones(2, 3), "edge_attr": None, "__num_nodes__": 2})
    write.put(path, {b"1": pickle.dumps(old)})
    frame = read(path)[1]
    assert frame.numbers.tolist() == [29, 8] and frame.labels["energy"] == -1.5 and (frame.labels["forces"] == 1).all()


def test_a_pickle_that_tries_to_run_code_does_nothing_and_is_an_error(write, tmp_path):
    path, trace = write("oc20.lmdb"), tmp_path / "trace"
    write.put(path, {b"1": pickle.dumps(Attack(trace))})
    with pytest.raises(
        DataError, match=r"oc20\.lmdb:1: must be a graph of torch_geometric\.data, got posix\.system; nothing of it was run"
    ):
        read(path)
    write.put(path, {b"1": changed(write.oc20_record(write.crystals()[0]), pos=Attack(trace))})
    with pytest.raises(DataError, match=r"oc20\.lmdb:1: holds what is no number: pos \(posix\.system\); nothing of it was run"):
        read(path)
    write.put(path, {b"length": pickle.dumps(Attack(trace))})
    with pytest.raises(DataError, match=r"oc20\.lmdb: length must be the number of records"):
        read(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Attack(trace)))  # it would have run
    assert trace.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pos": None}, "has no pos, only"),
        ({"pos": torch.zeros(2, 3)}, "pos must be 3 times three finite numbers, as there are atomic_numbers, got shape"),
        ({"pos": torch.full((3, 3), torch.nan)}, "pos must be 3 times three finite numbers"),
        ({"atomic_numbers": torch.tensor([6.5, 8.0, 1.0])}, "atomic_numbers must be whole numbers, got"),
        ({"cell": torch.zeros(4)}, "cell must be nine numbers"),
        ({"force": torch.zeros(2, 3)}, r"forces of 3 atoms must have shape \(3, 3\)"),
        ({"force": np.array([None] * 3)}, "force must be numbers, got object"),
        ({"y": torch.tensor(torch.nan)}, "energy holds NaN or infinity"),
    ],
)
def test_a_damaged_record_of_oc20(write, fields, message):
    path = write("oc20.lmdb")
    write.put(path, {b"1": changed(write.oc20_record(write.crystals()[1]), **fields)})
    with pytest.raises(DataError, match=rf"oc20\.lmdb:1: {message}"):
        read(path)
    assert len(read(path, skip_bad=True)) == 2


def test_a_missing_and_a_cut_record_of_oc20(write):
    path = write("oc20.lmdb")
    write.put(path, {b"1": write.oc20_record(write.crystals()[1])[:-100]})
    with pytest.raises(DataError, match=r"oc20\.lmdb:1: no complete pickle of numbers"):
        read(path)
    write.put(path, {b"length": pickle.dumps(5)})
    assert [fault.split(": ")[0].rpartition(":")[2] for fault in read(path, skip_bad=True).report.skipped] == ["1", "3", "4"]


# --- ASE


def test_a_file_that_ase_wrote(write, tmp_path):
    pytest.importorskip("ase_db_backends", reason="ase-db-backends is not installed; pip install -e '.[dev]'")
    from ase.constraints import FixAtoms
    from ase_db_backends.aselmdb import LMDBDatabase

    structures = write.crystals()
    structures[2].set_constraint(FixAtoms([1]))
    database = LMDBDatabase(str(tmp_path / "a.aselmdb"))
    for atoms in structures:
        database.write(atoms, group="a", data={"charge": 1, "spin": 2})
    database.delete([2])
    database.close()
    frames = read(tmp_path / "a.aselmdb")
    assert len(frames) == 2 and frames[0].info == {"charge": 1.0, "spin": 2.0, "group": "a"}
    ase.io.write(tmp_path / "twin.xyz", structures[::2], format="extxyz")
    for mine, twin in zip(frames, read(tmp_path / "twin.xyz"), strict=True):
        np.testing.assert_allclose(mine.positions, twin.positions, atol=1e-8)
        assert mine.labels.keys() == twin.labels.keys() == {"energy", "forces", "stress"}
        for label in twin.labels:
            np.testing.assert_allclose(mine.labels[label], twin.labels[label], atol=1e-8)
    assert frames[1].fixed.tolist() == [False, True, False]


def test_several_files_in_a_folder_are_one_data_set(write, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(2):
        write("rows.aselmdb").rename(folder / f"data{number}.aselmdb")
    np.savez(folder / "metadata.npz", natoms=[3] * 6)  # what fairchem keeps beside them
    frames = read(folder)
    assert len(frames) == 6 and frames[3].source.endswith("data1.aselmdb:0")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"nonsense", "no compressed JSON as ASE writes it"),
        ({"numbers": [6]}, "no row of ASE"),
        ([1, 2], "no row of ASE"),
    ],
)
def test_a_damaged_row(write, row, message):
    path = write("rows.aselmdb")
    write.put(path, {b"2": row if isinstance(row, bytes) else write.packed(row)})
    with pytest.raises(DataError, match=rf"rows\.aselmdb:1: {message}"):
        read(path)
    assert len(read(path, skip_bad=True)) == 2


def test_an_announced_row_that_is_missing(write):
    path = write("rows.aselmdb")
    write.put(path, {b"nextid": write.packed(5)})
    with pytest.raises(DataError, match=r"rows\.aselmdb:3: row 4 is missing, nextid announces it"):
        read(path)
    write.put(path, {b"nextid": write.packed("many")})
    with pytest.raises(DataError, match=r"rows\.aselmdb: nextid must be a whole number, got 'many'"):
        read(path)
