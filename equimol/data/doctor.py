"""Is a data set what it seems? One verdict per check, each with the numbers it rests on and what to do.

Units, signs and orders are judged by physics (`equimol.data.evidence`), not by names: the work of forces is the change of energy, bonds
have a stiffness, atoms a total energy, stress follows from forces. Where a set cannot tell, the verdict is "not checked".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path

from tqdm import tqdm

from equimol.data import evidence
from equimol.data.checks_of_energies import check_energy_unit, check_force_unit, check_outliers, check_references
from equimol.data.checks_of_stress import check_stress, check_zeros
from equimol.data.checks_of_structures import check_copies, check_keys, check_lengths, check_pbc, check_records
from equimol.data.diagnosis import DataSet, Diagnosis, Finding
from equimol.data.errors import DataError
from equimol.data.formats import read_records
from equimol.data.labels import FrameCount, Record, choose_keys, make_frames, merge_reports, scan_keys
from equimol.data.statistics import is_isolated_atom
from equimol.data.units import stated


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


CHECKS: tuple[Callable[[DataSet], Iterable[Finding]], ...] = (
    check_records,
    check_keys,
    check_lengths,
    check_pbc,
    check_copies,
    check_energy_unit,
    check_force_unit,
    check_references,
    check_outliers,
    check_zeros,
    check_stress,
)
