"""Predictions beside the labels they are compared with, as an extended xyz file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from ase.io.extxyz import write_xyz

from equimol.data.frame import Frame
from equimol.data.properties import PROPERTIES
from equimol.models.uncertainty import ENERGY_UNCERTAINTY


def format_predictions(frames: Sequence[Frame], predictions: Mapping[str, np.ndarray]) -> str:
    """The text of an extended xyz file: labels under their usual keys, predictions as predicted_energy, predicted_forces, ...

    `predictions` has the columns of an evaluation: `{property}_pred`, one row per frame or, for properties of atoms, one per atom with
    the frames one after the other, and perhaps `energy_uncertainty`. The file stays a data set: it can be read, trained on and
    evaluated again.
    """
    text = io.StringIO()
    first_atom = 0
    for index, frame in enumerate(frames):
        rows = slice(first_atom, first_atom + len(frame.numbers))
        first_atom = rows.stop
        atoms = Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
        atoms.info = dict(frame.info)
        if frame.fixed is not None:
            atoms.set_array("fixed", frame.fixed)
        for name, row in PROPERTIES.items():
            if name in frame.labels:
                _put(atoms, name, frame.labels[name], row.per)
            if f"{name}_pred" in predictions:
                values = predictions[f"{name}_pred"]
                _put(atoms, f"predicted_{name}", values[rows] if row.per == "atom" else values[index], row.per)
        if ENERGY_UNCERTAINTY in predictions:
            _put(atoms, f"predicted_{ENERGY_UNCERTAINTY}", predictions[ENERGY_UNCERTAINTY][index], "system")
        write_xyz(text, atoms, write_results=False)
    return text.getvalue()


def _put(atoms: Atoms, key: str, value: np.ndarray | np.floating, per: str) -> None:
    if not np.isfinite(value).all():
        return  # no stress without a volume
    if per == "atom":
        atoms.set_array(key, np.asarray(value))
    else:
        atoms.info[key] = np.asarray(value) if np.ndim(value) else float(value)
