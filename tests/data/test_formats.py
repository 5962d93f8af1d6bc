"""Files are read back as written, in every format and packing, and damaged ones give one clear error."""

import bz2
import gzip
import lzma

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from equimol.data.errors import DataError
from equimol.data.formats import read

STRESS6 = np.array([1.0, 2.0, 3.0, 0.3, 0.2, 0.1])  # ASE: xx yy zz yz xz xy
STRESS = np.array([[1.0, 0.1, 0.2], [0.1, 2.0, 0.3], [0.2, 0.3, 3.0]])


def structures(count: int = 3) -> list[ase.Atoms]:
    rng = np.random.default_rng(0)
    made = []
    for index in range(count):
        atoms = ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.13 + 0.01 * index]], cell=[[4, 0, 0], [1, 5, 0], [0, 0.5, 6]], pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=-14.0 - index, forces=rng.normal(size=(2, 3)).round(6), stress=STRESS6)
        made.append(atoms)
    return made


@pytest.fixture
def xyz(tmp_path):
    path = tmp_path / "co.xyz"
    ase.io.write(path, structures())
    return path


def edited(path, old: str, new: str, count: int = -1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))
    return path


@pytest.mark.parametrize("suffix", [".xyz", ".extxyz", ".db", ".traj", ".json"])  # the others are written in test_format_twins.py
def test_every_format_gives_back_what_was_written(tmp_path, suffix):
    path = tmp_path / f"co{suffix}"
    ase.io.write(path, structures(), format="extxyz" if "xyz" in suffix else None)
    frames = read(path)
    assert len(frames) == 3 and frames[1].source == f"{path}:1"
    for frame, atoms in zip(frames, structures(), strict=True):
        np.testing.assert_array_equal(frame.numbers, atoms.numbers)
        np.testing.assert_allclose(frame.positions, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(frame.cell, atoms.cell.array)
        np.testing.assert_allclose(frame.labels["forces"], atoms.calc.results["forces"], atol=1e-8)
        np.testing.assert_allclose(frame.labels["stress"], STRESS)
        assert frame.labels["energy"] == atoms.calc.results["energy"] and frame.pbc.all()


@pytest.mark.parametrize("open_packed", [lzma.open, gzip.open, bz2.open], ids=[".xz", ".gz", ".bz2"])
@pytest.mark.parametrize("suffix", [".xyz", ".traj"])
def test_packed_files_are_read_as_they_are(tmp_path, suffix, open_packed):
    plain = tmp_path / f"co{suffix}"
    ase.io.write(plain, structures())
    packed = tmp_path / (plain.name + {lzma.open: ".xz", gzip.open: ".gz", bz2.open: ".bz2"}[open_packed])
    with open_packed(packed, "wb") as file:
        file.write(plain.read_bytes())
    frames = read(packed)
    assert [float(frame.labels["energy"]) for frame in frames] == [-14.0, -15.0, -16.0]
    assert frames[2].source == f"{packed}:2"


def test_rows_of_a_database_bring_their_key_value_pairs(tmp_path):
    path = tmp_path / "co.db"
    with ase.db.connect(path) as database:
        for atoms in structures():
            database.write(atoms, group="a", charge=1, data={"REF_energy": -99.0})
    frames = read(path)
    assert frames[0].info["group"] == "a" and frames[0].info["charge"] == 1.0 and frames[0].labels["energy"] == -99.0


def test_labels_in_info_and_arrays_are_read(tmp_path):
    atoms = ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.13]], cell=np.eye(3) * 2, pbc=True)
    atoms.info |= {"REF_energy": -14.0, "REF_stress": STRESS, "virials": STRESS, "config_type": "dimer", "total_charge": 0}
    atoms.arrays["REF_forces"] = np.ones((2, 3))
    ase.io.write(tmp_path / "co.xyz", atoms)
    assert "_JSON" in (tmp_path / "co.xyz").read_text()
    frame = read(tmp_path / "co.xyz")[0]
    assert frame.labels["energy"] == -14.0 and (frame.labels["forces"] == 1).all()
    np.testing.assert_allclose(frame.labels["stress"], STRESS)
    assert frame.info == {"config_type": "dimer", "charge": 0.0}


def test_several_files_make_one_set_in_order(tmp_path, xyz):
    ase.io.write(tmp_path / "more.xyz", structures(1))
    frames = read([xyz, tmp_path / "more.xyz"])
    assert len(frames) == 4 and frames[3].source.endswith("more.xyz:0") and frames.report.frames == 4


def test_a_file_without_suffix_is_known_by_its_content(tmp_path, xyz):
    assert len(read(xyz.rename(tmp_path / "co"))) == 3


def test_blank_lines_between_frames_lose_nothing(xyz):
    lines = xyz.read_text().splitlines()
    xyz.write_text("\n".join([*lines[:4], "", "  ", *lines[4:], ""]) + "\n")
    assert len(read(xyz)) == 3


def test_labels_that_only_some_frames_carry_are_counted(tmp_path):
    bare = structures()
    bare[1].calc = None
    ase.io.write(tmp_path / "co.xyz", bare)
    report = read(tmp_path / "co.xyz").report
    assert report.count("forces") == 2 and "1 of 3 frames carry no label at all" in str(report)


# --- damaged twins: one error each, naming file and frame


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.xyz: no such file"):
        read(tmp_path / "none.xyz")


def test_a_folder(tmp_path):
    with pytest.raises(DataError, match="is a folder; name the files"):
        read(tmp_path)


def test_no_path_at_all():
    with pytest.raises(DataError, match="no file to read"):
        read([])


@pytest.mark.parametrize("name", ["empty.xyz", "empty.db", "empty.traj", "empty.dat"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"{name}: the file is empty"):
        read(tmp_path / name)


def test_a_file_of_blank_lines(tmp_path):
    (tmp_path / "blank.xyz").write_text("\n\n")
    with pytest.raises(DataError, match=r"blank\.xyz: holds no structure"):
        read(tmp_path / "blank.xyz")


def test_an_unknown_suffix(tmp_path):
    (tmp_path / "data.foo").write_text("hello\n")
    with pytest.raises(DataError, match=r"data\.foo: neither EquiMol nor ASE knows the format.*convert it to extxyz"):
        read(tmp_path / "data.foo")


def test_binary_noise_under_a_known_suffix(tmp_path):
    (tmp_path / "noise.xyz").write_bytes(bytes(range(255, 0, -1)))
    with pytest.raises(DataError, match=r"noise\.xyz:0: "):
        read(tmp_path / "noise.xyz")


@pytest.mark.parametrize("suffix", [".db", ".traj"])
def test_text_under_a_binary_suffix(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    path.write_text("this is no database and no trajectory\n" * 20)
    with pytest.raises(DataError, match=rf"text{suffix}:0: cannot be read|neither EquiMol nor ASE"):
        read(path)


@pytest.mark.parametrize("suffix", [".db", ".traj"])
def test_a_truncated_binary_file(tmp_path, suffix):
    path = tmp_path / f"co{suffix}"
    ase.io.write(path, structures(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"co{suffix}:\d+: cannot be read"):
        read(path)


def test_a_text_file_cut_between_lines(xyz):
    xyz.write_text("\n".join(xyz.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(DataError, match=r"co\.xyz:2: the file is cut off: 2 atoms announced in line 9, 1 there; .* keep only the 2 frames"):
        read(xyz)


def test_a_text_file_cut_within_a_line(xyz):
    xyz.write_text(xyz.read_text()[:-30])
    with pytest.raises(DataError, match=r"co\.xyz:2: no valid extxyz"):
        read(xyz)


@pytest.mark.parametrize("suffix", [".xyz.xz", ".xyz.gz", ".xyz.bz2", ".traj.xz"])
def test_a_truncated_packed_file(tmp_path, suffix):
    plain = tmp_path / ("co." + suffix.split(".")[1])
    ase.io.write(plain, structures(300))
    packer = {"xz": lzma, "gz": gzip, "bz2": bz2}[suffix.split(".")[2]]
    packed = packer.compress(plain.read_bytes())
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=rf"cut{suffix}:\d+: the file is damaged or cut off"):
        read(path)


def test_a_packed_file_with_flipped_bytes(tmp_path, xyz):
    packed = bytearray(lzma.compress(xyz.read_bytes()))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "flip.xyz.xz").write_bytes(packed)
    with pytest.raises(DataError, match=r"flip\.xyz\.xz:0: the file is damaged"):
        read(tmp_path / "flip.xyz.xz")


def test_a_wrong_count_of_atoms(xyz):
    lines = xyz.read_text().splitlines()
    lines[4] = "1"
    xyz.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"co\.xyz:2: line 8 must hold the number of atoms, got 'O "):
        read(xyz)


def test_frames_without_labels(tmp_path):
    bare = [ase.Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], info={"e_total": -14.0})]
    ase.io.write(tmp_path / "bare.xyz", bare)
    with pytest.raises(
        DataError, match=r"bare\.xyz: no frame carries energy, forces.*the keys are: e_total; name yours, as in keys\.energy="
    ):
        read(tmp_path / "bare.xyz")


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity"])
def test_nan_and_infinite_energies(xyz, value):
    with pytest.raises(DataError, match=r"co\.xyz:1: energy holds NaN or infinity; remove the frame"):
        read(edited(xyz, "energy=-15.0", f"energy={value}"))


def test_nan_forces(xyz):
    lines = xyz.read_text().splitlines()
    lines[6] = " ".join([*lines[6].split()[:-1], "nan"])
    xyz.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"co\.xyz:1: forces holds NaN or infinity"):
        read(xyz)


def test_nan_positions(xyz):
    lines = xyz.read_text().splitlines()
    lines[6] = lines[6].replace(lines[6].split()[1], "nan", 1)
    xyz.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"co\.xyz:1: positions hold NaN"):
        read(xyz)


def test_a_stress_of_six_numbers(xyz):
    text = xyz.read_text()
    start = text.index('stress="')
    stop = text.index('"', start + 8) + 1
    xyz.write_text(text[:start] + 'stress="1 2 3 4 5 6"' + text[stop:])
    with pytest.raises(DataError, match=r"co\.xyz:0: stress or virial must be nine numbers \(xx xy xz yx yy yz zx zy zz\), not six"):
        read(xyz)


def test_forces_with_a_missing_column(xyz):
    with pytest.raises(DataError, match=r"co\.xyz:0: forces of 2 atoms must have shape \(2, 3\) to be forces, got \(2, 2\)"):
        read(edited(xyz, "forces:R:3", "forces:R:2", 1))


def test_a_line_with_too_few_columns(xyz):
    lines = xyz.read_text().splitlines()
    lines[7] = " ".join(lines[7].split()[:5])
    xyz.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"co\.xyz:1: no valid extxyz"):
        read(xyz)


def test_an_unknown_element(xyz):
    lines = xyz.read_text().splitlines()
    lines[2] = "Qq" + lines[2][2:]
    xyz.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=r"co\.xyz:0: "):
        read(xyz)


def test_a_file_that_may_not_be_read(xyz, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match=r"co\.xyz:0: .*Permission denied"):
        read(xyz)


def test_an_unknown_choice_of_energy(xyz):
    with pytest.raises(DataError, match="energy must be auto, energy or free_energy"):
        read(xyz, energy="total")
