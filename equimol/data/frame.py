"""Frame: one labelled structure as read, in float64 and in our units, before any cutoff is chosen."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from equimol.data.errors import DataError
from equimol.data.graph import AtomicGraph
from equimol.data.neighbors import Edges
from equimol.data.properties import INPUTS

MINIMUM_DISTANCE = 0.1  # Å; no two nuclei of a real structure are closer


class Neighbors(NamedTuple):
    """Edges that were found before, and up to which length, Å."""

    cutoff: float
    edges: Edges


@dataclass(frozen=True, eq=False)
class Frame:
    """One structure, its labels and where it came from.

    `labels` holds only what the source states: no NaN, no zeros in its place. `info` holds charge and spin (the multiplicity) where
    stated, and the scalars of the file: config_type, names, identifiers.
    """

    numbers: Int64[np.ndarray, "atoms"]
    positions: Float64[np.ndarray, "atoms 3"]  # Å
    cell: Float64[np.ndarray, "3 3"]  # Å, rows are vectors, zeros for a molecule
    pbc: Bool[np.ndarray, "3"]
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    source: str = "in memory"  # "file:index", from 0
    fixed: Bool[np.ndarray, "atoms"] | None = None  # held in place: their forces are no labels
    neighbors: Neighbors | None = None  # as a packed file may hold them

    def graph(self, cutoff: float | int) -> AtomicGraph:
        """The frame's graph with its labels and inputs; DataError with file and frame where it cannot be one."""
        inputs = {name: self.info[name] for name in INPUTS if name in self.info}
        edges = None if self.neighbors is None or cutoff > self.neighbors.cutoff else self._edges_within(cutoff, self.neighbors)
        try:
            structure = self.positions, self.numbers, self.cell, self.pbc
            graph = AtomicGraph.build(*structure, cutoff, self.labels, self.fixed, edges, **inputs)
        except ValueError as error:
            raise DataError(f"{self.source}: {error}") from error
        self._reject_overlap(graph)
        return graph

    def _edges_within(self, cutoff: float | int, known: Neighbors) -> Edges:
        """Those of the known edges that are shorter, in their order, which is that of a new search."""
        if cutoff == known.cutoff:
            return known.edges
        senders, receivers, shifts = known.edges
        vectors = self.positions[senders] + shifts @ self.cell - self.positions[receivers]
        near = np.einsum("ei,ei->e", vectors, vectors) < float(cutoff) ** 2
        return Edges(senders[near], receivers[near], shifts[near])

    def _reject_overlap(self, graph: AtomicGraph) -> None:
        if len(graph.senders) == 0:
            return
        squares = graph.displacements().square().sum(dim=1)
        edge = squares.argmin()
        if squares[edge] < MINIMUM_DISTANCE**2:
            distance = float(squares[edge]) ** 0.5
            pair = int(graph.receivers[edge]), int(graph.senders[edge])
            raise DataError(
                f"{self.source}: atoms {pair[0]} and {pair[1]} are {distance:.3f} Å apart, nearer than {MINIMUM_DISTANCE} Å; "
                "check that positions and cell are in Å, or remove the frame"
            )
