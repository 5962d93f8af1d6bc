"""Which atoms see each other: the directed edges within a cutoff, for any mix of periodic and open directions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from vesin import NeighborList

MINIMUM_SINE = 1e-6  # periodic lattice vectors this close to being dependent span no cell


class Edges(NamedTuple):
    """Directed edges, sorted by receiver; both directions of a pair are there, an atom and its own image too, an atom and itself never.

    displacement = positions[senders] + shifts @ cell - positions[receivers]
    """

    senders: Int64[np.ndarray, "edges"]
    receivers: Int64[np.ndarray, "edges"]
    shifts: Int64[np.ndarray, "edges 3"]


def neighbor_list(
    positions: Float64[np.ndarray, "atoms 3"],  # Å, wrapped into the cell or not
    cell: Float64[np.ndarray, "3 3"],  # Å, rows are vectors; what it holds along open directions does not matter
    pbc: Bool[np.ndarray, "3"],
    cutoff: float | int,  # Å
) -> Edges:
    """All edges shorter than the cutoff, in an order that depends on nothing but the arguments."""
    check_geometry(positions, cell, pbc, cutoff)
    # One thread: with more of them the order of the edges, and so the last digit of every sum over them, would vary.
    search = NeighborList(cutoff=float(cutoff), full_list=True, sorted=True, n_threads=1)
    # vesin gives pairs (i, j) with r_j - r_i + S @ cell: i receives. The arrays are views that live as long as `search`.
    pairs, shifts = search.compute(positions, cell, pbc, "PS", copy=False)
    return Edges(pairs[:, 1].astype(np.int64), pairs[:, 0].astype(np.int64), shifts.astype(np.int64))


def reference_neighbor_list(
    positions: Float64[np.ndarray, "atoms 3"], cell: Float64[np.ndarray, "3 3"], pbc: Bool[np.ndarray, "3"], cutoff: float | int
) -> Edges:
    """What `neighbor_list` means, by trying every image of every pair. Only for tests: quadratic in the atoms."""
    check_geometry(positions, cell, pbc, cutoff)
    vectors = np.where(pbc[:, None], cell, 0.0)
    along = np.linalg.pinv(vectors)  # its columns turn a displacement into multiples of the periodic vectors
    spread = np.ptp(positions, axis=0)
    reach = np.ceil(np.linalg.norm(along, axis=0) * (cutoff + np.linalg.norm(spread))).astype(int)
    images = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    difference = positions[None, :, None] + images @ vectors - positions[:, None, None]  # [receiver, sender, image, 3]
    near = np.linalg.norm(difference, axis=-1) < cutoff
    near[np.arange(len(positions)), np.arange(len(positions)), (images == 0).all(axis=1)] = False
    receivers, senders, image = np.nonzero(near)
    return Edges(senders.astype(np.int64), receivers.astype(np.int64), images[image].astype(np.int64))


def check_geometry(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float | int) -> None:
    """Raise ValueError where a neighbour list would be meaningless: the search itself may crash or never end on such numbers."""
    if not 0 < cutoff < np.inf:
        raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}; typical values are 4 to 6")
    finite = np.isfinite(positions)
    if not finite.all():
        atom = int(np.argmin(finite.all(axis=1)))
        raise ValueError(f"positions must be finite, atom {atom} is at {positions[atom].tolist()}; what gave them broke before this")
    if not np.isfinite(cell).all():
        raise ValueError(f"cell must be finite, got {cell.tolist()}; what gave it broke before this")
    periodic = cell[pbc]
    lengths = np.linalg.norm(periodic, axis=1)
    if not lengths.all():
        axes = np.flatnonzero(pbc)[lengths == 0].tolist()
        raise ValueError(f"pbc is true along {axes} but the cell vector there is zero; give the cell, or pbc=False for an open direction")
    directions = periodic / lengths[:, None]
    if np.linalg.det(directions @ directions.T) < MINIMUM_SINE**2:
        raise ValueError(f"periodic cell vectors must be independent, got {periodic.tolist()}; check the cell for parallel rows")


def has_volume(cell: np.ndarray, pbc: np.ndarray) -> bool:
    """Whether a stress is defined: some direction is periodic and the three vectors span a volume."""
    return bool(pbc.any()) and abs(float(cell[0] @ np.cross(cell[1], cell[2]))) > 0.0  # as the models compute it
