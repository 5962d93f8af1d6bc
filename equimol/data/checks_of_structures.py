"""Checks of the data doctor on records, keys and geometries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from equimol.data import evidence
from equimol.data.checks_of_energies import consistency
from equimol.data.diagnosis import OK, PROBLEM, SAMPLE, UNKNOWN, DataSet, Finding
from equimol.data.labels import Choice, Record, make_frames, scan_keys


def check_records(data: DataSet) -> Iterable[Finding]:
    total = sum(map(len, data.records))
    faults = [str(fault) for fault in data.faults if "no frame carries" not in str(fault)]  # that is a matter of keys
    if faults:
        shown = "; ".join(faults[:3]) + ("; ..." if len(faults) > 3 else "")
        yield Finding(
            "records", PROBLEM, f"{len(faults)} damaged beside {total} that are read: {shown}", "mend them, or pack with --skip-bad"
        )
    else:
        yield Finding("records", OK, f"{total} structures read, none damaged, no label that is NaN or infinite")


def check_keys(data: DataSet) -> Iterable[Finding]:
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
    taken = consistency(list(make_frames(records, choice, skipped=[])))
    if taken is None or (taken.agreeing > 0.3 and 0.5 < taken.slope < 2):
        return None
    for key in others:
        other = consistency(list(make_frames(records, replace(choice, used={**choice.used, "energy": key}), skipped=[])))
        if other and other.agreeing > 0.5 and 0.67 < other.slope < 1.5:
            return key
    return None


# --- geometry --------------------------------------------------------------------------------------------------------------------


def check_lengths(data: DataSet) -> Iterable[Finding]:
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


def check_pbc(data: DataSet) -> Iterable[Finding]:
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


def check_copies(data: DataSet) -> Iterable[Finding]:
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
