"""What a model wants to know of its training data: reference energies, scales and neighbour counts. Never shown the test set."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph

PRIOR_VARIANCE = 1e8  # of a reference energy around the mean per atom, relative to the noise: it decides only what the data cannot
LONELY = 8.0  # Å; a single atom whose images are this far counts as isolated
LAST = 118  # atomic number
ROWS = 1024  # frames that enter the normal equations at once
SEVERAL = 10_000  # frames, of which a median says enough
LARGEST_BINDING = 30.0  # eV/atom; the strongest solids bind by 9


class ReferenceEnergies(NamedTuple):
    """Energy of one atom of each element, to be subtracted from totals, and one line on how it was found."""

    values: dict[int, float]  # atomic number -> eV
    method: str


@dataclass
class FrameSums:
    """What one pass over frames tells of them, for reference energies, weights and scales. Its size is that of the periodic table.

    The normal equations of energies on composition are sums over frames in float64, each frame weighted per atom: with the fraction
    f of each element in a frame and its energy per atom e, `gram` is Σ f fᵀ, `moment` Σ f e, `fractions` Σ f and `energy` Σ e.
    """

    frames: int = 0
    seen: np.ndarray = field(default_factory=lambda: np.zeros(LAST + 1, dtype=bool))  # elements of any frame
    labels: Counter = field(default_factory=Counter)  # frames with each label
    energies: int = 0
    energy: float = 0.0  # eV/atom
    fractions: np.ndarray = field(default_factory=lambda: np.zeros(LAST + 1))
    moment: np.ndarray = field(default_factory=lambda: np.zeros(LAST + 1))  # eV/atom
    gram: np.ndarray = field(default_factory=lambda: np.zeros((LAST + 1, LAST + 1)))
    components: int = 0  # of forces on free atoms
    squares: float = 0.0  # (eV/Å)²
    volumes: int = 0  # frames with a stress and a volume
    volume_squares: float = 0.0  # of the volume per atom, Å⁶

    @classmethod
    def of(cls, frames: Iterable[Frame], description: str = "") -> "FrameSums":
        """The sums of these frames. With a description, a bar shows how far it is."""
        sums, rows, energies = cls(), np.zeros((ROWS, LAST + 1)), np.zeros(ROWS)
        waiting = 0
        for frame in tqdm(frames, desc=description, disable=None if description else True, leave=False, mininterval=0.5):
            counts = np.bincount(frame.numbers, minlength=LAST + 1)
            sums.frames += 1
            sums.seen |= counts > 0
            sums.labels.update(frame.labels.keys())
            sums._add_forces(frame)
            sums._add_volume(frame)
            if "energy" in frame.labels:
                rows[waiting], energies[waiting] = counts / len(frame.numbers), float(frame.labels["energy"]) / len(frame.numbers)
                waiting += 1
                if waiting == ROWS:
                    sums._add_energies(rows, energies)
                    waiting = 0
        sums._add_energies(rows[:waiting], energies[:waiting])
        return sums

    def __add__(self, other: "FrameSums") -> "FrameSums":
        values = {}
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            values[part.name] = mine | theirs if part.name == "seen" else mine + theirs
        return FrameSums(**values)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers, ascending."""
        return np.flatnonzero(self.seen).tolist()

    @property
    def force_rms(self) -> float:
        """Root mean square of force components of free atoms, eV/Å; NaN without forces."""
        return (self.squares / self.components) ** 0.5 if self.components else float("nan")

    def mean_residual(self, references: Mapping[int, float]) -> float:
        """Mean over the frames with an energy of what the references leave, eV/atom; zero where there is none."""
        left = self.energy - sum(self.fractions[z] * energy for z, energy in references.items())
        return float(left / self.energies) if self.energies else 0.0

    def _add_energies(self, rows: np.ndarray, energies: np.ndarray) -> None:
        self.energies += len(rows)
        self.energy += float(energies.sum())
        self.fractions += rows.sum(axis=0)
        self.moment += rows.T @ energies
        self.gram += rows.T @ rows

    def _add_forces(self, frame: Frame) -> None:
        if "forces" in frame.labels:
            forces = frame.labels["forces"] if frame.fixed is None else frame.labels["forces"][~frame.fixed]
            self.components += forces.size
            self.squares += float(np.square(forces).sum())

    def _add_volume(self, frame: Frame) -> None:
        if "stress" in frame.labels and frame.pbc.any():
            volume = abs(float(np.linalg.det(frame.cell)))
            self.volumes += volume > 0
            self.volume_squares += (volume / len(frame.numbers)) ** 2


def reference_energies(
    frames: Sequence[Frame], isolated: Sequence[Frame] | None = None, sums: FrameSums | None = None
) -> ReferenceEnergies:
    """Isolated-atom energies where there are any, among `frames` or given apart; ridge regression on composition for the other elements.

    Regression leaves what composition cannot tell at the mean energy per atom: a single molecule gets a sensible split, not a unique one.
    `sums` are those of the frames, without isolated atoms, where they are known already.
    """
    values = _isolated_energies(frames if isolated is None else isolated, given=isolated is not None)
    sums = FrameSums.of(frame for frame in frames if not is_isolated_atom(frame)) if sums is None else sums
    elements = sorted({*sums.elements, *(values if isolated is None else ())})
    known = {element: values[element] for element in elements if element in values}
    fitted = [element for element in elements if element not in known]
    if not fitted:
        _reject_other_zero(frames, known)
        return ReferenceEnergies(known, f"energies of isolated atoms ({_symbols(known)})")
    if not sums.energies:
        raise DataError(f"no energies to find reference energies of {_symbols(fitted)}; give isolated-atom energies or label the frames")
    values = known | _ridge(sums, fitted, known)
    method = f"ridge regression of {sums.energies} energies on composition ({_symbols(fitted)})"
    if known:
        _reject_other_zero(frames, values)
        method = f"energies of isolated atoms ({_symbols(known)}); {method}"
    return ReferenceEnergies({element: values[element] for element in elements}, method)


def fitted_energies(
    sums: FrameSums, elements: Sequence[int], known: dict[int, float] | None = None, prior: dict[int, float] | None = None
) -> dict[int, float]:
    """Energies of the elements, eV, by ridge regression: those that are known stay, and around a prior only differences are found.

    With a prior, such as the energies of another level of theory, what composition cannot tell follows it: the differences are
    shrunk towards their mean per atom.
    """
    known, prior = known or {}, prior or {}
    missing = [z for z in elements if z not in known]
    if not sums.energies:
        raise DataError(f"no energies to find reference energies of {_symbols(missing)}; give them, or label the frames")
    return known | _ridge(sums, missing, known, prior)


def is_isolated_atom(frame: Frame) -> bool:
    """One atom far from everything: so named in config_type, or without near images. A one-atom crystal is none."""
    if len(frame.numbers) != 1:
        return False
    if str(frame.info.get("config_type", "")).lower().replace("_", "") == "isolatedatom":
        return True
    return bool((np.linalg.norm(frame.cell[frame.pbc], axis=1) >= LONELY).all())


def residual_energies(frames: Sequence[Frame], references: dict[int, float]) -> np.ndarray:
    """Energy per atom that the references leave, eV/atom, of every frame with an energy. Isolated atoms, which leave zero, are skipped."""
    labelled = [frame for frame in frames if "energy" in frame.labels and not is_isolated_atom(frame)]
    totals = [float(frame.labels["energy"]) - sum(references[int(number)] for number in frame.numbers) for frame in labelled]
    return np.asarray([total / len(frame.numbers) for total, frame in zip(totals, labelled, strict=True)])


def energy_std(frames: Sequence[Frame], references: dict[int, float]) -> float:
    """Standard deviation of the residual energy per atom, eV/atom; NaN without energies."""
    residuals = residual_energies(frames, references)
    return float(residuals.std()) if len(residuals) else float("nan")


def force_rms(frames: Sequence[Frame]) -> float:
    """Root mean square of force components of free atoms, eV/Å: the error of predicting zero. NaN without forces."""
    return FrameSums.of(frames).force_rms


def average_neighbors(graphs: Iterable[AtomicGraph]) -> float:
    """Mean number of edges that arrive at an atom."""
    edges, atoms = 0, 0
    for graph in graphs:
        edges, atoms = edges + len(graph.senders), atoms + graph.num_nodes
    return edges / atoms


def core_reach(graphs: Iterable[AtomicGraph]) -> dict[str, float]:
    """Where the core repulsion of each pair of elements may end, Å: at 0.95 of the closest approach in these graphs.

    Only pairs for which that is more than the sum of their covalent radii, and at most that sum + 1 Å: those that are seen, and never
    bonded, here.
    """
    from ase.data import chemical_symbols, covalent_radii

    closest, elements = np.full((LAST + 1, LAST + 1), np.inf), set()
    for graph in graphs:
        distances = graph.displacements().norm(dim=-1).numpy()
        numbers = graph.numbers.numpy()
        np.minimum.at(closest, (numbers[graph.senders.numpy()], numbers[graph.receivers.numpy()]), distances)
        elements.update(numbers.tolist())
    closest = np.minimum(closest, closest.T)
    reach = {}
    for n, a in enumerate(sorted(elements)):
        for b in sorted(elements)[n:]:
            bond = covalent_radii[a] + covalent_radii[b]
            end = min(0.95 * closest[a, b], bond + 1.0)
            if bond < end and np.isfinite(closest[a, b]):
                reach[f"{chemical_symbols[a]}-{chemical_symbols[b]}"] = round(float(end), 3)
    return reach


def _isolated_energies(frames: Sequence[Frame], given: bool) -> dict[int, float]:
    """Lowest energy of the neutral atom of each element: the ground state where several spin states are there."""
    values: dict[int, float] = {}
    for frame in frames:
        if given and (len(frame.numbers) != 1 or "energy" not in frame.labels):
            raise DataError(f"{frame.source}: isolated atoms must be single atoms with an energy; remove this frame from that file")
        if "energy" in frame.labels and (given or is_isolated_atom(frame)) and frame.info.get("charge", 0) == 0:
            element, energy = int(frame.numbers[0]), float(frame.labels["energy"])
            values[element] = min(energy, values.get(element, energy))
    return values


def _ridge(sums: FrameSums, elements: list[int], known: Mapping[int, float], prior: Mapping[int, float] | None = None) -> dict[int, float]:
    """Solves the normal equations for the elements, the others being known."""
    prior, others = prior or {}, list(known)
    before = np.array([prior.get(element, 0.0) for element in elements])
    gram = sums.gram[np.ix_(elements, elements)]
    moment = sums.moment[elements] - gram @ before - sums.gram[np.ix_(elements, others)] @ np.array([known[z] for z in others])
    mean = moment.sum() / gram.sum()  # the prior's centre: the energy per atom that fits best if it is the same for all elements
    # The second term keeps directions that composition does not determine above the rounding of the first sums.
    ridge = 1 / PRIOR_VARIANCE + 1e-13 * np.trace(gram)
    solution = mean + np.linalg.solve(gram + ridge * np.eye(len(elements)), moment - gram.sum(axis=1) * mean)
    return dict(zip(elements, (before + solution).tolist(), strict=True))


def _reject_other_zero(frames: Sequence[Frame], references: dict[int, float]) -> None:
    """By the median of frames here and there in the set."""
    residuals = residual_energies(frames[:: max(1, len(frames) // SEVERAL)], references)
    if len(residuals) and abs(float(np.median(residuals))) > LARGEST_BINDING:
        raise DataError(
            f"the reference energies leave {np.median(residuals):.1f} eV/atom of binding, more than any material has: isolated atoms and "
            "structures come from different methods, or one of them counts from another zero; leave the isolated atoms out"
        )


def _symbols(elements) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[element] for element in sorted(elements))
