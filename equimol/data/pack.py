"""`equimol data pack`: any data set into one packed file, in two passes and with little memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from tqdm import tqdm

from equimol.data.atomic import replacing
from equimol.data.errors import DataError
from equimol.data.formats import read_records
from equimol.data.labels import FrameCount, LabelReport, choose_keys, make_frames, merge_reports, scan_keys
from equimol.data.packed import SUFFIX, PackWriter


def pack(
    paths: str | PathLike | Sequence[str | PathLike],
    out: str | PathLike,
    keys: Mapping[str, str] | None = None,
    energy: str = "auto",
    fixed: str = "auto",
    units: Mapping[str, str] | None = None,
    cutoff: float | None = None,
    skip_bad: bool = False,
) -> LabelReport:
    """Write the frames of all files, as `equimol.data.read` gives them, into one packed file, whole or not at all.

    The first pass chooses the keys, the second writes frame by frame: a data set need not fit into memory. With a cutoff, Å, neighbour
    lists are stored beside the frames, for models of that cutoff or a smaller one.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise ValueError(f"a packed file ends in {SUFFIX}, got {out.name!r}; choose such a name")
    if cutoff is not None and not 0 < cutoff < float("inf"):
        raise ValueError(f"cutoff must be a positive length in Å, got {cutoff}; typical values are 4 to 6")
    paths = [Path(path) for path in ([paths] if isinstance(paths, (str, PathLike)) else paths)]
    if not paths:
        raise DataError("no file to pack; give at least one path")
    choices = []
    for path in paths:
        records = read_records(path, [] if skip_bad else None)
        scan = scan_keys(iter(tqdm(records, desc=f"looking at {path.name}", disable=None, leave=False)))
        if not scan.frames:
            raise DataError(f"{path}: holds no structure; was the program that wrote it stopped early?")
        choices.append((choose_keys(scan, str(path), keys, energy), scan.frames))
    out.parent.mkdir(parents=True, exist_ok=True)
    reports = []
    with replacing(out) as file:
        writer = PackWriter(file, cutoff)
        for path, (choice, total) in zip(paths, choices, strict=True):
            skipped: list[DataError] | None = [] if skip_bad else None
            count = FrameCount(choice, fixed)
            records = iter(tqdm(read_records(path, skipped), total=total, desc=f"packing {path.name}", disable=None, leave=False))
            for frame in count.over(make_frames(records, choice, fixed, units, skipped)):
                writer.add(frame)
            reports.append(count.report(skipped or ()))
        report = merge_reports(reports)
        label_keys = {name: list(counts) for name, counts in report.used.items() if counts}
        asked = {"keys": dict(keys or {}), "energy_key": energy, "fixed": fixed, "units": dict(units or {})}
        writer.finish({"report": str(report), "label_keys": label_keys, "asked": asked})
    note = f"packed into {out}: {out.stat().st_size / 1e6:.3g} MB" + (f", with neighbours within {cutoff:g} Å" if cutoff else "")
    return LabelReport(report.files, report.frames, report.used, report.unused, (*report.notes, note), report.skipped)
