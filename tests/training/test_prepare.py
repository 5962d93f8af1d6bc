"""From files to what a model is built with."""

from pathlib import Path

import pytest

from equimol.data.errors import DataError
from equimol.training.config import load_config
from equimol.training.prepare import build_graphs, read_data
from equimol.training.references import find_references, find_scale_and_shift


def test_isolated_atoms_give_references_and_are_not_trained_on(tmp_path: Path, emt_frames, write_frames):
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = [Atoms(symbol, info={"config_type": "IsolatedAtom"}) for symbol in ("Cu", "Al")]
    for atom, energy in zip(atoms, (-3.0, -5.0), strict=True):
        atom.calc = SinglePointCalculator(atom, energy=energy, forces=[[0.0] * 3])
    config = load_config(None, [f"data={write_frames(tmp_path / 'd.xyz', atoms + emt_frames(10))}", "valid=2", "test=0"])
    data = read_data(config)
    assert {name: len(frames) for name, frames in data.frames.items()} == {"train": 8, "valid": 2, "test": 0}
    references, method = find_references(config, data)
    assert references == {13: -5.0, 29: -3.0} and "isolated" in method
    _, shift = find_scale_and_shift(config, data, references)
    mean = sum(float(frame.labels["energy"]) + 14.0 for frame in data.frames["train"]) / 8 / 4
    assert shift == pytest.approx(mean)


def test_given_references_must_name_every_element(clusters: Path):
    config = load_config(None, [f"data={clusters}", "references={Cu: -1.0, 13: -2.0}"])
    data = read_data(config)
    assert find_references(config, data) == ({13: -2.0, 29: -1.0}, "given")
    with pytest.raises(ValueError, match="Al missing"):
        find_references(load_config(None, [f"data={clusters}", "references={Cu: -1.0}"]), data)
    with pytest.raises(ValueError, match="the element 'Xx'"):
        find_references(load_config(None, [f"data={clusters}", "references={Xx: -1.0}"]), data)


def test_validation_and_test_may_be_files_of_their_own(clusters: Path, crystals: Path):
    data = read_data(load_config(None, [f"data={clusters}", f"valid={crystals}", f"test=[{crystals}]"]))
    assert {name: len(frames) for name, frames in data.frames.items()} == {"train": 24, "valid": 12, "test": 12}
    assert "valid: 12 structures from" in data.summary and "test: 12 structures from" in data.summary and "split:" not in data.summary
    build_graphs(data, 3.0)
    assert len(data.graphs["valid"]) == 12


def test_the_split_that_auto_chose_is_told(clusters: Path):
    assert "split: blocks, because most frames hold the same atoms" in read_data(load_config(None, [f"data={clusters}"])).summary


def test_an_empty_training_set_is_an_error(clusters: Path):
    with pytest.raises(DataError, match="valid=12 and test=12 would leave none of 24 frames"):
        read_data(load_config(None, [f"data={clusters}", "valid=12", "test=12"]))
    with pytest.raises(DataError, match="test=24 would leave none of 24 frames"):
        read_data(load_config(None, [f"data={clusters}", f"valid={clusters}", "test=24"]))


def test_an_element_that_is_not_trained_on_is_named_with_its_frame(tmp_path: Path, clusters: Path, emt_frames, write_frames):
    frames = emt_frames(2)
    frames[1].numbers[0] = 47
    with pytest.raises(DataError, match=r"other\.xyz:1: Ag is in the valid set but in no training frame"):
        read_data(load_config(None, [f"data={clusters}", f"valid={write_frames(tmp_path / 'other.xyz', frames)}"]))
