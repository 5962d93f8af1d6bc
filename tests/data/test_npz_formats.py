"""Archives of sGDML and rMD17, and what is none."""

import numpy as np
import pytest

from equimol.data import DataError, read


def archive(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {"z": np.array([6, 8]), "R": rng.normal(size=(3, 2, 3)), "E": rng.normal(size=3), "F": rng.normal(size=(3, 2, 3))} | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def test_units_and_lattice_that_the_archive_states(tmp_path):
    lattice = np.array([[4.0, 1.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 6.0]])  # its columns are the vectors
    path = archive(tmp_path / "a.npz", e_unit="eV", r_unit="Ang", lattice=lattice)
    frame, arrays = read(path)[0], np.load(path)
    assert frame.labels["energy"] == arrays["E"][0] and frame.pbc.all()
    np.testing.assert_array_equal(frame.cell, lattice.T)
    np.testing.assert_array_equal(frame.labels["forces"], arrays["F"][0])


def test_an_archive_without_forces_has_energies(tmp_path):
    assert set(read(archive(tmp_path / "a.npz", F=None))[0].labels) == {"energy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": None}, r"a\.npz: no archive as sGDML or rMD17 write it .* it holds E, F, R"),
        ({"R": np.zeros((3, 3, 3))}, r"a\.npz: R must be \[conformations, 2, 3\] for as many z, got \(3, 3, 3\)"),
        ({"E": np.zeros(2)}, r"a\.npz: E must be \(3,\), got \(2,\)"),
        ({"F": np.zeros((3, 2, 2))}, r"a\.npz: F must be \(3, 2, 3\)"),
        ({"R": np.full((3, 2, 3), "x")}, r"a\.npz: R must be numbers, got <U1"),
        ({"z": np.array([6.0, 8.0])}, r"a\.npz: z must be whole numbers"),
        ({"R": np.full((3, 2, 3), np.nan)}, r"a\.npz:0: positions hold NaN or infinity"),
        ({"E": np.array([{"a": 1}] * 3, dtype=object)}, r"a\.npz: no complete archive of arrays of numbers .*allow_pickle"),
        ({"e_unit": "parsec"}, r"a\.npz:0: unknown unit 'parsec' of energy"),
    ],
)
def test_a_damaged_archive(tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        read(archive(tmp_path / "a.npz", **changes))


def test_one_array_under_the_name_of_an_archive(tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"a\.npz: no complete archive"):
        read(tmp_path / "a.npz")
