"""What structures and labels of one data set say about each other: evidence on units, signs and orders, without any model.

Each function measures one number whose value physics fixes, within a factor that is much smaller than that between two units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from ase.data import covalent_radii

from equimol.data.frame import Frame
from equimol.data.neighbors import has_volume, neighbor_list

CUTOFF = 5.0  # Å; what counts as surroundings
BOND = 1.25  # times the sum of covalent radii
LIGHTEST_CORE = 36  # up to krypton codes use all electrons, or say so; beyond, effective cores are the rule
HARTREE = 27.211386  # eV
BUMPS = 12  # functions of distance that pair forces are made of


class Surroundings(NamedTuple):
    """Neighbours of the atoms of one structure, within CUTOFF."""

    receivers: np.ndarray  # [edges]
    senders: np.ndarray  # [edges]
    vectors: np.ndarray  # [edges, 3] Å, from receiver to sender
    distances: np.ndarray  # [edges] Å
    reduced: np.ndarray  # [edges], distance over the sum of covalent radii


def surroundings(frame: Frame, pbc: np.ndarray | None = None, cutoff: float = CUTOFF) -> Surroundings:
    """Neighbours as the frame states its periodicity, or with another one. ValueError where the cell does not allow it."""
    edges = neighbor_list(frame.positions, frame.cell, frame.pbc if pbc is None else pbc, cutoff)
    vectors = frame.positions[edges.senders] + edges.shifts @ frame.cell - frame.positions[edges.receivers]
    distances = np.linalg.norm(vectors, axis=1)
    radii = covalent_radii[frame.numbers]
    return Surroundings(edges.receivers, edges.senders, vectors, distances, distances / (radii[edges.receivers] + radii[edges.senders]))


# --- identity of structures


def invariants(frame: Frame, around: Surroundings) -> np.ndarray:
    """Numbers that neither rotation, translation nor order of atoms change, [7]; two structures with the same are candidates for one."""
    z = frame.numbers.astype(float)
    weight = (1 - (around.distances / CUTOFF) ** 2) ** 3 * np.sqrt(z[around.receivers] * z[around.senders])
    pull = np.zeros_like(frame.positions)
    np.add.at(pull, around.receivers, (weight / np.maximum(around.distances, 1e-9))[:, None] * around.vectors)
    centred = frame.positions - np.average(frame.positions, axis=0, weights=z)
    spread = 0.0 if frame.pbc.any() else float((z[:, None] * centred**2).sum())
    volume = abs(float(np.linalg.det(frame.cell))) if frame.pbc.all() else 0.0
    sums = [weight.sum(), weight @ around.distances, weight @ np.cos(3 * around.distances), (z[:, None] * pull**2).sum()]
    return np.array([z.sum(), *sums, spread, volume])


def same_structures(frames: Sequence[Frame], fingerprints: np.ndarray, tolerance: float = 1e-6) -> list[list[int]]:
    """Groups of two and more frames that hold one structure: invariants equal to a relative tolerance, and all distances to 1e-3 Å."""
    by_atoms = defaultdict(list)
    for index, frame in enumerate(frames):
        by_atoms[np.sort(frame.numbers).tobytes()].append(index)
    groups = []
    for members in by_atoms.values():
        order = sorted(members, key=lambda index: fingerprints[index, 1])
        parent = {index: index for index in order}
        for place, one in enumerate(order):
            for other in order[place + 1 :]:
                gap = np.abs(fingerprints[other] - fingerprints[one])
                scale = tolerance * np.maximum(1.0, np.abs(fingerprints[one]))
                if gap[1] > scale[1]:
                    break
                if (gap <= scale).all() and _same_distances(frames[one], frames[other]):
                    parent[other] = parent[one]
        sets = defaultdict(list)
        for index, root in parent.items():
            sets[root].append(index)
        groups += [sorted(found) for found in sets.values() if len(found) > 1]
    return sorted(groups)


def _same_distances(one: Frame, other: Frame) -> bool:
    return bool(np.abs(_sorted_distances(one) - _sorted_distances(other)).max(initial=0.0) < 1e-3)


def _sorted_distances(frame: Frame) -> np.ndarray:
    """All distances between atoms, to the nearest image; of large structures those from their first atoms of each element."""
    rows = np.arange(len(frame.numbers)) if len(frame.numbers) <= 200 else np.unique(frame.numbers, return_index=True)[1]
    apart = nearest_image(frame.positions[rows, None] - frame.positions, frame.cell, frame.pbc)
    if len(rows) < len(frame.numbers):  # rows are only the same atoms if the order is
        return np.linalg.norm(apart, axis=2).ravel()
    return np.sort(np.linalg.norm(apart, axis=2), axis=None)


def nearest_image(vectors: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Displacements with whole lattice vectors taken away, [..., 3]. The nearest image where the cell is not very oblique."""
    if not pbc.any():
        return vectors
    fractions = vectors @ np.linalg.pinv(np.where(pbc[:, None], cell, 0.0))
    return vectors - np.rint(fractions) @ np.where(pbc[:, None], cell, 0.0)


# --- energies and forces


class Consistency(NamedTuple):
    """How the change of energy between similar structures compares with the work of the forces."""

    slope: float  # energy over work: 1 where energies and forces belong together
    agreeing: float  # share of pairs within a quarter of the slope
    pairs: int


def energy_over_work(pairs: Iterable[tuple[Frame, Frame]]) -> Consistency | None:
    """E(b) - E(a) over the work of forces, and of stress where the cell changes: the median, weighted by the work.

    The work of forces is -½(F(a) + F(b))·(r(b) - r(a)), exact for springs. None where there are too few pairs.
    """
    found = [one for pair in pairs if (one := _works(*pair)) is not None]
    return _agreement(np.array([change for change, _, _ in found]), np.array([forces + stress for _, forces, stress in found]))


def energy_over_strain_work(pairs: Iterable[tuple[Frame, Frame]]) -> Consistency | None:
    """E(b) - E(a), less the work of the forces, over the work of the stress V·½(s(a) + s(b)):strain, of pairs with two cells."""
    found = [one for pair in pairs if (one := _works(*pair)) is not None and one[2] != 0.0]
    return _agreement(np.array([change - forces for change, forces, _ in found]), np.array([stress for _, _, stress in found]))


def _works(one: Frame, other: Frame) -> tuple[float, float, float] | None:
    """Change of energy, work of the forces, work of the stress, eV; None where the cell changes and there is no stress for it."""
    change = float(other.labels["energy"] - one.labels["energy"])
    if not one.pbc.any() or np.abs(one.cell - other.cell).max() < 1e-6:
        step, turn = displacement(one, other)
        return change, -0.5 * float(((one.labels["forces"] + other.labels["forces"] @ turn) * step).sum()), 0.0
    if not one.pbc.all() or not {"stress"} <= one.labels.keys() & other.labels.keys():
        return None
    gradient = np.linalg.solve(one.cell, other.cell) - np.eye(3)  # rows: r' = r (1 + gradient)
    strain = (gradient + gradient.T) / 2
    if np.abs(strain).max() > 0.06:
        return None
    volume = 0.5 * (abs(np.linalg.det(one.cell)) + abs(np.linalg.det(other.cell)))
    stress = volume * float((0.5 * (one.labels["stress"] + other.labels["stress"]) * strain).sum())
    step = nearest_image(other.positions - one.positions @ (np.eye(3) + gradient), other.cell, other.pbc)
    step -= step.mean(axis=0)
    return change, -0.5 * float(((one.labels["forces"] + other.labels["forces"]) * step).sum()), stress


def _agreement(change: np.ndarray, work: np.ndarray) -> Consistency | None:
    """The median of change/work, weighted by the work."""
    used = np.abs(work) > 1e-12
    if used.sum() < 5:
        return None
    ratios, weights = change[used] / work[used], np.abs(work[used])
    slope = weighted_median(ratios, np.minimum(weights, 10 * np.median(weights)))
    agreeing = float((np.abs(ratios - slope) < 0.25 * abs(slope)).mean())
    return Consistency(slope, agreeing, int(used.sum()))


def similar_pairs(frames: Sequence[Frame], limit: int = 300) -> list[tuple[Frame, Frame]]:
    """Pairs of labelled frames of the same atoms in the same order that lie close: neighbours in the file, and the nearest of a sample."""
    by_atoms = defaultdict(list)
    for frame in frames:
        if "energy" in frame.labels and "forces" in frame.labels and len(frame.numbers) > 1:
            by_atoms[frame.numbers.tobytes() + frame.pbc.tobytes()].append(frame)
    groups = sorted((group for group in by_atoms.values() if len(group) > 1), key=len, reverse=True)[:40]
    chosen = []
    for group in groups:
        share = max(8, limit // len(groups))
        pairs = list(pairwise(group))[:: max(1, (len(group) - 1) // share)]
        sample = group[:: max(1, len(group) // 500)]
        shapes = np.array([_shape(frame, sample[0]) for frame in sample])
        for index in range(0, len(sample), max(1, len(sample) // share)):
            apart = np.abs(shapes - shapes[index]).max(axis=1)
            apart[apart < 1e-4] = np.inf
            if np.isfinite(apart).any():
                pairs.append((sample[index], sample[int(apart.argmin())]))
        far = np.array([np.linalg.norm(displacement(*pair)[0], axis=1).max() for pair in pairs])
        moved = np.flatnonzero((far > 1e-4) & (far < 0.8))
        chosen += [pairs[index] for index in moved[np.argsort(far[moved])][:share]]
    return chosen


def _shape(frame: Frame, first: Frame) -> np.ndarray:
    """Numbers that are close where structures of the same atoms are: of a molecule distances from atoms along its list, else positions."""
    if frame.pbc.any():
        return nearest_image(frame.positions - first.positions, first.cell, first.pbc).ravel()
    rows = np.linspace(0, len(frame.numbers) - 1, min(6, len(frame.numbers))).astype(int)
    return np.linalg.norm(frame.positions[rows, None] - frame.positions, axis=2).ravel()


def displacement(one: Frame, other: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the atoms from one structure to the other, [atoms, 3], and the rotation to apply to vectors of the other, [3, 3].

    Molecules are laid upon each other first; what is periodic is not turned, only shifted.
    """
    if one.pbc.any():
        step = nearest_image(other.positions - one.positions, one.cell, one.pbc)
        return step - step.mean(axis=0), np.eye(3)
    here, there = one.positions - one.positions.mean(axis=0), other.positions - other.positions.mean(axis=0)
    u, _, v = np.linalg.svd(there.T @ here)
    turn = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v)) or 1.0]) @ v
    return there @ turn - here, turn


class Stiffness(NamedTuple):
    """Stiffness of bonds over a rule of thumb."""

    ratio: float  # about 1 where forces are in eV/Å
    correlation: float  # between length and force along the bond, of the kind with the median ratio: near -1 where the bond alone acts
    bonds: int


def stiffness_ratio(frames: Sequence[Frame], around: Sequence[Surroundings]) -> Stiffness | None:
    """Stiffness of bonds, -d(force along a bond)/d(its length), over a rule of thumb, in the median over kinds of bonds.

    The rule is that of UFF (Rappé 1992, eq. 6): k = 28.8 eV·Å z z'/r³ with effective charges z, of which we take 0.7 for hydrogen and 2
    else, and less where atoms have more than four partners. It is right within a factor of four, from metals to molecules: less than the
    factor between any two units of forces.
    """
    bonds = defaultdict(list)
    for frame, near in zip(frames, around, strict=True):
        if "forces" not in frame.labels:
            continue
        bonded = near.reduced < BOND
        partners = np.bincount(near.receivers[bonded], minlength=len(frame.numbers))
        kept = np.flatnonzero(bonded & (near.receivers < near.senders))
        a, b = near.receivers[kept], near.senders[kept]
        units = near.vectors[kept] / near.distances[kept, None]
        pushes = 0.5 * ((frame.labels["forces"][b] - frame.labels["forces"][a]) * units).sum(axis=1)
        kinds = np.stack([frame.numbers[a] * 100 + partners[a], frame.numbers[b] * 100 + partners[b]], axis=1)
        name = hash(frame.numbers.tobytes())
        for one, two, kind, length, push in zip(a.tolist(), b.tolist(), np.sort(kinds).tolist(), near.distances[kept], pushes, strict=True):
            bonds[tuple(kind)].append(((name, one, two), float(length), float(push)))
    ratios, correlations, weights = [], [], []
    for (a, b), found in bonds.items():
        lengths, pushes = _within_places(found)
        spread, force = float(lengths @ lengths), float(pushes @ pushes)
        if len(lengths) < 20 or force < 1e-6 * len(lengths) or spread < 1e-8 * len(lengths):
            continue
        correlation = float(lengths @ pushes) / np.sqrt(spread * force)
        if abs(correlation) < 0.3:  # other forces than that of the bond prevail
            continue
        length = float(np.mean([one[1] for one in found]))
        shared = min(1.0, 4 / np.sqrt((a % 100) * (b % 100)))
        expected = 28.8 * shared * (0.7 if a // 100 == 1 else 2.0) * (0.7 if b // 100 == 1 else 2.0) / length**3
        ratios.append(-float(lengths @ pushes) / spread / expected)
        correlations.append(float(correlation))
        weights.append(len(lengths))
    if not ratios:
        return None
    ratio = weighted_median(np.array(ratios), np.array(weights, dtype=float))
    return Stiffness(ratio, correlations[ratios.index(ratio)], sum(weights))


def _within_places(found: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and pushes less their means: over one bond of one molecule where it is met again and again, else over all of the kind."""
    by_place = defaultdict(list)
    for place, length, push in found:
        by_place[place].append((length, push))
    often = [np.array(values) for values in by_place.values() if len(values) >= 4]
    groups = often if sum(map(len, often)) > 0.5 * len(found) else [np.array([(length, push) for _, length, push in found])]
    centred = np.concatenate([values - values.mean(axis=0) for values in groups])
    return centred[:, 0], centred[:, 1]


def all_electron_ratio(frames: Sequence[Frame]) -> tuple[float, float] | None:
    """Energy over that of the free atoms with all their electrons, and its spread; near 1 where energies count all electrons, in eV.

    The atoms are Schwinger's: -0.7687 Z^(7/3) + Z²/2 - 0.2699 Z^(5/3) hartree (Phys. Rev. A 22, 1827), right to 1 % but for hydrogen.
    """
    ratios = []
    for frame in frames:
        if "energy" in frame.labels and frame.numbers.max() <= LIGHTEST_CORE and len(frame.numbers) > 1:
            z = frame.numbers.astype(float)
            atoms = -0.768745 * z ** (7 / 3) + 0.5 * z**2 - 0.2699 * z ** (5 / 3)
            ratios.append(float(frame.labels["energy"]) / (HARTREE * np.where(z == 1, -0.5, atoms).sum()))
    if not ratios:
        return None
    return float(np.median(ratios)), float(np.ptp(np.percentile(ratios, [10, 90])))


# --- stress


def stress_scale(frames: Sequence[Frame], around: Sequence[Surroundings]) -> tuple[float, int] | None:
    """Stress times volume per atom over force times distance of neighbours: of the order of one where atoms are pushed about.

    The median over the half of the frames with the larger forces, and their number; None where forces are small everywhere.
    """
    found = []
    for frame, near in zip(frames, around, strict=True):
        if {"stress", "forces"} <= frame.labels.keys() and has_volume(frame.cell, frame.pbc) and len(near.distances):
            stress = frame.labels["stress"] - np.trace(frame.labels["stress"]) / 3 * np.eye(3)
            volume = abs(np.linalg.det(frame.cell)) / len(frame.numbers)
            force = float(np.sqrt((frame.labels["forces"] ** 2).sum(axis=1).mean()))
            found.append((force, float(np.linalg.norm(stress)) * volume * np.sqrt(len(frame.numbers)), float(near.distances.min())))
    found = sorted(found)[len(found) // 2 :]
    if len(found) < 3 or found[0][0] < 1e-2:
        return None
    return float(np.median([stress / (force * distance) for force, stress, distance in found])), len(found)


class PairFit(NamedTuple):
    """Central pair forces that were fitted to the force labels of some frames, and what they make one expect."""

    frames: list[Frame]
    energies: np.ndarray | None  # [frames] eV; None where there are too many elements for forces of each pair
    stresses: np.ndarray  # [frames, 3, 3] eV/Å³; zero where there is no volume


def fit_pair_forces(frames: Sequence[Frame], around: Sequence[Surroundings]) -> PairFit | None:
    """Least squares of f(r) to the forces. None with fewer than four frames.

    f(r) is a sum of smooth bumps, one set for each pair of elements, or one for all in units of covalent radii where there are many.
    Forces between pairs are not all there is, but most of how energy and stress differ between frames; what depends on the volume alone
    they do not know.
    """
    use = [(f, near) for f, near in zip(frames, around, strict=True) if "forces" in f.labels and len(near.distances)]
    if len(use) < 4:
        return None
    elements = sorted({int(z) for frame, _ in use for z in np.unique(frame.numbers)})
    separate = len(elements) <= 4
    pairs = {pair: n for n, pair in enumerate((a, b) for a in elements for b in elements if a <= b)} if separate else {}
    kinds_of = max(1, len(pairs))
    columns = BUMPS * kinds_of
    gram, moment = np.zeros((columns, columns)), np.zeros(columns)
    energies, stresses = np.zeros((len(use), columns)), np.zeros((len(use), 9, columns))
    for n, (frame, near) in enumerate(use):
        units = near.vectors / near.distances[:, None]
        values = _bumps(near.distances if separate else near.reduced, near.distances, separate)
        kinds = _kinds(frame, near, pairs) if separate else np.zeros(len(near.distances), dtype=int)
        design = np.zeros((len(frame.numbers), 3, kinds_of, BUMPS))
        np.add.at(design, (near.receivers, slice(None), kinds), -units[:, :, None] * values[:, None, :])
        flat = design.reshape(-1, columns)
        weight = 1 / (0.1 + np.sqrt(np.mean(frame.labels["forces"] ** 2))) ** 2 / len(frame.numbers)
        gram += weight * flat.T @ flat
        moment += weight * flat.T @ frame.labels["forces"].ravel()
        outer = -0.5 * (near.vectors[:, :, None] * units[:, None, :]).reshape(-1, 9)
        raised = _integrals(near.distances) if separate else np.zeros_like(values)
        for kind in np.unique(kinds):
            chosen, place = kinds == kind, slice(kind * BUMPS, (kind + 1) * BUMPS)
            energies[n, place] = 0.5 * raised[chosen].sum(axis=0)
            if has_volume(frame.cell, frame.pbc):
                stresses[n, :, place] = outer[chosen].T @ values[chosen] / abs(np.linalg.det(frame.cell))
    force = np.linalg.solve(gram + 1e-6 * np.trace(gram) / columns * np.eye(columns), moment)
    return PairFit([frame for frame, _ in use], energies @ force if separate else None, (stresses @ force).reshape(-1, 3, 3))


def energy_over_pair_energy(fit: PairFit) -> Consistency | None:
    """Energies over those of the fitted pair forces, beside free terms in composition and volume; `agreeing` is their correlation."""
    chosen = [n for n, frame in enumerate(fit.frames) if "energy" in frame.labels]
    if fit.energies is None or len(chosen) < 20:
        return None
    frames = [fit.frames[n] for n in chosen]
    atoms = np.array([len(frame.numbers) for frame in frames], dtype=float)
    elements = sorted({int(z) for frame in frames for z in np.unique(frame.numbers)})
    shares = np.array([[np.count_nonzero(frame.numbers == z) for z in elements] for frame in frames]) / atoms[:, None]
    volume = np.array([abs(np.linalg.det(frame.cell)) if frame.pbc.all() else 0.0 for frame in frames]) / atoms
    others = np.column_stack([shares, volume - volume.mean(), (volume - volume.mean()) ** 2])
    weights = np.ones(len(frames))
    energies, expected = np.array([float(frame.labels["energy"]) for frame in frames]) / atoms, fit.energies[chosen] / atoms
    slope, correlation = 0.0, 0.0
    for _ in range(20):  # of least absolute deviations: a few wrong energies must not decide
        root = np.sqrt(weights)
        left = [root * y - root[:, None] * others @ _solve(root[:, None] * others, root * y) for y in (energies, expected)]
        slope = float(left[0] @ left[1] / max(1e-30, left[1] @ left[1]))
        correlation = float(left[0] @ left[1] / max(1e-30, np.linalg.norm(left[0]) * np.linalg.norm(left[1])))
        rest = np.abs(left[0] - slope * left[1]) / root
        weights = 1 / np.maximum(rest, 0.05 * np.median(rest) + 1e-9)
        weights /= weights.max()
    return Consistency(slope, abs(correlation), len(frames))


def _solve(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(matrix, values, rcond=None)[0]


class StressEvidence(NamedTuple):
    """Stress labels beside the stress of pair forces."""

    correlation: float  # of all components but the mean pressure of the set
    shear: np.ndarray  # [3, 3] correlations of the labels yz, xz, xy (rows) with the expected ones (columns)
    frames: int


def stress_over_pair_stress(fit: PairFit) -> StressEvidence | None:
    """How the stress labels go with those of the fitted pair forces; None for fewer than four."""
    chosen = [n for n, frame in enumerate(fit.frames) if "stress" in frame.labels]
    if len(chosen) < 4:
        return None
    return _compare_stress(np.stack([fit.frames[n].labels["stress"] for n in chosen]), fit.stresses[chosen])


def _compare_stress(labels: np.ndarray, expected: np.ndarray) -> StressEvidence:
    def parts(stress: np.ndarray) -> np.ndarray:
        """Six components per frame, mean pressure of the set taken away."""
        pressure = np.trace(stress, axis1=1, axis2=2).mean() / 3
        s = stress - pressure * np.eye(3)
        return np.stack([s[:, 0, 0], s[:, 1, 1], s[:, 2, 2], s[:, 1, 2], s[:, 0, 2], s[:, 0, 1]], axis=1)

    ours, theirs = parts(expected), parts(labels)
    limit_ours, limit_theirs = 5 * np.median(np.abs(ours)) + 1e-12, 5 * np.median(np.abs(theirs)) + 1e-12
    ours, theirs = np.clip(ours, -limit_ours, limit_ours), np.clip(theirs, -limit_theirs, limit_theirs)  # a few crushed cells
    product = float((ours * theirs).sum())
    norms = float(np.sqrt((ours**2).sum() * (theirs**2).sum()))
    correlation = product / norms if norms > 0 else 0.0
    shear = np.zeros((3, 3))
    for row in range(3):
        for column in range(3):
            a, b = theirs[:, 3 + row], ours[:, 3 + column]
            norm = np.sqrt((a @ a) * (b @ b))
            shear[row, column] = float(a @ b / norm) if norm > 0 else 0.0
    return StressEvidence(correlation, shear, len(labels))


def _bumps(x: np.ndarray, distances: np.ndarray, separate: bool) -> np.ndarray:
    """Smooth functions of distance, or of distance in units of radii, [edges, BUMPS]; zero at the cutoff."""
    low, high = (0.7, CUTOFF) if separate else (0.5, 2.5)
    centres = np.linspace(low, high, BUMPS)
    width = centres[1] - centres[0]
    return np.exp(-(((x[:, None] - centres) / width) ** 2)) * ((1 - (distances / CUTOFF) ** 2) ** 2)[:, None]


def _integrals(distances: np.ndarray) -> np.ndarray:
    """Energies of the bumps, [edges, BUMPS]: their integrals from the distance to the cutoff."""
    grid = np.linspace(0.0, CUTOFF, 1001)
    values = _bumps(grid, grid, separate=True)
    steps = 0.5 * (values[1:] + values[:-1]) * (grid[1] - grid[0])
    raised = np.concatenate([np.cumsum(steps[::-1], axis=0)[::-1], np.zeros((1, BUMPS))])
    return np.stack([np.interp(distances, grid, raised[:, n]) for n in range(BUMPS)], axis=1)


def _kinds(frame: Frame, near: Surroundings, pairs: dict[tuple[int, int], int]) -> np.ndarray:
    first, second = frame.numbers[near.receivers], frame.numbers[near.senders]
    size = max(max(pair) for pair in pairs) + 1
    table = np.zeros((size, size), dtype=int)
    for (a, b), number in pairs.items():
        table[a, b] = table[b, a] = number
    return table[first, second]


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value with half the weight on each side."""
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])
