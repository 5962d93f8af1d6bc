"""Twelve kinds of faults are found in sets whose truth is known, and sound sets raise no alarm."""

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from equimol.data import doctor
from equimol.data.diagnosis import OK, PROBLEM, UNKNOWN
from equimol.data.doctor import check

KCAL, HARTREE, KBAR = 23.0605, 1 / 27.2114, 1602.177  # a number in this unit over the same in eV, eV/Å³


def labelled(atoms: ase.Atoms, calculator) -> ase.Atoms:
    atoms.calc = calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
    plain = ase.Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    plain.info["energy"] = energy
    plain.arrays["forces"] = forces
    if stress is not None:
        plain.info["stress"] = stress
    return plain


@pytest.fixture(scope="session")
def alloys() -> list[ase.Atoms]:
    """Strained and shaken copper with nickel in it: three compositions, no two frames alike."""
    rng = np.random.default_rng(0)
    made = []
    for index in range(60):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.numbers[rng.permutation(len(atoms))[: (0, 4, 8)[index % 3]]] = 28
        strain = rng.normal(size=(3, 3)) * 0.02
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(size=atoms.positions.shape) * 0.12
        made.append(labelled(atoms, EMT()))
    return made


@pytest.fixture(scope="session")
def molecules() -> list[ase.Atoms]:
    """Ethanol, methane and water, shaken about their rest."""
    rng = np.random.default_rng(1)
    made = []
    for name in ("CH3CH2OH", "CH4", "H2O"):
        for _ in range(20):
            atoms = molecule(name)
            atoms.positions += rng.normal(size=atoms.positions.shape) * 0.04
            made.append(labelled(atoms, EMT()))
    return made


@pytest.fixture(scope="session")
def argon() -> list[ase.Atoms]:
    """A gas of noble atoms, where nothing is bonded, on a short trajectory of one cell."""
    rng = np.random.default_rng(2)
    rest = bulk("Ar", cubic=True, a=5.4) * (2, 2, 2)
    steps = np.cumsum(rng.normal(size=(25, len(rest), 3)) * 0.05, axis=0)
    made = []
    for step in steps:
        atoms = rest.copy()
        atoms.positions += step
        made.append(labelled(atoms, LennardJones(sigma=3.4, epsilon=0.0104, rc=5.0, smooth=True)))
    return made


def write(path, frames, edit=None):
    """The frames, each changed by edit(index, atoms)."""
    copies = []
    for index, atoms in enumerate(frames):
        copy = atoms.copy()
        copy.calc = None
        if edit:
            edit(index, copy)
        copies.append(copy)
    ase.io.write(path, copies, format="extxyz")
    return path


def scaled(**factors):
    def edit(index, atoms):
        for key, factor in factors.items():
            place = atoms.arrays if key == "forces" else atoms.info
            place[key] = place[key] * factor

    return edit


def swapped(index, atoms):
    """Six numbers in VASP's order xx yy zz xy yz zx, taken for ASE's xx yy zz yz xz xy."""
    s = atoms.info["stress"]
    yz, xz, xy = s[0, 1], s[1, 2], s[0, 2]
    atoms.info["stress"] = np.array([[s[0, 0], xy, xz], [xy, s[1, 1], yz], [xz, yz, s[2, 2]]])


def other_zero(index, atoms):
    if index < 25:
        atoms.info["energy"] -= 3.5 * np.count_nonzero(atoms.numbers == 29) + 4.4 * np.count_nonzero(atoms.numbers == 28)


def no_stress(index, atoms):
    if index % 5 == 0:
        atoms.info["stress"] = np.zeros((3, 3))


def other_keys(index, atoms):
    atoms.info["e_total_dft"] = atoms.info.pop("energy")
    atoms.arrays["minus_grad"] = atoms.arrays.pop("forces")


def failed_energy(index, atoms):
    atoms.info["energy"] += 50.0 * (index == 13)


def failed_forces(index, atoms):
    atoms.arrays["forces"] *= 1000.0 if index == 13 else 1.0


FAULTS = {
    "energies in kcal/mol": (scaled(energy=KCAL), "energy unit", "energy=kcal/mol"),
    "everything in kcal/mol": (scaled(energy=KCAL, forces=KCAL, stress=KCAL), "force unit", "energy=kcal/mol"),
    "energies in hartree": (scaled(energy=HARTREE), "energy unit", "energy=hartree"),
    "everything in hartree and Å": (scaled(energy=HARTREE, forces=HARTREE, stress=HARTREE), "force unit", "energy=hartree"),
    "gradients": (scaled(forces=-1.0), "force unit", "forces=-eV/Å"),
    "stress in kbar": (scaled(stress=KBAR), "stress unit", "stress=kbar"),
    "stress in GPa": (scaled(stress=KBAR / 10), "stress unit", "stress=GPa"),
    "stress of the other sign": (scaled(stress=-1.0), "stress sign", "stress=-eV/Å³"),
    "stress in another order": (swapped, "stress order", "write the full matrix"),
    "two zeros of energy": (other_zero, "reference energies", "one zero of energy"),
    "stress filled with zeros": (no_stress, "zero labels", "left out, not set to zero"),
    "labels under unknown keys": (other_keys, "keys", "--keys"),
    "an energy of a failed calculation": (failed_energy, "outliers", "remove them"),
    "forces of a failed calculation": (failed_forces, "outliers", "remove them"),
    "wrong pbc": (lambda index, atoms: atoms.set_pbc(False), "pbc", "pbc='T T T'"),
    "two atoms in one place": (
        lambda index, atoms: atoms.positions.__setitem__(0, atoms.positions[1 if index == 7 else 0] + [0.2 * (index == 7), 0, 0]),
        "close atoms",
        "remove these frames",
    ),
    "lengths in bohr": (
        lambda index, atoms: atoms.set_cell(atoms.cell / 0.529177, scale_atoms=True),
        "lengths",
        "length=bohr",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_its_remedy_named(alloys, tmp_path, fault):
    edit, name, remedy = FAULTS[fault]
    finding = check(write(tmp_path / "a.xyz", alloys, edit))[name]
    assert finding.verdict == PROBLEM and remedy in finding.remedy, finding


def test_frames_that_are_there_twice_are_found_in_any_orientation(molecules, alloys, tmp_path):
    turned = molecules[3].copy()
    turned.rotate(40, (1, 2, 3))
    turned.positions += 7.0
    turned = turned[::-1]
    finding = check(write(tmp_path / "a.xyz", [*molecules, turned, molecules[8]]))["duplicates"]
    assert finding.verdict == PROBLEM and finding.evidence.startswith("2 of 62 frames repeat") and "a.xyz:3 = " in finding.evidence
    finding = check(write(tmp_path / "b.xyz", [*alloys, *alloys[:6]]))["duplicates"]
    assert finding.verdict == PROBLEM and finding.evidence.startswith("6 of 66")


def test_copies_with_other_energies_are_told(molecules, tmp_path):
    other = molecules[3].copy()
    other.info["energy"] += 0.3
    assert "in 1 cases with another energy" in check(write(tmp_path / "a.xyz", [*molecules, other]))["duplicates"].evidence


def test_structures_of_one_split_in_another_are_found(alloys, tmp_path):
    train, test = write(tmp_path / "train.xyz", alloys[:40]), write(tmp_path / "test.xyz", alloys[30:])
    finding = check([train, test])["leakage"]
    assert finding.verdict == PROBLEM and finding.evidence.startswith("10 structures are in more than one file")
    assert check([train, write(tmp_path / "test.xyz", alloys[40:])])["leakage"].verdict == OK


def test_energies_that_count_all_electrons_show_their_unit(tmp_path, molecules):
    """B3LYP energies of the molecules, hartree."""
    known = {9: -155.03, 5: -40.52, 3: -76.42}

    def total(index, atoms):
        atoms.info["energy"] = known[len(atoms)] + 1e-3 * index
        del atoms.arrays["forces"]

    path = write(tmp_path / "a.xyz", molecules, total)
    finding = check(path)["energy unit"]
    assert finding.verdict == PROBLEM and "energy=hartree" in finding.remedy
    assert check(path, units={"energy": "hartree"})["energy unit"].verdict == OK


def test_the_energy_that_the_forces_belong_to_is_told_from_another(argon, tmp_path):
    rng = np.random.default_rng(0)

    def two(index, atoms):
        atoms.info["total_energy"], atoms.info["energy"] = atoms.info["energy"], float(rng.normal())

    finding = check(write(tmp_path / "a.xyz", argon, two))["keys"]
    assert finding.verdict == PROBLEM and "forces belong to 'total_energy', not to 'energy'" in finding.evidence


def test_frames_without_a_label_that_others_have_are_told(alloys, tmp_path):
    def some(index, atoms):
        if index % 4 == 0:
            atoms.info["E_total_energy"] = atoms.info.pop("energy")

    finding = check(write(tmp_path / "a.xyz", alloys, some))["keys"]
    assert finding.verdict == PROBLEM and "45 of 60 frames have energy; 'E_total_energy' (15 frames)" in finding.evidence


def test_damaged_records_are_a_finding_and_the_rest_is_judged(alloys, tmp_path):
    path = write(tmp_path / "a.xyz", alloys)
    text = path.read_text()
    path.write_text(text.replace(f"energy={alloys[3].info['energy']}", "energy=nan"))
    diagnosis = check(path)
    assert diagnosis["records"].verdict == PROBLEM and "a.xyz:3: energy holds NaN" in diagnosis["records"].evidence
    assert diagnosis["stress sign"].verdict == OK


@pytest.mark.parametrize("name", ["alloys", "molecules", "argon"])
def test_a_sound_set_raises_no_alarm(name, request, tmp_path):
    diagnosis = check(write(tmp_path / "a.xyz", request.getfixturevalue(name)))
    assert not diagnosis.problems, str(diagnosis)
    assert {finding.verdict for finding in diagnosis.findings} <= {OK, UNKNOWN}
    assert diagnosis["energy unit"].verdict == OK


def test_a_handful_of_frames_is_not_judged_beyond_what_it_tells(alloys, tmp_path):
    diagnosis = check(write(tmp_path / "a.xyz", alloys[:3]))
    assert not diagnosis.problems and diagnosis["reference energies"].verdict == UNKNOWN


def test_only_the_first_frames_are_read_where_that_is_asked_for(alloys, tmp_path):
    assert check(write(tmp_path / "a.xyz", alloys), limit=20).report.frames == 20


def test_the_table_names_every_check_with_its_evidence_and_what_to_do(alloys, tmp_path):
    diagnosis = check(write(tmp_path / "a.xyz", alloys, scaled(stress=KBAR)))
    text = str(diagnosis)
    assert all(finding.check in text for finding in diagnosis.findings) and "-> state the unit" in text
    assert text.splitlines()[-1].startswith("1 PROBLEM, ") and max(map(len, text.splitlines())) < 140


def test_every_check_says_something_about_a_set_with_all_labels(alloys, tmp_path):
    assert len(check(write(tmp_path / "a.xyz", alloys)).findings) >= len(doctor.CHECKS)


SOUND = {
    "rmd17": ["rmd17/aspirin_train_01.xyz.xz", "rmd17/aspirin_test_01.xyz.xz"],
    "3bpa": ["3bpa/train_300K.xyz.xz"],
    "water": ["deepmd_water/train_data_0-2.xyz.xz", "deepmd_water/valid_data_3.xyz.xz"],
    "mad": ["mad_1k/mad_1k.xyz.xz"],
    "spice": ["spice/spice_test_pubchem.xyz.xz"],
    "batio3": ["batio3_response/batio3_59.xyz.xz"],
    "md17": ["md17_ethanol/md17_ethanol_2000.npz"],
    "oxides": ["oxides_ase_db/oxides.db.xz"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_a_public_set_raises_no_alarm(shared_data, name):
    diagnosis = check([shared_data / file for file in SOUND[name]])
    assert not diagnosis.problems, str(diagnosis)


PUBLIC_FAULTS = {
    "md17 in kcal/mol": ("md17_ethanol/md17_ethanol_2000.npz", {"energy": "eV", "forces": "eV/Å"}, "energy unit"),
    "spice energies in hartree": ("spice/spice_test_pubchem.xyz.xz", {"energy": "hartree", "forces": "eV/Å"}, "energy unit"),
    "3bpa forces in hartree/bohr": ("3bpa/train_300K.xyz.xz", {"forces": "hartree/bohr"}, "force unit"),
    "mad stress in kbar": ("mad_1k/mad_1k.xyz.xz", {"stress": "kbar"}, "stress unit"),
    "mad stress turned": ("mad_1k/mad_1k.xyz.xz", {"stress": "-eV/Å³"}, "stress sign"),
    "batio3 stress turned": ("batio3_response/batio3_59.xyz.xz", {"stress": "-eV/Å³"}, "stress sign"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", PUBLIC_FAULTS)
def test_wrong_units_of_a_public_set_are_found(shared_data, fault):
    """Stating a wrong unit is the same as a file in another one."""
    file, units, name = PUBLIC_FAULTS[fault]
    assert check(shared_data / file, units=units)[name].verdict == PROBLEM
