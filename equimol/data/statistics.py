"""What a model wants to know of its training data: reference energies, scales and neighbour counts. Never shown the test set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph

PRIOR_VARIANCE = 1e8  # of a reference energy around the mean per atom, relative to the noise: it decides only what the data cannot
LONELY = 8.0  # Å; a single atom whose images are this far counts as isolated
LARGEST_BINDING = 30.0  # eV/atom; the strongest solids bind by 9


class ReferenceEnergies(NamedTuple):
    """Energy of one atom of each element, to be subtracted from totals, and one line on how it was found."""

    values: dict[int, float]  # atomic number -> eV
    method: str


def reference_energies(frames: Sequence[Frame], isolated: Sequence[Frame] | None = None) -> ReferenceEnergies:
    """Isolated-atom energies where there are any, among `frames` or given apart; ridge regression on composition for the other elements.

    Regression leaves what composition cannot tell at the mean energy per atom: a single molecule gets a sensible split, not a unique one.
    """
    values = _isolated_energies(frames if isolated is None else isolated, given=isolated is not None)
    molecules = [frame for frame in frames if "energy" in frame.labels and not is_isolated_atom(frame)]
    elements = sorted({int(number) for frame in frames for number in np.unique(frame.numbers)})
    known = {element: values[element] for element in elements if element in values}
    fitted = [element for element in elements if element not in known]
    if not fitted:
        _reject_other_zero(molecules, known)
        return ReferenceEnergies(known, f"energies of isolated atoms ({_symbols(known)})")
    if not molecules:
        raise DataError(f"no energies to find reference energies of {_symbols(fitted)}; give isolated-atom energies or label the frames")
    values = known | _ridge(molecules, fitted, known)
    method = f"ridge regression of {len(molecules)} energies on composition ({_symbols(fitted)})"
    if known:
        _reject_other_zero(molecules, values)
        method = f"energies of isolated atoms ({_symbols(known)}); {method}"
    return ReferenceEnergies({element: values[element] for element in elements}, method)


def fitted_energies(
    frames: Sequence[Frame], elements: Sequence[int], known: dict[int, float] | None = None, prior: dict[int, float] | None = None
) -> dict[int, float]:
    """Energies of the elements, eV, by ridge regression: those that are known stay, and around a prior only differences are found.

    With a prior, such as the energies of another level of theory, what composition cannot tell follows it: the differences are
    shrunk towards their mean per atom.
    """
    known, prior = known or {}, prior or {}
    missing = [z for z in elements if z not in known]
    labelled = [frame for frame in frames if "energy" in frame.labels]
    if not labelled:
        raise DataError(f"no energies to find reference energies of {_symbols(missing)}; give them, or label the frames")
    return known | _ridge(labelled, missing, known, prior)


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
    labelled = [frame for frame in frames if "forces" in frame.labels]
    forces = [(f.labels["forces"] if f.fixed is None else f.labels["forces"][~f.fixed]).ravel() for f in labelled]
    return float(np.sqrt(np.mean(np.concatenate(forces) ** 2))) if forces else float("nan")


def average_neighbors(graphs: Sequence[AtomicGraph]) -> float:
    """Mean number of edges that arrive at an atom."""
    return sum(len(graph.senders) for graph in graphs) / sum(graph.num_nodes for graph in graphs)


def core_reach(graphs: Sequence[AtomicGraph]) -> dict[str, float]:
    """Where the core repulsion of each pair of elements may end, Å: at 0.95 of the closest approach in these graphs.

    Only pairs for which that is more than the sum of their covalent radii, and at most that sum + 1 Å: those that are seen, and never
    bonded, here.
    """
    from ase.data import chemical_symbols, covalent_radii

    closest = np.full((119, 119), np.inf)
    for graph in graphs:
        distances = graph.displacements().norm(dim=-1).numpy()
        numbers = graph.numbers.numpy()
        np.minimum.at(closest, (numbers[graph.senders.numpy()], numbers[graph.receivers.numpy()]), distances)
    closest = np.minimum(closest, closest.T)
    elements = sorted({int(z) for graph in graphs for z in graph.numbers.unique().tolist()})
    reach = {}
    for n, a in enumerate(elements):
        for b in elements[n:]:
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


def _ridge(
    frames: Sequence[Frame], elements: list[int], known: dict[int, float], prior: dict[int, float] | None = None
) -> dict[int, float]:
    """Normal equations in float64, frames weighted per atom. Sums over frames only, so a data set of any size could stream through."""
    prior = prior or {}
    column = {element: index for index, element in enumerate(elements)}
    gram, moment, energy, atoms = np.zeros((len(elements),) * 2), np.zeros(len(elements)), 0.0, 0
    for frame in frames:
        counts = np.zeros(len(elements))
        rest = float(frame.labels["energy"])
        for number in frame.numbers.tolist():
            if number in column:
                counts[column[number]] += 1
                rest -= prior.get(number, 0.0)
            else:
                rest -= known[number]
        if not counts.any():
            continue
        fraction = counts / len(frame.numbers)
        gram += np.outer(fraction, fraction)
        moment += fraction * rest / len(frame.numbers)
        energy, atoms = energy + rest, atoms + counts.sum()
    mean = energy / atoms  # the prior's centre
    # The second term keeps directions that composition does not determine above the rounding of the first sums.
    ridge = 1 / PRIOR_VARIANCE + 1e-13 * np.trace(gram)
    solution = mean + np.linalg.solve(gram + ridge * np.eye(len(elements)), moment - gram.sum(axis=1) * mean)
    return {element: prior.get(element, 0.0) + float(found) for element, found in zip(elements, solution, strict=True)}


def _reject_other_zero(frames: Sequence[Frame], references: dict[int, float]) -> None:
    residuals = residual_energies(frames, references)
    if len(residuals) and abs(float(np.median(residuals))) > LARGEST_BINDING:
        raise DataError(
            f"the reference energies leave {np.median(residuals):.1f} eV/atom of binding, more than any material has: isolated atoms and "
            "structures come from different methods, or one of them counts from another zero; leave the isolated atoms out"
        )


def _symbols(elements) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[element] for element in sorted(elements))
