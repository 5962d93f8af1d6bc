"""Atoms that are held in place: their forces are neither trained on nor scored."""

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from torch_geometric.data import Batch

from equimol.data import DataError, force_rms, read

FORCES = np.array([[9.0, 0, 0], [1.0, 2.0, 2.0], [0, 0, 1.0]])


def slab(**columns) -> Atoms:
    atoms = Atoms("Cu2O", positions=[[0, 0, 0], [2.0, 0, 0], [1.0, 1.5, 0]])
    for name, values in columns.items():
        atoms.set_array(name, np.asarray(values))
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=FORCES)
    return atoms


@pytest.mark.parametrize("suffix", ["xyz", "traj"])
@pytest.mark.parametrize("constraint", [FixAtoms([0]), FixCartesian(0)], ids=["FixAtoms", "FixCartesian"])
def test_constraints_of_ase_hold_atoms(tmp_path, suffix, constraint):
    atoms = slab()
    atoms.set_constraint(constraint)
    ase.io.write(tmp_path / f"slab.{suffix}", atoms)
    found = read(tmp_path / f"slab.{suffix}")
    assert found[0].fixed.tolist() == [True, False, False]
    assert "forces count on free atoms alone: 1 of 3 atoms are held in place (constraints, or the column fixed)" in str(found.report)
    np.testing.assert_array_equal(found[0].labels["forces"], FORCES)  # a label stays what the file says
    assert read(tmp_path / f"slab.{suffix}", fixed="none")[0].fixed is None


def test_an_atom_that_may_move_along_one_axis_is_free(tmp_path):
    atoms = slab()
    atoms.set_constraint(FixCartesian(0, mask=(True, True, False)))
    ase.io.write(tmp_path / "slab.xyz", atoms)
    assert read(tmp_path / "slab.xyz")[0].fixed is None


def test_a_column_goes_before_constraints_and_tags_are_taken_when_asked(tmp_path):
    atoms = slab(fixed=[False, False, True], tags=[0, 1, 2])
    atoms.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "slab.xyz", atoms)
    assert read(tmp_path / "slab.xyz")[0].fixed.tolist() == [False, False, True]
    tagged = read(tmp_path / "slab.xyz", fixed="tags")
    assert tagged[0].fixed.tolist() == [True, False, False] and "(tag 0)" in str(tagged.report)


def test_what_holds_no_atoms_is_said(tmp_path):
    ase.io.write(tmp_path / "plain.xyz", slab())
    assert read(tmp_path / "plain.xyz")[0].fixed is None
    assert "held in place" not in str(read(tmp_path / "plain.xyz").report)
    with pytest.raises(DataError, match=r"plain\.xyz:0: fixed=tags needs a column of tags"):
        read(tmp_path / "plain.xyz", fixed="tags")
    with pytest.raises(DataError, match="fixed must be one of auto, tags, none, got 'layers'"):
        read(tmp_path / "plain.xyz", fixed="layers")
    ase.io.write(tmp_path / "wrong.xyz", slab(fixed=[0.5, 1.0, 1.0]))
    with pytest.raises(DataError, match=r"wrong\.xyz:0: fixed must be one whole number or truth value for each of 3 atoms"):
        read(tmp_path / "wrong.xyz")


def test_free_atoms_alone_have_a_scale_a_loss_and_an_error(tmp_path):
    from equimol.training.loss import loss_terms
    from equimol.training.metrics import ErrorSums

    ase.io.write(tmp_path / "slab.xyz", [slab(fixed=[True, False, False]), slab(fixed=[False, False, False])])
    frames = read(tmp_path / "slab.xyz").frames
    free = np.concatenate([FORCES[1:], FORCES])
    assert force_rms(frames) == pytest.approx(float(np.sqrt(np.mean(free**2))))
    batch = Batch.from_data_list([frame.graph(3.0) for frame in frames])
    assert batch.forces_present.tolist() == [False, True, True, True, True, True]
    prediction = {"forces": torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)}
    loss = loss_terms(prediction, batch, ["forces"])["forces"]
    assert loss.item() == pytest.approx(float(np.mean(free**2)))
    loss.backward()
    assert (prediction["forces"].grad[0] == 0).all() and (prediction["forces"].grad[3] != 0).any()
    sums = ErrorSums(["forces"])
    sums.update(prediction, batch)
    assert sums.result()["forces_mae_mev_per_angstrom"] == pytest.approx(1000 * float(np.abs(free).mean()))


def test_one_answer_per_atom_is_needed():
    from equimol.data.graph import AtomicGraph

    with pytest.raises(ValueError, match=r"fixed must be one bool for each of 1 atoms, got shape \[2\]"):
        AtomicGraph.build([[0.0, 0, 0]], [1], None, False, 1.0, fixed=[True, False])


def test_predictions_are_a_data_set_with_the_same_fixed_atoms(tmp_path):
    from equimol.interfaces.extxyz import format_predictions
    from equimol.models import build_model
    from equimol.training.evaluate import evaluate

    ase.io.write(tmp_path / "slab.xyz", slab(fixed=[True, False, False]))
    frames = read(tmp_path / "slab.xyz").frames
    result = evaluate(build_model("mace", elements=[8, 29]), frames)
    assert np.isnan(result.predictions["forces_true"]).all(axis=1).tolist() == [True, False, False]
    (tmp_path / "predicted.xyz").write_text(format_predictions(frames, result.predictions))
    assert read(tmp_path / "predicted.xyz")[0].fixed.tolist() == [True, False, False]


def test_relaxations_of_catalysts_have_tags(shared_data):
    frames = read(shared_data / "oc20_relax" / "oc20_relax24.extxyz.xz", fixed="tags").frames[:50]
    assert all(0 < frame.fixed.sum() < len(frame.numbers) for frame in frames)
