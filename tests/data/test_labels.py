"""Which keys become labels: one choice per file, reported, and never a silent guess."""

import numpy as np
import pytest

from equimol.data.errors import DataError
from equimol.data.labels import KEYS, Record, label_records, merge_reports
from equimol.data.properties import INPUTS, PROPERTIES

FORCES = np.arange(6.0).reshape(2, 3)
STRESS = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])


def record(index: int = 0, pbc: bool = True, **values) -> Record:
    positions = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]])
    return Record(np.array([6, 8]), positions, 2.0 * np.eye(3), np.full(3, pbc), values, f"co.xyz:{index}")


def label(*records: Record, **options):
    return label_records(list(records), "co.xyz", **options)


def test_every_property_and_input_has_spellings():
    assert set(KEYS) == set(PROPERTIES) | set(INPUTS)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in KEYS.items() for key in keys if name in ("energy", "forces")])
def test_every_spelling_is_found_in_any_case(name, key):
    value = -1.0 if name == "energy" else FORCES
    for spelling in (key, key.upper(), key.title()):
        frames, report = label(record(**{spelling: value}))
        np.testing.assert_array_equal(frames[0].labels[name], value)
        assert report.used[name] == {spelling: 1}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stress", STRESS),
        ("REF_stress", STRESS.ravel()),
        ("virials", -8.0 * STRESS),  # the volume is 8 Å³
        ("REF_virials", -8.0 * STRESS.ravel()),
        ("y_stress", -STRESS),
        ("y_stress", [[-1.0, -2.0, -3.0, -0.1, -0.3, -0.2]]),
    ],
)
def test_stress_and_virial_become_one_stress_of_one_sign(key, value):
    frames, _ = label(record(**{key: value}))
    np.testing.assert_allclose(frames[0].labels["stress"], STRESS, atol=1e-15)


def test_a_key_written_for_training_goes_before_the_plain_one():
    frames, report = label(record(REF_energy=-2.0, energy=-1.0))
    assert frames[0].labels["energy"] == -2.0
    assert report.unused["energy"] == {"energy": 1}
    assert "'REF_energy' as energy: its name says" in str(report) and "not used as energy: energy (1 frames)" in str(report)


def test_no_frame_falls_back_to_another_key():
    frames, report = label(record(0, REF_energy=-2.0, energy=-1.0), record(1, energy=-1.0))
    assert "energy" in frames[0].labels and "energy" not in frames[1].labels
    assert report.count("energy") == 1 and "1 of 2 frames carry no label" in str(report)


def test_keys_can_be_named():
    frames, _ = label(record(my_energy=-3.0, energy=-1.0, f=FORCES), keys={"energy": "my_energy", "forces": "f"})
    assert frames[0].labels["energy"] == -3.0 and frames[0].labels["forces"].shape == (2, 3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"energy": "e"}, r"co\.xyz: no frame has the key 'e' asked for as energy; the keys are: energy"),
        ({"enery": "energy"}, "did you mean 'energy'"),
    ],
)
def test_named_keys_must_exist(keys, message):
    with pytest.raises(DataError, match=message):
        label(record(energy=-1.0), keys=keys)


@pytest.mark.parametrize(
    ("values", "chosen", "why"),
    [
        ({"energy": -1.0, "forces": FORCES}, -1.0, "the file holds no free_energy"),
        ({"free_energy": -1.1, "forces": FORCES}, -1.1, "the file holds no energy"),
        ({"energy": -1.0, "free_energy": -1.0, "forces": FORCES}, -1.0, "the same number"),
        ({"energy": -1.0, "free_energy": -1.1, "forces": FORCES}, -1.1, "forces are the gradient of free_energy"),
        ({"energy": -1.0, "free_energy": -1.1}, -1.0, "no forces to agree with"),
    ],
)
def test_the_energy_is_the_one_that_forces_derive_from(values, chosen, why):
    frames, report = label(record(**values))
    assert frames[0].labels["energy"] == chosen
    assert why in str(report)


def test_a_free_energy_that_some_frames_lack_is_not_mixed_in():
    frames, report = label(record(0, energy=-1.0, free_energy=-1.1, forces=FORCES), record(1, energy=-1.0, forces=FORCES))
    assert [float(frame.labels["energy"]) for frame in frames] == [-1.0, -1.0]
    assert "only 1 frames have 'free_energy'" in str(report)


@pytest.mark.parametrize(("energy", "expected"), [("energy", -1.0), ("free_energy", -1.1)])
def test_the_energy_can_be_asked_for(energy, expected):
    frames, _ = label(record(energy=-1.0, free_energy=-1.1, forces=FORCES), energy=energy)
    assert frames[0].labels["energy"] == expected


def test_an_energy_that_was_asked_for_must_be_there():
    with pytest.raises(DataError, match="no frame carries 'free_energy'"):
        label(record(energy=-1.0), energy="free_energy")


@pytest.mark.parametrize(
    "values",
    [{"charge": 1, "spin": 2}, {"total_charge": 1.0, "total_spin": 2}, {"charge": np.int64(1), "spin_multiplicity": 2, "spin": 9}],
)
def test_charge_and_multiplicity_are_read_under_all_their_names(values):
    frames, _ = label(record(energy=-1.0, **values))
    assert (frames[0].info["charge"], frames[0].info["spin"]) == (1.0, 2.0)


def test_a_column_of_atomic_spins_is_no_multiplicity():
    frames, report = label(record(energy=-1.0, spin=np.zeros(2), charge=np.zeros(2)))
    assert "spin" not in frames[0].info and report.count("charge") == 0


def test_scalars_of_the_file_stay_with_the_frame():
    frames, _ = label(record(energy=-1.0, config_type="dimer", step=np.int64(3), matrix=STRESS))
    assert frames[0].info == {"config_type": "dimer", "step": 3}


def test_stress_without_a_periodic_direction_is_left_out_and_reported():
    frames, report = label(record(0, pbc=False, energy=-1.0, stress=np.zeros((3, 3))), record(1, energy=-1.0, stress=STRESS))
    assert "stress" not in frames[0].labels and "stress" in frames[1].labels
    assert report.count("stress") == 1 and "stress left out in 1 frames" in str(report)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"energy": float("nan")}, r"co\.xyz:0: energy holds NaN or infinity; remove"),
        ({"energy": float("inf")}, "energy holds NaN or infinity"),
        ({"energy": "unknown"}, "energy must be numbers, got 'unknown'"),
        ({"energy": True}, "energy must be numbers, got 'True'"),  # extxyz: the key stands there without a value
        ({"energy": [1.0, 2.0]}, r"energy of 2 atoms must have shape \(\) to be energy, got \(2,\)"),
        ({"forces": np.zeros((3, 3))}, r"co\.xyz:0: forces of 2 atoms must have shape \(2, 3\) to be forces, got \(3, 3\)"),
        ({"forces": np.full((2, 3), np.nan)}, "forces holds NaN"),
        ({"REF_stress": np.zeros(6)}, "REF_stress must be nine numbers"),
        ({"dipole": np.zeros(3), "name": "x"}, r"co\.xyz: no frame carries energy, forces, stress .* the keys are: dipole, name"),
        ({"energy": -1.0, "charge": "plus"}, "charge must be numbers"),
    ],
)
def test_bad_labels_name_file_frame_and_remedy(values, message):
    with pytest.raises(DataError, match=message):
        label(record(**values))


def test_the_report_of_several_files_adds_up_and_warns_of_mixed_keys():
    one = label_records([record(energy=-1.0, forces=FORCES)], "a.xyz")[1]
    two = label_records([record(REF_energy=-1.0), record(REF_energy=-1.0)], "b.xyz")[1]
    report = merge_reports([one, two])
    assert report.files == ("a.xyz", "b.xyz") and report.frames == 3
    assert report.used["energy"] == {"energy": 1, "REF_energy": 2} and report.count("forces") == 1
    assert "one level of theory" in str(report) and "a.xyz: trains on 'energy'" in str(report)
    assert str(merge_reports([one, one])).count("trains on") == 1


def test_the_report_reads_as_a_table():
    _, report = label(record(energy=-1.0, forces=FORCES))
    lines = str(report).splitlines()
    assert lines[0] == "1 structures from co.xyz"
    assert lines[2].split() == ["energy", "energy", "1", "of", "1", "eV"]
    assert lines[4].split() == ["stress", "none", "0", "of", "1", "eV/Å³"]
