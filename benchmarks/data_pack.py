"""How many structures a second does one core read, in random order, from a packed file, and from other formats?

    python benchmarks/data_pack.py [--frames 20000] [--atoms 32] [--quick]

A set of that many shaken crystals is written as extxyz, ASE database, ASE's LMDB and packed file, with and without neighbour lists. What is
read is compared with what was written before anything is timed. Rows: format, structures per second (median and quartiles of five
rounds), and the ratio to extxyz, which is read from the start as it must be. `graphs` counts neighbour search (or its absence) too. The
file has just been written and lies in memory: this is the speed of the reader, not of the disk. Seconds are those of the processor, so
that other programs beside it do not count.
Appends to benchmarks/results/data_pack.csv.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import ase
import ase.io
import lmdb
import numpy as np
import torch
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import encode
from tqdm import tqdm

from equimol.bench import append_rows, describe_surroundings
from equimol.data import Frame, PackedSet, open_records, read_records
from equimol.data.labels import choose_keys, make_frames, scan_keys
from equimol.data.pack import pack

RESULTS = Path(__file__).parent / "results" / "data_pack.csv"
CUTOFF = 5.0  # Å


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20000)
    parser.add_argument("--atoms", type=int, default=32, help="of a structure, a multiple of 4")
    parser.add_argument("--quick", action="store_true", help="300 structures, two rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    frames, rounds = (300, 2) if options.quick else (options.frames, 5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="equimol-") as folder:
        append_rows(options.out, measure(Path(folder), frames, options.atoms, rounds))


def measure(folder: Path, frames: int, atoms: int, rounds: int) -> list[dict]:
    """Write the set in every format, check what is read, and time it."""
    write_extxyz(folder / "set.xyz", structures(frames, atoms))
    write_aselmdb(folder / "set.aselmdb", structures(frames, atoms))
    began = time.process_time()
    pack(folder / "set.xyz", folder / "set.eqpack")
    packing = frames / (time.process_time() - began)
    pack(folder / "set.xyz", folder / "neighbours.eqpack", cutoff=CUTOFF)
    check_contents(folder, frames, atoms)
    few = min(frames, 1000)  # of the slow ones
    ways: dict[str, tuple[Callable[[int], int], str]] = {
        "extxyz, from the start": (lambda seed: read_from_start(folder / "set.xyz", few), "set.xyz"),
        "aselmdb": (lambda seed: read_records_at_random(folder / "set.aselmdb", few, seed), "set.aselmdb"),
        "eqpack": (lambda seed: read_packed(folder / "set.eqpack", frames, seed), "set.eqpack"),
        "eqpack, graphs": (lambda seed: build_graphs(folder / "set.eqpack", few, seed), "set.eqpack"),
        "eqpack with neighbours, graphs": (lambda seed: build_graphs(folder / "neighbours.eqpack", few, seed), "neighbours.eqpack"),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(rounds + 1):  # the first warms up
        for name, (way, _) in ways.items():
            begin = time.process_time()
            count = way(seed)
            if seed:
                rates[name].append(count / (time.process_time() - begin))
    baseline = statistics.median(rates["extxyz, from the start"])
    rows = []
    for name, found in rates.items():
        low, median, high = np.percentile(found, [25, 50, 75])
        size = (folder / ways[name][1]).stat().st_size
        row = {"format": name, "frames": frames, "atoms": atoms, "per_second": round(median), "quartiles": f"{low:.0f}-{high:.0f}"}
        row |= {"over_extxyz": round(float(median / baseline), 1), "bytes_per_frame": round(size / frames)}
        row["packed_per_second"] = round(packing)
        rows.append(row | describe_surroundings(torch.float64))
        print({key: row[key] for key in ("format", "per_second", "quartiles", "over_extxyz", "bytes_per_frame")})
    return rows


def structures(count: int, atoms: int) -> Iterator[ase.Atoms]:
    """Shaken copper, with labels that need not be right to be read; the same ones every time."""
    rng = np.random.default_rng(0)
    start = bulk("Cu", cubic=True) * (1, 1, max(1, atoms // 4))
    for index in tqdm(range(count), desc="making structures", disable=None, leave=False):
        made = start.copy()
        made.positions += rng.normal(size=made.positions.shape) * 0.1
        forces, stress = rng.normal(size=made.positions.shape), rng.normal(size=6)
        made.calc = SinglePointCalculator(made, energy=-3.0 * len(made) - 1e-3 * index, forces=forces, stress=stress)
        yield made


def write_extxyz(path: Path, frames: Iterator[ase.Atoms]) -> None:
    with path.open("w") as file:
        for frame in frames:
            ase.io.write(file, frame, format="extxyz")


def write_aselmdb(path: Path, frames: Iterator[ase.Atoms]) -> None:
    with lmdb.open(str(path), map_size=1 << 36, subdir=False, lock=False) as database, database.begin(write=True) as transaction:
        count = 0
        for count, frame in enumerate(frames, start=1):
            table = {"numbers": frame.numbers, "positions": frame.positions, "cell": frame.cell.array, "pbc": frame.pbc}
            row = {**table, **frame.calc.results, "mtime": 1.0, "ctime": 1.0, "user": "", "unique_id": str(count), "calculator": "unknown"}
            transaction.put(
                str(count).encode(), zlib.compress(encode({**row, "calculator_parameters": {}, "key_value_pairs": {}}).encode())
            )
        transaction.put(b"nextid", zlib.compress(encode(count + 1).encode()))


def check_contents(folder: Path, frames: int, atoms: int) -> None:
    packed = PackedSet(folder / "set.eqpack")
    assert len(packed) == frames
    packed.verify()
    for index, made in zip(range(100), structures(100, atoms), strict=True):
        np.testing.assert_allclose(packed[index].positions, made.positions, atol=1e-8)
        np.testing.assert_allclose(packed[index].labels["forces"], made.calc.results["forces"], atol=1e-8)


def read_from_start(path: Path, count: int) -> int:
    """Frames, as from a pack; which key is what is known here, as it is there."""
    choice = choose_keys(scan_keys(islice(read_records(path), 1)), str(path))
    return sum(len(frame.numbers) > 0 for frame in make_frames(islice(read_records(path), count), choice))


def read_records_at_random(path: Path, count: int, seed: int) -> int:
    with open_records(path) as records:
        return sum(len(records[n].numbers) > 0 for n in np.random.default_rng(seed).permutation(len(records))[:count].tolist())


def read_packed(path: Path, count: int, seed: int) -> int:
    frames = PackedSet(path)
    return sum(len(frames[n].numbers) > 0 for n in np.random.default_rng(seed).permutation(count).tolist())


def build_graphs(path: Path, count: int, seed: int) -> int:
    frames = PackedSet(path)

    def graph(frame: Frame) -> bool:
        return frame.graph(CUTOFF).num_nodes > 0

    return sum(graph(frames[n]) for n in np.random.default_rng(seed).permutation(len(frames))[:count].tolist())


if __name__ == "__main__":
    main()
