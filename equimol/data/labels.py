"""Which keys of a file are labels: all the spellings in use, one choice per file, and the report of it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np

from equimol.data.errors import DataError
from equimol.data.frame import Frame, Neighbors
from equimol.data.neighbors import has_volume
from equimol.data.properties import INPUTS, PROPERTIES
from equimol.data.units import OURS, factor, stated

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

    `values` has the results, the per-atom columns and the entries of the structure under the file's own keys. A reader turns ASE's
    six-number stress into a matrix; six numbers met later have no known order and are refused. `units` says what everything is in
    where that is not eV and Å, with a minus where the sign is not ours: the conversion is done once, when the frame is made.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    values: dict[str, Any]
    source: str
    units: Mapping[str, str] = field(default_factory=dict)  # length, energy, forces, stress
    neighbors: Neighbors | None = None  # in Å


@dataclass
class KeyScan:
    """What one pass over records tells of their keys: enough to choose labels, without the records."""

    frames: int = 0
    everywhere: Counter = field(default_factory=Counter)  # key -> frames that have it
    scalars: Counter = field(default_factory=Counter)  # key -> frames where it is one number or word
    gap: float = 0.0  # eV; the largest difference of energy and free_energy

    def add(self, record: Record) -> None:
        self.frames += 1
        self.everywhere.update(record.values.keys())
        self.scalars.update(key for key, value in record.values.items() if _is_scalar(value))
        plain = {key.lower(): key for key in record.values if key.lower() in ("energy", "free_energy")}
        if len(plain) == 2:
            with suppress(DataError):  # said of the frame, when it is made
                both = [float(_numbers(record, key).sum()) for key in plain.values()]
                self.gap = max(self.gap, abs(both[0] - both[1]))

    @property
    def keys(self) -> str:
        return ", ".join(sorted(self.everywhere)) or "none"


@dataclass(frozen=True)
class Choice:
    """Which key of a file is which label, what else was there, and why."""

    file: str
    used: dict[str, str]  # property -> key
    found: dict[str, dict[str, int]]  # property -> all keys that may be it -> frames
    notes: tuple[str, ...]


@dataclass(frozen=True)
class LabelReport:
    """What was read as what: per property the keys used, and in how many frames; printed as a table."""

    files: tuple[str, ...]
    frames: int
    used: dict[str, dict[str, int]]  # property -> key -> frames whose label it gave
    unused: dict[str, dict[str, int]]  # property -> key -> frames that had it as well
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()  # what was wrong with each record that was left out, on request only

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
        lines = [f"{self.frames} structures from {', '.join(self.files)}", *table, *(f"  {note}" for note in self.notes)]
        if self.skipped:
            lines += [f"  {len(self.skipped)} bad records skipped:", *(f"    {fault}" for fault in self.skipped)]
        return "\n".join(lines)


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
    skipped = tuple(fault for report in reports for fault in report.skipped)
    return LabelReport(files, sum(report.frames for report in reports), used, unused, tuple(notes), skipped)


def label_records(
    records: Sequence[Record],
    file: str,
    keys: Mapping[str, str] | None = None,
    energy: str = "auto",
    preferred: Mapping[str, Sequence[str]] | None = None,
    fixed: str = "auto",
    units: Mapping[str, str] | None = None,
    skipped: list[DataError] | None = None,
) -> tuple[list[Frame], LabelReport]:
    """Frames of one file: one key per property for all of them, so that no frame takes its label from a fallback.

    Records that make no frame are an error, or go into the list `skipped`, which may already hold those that could not be read.
    """
    choice = choose_keys(scan_keys(records), file, keys, energy, preferred)
    count = FrameCount(choice, fixed)
    frames = list(count.over(make_frames(records, choice, fixed, units, skipped)))
    return frames, count.report(skipped or ())


def scan_keys(records: Iterable[Record]) -> KeyScan:
    """One pass over the records; they may come from a file of any size."""
    scan = KeyScan()
    for record in records:
        scan.add(record)
    return scan


def choose_keys(
    scan: KeyScan,
    file: str,
    keys: Mapping[str, str] | None = None,
    energy: str = "auto",
    preferred: Mapping[str, Sequence[str]] | None = None,
) -> Choice:
    """One key per property, and the notes on it. DataError where no label is found, or a key asked for."""
    preferred = preferred or {}
    found = _find_keys(scan, file, dict(keys or {}), preferred)
    used = {name: next(iter(counts)) for name, counts in found.items() if counts}
    notes: list[str] = []
    if "energy" in used:
        asked = "energy" in (keys or {})
        if not asked and used["energy"] in preferred.get("energy", ()):
            notes.append(f"takes {used['energy']!r} as energy: the model was trained on that key")
        else:
            used["energy"], why = _choose_energy(scan, file, found["energy"], energy, asked, forces="forces" in used)
            notes.append(why)
    if not any(name in PROPERTIES for name in used):
        raise DataError(
            f"{file}: no frame carries {', '.join(PROPERTIES)} under a known key; the keys are: {scan.keys}; "
            "name yours, as in keys.energy=my_energy keys.forces=my_forces"
        )
    return Choice(file, used, found, tuple(notes))


def make_frames(
    records: Iterable[Record],
    choice: Choice,
    fixed: str = "auto",
    units: Mapping[str, str] | None = None,
    skipped: list[DataError] | None = None,
) -> Iterator[Frame]:
    """The frame of each record, in eV and Å. What cannot be one is an error, or goes into the list `skipped`."""
    units = stated(units or {})
    for record in records:
        try:
            frame = _frame(record, choice.used, fixed, units)
        except DataError as error:
            if skipped is None:
                raise
            skipped.append(error)
        else:
            yield frame


@dataclass
class FrameCount:
    """Counts the frames that pass through it, for the report."""

    choice: Choice
    fixed: str
    frames: int = 0
    labels: Counter = field(default_factory=Counter)
    unlabelled: int = 0
    held: int = 0
    atoms: int = 0

    def over(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            self.frames += 1
            self.labels.update(name for name in self.choice.used if name in (frame.labels if name in PROPERTIES else frame.info))
            self.unlabelled += not frame.labels
            self.held += 0 if frame.fixed is None else int(frame.fixed.sum())
            self.atoms += len(frame.numbers)
            yield frame

    def report(self, skipped: Sequence[DataError] = ()) -> LabelReport:
        """What was counted, and what the choice of keys has to say."""
        used, found, notes = self.choice.used, self.choice.found, list(self.choice.notes)
        if self.unlabelled:
            notes.append(f"{self.unlabelled} of {self.frames} frames carry no label at all")
        if "stress" in used and not skipped and (left_out := found["stress"][used["stress"]] - self.labels["stress"]):
            notes.append(f"stress left out in {left_out} frames: without a volume and a periodic direction there is none")
        if self.held and "forces" in used:
            notes.append(f"forces count on free atoms alone: {self.held} of {self.atoms} atoms are held in place ({FIXED[self.fixed]})")
        unused = {name: {key: n for key, n in found[name].items() if key != used.get(name)} for name in found}
        for name, others in unused.items():
            if others:
                notes.append(f"there as well, not used as {name}: {', '.join(f'{key} ({n} frames)' for key, n in others.items())}")
        chosen = {name: {used[name]: n} if (n := self.labels[name]) else {} for name in found}
        return LabelReport((self.choice.file,), self.frames, chosen, unused, tuple(notes), tuple(map(str, skipped)))


def _find_keys(scan: KeyScan, file: str, asked: dict[str, str], preferred: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Per property: the keys of the file that may be it, best first, and in how many frames each is."""
    for name in asked:
        if name not in KEYS:
            guess = get_close_matches(name, KEYS, n=1)
            raise DataError(f"keys: {name!r} is no property{f', did you mean {guess[0]!r}?' if guess else ''}; known are {', '.join(KEYS)}")
    found = {}
    for name, spellings in KEYS.items():
        there = scan.scalars if name in INPUTS else scan.everywhere  # a column "spin" or "charge" is one number per atom
        if name in asked:
            if not there[asked[name]]:
                raise DataError(f"{file}: no frame has the key {asked[name]!r} asked for as {name}; the keys are: {scan.keys}")
            order = [asked[name]]
        else:
            rank = {key: place for place, key in enumerate(spellings)}
            order = sorted((key for key in there if key.lower() in rank), key=lambda key: (rank[key.lower()], key != key.lower(), key))
            order = list(dict.fromkeys([*(key for key in preferred.get(name, ()) if there[key]), *order]))
        found[name] = {key: there[key] for key in order}
    return found


def _choose_energy(scan: KeyScan, file: str, found: dict[str, int], energy: str, asked: bool, forces: bool) -> tuple[str, str]:
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
    return _energy_or_free(scan.gap, plain["energy"], plain["free_energy"], found, forces)


def _energy_or_free(gap: float, energy: str, free: str, found: dict[str, int], forces: bool) -> tuple[str, str]:
    if gap < SAME_ENERGY:
        best = energy if found[energy] >= found[free] else free
        return best, f"trains on {best!r}: energy and free_energy are the same number"
    apart = f"they differ by up to {gap:.3g} eV a structure (electronic smearing)"
    if not forces:
        return energy, f"trains on {energy!r}, not {free!r}: {apart}, and there are no forces to agree with"
    if found[free] < found[energy]:
        return energy, f"trains on {energy!r}: only {found[free]} frames have {free!r}, though {apart} and forces are the gradient of that"
    return free, f"trains on {free!r}, not {energy!r}: {apart}, and forces are the gradient of free_energy (energy_key=energy overrides)"


def _frame(record: Record, used: Mapping[str, str], fixed: str, units: Mapping[str, str]) -> Frame:
    """The record in eV and Å: what the user states of its units goes over what its file states."""
    try:
        factors = {name: factor(name, unit) for name, unit in {**record.units, **units}.items() if unit != OURS[name]}
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from None
    length = factors.get("length", 1.0)
    positions, cell = (record.positions, record.cell) if length == 1.0 else (length * record.positions, length * record.cell)
    labels = {}
    for name in PROPERTIES:
        key = used.get(name)
        if key in record.values and (name != "stress" or has_volume(cell, record.pbc)):
            labels[name] = _label(record, name, key, cell, factors)
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in record.values.items()}
    info = {key: value for key, value in plain.items() if key not in used.values() and isinstance(value, (str, int, float))}
    info |= {name: float(_numbers(record, used[name])) for name in INPUTS if _is_scalar(record.values.get(used.get(name)))}
    neighbors = record.neighbors if length == 1.0 else None
    return Frame(record.numbers, positions, cell, record.pbc, labels, info, record.source, _held(record, fixed), neighbors)


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


def _label(record: Record, name: str, key: str, cell: np.ndarray, factors: Mapping[str, float]) -> np.ndarray:
    """A label in our units and with our sign; the cell is in Å."""
    values = _numbers(record, key)
    if name == "stress":
        if "virial" in key.lower():  # an energy
            return -factors.get("energy", 1.0) * _matrix(record, key, values) / abs(np.linalg.det(cell))
        return factors.get("stress", 1.0) * _matrix(record, key, values)
    prop, atoms = PROPERTIES[name], len(record.numbers)
    shape = prop.label_shape(atoms)
    if shape == () and values.size == 1:
        values = values.reshape(())
    if values.shape != shape:
        raise DataError(
            f"{record.source}: {key} of {atoms} atoms must have shape {shape} to be {name}, got {values.shape}; "
            "correct the file, or name the right key"
        )
    return np.asarray(factors[name] * values) if name in factors else values


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


def _matrix(record: Record, key: str, values: np.ndarray) -> np.ndarray:
    """A stress or a virial of nine numbers, made symmetric; positive where the structure wants to contract if it is a stress."""
    theirs = key.lower() == "y_stress"  # SevenNet's own: minus the stress, and six numbers in VASP's order
    if theirs and values.size == 6:
        values = values.ravel()[[0, 3, 5, 3, 1, 4, 5, 4, 2]]
    if values.size != 9:
        raise DataError(
            f"{record.source}: {key} must be nine numbers (xx xy xz yx yy yz zx zy zz), got shape {values.shape}; "
            "six have no agreed order: write the full matrix"
        )
    matrix = values.reshape(3, 3)
    return (-1.0 if theirs else 1.0) * (matrix + matrix.T) / 2
