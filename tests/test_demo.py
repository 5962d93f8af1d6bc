"""The demo goes from data to dynamics and leaves everything in its folder."""

import csv
import io
from contextlib import redirect_stdout

import ase.io
import numpy as np
import pytest

import equimol.demo
from equimol.data.formats import read


def test_demo_data_have_energies_forces_and_isolated_atoms():
    frames = read(equimol.demo.DATA).frames
    molecules = [frame for frame in frames if len(frame.numbers) > 1]
    isolated = [frame for frame in frames if frame.info.get("config_type") == "IsolatedAtom"]
    assert len(molecules) == 400
    assert sorted(int(frame.numbers[0]) for frame in isolated) == [1, 6, 7, 8]
    assert all(np.isfinite(frame.labels["energy"]) and np.isfinite(frame.labels["forces"]).all() for frame in frames)


def test_demo_forces_neither_push_nor_turn_the_molecule():
    # Forces of an isolated molecule have no sum and no torque about any point: they belong to these positions, atom by atom.
    for frame in read(equimol.demo.DATA).frames:
        forces = frame.labels["forces"]
        assert np.abs(forces.sum(axis=0)).max() < 1e-5
        assert np.abs(np.cross(frame.positions, forces).sum(axis=0)).max() < 1e-5


def test_starting_structure_is_a_whole_molecule():
    atoms = equimol.demo.starting_structure()
    assert atoms.get_chemical_formula() == "C2H7NO"
    assert not atoms.pbc.any()


@pytest.mark.slow
def test_short_demo_leaves_report_model_trajectory_and_timings(tmp_path):
    out = tmp_path / "demo"
    report = equimol.demo.run(out, minutes=0.1, md_steps=20, quiet=True)
    assert report.parent == out and report.read_text().lstrip().startswith("<!")
    assert len(ase.io.read(out / "md.extxyz", ":")) > 1
    assert (out / "model.equimol").exists()
    with (out / "tensor_products.csv").open() as file:
        assert {"clebsch_gordan", "gaunt_fourier", "gaunt_grid"} <= {row["product"] for row in csv.DictReader(file)}


@pytest.mark.slow
def test_quiet_demo_prints_nothing(tmp_path):
    printed = io.StringIO()
    with redirect_stdout(printed):
        equimol.demo.run(tmp_path / "demo", minutes=0.05, md_steps=5, quiet=True)
    assert printed.getvalue() == ""
