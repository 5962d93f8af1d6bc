"""Structures, their labels and their graphs."""

from equimol.data.errors import DataError
from equimol.data.formats import FORMATS, FrameSet, open_records, read, read_records
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.labels import LabelReport
from equimol.data.neighbors import Edges, neighbor_list
from equimol.data.packed import PackedSet
from equimol.data.properties import INPUTS, PROPERTIES, Property
from equimol.data.splits import split
from equimol.data.statistics import (
    ReferenceEnergies,
    average_neighbors,
    energy_std,
    force_rms,
    is_isolated_atom,
    reference_energies,
    residual_energies,
)

__all__ = [
    "FORMATS",
    "INPUTS",
    "PROPERTIES",
    "AtomicGraph",
    "DataError",
    "Edges",
    "Frame",
    "FrameSet",
    "LabelReport",
    "PackedSet",
    "Property",
    "ReferenceEnergies",
    "average_neighbors",
    "energy_std",
    "force_rms",
    "is_isolated_atom",
    "neighbor_list",
    "open_records",
    "read",
    "read_records",
    "reference_energies",
    "residual_energies",
    "split",
]
