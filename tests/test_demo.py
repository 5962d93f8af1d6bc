"""The demo goes from data to dynamics and leaves everything in its folder."""

import csv
import io
import itertools
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


def test_demo_forces_are_the_slope_of_the_demo_energies():
    # Between neighbouring frames the energies differ by work that the forces do not give exactly, but the sign and size must fit:
    # a sign error or a wrong unit would give a correlation of -1 or a slope far from one.
    frames = [frame for frame in read(equimol.demo.DATA).frames if len(frame.numbers) > 1]
    work, change = [], []
    for left, right in itertools.pairwise(frames):
        if left.info["trajectory"] == right.info["trajectory"]:
            mean_force = 0.5 * (left.labels["forces"] + right.labels["forces"])
            work.append(-(mean_force * (right.positions - left.positions)).sum())
            change.append(float(right.labels["energy"] - left.labels["energy"]))
    slope = np.dot(work, change) / np.dot(work, work)
    assert 0.5 < slope < 1.5


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
