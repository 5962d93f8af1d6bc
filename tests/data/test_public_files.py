"""Public data sets, read as they are on disk."""

from itertools import combinations

import numpy as np
import pytest

from equimol.data import DataError, average_neighbors, force_rms, read, reference_energies, split


def test_3bpa_trains_on_energy_with_its_isolated_atoms(shared_data):
    frames = read(shared_data / "3bpa" / "train_300K.xyz.xz")
    isolated = read(shared_data / "3bpa" / "iso_atoms.xyz.xz")
    assert len(frames) == 500 and frames.report.count("energy") == frames.report.count("forces") == 500
    assert "trains on 'energy': the file holds no free_energy" in str(frames.report)
    assert 1e3 * force_rms(frames) == pytest.approx(948, abs=1)
    expected = {1: -13.58722, 6: -1029.48900, 7: -1484.98146, 8: -2041.98160}
    assert reference_energies(frames, isolated).values == pytest.approx(expected, abs=1e-5)
    assert {name: len(part) for name, part in split(frames, "random", (0.9, 0.1, 0.0)).items()} == {"train": 450, "valid": 50, "test": 0}
    graph = frames[0].graph(5.0)
    assert graph.num_nodes == 27 and not graph.pbc.any() and 10 < average_neighbors([graph]) < 27


def test_water_cells_are_a_trajectory(shared_data):
    frames = read(shared_data / "deepmd_water" / "valid_data_3.xyz.xz")
    assert len(frames) == 80 and frames[0].pbc.all() and frames[0].info["system"] == "data_3"
    assert split(frames)["test"] == list(range(72, 80))
    assert 1e3 * force_rms(frames) == pytest.approx(813, abs=30)


@pytest.mark.slow
def test_mad_has_a_stress_for_each_of_its_crystals(shared_data):
    frames = read(shared_data / "mad_1k" / "mad_1k.xyz.xz")
    assert len(frames) == frames.report.count("stress") == 1000
    assert force_rms(frames) == pytest.approx(4.50, abs=0.01)
    graphs = [frame.graph(5.0) for frame in frames]
    assert all(graph.stress_present.item() for graph in graphs)
    assert len(reference_energies(frames).values) == 85


def test_mptrj_keeps_its_stress_and_names(shared_data):
    frames = read(shared_data / "formats" / "mptrj_8_with_magmoms.extxyz.xz")
    assert len(frames) == frames.report.count("stress") == frames.report.count("forces")
    np.testing.assert_allclose(np.diag(frames[0].labels["stress"]), [0.00029334, 0.00029334, 0.00127252], atol=1e-8)
    assert frames[0].info["mp_id"] == "mp-1028232"


def test_omol_keeps_charge_and_multiplicity(shared_data):
    frames = read(shared_data / "formats" / "omol25_spice_5.xyz.xz")
    assert frames[0].info["charge"] == 0.0 and frames[0].info["spin"] == 1.0
    assert frames[0].graph(5.0).spin.item() == 1.0


def test_a_packed_database_is_read(shared_data):
    frames = read(shared_data / "oxides_ase_db" / "oxides.db.xz")
    assert len(frames) == 295 and frames.report.count("forces") > 0
    assert frames[3].source.endswith("oxides.db.xz:3")


def test_a_database_of_the_materials_project_is_read(shared_data):
    frames = read(shared_data / "formats" / "orb_10_mptraj_systems.db")
    assert len(frames) == frames.report.count("energy") == 10


@pytest.mark.slow
def test_relaxations_split_by_system(shared_data):
    frames = read(shared_data / "oc20_relax" / "oc20_relax24.extxyz.xz")
    parts = split(frames, "group:sid")
    systems = {name: {frames[index].info["sid"] for index in part} for name, part in parts.items()}
    assert len(frames) == 3941 and sum(map(len, systems.values())) == 24 and not systems["train"] & systems["test"]


def test_a_file_without_energies_says_what_it_holds(shared_data):
    with pytest.raises(DataError, match="the keys are: alpha, beta, potential"):
        read(shared_data / "water_other" / "bulk_water_96at_dipole_polarizability_100.xyz.xz")


def test_spice_is_read_from_its_own_file(shared_data):
    pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")
    frames = read(shared_data / "spice" / "SPICE-1.1.4_n2.hdf5")
    assert len(frames) == frames.report.count("forces") == 55 and {frame.info["charge"] for frame in frames} == {1.0}
    assert frames[0].labels["energy"] == pytest.approx(-370.43397425 * 27.211386, rel=1e-6)
    assert 0.5 < force_rms(frames) < 3  # eV/Å, as the extxyz files of this set
    lengths, pulls = [], []  # of C-H bonds, and of the force on H along them
    for frame in frames:
        apart = frame.positions[:, None] - frame.positions
        bonds = (frame.numbers[:, None] == 1) & (frame.numbers == 6) & (np.linalg.norm(apart, axis=2) < 1.3)
        for hydrogen, carbon in np.argwhere(bonds):
            bond = apart[hydrogen, carbon]
            lengths.append(np.linalg.norm(bond))
            pulls.append(frame.labels["forces"][hydrogen] @ bond / lengths[-1])
    assert np.polyfit(lengths, pulls, 1)[0] == pytest.approx(-31, abs=5)  # eV/Å², the stiffness of a C-H bond


def test_ani_is_read_from_its_own_files(shared_data):
    pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")
    old = read(shared_data / "formats" / "ani1_n5.hdf5")
    assert len(old) == old.report.count("forces") == 8 and old[0].numbers.tolist()[:2] == [6, 1]
    assert old[0].labels["energy"] == pytest.approx(-559.96732665 * 27.211386, rel=1e-6)
    frames = read(shared_data / "formats" / "ani2x_minimal.hdf5")
    assert len(frames) == 5706
    _energy_falls_along_the_forces([frame for frame in frames if frame.numbers.tolist() == [6, 8]])


def _energy_falls_along_the_forces(frames):
    """Between conformations that are alike, the change of energy is minus the forces times the displacement: unit and sign."""
    distances = [np.linalg.norm(frame.positions[:, None] - frame.positions, axis=2) for frame in frames]
    forces = [frame.labels["forces"] for frame in frames]
    work, change = [], []
    for a, b in combinations(range(len(frames)), 2):
        if 1e-4 < np.abs(distances[a] - distances[b]).max() < 0.03:
            rotation = _rotation(frames[a].positions, frames[b].positions)
            step = frames[b].positions @ rotation - frames[a].positions
            step -= step.mean(axis=0)
            work.append(-0.5 * ((forces[a] + forces[b] @ rotation) * step).sum())
            change.append(float(frames[b].labels["energy"] - frames[a].labels["energy"]))
    work, change = np.array(work), np.array(change)
    assert len(work) > 5
    assert work @ change / (work @ work) == pytest.approx(1.0, abs=0.1)


def _rotation(target, moved):
    """That brings `moved` closest to `target` (Kabsch)."""
    u, _, v = np.linalg.svd((moved - moved.mean(axis=0)).T @ (target - target.mean(axis=0)))
    return u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v


def test_qm9_states_its_units(shared_data):
    pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")
    frames = read(shared_data / "formats" / "qm9_dataset_v1.1_ntc_10.hdf5")
    assert len(frames) == 10 and frames[0].labels["energy"] == pytest.approx(-40.47893 * 27.211386, rel=1e-6)  # methane, B3LYP
    distance = np.linalg.norm(frames[0].positions[0] - frames[0].positions[1])
    assert distance == pytest.approx(1.09, abs=0.01)  # Å, of C-H


def test_md17_is_converted_from_kcal_per_mol(shared_data):
    frames = read(shared_data / "md17_ethanol" / "md17_ethanol_2000.npz")
    assert len(frames) == 2000
    mean = np.mean([np.abs(frame.labels["forces"]).mean() for frame in frames])
    assert mean == pytest.approx(15.66 * 0.0433641, rel=1e-2)
