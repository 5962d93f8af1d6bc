"""OC20's raw folders: extxyz files beside text files with the reference energies."""

import lzma

import pytest

from equimol.data import DataError, read


def test_adsorption_energies_are_total_minus_reference(write):
    path = write("s2ef.extxyz")
    frames = read(path)
    assert frames[1].labels["energy"] == -15.0  # total, as the file has it
    assert frames[1].info == {"sid": "random7", "fid": 1, "reference_energy": -11.0, "adsorption_energy": -4.0}
    assert read(path, keys={"energy": "adsorption_energy"})[1].labels["energy"] == -4.0


def test_a_folder_of_packed_pairs_is_one_data_set(write, tmp_path):
    path = write("s2ef.extxyz")
    folder = tmp_path / "s2ef_train_200K"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.extxyz.xz").write_bytes(lzma.compress(path.read_bytes()))
        (folder / f"{number}.txt").write_text(path.with_suffix(".txt").read_text())
    frames = read(folder)
    assert len(frames) == 6 and frames[4].source.endswith("1.extxyz.xz:1") and frames[4].info["sid"] == "random7"
    (folder / "1.txt").unlink()
    with pytest.raises(DataError, match=r"1\.extxyz\.xz: has no \.txt with its reference energies, as the files beside it"):
        read(folder)


def test_text_beside_an_extxyz_file_that_is_something_else_does_not_matter(write):
    path = write("s2ef.extxyz")
    path.with_suffix(".txt").write_text("notes on these data\n")
    assert "reference_energy" not in read(path)[0].info


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["random7,frame0,-10.0", "random7,frame1"], r"s2ef\.txt: line 2 must be random<sid>,frame<fid>,<energy> for frame 1"),
        (["random7,frame0,-10.0", "random7,frame1,-1.0"], r"s2ef\.txt: line 3 must be"),
        ([f"random7,frame{n},-10.0" for n in range(4)], r"s2ef\.extxyz: ends after 3 frames, .*s2ef\.txt goes on"),
        (["random7,frame0,-10.0", "random7,frame1,abc"], r"s2ef\.txt: line 2 must be random"),
    ],
)
def test_text_and_structures_that_do_not_match(write, lines, message):
    path = write("s2ef.extxyz")
    path.with_suffix(".txt").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(DataError, match=message):
        read(path)
