"""Public data sets, read as they are on disk."""

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
