"""Checks of the data doctor on energies and forces: units, one zero of energy, outliers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from equimol.data import evidence
from equimol.data.diagnosis import OK, PROBLEM, UNKNOWN, DataSet, Finding
from equimol.data.frame import Frame

UNIT_RATIOS = {  # a quantity in this unit over the same in eV, Å
    "kcal/mol": 23.0605,
    "kJ/mol": 96.4853,
    "hartree": 1 / 27.2114,
    "rydberg": 1 / 13.6057,
}


def consistency(frames: Sequence[Frame]) -> evidence.Consistency | None:
    return evidence.energy_over_work(evidence.similar_pairs(frames))


def check_energy_unit(data: DataSet) -> Iterable[Finding]:
    """Two kinds of evidence: energies of atoms with all electrons, and the work of the forces."""
    if not any("energy" in frame.labels for frame in data.frames):
        yield Finding("energy unit", UNKNOWN, "no energies")
        return
    total = evidence.all_electron_ratio(data.frames)
    texts = []
    if total is not None:
        ratio, spread = total
        for unit, factor in {"eV": 1.0, **UNIT_RATIOS}.items():
            if abs(ratio / factor - 1) < 0.04 and spread < 0.02 * factor:
                text = f"energies are {ratio:.4g} times those of atoms with all electrons in eV; {factor:.4g} is {unit}"
                if unit == "eV":
                    texts.append(text)
                else:
                    yield Finding("energy unit", PROBLEM, text, f"state the unit: --units energy={unit}")
                    return
        if ratio > 2 and not texts:
            text = f"energies are {ratio:.4g} times those of atoms with all electrons in eV, more than any method gives"
            yield Finding("energy unit", PROBLEM, text, "state the unit: kcal/mol would give 23, kJ/mol 96 (--units energy=...)")
            return
    work = evidence.energy_over_work(data.pairs)
    if work is not None and work.agreeing >= 0.25 and work.pairs >= 8:
        text = f"energies change by {work.slope:.3g} times the work of the forces ({work.pairs} pairs of frames, {work.agreeing:.0%} agree)"
    else:
        work = data.pair_fit and evidence.energy_over_pair_energy(data.pair_fit)
        if work is not None and work.agreeing < 0.6:
            work = None
        if work is not None:
            text = f"energies vary by {work.slope:.3g} times those of pair forces fitted to the forces (correlation {work.agreeing:.2f})"
    if work is not None:
        texts.append(text)
        if work.slope < 0:
            yield Finding("energy unit", PROBLEM, text, "turn the sign of the forces, if they are gradients: --units forces=-eV/Å")
            return
        if not 0.2 < work.slope < 5:
            energy, forces = _explain(work.slope)
            remedy = f"state the units: --units energy={energy} or --units forces={forces}, whichever holds"
            yield Finding("energy unit", PROBLEM, f"{text}; energies in {energy} would give that, or forces in {forces}", remedy)
            return
    if texts:
        yield Finding("energy unit", OK, "; ".join(texts))
    else:
        yield Finding("energy unit", UNKNOWN, "no similar frames with forces, and energies that do not count all electrons")


def _explain(slope: float) -> tuple[str, str]:
    """Units of energies, or of forces, that turn a ratio of 1 into this one."""
    energy = min(UNIT_RATIOS, key=lambda unit: abs(np.log(slope / UNIT_RATIOS[unit])))
    forces = {"kcal/mol/Å": 1 / 23.0605, "kJ/mol/Å": 1 / 96.4853, "hartree/bohr": 51.4221, "hartree/Å": 27.2114}
    return energy, min(forces, key=lambda unit: abs(np.log(slope / forces[unit])))


def check_force_unit(data: DataSet) -> Iterable[Finding]:
    if not any("forces" in frame.labels for frame in data.frames):
        yield Finding("force unit", UNKNOWN, "no forces")
        return
    found = evidence.stiffness_ratio(*data.sample())
    if found is None:
        yield Finding("force unit", UNKNOWN, "no bonds that are stretched and compressed enough")
        return
    ratio = found.ratio
    text = f"bonds are {ratio:.2g} times as stiff as a rule of thumb says (0.2 to 3 in matter)"
    text += f"; {found.bonds} bonds, length and force correlate by {found.correlation:+.2f}"
    if abs(found.correlation) < 0.5 or found.bonds < 300:
        yield Finding("force unit", OK if 0.1 < ratio < 6 else UNKNOWN, text)
        return
    if ratio < 0:
        yield Finding("force unit", PROBLEM, text + ": they push where they should pull", "turn the sign: --units forces=-eV/Å")
    elif ratio > 6:
        remedy = (
            "state the unit: energies and forces in kcal/mol would give 23 times too much (--units energy=kcal/mol), in kJ/mol 96 times"
        )
        yield Finding("force unit", PROBLEM, text, remedy)
    elif ratio < 0.1:
        remedy = "state the unit: hartree/bohr would give 1/51 (--units forces=hartree/bohr), hartree/Å 1/27 (--units energy=hartree)"
        yield Finding("force unit", PROBLEM, text, remedy)
    else:
        yield Finding("force unit", OK, text)


def check_references(data: DataSet) -> Iterable[Finding]:
    """Whether all energies count from one zero: of one composition, or beside a fit on composition, they make one cluster."""
    labelled = [n for n, frame in enumerate(data.frames) if "energy" in frame.labels]
    if len(labelled) < 10:
        yield Finding("reference energies", UNKNOWN, f"only {len(labelled)} energies")
        return
    residuals, elements = _residuals([data.frames[n] for n in labelled])
    split = _two_clusters(residuals)
    if split is not None:
        apart, upper = split
        few = upper if upper.sum() <= len(upper) / 2 else ~upper
        source = _what_they_share(data, [labelled[n] for n in np.flatnonzero(few)], labelled)
        text = f"{few.sum()} of {len(few)} energies lie {apart:.3g} eV/atom off the others{source}"
        yield Finding("reference energies", PROBLEM, text, "use one level of theory and one zero of energy, or one data set for each")
        return
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    yield Finding("reference energies", OK, f"a fit on {elements} elements leaves {1e3 * spread:.3g} meV/atom (robust), in one cluster")


def _residuals(frames: Sequence[Frame]) -> tuple[np.ndarray, int]:
    """Energies per atom less a fit on composition that follows the majority, eV/atom: of least absolute deviations."""
    elements = sorted({int(z) for frame in frames for z in np.unique(frame.numbers)})
    counts = np.array([[np.count_nonzero(frame.numbers == z) for z in elements] for frame in frames], dtype=float)
    atoms = counts.sum(axis=1)
    energies = np.array([float(frame.labels["energy"]) for frame in frames]) / atoms
    shares = counts / atoms[:, None]
    weights, residuals = np.ones(len(frames)), energies
    for _ in range(30):
        root = np.sqrt(weights)
        residuals = energies - shares @ np.linalg.lstsq(root[:, None] * shares, root * energies, rcond=None)[0]
        weights = 1 / np.maximum(np.abs(residuals), 1e-3)
    return residuals, len(elements)


def _two_clusters(residuals: np.ndarray) -> tuple[float, np.ndarray] | None:
    """How far apart two clusters are, and which numbers are in the upper one; None where they are one.

    Two: the widest gap with 3 % of the numbers on each side is wider than the spread of both sides together, and than 20 meV/atom.
    """
    order = np.sort(residuals)
    least = max(2, int(0.03 * len(order)))
    if len(order) < 2 * least + 2:
        return None
    gaps = np.diff(order)[least - 1 : len(order) - least]
    place = least + int(gaps.argmax())
    low, high = order[:place], order[place:]
    spread = sum(float(np.percentile(side, 90) - np.percentile(side, 10)) for side in (low, high))
    gap = float(high[0] - low[-1])
    if gap > max(0.02, spread):
        return float(np.median(high) - np.median(low)), residuals >= high[0]
    return None


def _what_they_share(data: DataSet, few: Sequence[int], all_of_them: Sequence[int]) -> str:
    """The file or an entry that tells the few frames from the others, if there is one."""
    keys: dict[str, Callable[[int], object]] = {"file": lambda n: data.files[data.file_of[n]]}
    for key in sorted({key for n in few[:50] for key, value in data.frames[n].info.items() if isinstance(value, str)}):
        keys[key] = lambda n, key=key: data.frames[n].info.get(key)
    inside = set(few)
    for key, value in keys.items():
        theirs = {value(n) for n in few}
        if len(theirs) == 1 and not theirs & {value(n) for n in all_of_them if n not in inside}:
            return f": all with {key} {next(iter(theirs))}"
    return f", such as {data.frames[few[0]].source}"


def check_outliers(data: DataSet) -> Iterable[Finding]:
    found = _energy_outliers(data) + _force_outliers(data)
    if found:
        text = "; ".join(reason for _, reason in found[:3])
        yield Finding(
            "outliers", PROBLEM, f"{len(found)} labels: {text}", "look at these frames, and remove them where the calculation failed"
        )
    else:
        yield Finding("outliers", OK, "no energy far off its like, no force without a close contact that explains it")


def _energy_outliers(data: DataSet) -> list[tuple[int, str]]:
    """Energies far from those of the same atoms; where compositions are met once, from the fit on composition."""
    labelled = [n for n, frame in enumerate(data.frames) if "energy" in frame.labels]
    if len(labelled) < 10:
        return []
    residuals, _ = _residuals([data.frames[n] for n in labelled])
    if _two_clusters(residuals) is not None:
        return []  # another finding
    groups = defaultdict(list)
    for place, n in enumerate(labelled):
        groups[np.sort(data.frames[n].numbers).tobytes()].append(place)
    deviations = residuals - np.median(residuals)
    for members in groups.values():
        if len(members) >= 10:
            deviations[members] = residuals[members] - np.median(residuals[members])
    scale = max(2e-3, 1.4826 * float(np.median(np.abs(deviations))))
    far = np.flatnonzero((np.abs(deviations) > 60 * scale) & (np.abs(deviations) > 0.3))
    far = far[np.argsort(-np.abs(deviations[far]))]
    return [(labelled[n], f"{data.frames[labelled[n]].source} has {deviations[n]:+.3g} eV/atom, typical are {scale:.2g}") for n in far]


def _force_outliers(data: DataSet) -> list[tuple[int, str]]:
    """Forces much larger than usual on atoms that no neighbour is close to."""
    largest, rows = [], []
    for n, (frame, near) in enumerate(zip(data.frames, data.around, strict=True)):
        if "forces" in frame.labels and near is not None:
            sizes = np.linalg.norm(frame.labels["forces"], axis=1)
            atom = int(sizes.argmax())
            closest = float(near.reduced[near.receivers == atom].min(initial=9.0))
            largest.append(float(sizes[atom]))
            rows.append((n, atom, closest))
    if len(rows) < 10:
        return []
    usual = float(np.median(largest))
    tight = float(np.median([near.reduced.min() for near in data.around if near is not None and len(near.reduced)]))
    bound, found = max(50.0, 30 * usual), []
    for size, (n, atom, closest) in zip(largest, rows, strict=True):
        if size > bound and closest > 0.9 * tight:
            detail = f"usual are {usual:.2g}; its nearest neighbour is {closest:.2f} radii off"
            found.append((n, f"{data.frames[n].source}: {size:.4g} eV/Å on atom {atom}, {detail}"))
    return found
