"""HDF5 files of SPICE, ANI and modelforge: their own units and signs, what their entries mean, and damaged groups."""

import numpy as np
import pytest

from equimol.data import DataError, read
from equimol.data.hdf5_formats import charge_of
from equimol.data.record_file import in_order

h5py = pytest.importorskip("h5py", reason="h5py is not installed; pip install -e '.[hdf5]'")


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[C:1]([H:2])([H:3])([H:4])[H:5]", 0),
        ("[H:3][C:1]#[C:2][H:4].[Na+:5]", 1),
        ("[O-:1][C:2](=[O:3])[C:4]([H:5])([H:6])[N+:7]([H:8])([H:9])[H:10]", 0),
        ("[Mg+2:1].[Cl-:2].[Cl-:3]", 0),
        ("[Ca++]", 2),
        ("[O--:4]", -2),
        ("[S-2:1]", -2),
        ("[C@@H+:3](C)-[C-:1]", 0),
        ("CC-C", 0),
    ],
)
def test_the_charge_of_a_smiles_is_the_sum_over_its_atoms(smiles, charge):
    assert charge_of(smiles) == charge


def test_forces_of_spice_are_minus_the_gradient(write):
    path = write("spice.hdf5")
    with h5py.File(path) as file:
        gradient = file["molecule0/dft_total_gradient"][1]
    forces = read(path)[1].labels["forces"]
    np.testing.assert_allclose(forces, -51.42206747 * gradient, rtol=1e-6)


def test_another_energy_is_taken_where_it_is_asked_for(write):
    frame = read(write("spice.hdf5"), keys={"energy": "formation_energy"})[0]
    assert frame.labels["energy"] == pytest.approx(-27.211386, rel=1e-6)
    assert frame.info["subset"] == "made up" and frame.info["charge"] == 0.0 and frame.info["molecule"] == "molecule0"


def test_a_method_that_was_not_run_on_a_conformation_gives_no_label(write):
    frames = read(write("ani1x.h5"), keys={"energy": "wb97x_tz.energy"})
    assert ["energy" in frame.labels for frame in frames] == [False, False, True]


def test_units_that_the_file_states_go_over_the_usual_ones(write):
    path = write("spice.hdf5")
    before = read(path)[0]
    with h5py.File(path, "r+") as file:
        file["molecule0/conformations"].attrs["units"] = "angstrom"
    after = read(path)[0]
    np.testing.assert_allclose(before.positions, 0.529177 * after.positions, rtol=1e-5)


def test_species_may_be_symbols_and_groups_lie_at_any_depth(write, tmp_path):
    write.ani2x(tmp_path / "a.h5", write.molecules(), symbols=True)
    frames = read(tmp_path / "a.h5")
    assert len(frames) == 3 and frames[0].numbers.tolist() == [6, 8, 1, 1]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("conformations", None, r"has no conformations, only .*dft_total_energy"),
        ("atomic_numbers", None, r"has no atomic_numbers, only .*dft_total_energy"),
        ("conformations", np.zeros((3, 4)), r"conformations must be \[conformations, atoms, 3\], got \(3, 4\)"),
        ("conformations", np.full((3, 4, 3), b"x"), r"conformations must be numbers, got \|S1"),
        ("dft_total_energy", np.zeros(2), r"dft_total_energy must be \(3,\) for as many conformations, got \(2,\)"),
        ("dft_total_energy", np.array([b"a", b"b", b"c"]), r"dft_total_energy must be numbers"),
        ("dft_total_gradient", np.zeros((3, 5, 3)), r"dft_total_gradient must be \(3, 4, 3\)"),
        ("atomic_numbers", np.array([6.0, 8.0, 1.0, 1.0]), r"atomic_numbers must be \[4\] atomic numbers, got float64"),
        ("atomic_numbers", np.array([6, 8]), r"atomic_numbers must be \[4\] atomic numbers"),
        ("conformations", np.full((3, 4, 3), np.inf), r"positions hold NaN or infinity"),
    ],
)
def test_a_damaged_group_is_an_error_that_names_it(write, key, value, message):
    path = write("spice.hdf5", write.molecules() + write.molecules("CO2"))
    with h5py.File(path, "r+") as file:
        del file[f"molecule0/{key}"]
        if value is not None:
            file[f"molecule0/{key}"] = value
    with pytest.raises(DataError, match=rf"spice\.hdf5:0.*: .*({message})"):
        read(path)
    good = read(path, skip_bad=True)  # the other molecule is intact
    assert [len(frame.numbers) for frame in good] == [3, 3, 3] and good.report.skipped


def test_a_file_of_other_things_is_refused_with_what_is_known(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(
        DataError, match=r"a\.h5: no group has structures as SPICE, ANI or modelforge name them \(conformations, coordinates"
    ):
        read(tmp_path / "a.h5")


def test_without_h5py_the_error_says_how_to_install_it(write, monkeypatch):
    import builtins

    path, plain = write("spice.hdf5"), builtins.__import__

    def refuse(name, *arguments, **named):
        if name == "h5py":
            raise ImportError(name)
        return plain(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DataError, match=r"pip install 'equimol\[hdf5\]'"):
        read(path)


def test_a_group_is_read_once_while_its_conformations_follow_each_other(write, monkeypatch):
    from equimol.data import hdf5_formats

    calls = []
    plain = hdf5_formats._read_group
    monkeypatch.setattr(hdf5_formats, "_read_group", lambda *arguments: calls.append(1) or plain(*arguments))
    path = write("spice.hdf5")
    assert len(list(in_order(hdf5_formats.Hdf5File, path, str(path)))) == 3 and len(calls) == 1
