"""Is a data set what it seems? One verdict per check, each with the numbers it rests on and what to do.

Units, signs and orders are judged by physics (`equimol.data.evidence`), not by names: the work of forces is the change of energy, bonds
have a stiffness, atoms a total energy, stress follows from forces. Where a set cannot tell, the verdict is "not checked".
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from equimol.data import evidence
from equimol.data.errors import DataError
from equimol.data.evidence import Surroundings
from equimol.data.formats import read_records
from equimol.data.frame import Frame
from equimol.data.labels import Choice, FrameCount, LabelReport, Record, choose_keys, make_frames, merge_reports, scan_keys
from equimol.data.statistics import is_isolated_atom
from equimol.data.units import stated

OK, WARNING, PROBLEM, UNKNOWN = "ok", "warning", "PROBLEM", "not checked"
SAMPLE = 200  # frames that the costly measurements look at
UNIT_RATIOS = {  # a quantity in this unit over the same in eV, Å
    "kcal/mol": 23.0605,
    "kJ/mol": 96.4853,
    "hartree": 1 / 27.2114,
    "rydberg": 1 / 13.6057,
}
STRESS_RATIOS = {"GPa": 160.218, "kbar": 1602.18, "hartree/bohr³": 1 / 183.63}


@dataclass(frozen=True)
class Finding:
    """The verdict of one check, the evidence in numbers, and what to do about it."""

    check: str
    verdict: str  # OK, WARNING, PROBLEM or UNKNOWN
    evidence: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings on a data set. Print it: `print(diagnosis)`."""

    report: LabelReport | None
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What a training should not start with."""
        return tuple(finding for finding in self.findings if finding.verdict == PROBLEM)

    def __getitem__(self, check: str) -> Finding:
        return next(finding for finding in self.findings if finding.check == check)

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [str(self.report), ""] if self.report else []
        for finding in self.findings:
            head = f"{finding.check.ljust(width)}  {finding.verdict.ljust(11)}  "
            text = textwrap.wrap(finding.evidence, 100) or [""]
            if finding.remedy:
                text += [f"-> {line}" if not n else f"   {line}" for n, line in enumerate(textwrap.wrap(finding.remedy, 97))]
            lines += [head + text[0], *(" " * len(head) + line for line in text[1:])]
        counts = Counter(finding.verdict for finding in self.findings)
        lines += ["", ", ".join(f"{counts[verdict]} {verdict}" for verdict in (PROBLEM, WARNING, OK, UNKNOWN) if counts[verdict])]
        return "\n".join(lines)


@dataclass
class DataSet:
    """What the checks look at: the frames of all files, how they were labelled, and the neighbours of their atoms."""

    files: list[str]
    records: list[list[Record]]  # per file
    choices: list[Choice | None]
    reports: list[LabelReport | None]
    faults: list[DataError]  # what could not be read, or had no labels
    frames: list[Frame] = field(default_factory=list)  # no isolated atoms
    file_of: list[int] = field(default_factory=list)
    around: list[Surroundings | None] = field(default_factory=list)  # None where the cell allows no neighbours
    geometry_errors: dict[int, str] = field(default_factory=dict)

    @cached_property
    def pair_fit(self) -> evidence.PairFit | None:
        return evidence.fit_pair_forces(*self.sample())

    @cached_property
    def pairs(self) -> list[tuple[Frame, Frame]]:
        return evidence.similar_pairs(self.frames)

    def sample(self) -> tuple[list[Frame], list[Surroundings]]:
        """At most SAMPLE frames with their neighbours, from all of the set."""
        there = [n for n, near in enumerate(self.around) if near is not None and len(near.distances)]
        chosen = there[:: max(1, -(-len(there) // SAMPLE))]
        return [self.frames[n] for n in chosen], [near for n in chosen if (near := self.around[n]) is not None]


def check(
    paths: str | PathLike | Sequence[str | PathLike],
    keys: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Diagnosis:
    """Read the files as `equimol.data.read` does and judge them as one data set; several files are its splits, which must not overlap.

    `limit` looks at the first structures of each file only. Bad records are a finding, not an error.
    """
    stated(units or {})  # refuses what is unknown
    data = _load([paths] if isinstance(paths, (str, PathLike)) else list(paths), keys, units, limit)
    reports = [report for report in data.reports if report is not None]
    findings = [finding for judge in CHECKS for finding in judge(data)]
    return Diagnosis(merge_reports(reports) if reports else None, tuple(findings))


def _load(paths: Sequence[str | PathLike], keys: Mapping[str, str] | None, units: Mapping[str, str] | None, limit: int | None) -> DataSet:
    data = DataSet([], [], [], [], [])
    for number, path in enumerate(paths):
        skipped: list[DataError] = []
        records: list[Record] = []
        for record in tqdm(read_records(Path(path), skipped), desc=f"reading {Path(path).name}", disable=None, leave=False):
            records.append(record)
            if limit is not None and len(records) >= limit:
                break
        data.files.append(str(path))
        data.records.append(records)
        choice, report = None, None
        if records:
            try:
                choice = choose_keys(scan_keys(records), str(path), keys)
                count = FrameCount(choice, "auto")
                frames = [one for one in count.over(make_frames(records, choice, "auto", units, skipped)) if not is_isolated_atom(one)]
                report = count.report(skipped)
                data.frames += frames
                data.file_of += [number] * len(frames)
            except DataError as error:
                if keys:
                    raise
                skipped.append(error)
        data.choices.append(choice)
        data.reports.append(report)
        data.faults += skipped
    for index, frame in enumerate(tqdm(data.frames, desc="neighbours", disable=None, leave=False)):
        try:
            data.around.append(evidence.surroundings(frame))
        except ValueError as error:
            data.around.append(None)
            data.geometry_errors[index] = str(error)
    return data


# --- reading and keys ------------------------------------------------------------------------------------------------------------


def _check_records(data: DataSet) -> Iterable[Finding]:
    total = sum(map(len, data.records))
    faults = [str(fault) for fault in data.faults if "no frame carries" not in str(fault)]  # that is a matter of keys
    if faults:
        shown = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        yield Finding(
            "records", PROBLEM, f"{len(faults)} damaged beside {total} that are read: {shown}", "mend them, or pack with --skip-bad"
        )
    else:
        yield Finding("records", OK, f"{total} structures read, none damaged, no label that is NaN or infinite")


def _check_keys(data: DataSet) -> Iterable[Finding]:
    troubles, remedy = [], ""
    for file, records, choice, report in zip(data.files, data.records, data.choices, data.reports, strict=True):
        if not records:
            continue
        used = set(choice.used.values()) if choice else set()
        energies, columns = _candidates(records, used)
        for name, candidates in (("energy", energies), ("forces", columns)):
            there = report.count(name) if report else 0
            frames = report.frames if report else len(records)
            if there < frames and candidates and max(candidates.values()) + there >= 0.9 * frames:
                best = max(candidates, key=lambda key: candidates[key])
                troubles.append(
                    f"{Path(file).name}: {there} of {frames} frames have {name}; {best!r} ({candidates[best]} frames) looks like it"
                )
                remedy = f"name it: --keys {name}={best} (keys.{name}={best} in a training)"
            elif name == "energy" and there < frames:
                what = "no label under a known key" if there == 0 else f"{frames - there} of {frames} frames have no energy"
                troubles.append(f"{Path(file).name}: {what}; the keys are {scan_keys(records).keys}")
                remedy = remedy or "name the keys of your labels with --keys"
        if choice and (other := _better_energy(data, records, choice)):
            troubles.append(f"{Path(file).name}: forces belong to {other!r}, not to {choice.used['energy']!r}, which is taken")
            remedy = f"name it: --keys energy={other}"
    if troubles:
        yield Finding("keys", PROBLEM, "; ".join(troubles), remedy)
    else:
        named = {name: key for choice in data.choices if choice for name, key in choice.used.items()}
        yield Finding("keys", OK, ", ".join(f"{name} from {key!r}" for name, key in named.items()))


def _candidates(records: Sequence[Record], used: set[str]) -> tuple[dict[str, int], dict[str, int]]:
    """Keys that no property uses but whose numbers look like energies or forces, with their frames.

    Energies: one number per frame that is large where there are more atoms; forces: three per atom, which sum to nothing.
    """
    energies: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for record in records:
        for key, value in record.values.items():
            if key in used or isinstance(value, (str, bool)):
                continue
            array = np.asarray(value)
            if array.dtype.kind == "f" and array.size == 1 and _is_named_as_energy(key):
                energies[key] += 1
            if array.dtype.kind == "f" and array.shape == (len(record.numbers), 3) and len(array) > 1 and np.isfinite(array).all():
                total, size = np.linalg.norm(array.sum(axis=0)), np.linalg.norm(array)
                if size > 0 and total < 0.1 * size and key.lower() not in ("momenta", "velocities", "initial_magmoms"):
                    columns[key] += 1
    return dict(energies), dict(columns)


def _is_named_as_energy(key: str) -> bool:
    name = key.lower()
    others = ("per_atom", "relaxed", "zero", "kinetic", "free", "homo", "lumo", "nl_", "reference")
    return any(word in name for word in ("ener", "e_tot", "etot", "u0", "toten")) and not any(word in name for word in others)


def _better_energy(data: DataSet, records: Sequence[Record], choice: Choice) -> str | None:
    """Another energy of the file of which the forces are the gradient, where they are not that of the energy that is taken."""
    others = [key for key in choice.found.get("energy", {}) if key != choice.used.get("energy")]
    if not others or "forces" not in choice.used:
        return None
    taken = _consistency(list(make_frames(records, choice, skipped=[])))
    if taken is None or (taken.agreeing > 0.3 and 0.5 < taken.slope < 2):
        return None
    for key in others:
        other = _consistency(list(make_frames(records, replace(choice, used={**choice.used, "energy": key}), skipped=[])))
        if other and other.agreeing > 0.5 and 0.67 < other.slope < 1.5:
            return key
    return None


# --- geometry --------------------------------------------------------------------------------------------------------------------


def _check_lengths(data: DataSet) -> Iterable[Finding]:
    nearest, closest = [], (np.inf, 0, 0.0, "")
    for index, (frame, near) in enumerate(zip(data.frames, data.around, strict=True)):
        if near is None or not len(near.distances):
            continue
        best = np.full(len(frame.numbers), np.inf)
        np.minimum.at(best, near.receivers, near.reduced)
        bonding = ~np.isin(frame.numbers, NOBLE) & np.isfinite(best)
        if bonding.any():
            nearest.append(float(np.median(best[bonding])))
        if near.reduced.min() < closest[0]:
            edge = int(near.reduced.argmin())
            pair = f"{near.receivers[edge]} and {near.senders[edge]}"
            closest = (float(near.reduced[edge]), index, float(near.distances[edge]), pair)
    if not nearest:
        yield Finding("lengths", UNKNOWN, "no atoms that bond within 5 Å of each other")
        return
    middle = float(np.median(nearest))
    text = f"nearest neighbours are at {middle:.2f} times the sum of covalent radii (0.9 to 1.2 in matter)"
    if middle > 1.55:
        yield Finding("lengths", PROBLEM, text + "; 1.89 would be bohr", "state the unit: --units length=bohr")
    elif middle < 0.65:
        yield Finding("lengths", PROBLEM, text + "; 0.1 would be nm", "state the unit: --units length=nm")
    else:
        yield Finding("lengths", OK, text)
    count = sum(near is not None and len(near.distances) and near.reduced.min() < TOO_CLOSE for near in data.around)
    where = f"atoms {closest[3]} of {data.frames[closest[1]].source} are {closest[2]:.2f} Å apart, {closest[0]:.2f} times their radii"
    if count:
        yield Finding("close atoms", PROBLEM, f"in {count} frames; {where}", "remove these frames, or mend their cell and pbc")
    else:
        yield Finding("close atoms", OK, f"closest: {where}")


NOBLE = (2, 10, 18, 36, 54, 86)  # their atoms are not bonded
TOO_CLOSE = 0.4  # times the sum of covalent radii; molecular dynamics at 1200 K stays above 0.7, random crystals above 0.44


def _check_pbc(data: DataSet) -> Iterable[Finding]:
    """Bonds that are there only if an open direction were periodic, and cells that fit no structure."""
    if data.geometry_errors:
        index, error = next(iter(data.geometry_errors.items()))
        yield Finding("pbc", PROBLEM, f"{len(data.geometry_errors)} frames; {data.frames[index].source}: {error}", "correct cell or pbc")
        return
    broken, looked = [], 0
    for frame, near in zip(data.frames, data.around, strict=True):
        open_axes = ~frame.pbc & (np.abs(frame.cell).max(axis=1) > 0)
        if near is None or not open_axes.any() or abs(np.linalg.det(frame.cell)) < 1e-6:
            continue
        looked += 1
        if looked > 10 * SAMPLE:
            break
        for axis in np.flatnonzero(open_axes):
            closed = frame.pbc.copy()
            closed[axis] = True
            try:
                whole = evidence.surroundings(frame, closed, cutoff=3.5)
            except ValueError:
                continue
            before = int((near.reduced < evidence.BOND).sum())
            bonds = int((whole.reduced < evidence.BOND).sum()) - before
            if bonds > 0 and whole.reduced.min() > 0.6:
                broken.append((frame.source, int(axis), bonds // 2))
                break
    if broken:
        source, axis, bonds = broken[0]
        text = f"{len(broken)} of {len(data.frames)} frames have a cell but an open direction across which atoms are bonded"
        detail = f"{source}: {bonds} more bonds if axis {axis} were periodic"
        yield Finding("pbc", PROBLEM, f"{text}; {detail}", "write pbc='T T T' into the file, or drop the cell of molecules")
    else:
        kinds = Counter("".join("T" if one else "F" for one in frame.pbc) for frame in data.frames)
        text = ", ".join(f"{count} frames {kind}" for kind, count in kinds.most_common(4))
        yield Finding("pbc", OK, f"{text}; {looked} of them have open directions of a cell, none with bonds across")


def _check_copies(data: DataSet) -> Iterable[Finding]:
    there = [n for n, near in enumerate(data.around) if near is not None]
    frames = [data.frames[n] for n in there]
    if len(frames) < 2:
        return
    prints = np.array([evidence.invariants(data.frames[n], near) for n in there if (near := data.around[n]) is not None])
    groups = evidence.same_structures(frames, prints)
    within, across, conflicts, example = 0, 0, 0, ""
    for group in groups:
        files = [data.file_of[there[n]] for n in group]
        across += len(set(files)) > 1
        copies = len(files) - len(set(files))
        within += copies
        energies = [float(frames[n].labels["energy"]) for n in group if "energy" in frames[n].labels]
        conflicts += bool(energies) and max(energies) - min(energies) > 1e-3 * len(frames[group[0]].numbers)
        if copies and not example:
            example = " = ".join(frames[n].source for n in group[:2])
    if within > max(1, 0.001 * len(frames)) or conflicts:
        text = f"{within} of {len(frames)} frames repeat another one of their file"
        if conflicts:
            text += f"; in {conflicts} cases with another energy"
        yield Finding(
            "duplicates",
            PROBLEM,
            text + (f"; for example {example}" if example else ""),
            "remove the copies: they count twice, and leak between splits",
        )
    elif within:
        yield Finding("duplicates", OK, f"{within} of {len(frames)} frames repeats another one: {example}")
    else:
        yield Finding("duplicates", OK, f"no two of {len(frames)} structures are the same")
    if len(data.files) > 1:
        if across:
            pair = next(group for group in groups if len({data.file_of[there[n]] for n in group}) > 1)
            names = " = ".join(frames[n].source for n in pair[:2])
            yield Finding(
                "leakage",
                PROBLEM,
                f"{across} structures are in more than one file; for example {names}",
                "remove them from one of the files",
            )
        else:
            yield Finding("leakage", OK, f"no structure is in two of the {len(data.files)} files")


# --- energies --------------------------------------------------------------------------------------------------------------------


def _consistency(frames: Sequence[Frame]) -> evidence.Consistency | None:
    return evidence.energy_over_work(evidence.similar_pairs(frames))


def _check_energy_unit(data: DataSet) -> Iterable[Finding]:
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


def _check_force_unit(data: DataSet) -> Iterable[Finding]:
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


def _check_references(data: DataSet) -> Iterable[Finding]:
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


def _check_outliers(data: DataSet) -> Iterable[Finding]:
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


# --- stress, zeros ---------------------------------------------------------------------------------------------------------------


def _check_zeros(data: DataSet) -> Iterable[Finding]:
    """Labels that are exactly zero because somebody had none."""
    troubles, counted = [], []
    for name in ("energy", "forces", "stress"):
        there = [n for n, frame in enumerate(data.frames) if name in frame.labels and (name != "forces" or len(frame.numbers) > 1)]
        zero = [n for n in there if not data.frames[n].labels[name].any()]
        if name == "forces":
            zero = [n for n in zero if not _is_symmetric(data.around[n])]
        if there:
            counted.append(f"{len(zero)} of {len(there)} {name}")
        if len(zero) > max(1, 0.002 * len(there)) or (zero and len(zero) == len(there)):
            troubles.append(f"{len(zero)} of {len(there)} {name} labels are exactly zero, such as that of {data.frames[zero[0]].source}")
    if troubles:
        yield Finding("zero labels", PROBLEM, "; ".join(troubles), "remove these labels: an absent label is left out, not set to zero")
    else:
        yield Finding("zero labels", OK, (", ".join(counted) or "no labels") + " exactly zero without reason")


def _is_symmetric(near: Surroundings | None) -> bool:
    """Whether the surroundings of every atom pull evenly, as in a perfect crystal, where forces are exactly zero."""
    if near is None or not len(near.distances):
        return True
    weight = np.exp(-near.distances)
    pull = np.zeros((int(near.receivers.max()) + 1, 3))
    np.add.at(pull, near.receivers, (weight / near.distances)[:, None] * near.vectors)
    return bool(np.abs(pull).max() < 1e-3 * weight.sum() / len(pull))


def _check_stress(data: DataSet) -> Iterable[Finding]:
    """Unit, sign and order of the components: against the forces, and against energies of strained cells."""
    labelled = [frame for frame in data.frames if "stress" in frame.labels and frame.labels["stress"].any()]
    if not labelled:
        yield Finding("stress unit", UNKNOWN, "no stress")
        return
    frames, around = data.sample()
    kept = [n for n, frame in enumerate(frames) if "stress" in frame.labels and frame.labels["stress"].any()]
    frames, around = [frames[n] for n in kept], [around[n] for n in kept]
    scale = evidence.stress_scale(frames, around)
    strain = evidence.energy_over_strain_work(pair for pair in data.pairs if {"stress"} <= pair[0].labels.keys() & pair[1].labels.keys())
    fitted = data.pair_fit and evidence.stress_over_pair_stress(data.pair_fit)
    yield _judge_stress_unit(labelled, scale, strain)
    yield _judge_stress_sign(strain, fitted)
    yield _judge_stress_order(fitted)


def _judge_stress_unit(frames: Sequence[Frame], scale: tuple[float, int] | None, strain: evidence.Consistency | None) -> Finding:
    ratios, texts = [], []
    if strain is not None and strain.agreeing >= 0.5 and strain.pairs >= 8:
        ratios.append(1 / abs(strain.slope))
        texts.append(
            f"the work of the stress is {abs(1 / strain.slope):.3g} times the change of energy of strained cells ({strain.pairs} pairs)"
        )
    if scale is not None:
        ratios.append(scale[0])
        texts.append(f"stress is {scale[0]:.2g} times what the forces make one expect ({scale[1]} frames; 0.1 to 8 in matter)")
    typical = float(np.median([np.abs(frame.labels["stress"]).max() for frame in frames]))
    texts.append(f"half of the frames have more than {typical:.2g} eV/Å³ ({160.2 * typical:.2g} GPa)")
    ratio = ratios[0] if ratios else (typical / 0.02 if typical > 1.0 else 1.0)  # 160 GPa are beyond what solids are calculated at
    if ratio > 15:
        unit = "kbar" if ratio > 500 else "GPa"
        return Finding(
            "stress unit", PROBLEM, "; ".join(texts), f"state the unit, which may be --units stress={unit} (of VASP: stress=-kbar)"
        )
    if ratios and ratio < 0.04:
        return Finding("stress unit", PROBLEM, "; ".join(texts), "state the unit, which may be --units stress=hartree/bohr³")
    return Finding("stress unit", OK if ratios else UNKNOWN, "; ".join(texts))


def _judge_stress_sign(strain: evidence.Consistency | None, fitted: evidence.StressEvidence | None) -> Finding:
    texts, signs = [], []
    if strain is not None and strain.agreeing >= 0.5 and strain.pairs >= 8:
        texts.append(f"energies of strained cells change by {strain.slope:.3g} times the work of the stress ({strain.pairs} pairs)")
        signs.append(strain.slope)
    if fitted is not None:
        texts.append(f"correlation with the stress of pair forces fitted to the forces: {fitted.correlation:+.2f} ({fitted.frames} frames)")
        if abs(fitted.correlation) > max(0.25, 2.5 / np.sqrt(fitted.frames)):
            signs.append(fitted.correlation)
    if not signs:
        return Finding("stress sign", UNKNOWN, "; ".join(texts) or "no strained cells, and too few forces")
    if signs[0] < 0:
        remedy = "turn the sign: --units stress=-eV/Å³ (ours is that of ASE: positive where the cell wants to contract)"
        return Finding("stress sign", PROBLEM, "; ".join(texts), remedy)
    return Finding("stress sign", OK, "; ".join(texts))


def _judge_stress_order(fitted: evidence.StressEvidence | None) -> Finding:
    if fitted is None:
        return Finding("stress order", UNKNOWN, "needs the forces of cells that are sheared")
    sign = 1.0 if fitted.correlation >= 0 else -1.0
    scores = {order: sign * float(sum(fitted.shear[n, order[n]] for n in range(3))) / 3 for order in permutations(range(3))}
    ours = scores[0, 1, 2]
    best = max(scores, key=lambda order: scores[order])
    names = ("yz", "xz", "xy")
    text = f"shear components yz, xz, xy correlate by {ours:+.2f} with those that the forces make one expect"
    threshold = max(0.25, 2.5 / np.sqrt(fitted.frames))
    if scores[best] < threshold:
        return Finding("stress order", UNKNOWN, text + "; too little shear to tell")
    if scores[best] - ours > max(0.35 * scores[best], 1 / np.sqrt(fitted.frames)):
        text += f", but by {scores[best]:+.2f} in the order {', '.join(names[n] for n in best)}"
        return Finding(
            "stress order", PROBLEM, text, "write the full matrix xx xy xz yx yy yz zx zy zz (six numbers: ASE has yz xz xy, VASP xy yz zx)"
        )
    return Finding("stress order", OK, text)


CHECKS: tuple[Callable[[DataSet], Iterable[Finding]], ...] = (
    _check_records,
    _check_keys,
    _check_lengths,
    _check_pbc,
    _check_copies,
    _check_energy_unit,
    _check_force_unit,
    _check_references,
    _check_outliers,
    _check_zeros,
    _check_stress,
)
