"""Which keys of a file are labels: all the spellings in use, one choice per file, and the report of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.neighbors import has_volume
from equimol.data.properties import INPUTS, PROPERTIES

# Lower case, best first. A key that names its method (REF_, y_, dft_) was written for training and goes before the plain one,
# which a later calculation with some other model may have overwritten.
KEYS = {
    "energy": ("ref_energy", "y_energy", "dft_energy", "energy", "free_energy", "total_energy"),
    "forces": ("ref_forces", "ref_force", "y_forces", "y_force", "dft_forces", "dft_force", "forces", "force"),
    "stress": (
        *("ref_stress", "ref_virials", "ref_virial", "y_stress", "dft_stress", "dft_virials", "dft_virial"),
        *("stress", "virials", "virial"),
    ),
    "charge": ("charge", "total_charge"),
    "spin": ("spin_multiplicity", "spin", "total_spin", "multiplicity"),
    "data_set": ("data_set",),
}

# Which atoms are held in place, by the settings for it. Tags are never guessed: OC20 tags fixed atoms 0, ASE's builder the adsorbate.
FIXED = {"auto": "constraints, or the column fixed", "tags": "tag 0", "none": ""}

SAME_ENERGY = 1e-6  # eV; energy and free_energy this close are one number


@dataclass(frozen=True, eq=False)
class Record:
    """One structure as a file gives it, before it is decided which of its values are labels.

    `values` has the results, the per-atom columns and the entries of the structure under the file's own keys, in eV and Å. A reader
    turns ASE's six-number stress into a matrix; six numbers met later have no known order and are refused.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    values: dict[str, Any]
    source: str


@dataclass(frozen=True)
class LabelReport:
    """What was read as what: per property the keys used, and in how many frames; printed as a table."""

    files: tuple[str, ...]
    frames: int
    used: dict[str, dict[str, int]]  # property -> key -> frames whose label it gave
    unused: dict[str, dict[str, int]]  # property -> key -> frames that had it as well
    notes: tuple[str, ...]

    def count(self, name: str) -> int:
        """How many frames carry the property."""
        return sum(self.used.get(name, {}).values())

    def __str__(self) -> str:
        rows = [("label", "key", "frames", "unit")]
        for name, prop in (PROPERTIES | INPUTS).items():
            if name in PROPERTIES or self.count(name):
                rows.append((name, ", ".join(self.used.get(name, {})) or "none", f"{self.count(name)} of {self.frames}", prop.unit))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        table = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([f"{self.frames} structures from {', '.join(self.files)}", *table, *(f"  {note}" for note in self.notes)])


def merge_reports(reports: Sequence[LabelReport]) -> LabelReport:
    """The report of several files read as one data set."""
    if len(reports) == 1:
        return reports[0]
    used, unused = ({name: {} for name in KEYS} for _ in range(2))
    for report in reports:
        for total, part in ((used, report.used), (unused, report.unused)):
            for name, counts in part.items():
                total[name] = dict(Counter(total[name]) + Counter(counts))
    notes = []
    for note in dict.fromkeys(note for report in reports for note in report.notes):
        files = [file for report in reports if note in report.notes for file in report.files]
        notes.append(note if len(files) == len(reports) else f"{', '.join(files)}: {note}")
    mixed = {name: counts for name, counts in used.items() if name in PROPERTIES and len(counts) > 1}
    for name, counts in mixed.items():
        notes.append(f"{name} comes from different keys in different files ({', '.join(counts)}): make sure they are one level of theory")
    files = tuple(file for report in reports for file in report.files)
    return LabelReport(files, sum(report.frames for report in reports), used, unused, tuple(notes))


def label_records(
    records: Sequence[Record],
    file: str,
    keys: Mapping[str, str] | None = None,
    energy: str = "auto",
    preferred: Mapping[str, Sequence[str]] | None = None,
    fixed: str = "auto",
) -> tuple[list[Frame], LabelReport]:
    """Frames of one file: one key per property for all of them, so that no frame takes its label from a fallback."""
    preferred = preferred or {}
    found = _find_keys(records, file, dict(keys or {}), preferred)
    used = {name: next(iter(counts)) for name, counts in found.items() if counts}
    notes: list[str] = []
    if "energy" in used:
        asked = "energy" in (keys or {})
        if not asked and used["energy"] in preferred.get("energy", ()):
            notes.append(f"takes {used['energy']!r} as energy: the model was trained on that key")
        else:
            used["energy"], why = _choose_energy(records, file, found["energy"], energy, asked, forces="forces" in used)
            notes.append(why)
    if not any(name in PROPERTIES for name in used):
        raise DataError(
            f"{file}: no frame carries {', '.join(PROPERTIES)} under a known key; the keys are: {_all_keys(records)}; "
            "name yours, as in keys.energy=my_energy keys.forces=my_forces"
        )
    frames = [_frame(record, used, fixed) for record in records]
    counts = {name: sum(name in (frame.labels if name in PROPERTIES else frame.info) for frame in frames) for name in used}
    unlabelled = sum(not frame.labels for frame in frames)
    if unlabelled:
        notes.append(f"{unlabelled} of {len(frames)} frames carry no label at all")
    if "stress" in used and counts["stress"] < found["stress"][used["stress"]]:
        left_out = found["stress"][used["stress"]] - counts["stress"]
        notes.append(f"stress left out in {left_out} frames: without a volume and a periodic direction there is none")
    held = sum(int(frame.fixed.sum()) for frame in frames if frame.fixed is not None)
    if held and "forces" in used:
        atoms = sum(len(frame.numbers) for frame in frames)
        notes.append(f"forces count on free atoms alone: {held} of {atoms} atoms are held in place ({FIXED[fixed]})")
    unused = {name: {key: n for key, n in found[name].items() if key != used.get(name)} for name in found}
    for name, others in unused.items():
        if others:
            notes.append(f"there as well, not used as {name}: {', '.join(f'{key} ({n} frames)' for key, n in others.items())}")
    chosen = {name: {used[name]: n} if (n := counts.get(name, 0)) else {} for name in found}
    return frames, LabelReport((file,), len(frames), chosen, unused, tuple(notes))


def _find_keys(
    records: Sequence[Record], file: str, asked: dict[str, str], preferred: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, int]]:
    """Per property: the keys of the file that may be it, best first, and in how many frames each is."""
    for name in asked:
        if name not in KEYS:
            guess = get_close_matches(name, KEYS, n=1)
            raise DataError(f"keys: {name!r} is no property{f', did you mean {guess[0]!r}?' if guess else ''}; known are {', '.join(KEYS)}")
    everywhere = Counter(key for record in records for key in record.values)
    scalars = Counter(key for record in records for key, value in record.values.items() if _is_scalar(value))
    found = {}
    for name, spellings in KEYS.items():
        there = scalars if name in INPUTS else everywhere  # a column "spin" or "charge" is one number per atom: another quantity
        if name in asked:
            if not there[asked[name]]:
                raise DataError(f"{file}: no frame has the key {asked[name]!r} asked for as {name}; the keys are: {_all_keys(records)}")
            order = [asked[name]]
        else:
            rank = {key: place for place, key in enumerate(spellings)}
            order = sorted((key for key in there if key.lower() in rank), key=lambda key: (rank[key.lower()], key != key.lower(), key))
            order = list(dict.fromkeys([*(key for key in preferred.get(name, ()) if there[key]), *order]))
        found[name] = {key: there[key] for key in order}
    return found


def _choose_energy(records: Sequence[Record], file: str, found: dict[str, int], energy: str, asked: bool, forces: bool) -> tuple[str, str]:
    """The key to train on, and why: it must be the function whose gradient the forces are."""
    best = next(iter(found))
    if asked:
        return best, f"trains on {best!r} as energy: asked for"
    plain = {key.lower(): key for key in found if key.lower() in ("energy", "free_energy")}
    if energy != "auto":
        if energy not in plain:
            raise DataError(f"{file}: no frame carries {energy!r}; found {', '.join(found)}; leave energy_key=auto")
        return plain[energy], f"trains on {plain[energy]!r} as energy: asked for"
    if best.lower() not in plain:
        return best, f"trains on {best!r} as energy: its name says that it was written for training"
    if len(plain) == 1:
        other = "free_energy" if "energy" in plain else "energy"
        return best, f"trains on {best!r}: the file holds no {other}"
    return _energy_or_free(records, plain["energy"], plain["free_energy"], found, forces)


def _energy_or_free(records: Sequence[Record], energy: str, free: str, found: dict[str, int], forces: bool) -> tuple[str, str]:
    both = [record for record in records if energy in record.values and free in record.values]
    gaps = [abs(float(_numbers(record, energy).sum() - _numbers(record, free).sum())) for record in both]
    if max(gaps, default=0.0) < SAME_ENERGY:
        best = energy if found[energy] >= found[free] else free
        return best, f"trains on {best!r}: energy and free_energy are the same number"
    apart = f"they differ by up to {max(gaps):.3g} eV a structure (electronic smearing)"
    if not forces:
        return energy, f"trains on {energy!r}, not {free!r}: {apart}, and there are no forces to agree with"
    if found[free] < found[energy]:
        return energy, f"trains on {energy!r}: only {found[free]} frames have {free!r}, though {apart} and forces are the gradient of that"
    return free, f"trains on {free!r}, not {energy!r}: {apart}, and forces are the gradient of free_energy (energy_key=energy overrides)"


def _frame(record: Record, used: Mapping[str, str], fixed: str) -> Frame:
    labels = {}
    for name in PROPERTIES:
        key = used.get(name)
        if key in record.values and (name != "stress" or has_volume(record.cell, record.pbc)):
            labels[name] = _label(record, name, key)
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in record.values.items()}
    info = {key: value for key, value in plain.items() if key not in used.values() and isinstance(value, (str, int, float))}
    info |= {name: float(_numbers(record, used[name])) for name in INPUTS if _is_scalar(record.values.get(used.get(name)))}
    return Frame(record.numbers, record.positions, record.cell, record.pbc, labels, info, record.source, _held(record, fixed))


def _held(record: Record, fixed: str) -> np.ndarray | None:
    """Which atoms are held in place, [atoms]; None where nothing says it."""
    if fixed == "none":
        return None
    key = "tags" if fixed == "tags" else "fixed"
    values = record.values.get(key)
    if values is None and fixed == "tags":
        raise DataError(f"{record.source}: fixed=tags needs a column of tags, there is none; write one (0: fixed atom), or use fixed=auto")
    if values is None or _is_scalar(values):
        return None
    values = np.asarray(values)
    if values.shape != (len(record.numbers),) or values.dtype.kind not in "iub":
        raise DataError(
            f"{record.source}: {key} must be one whole number or truth value for each of {len(record.numbers)} atoms, "
            f"got {values.dtype} of shape {values.shape}; correct the file, or use fixed=none"
        )
    return values == 0 if fixed == "tags" else values.astype(bool)


def _is_scalar(value: Any) -> bool:
    return np.isscalar(value) or (isinstance(value, np.ndarray) and value.ndim == 0)


def _label(record: Record, name: str, key: str) -> np.ndarray:
    values = _numbers(record, key)
    if name == "stress":
        return _stress(record, key, values)
    prop, atoms = PROPERTIES[name], len(record.numbers)
    shape = prop.label_shape(atoms)
    if shape == () and values.size == 1:
        values = values.reshape(())
    if values.shape != shape:
        raise DataError(
            f"{record.source}: {key} of {atoms} atoms must have shape {shape} to be {name}, got {values.shape}; "
            "correct the file, or name the right key"
        )
    return values


def _numbers(record: Record, key: str) -> np.ndarray:
    try:
        values = np.asarray(record.values[key])
        if values.dtype.kind not in "iuf":  # True is what extxyz makes of a key without a value
            raise ValueError
        values = values.astype(np.float64)
    except ValueError:
        raise DataError(f"{record.source}: {key} must be numbers, got {str(record.values[key])[:40]!r}; correct or remove it") from None
    if not np.isfinite(values).all():
        raise DataError(f"{record.source}: {key} holds NaN or infinity; remove the frame, or the label from it if the value is unknown")
    return values


def _stress(record: Record, key: str, values: np.ndarray) -> np.ndarray:
    """A 3x3 stress, positive where the structure wants to contract, from a stress or a virial of nine numbers."""
    spelling = key.lower()
    if spelling == "y_stress" and values.size == 6:  # SevenNet's own: minus the stress, in VASP's order
        values = values.ravel()[[0, 3, 5, 3, 1, 4, 5, 4, 2]]
    if values.size != 9:
        raise DataError(
            f"{record.source}: {key} must be nine numbers (xx xy xz yx yy yz zx zy zz), got shape {values.shape}; "
            "six have no agreed order: write the full matrix"
        )
    matrix = values.reshape(3, 3)
    matrix = (matrix + matrix.T) / 2
    if "virial" in spelling:
        return -matrix / abs(np.linalg.det(record.cell))
    return -matrix if spelling == "y_stress" else matrix


def _all_keys(records: Sequence[Record]) -> str:
    return ", ".join(sorted({key for record in records for key in record.values})) or "none"
