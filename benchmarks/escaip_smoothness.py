"""Does the energy of EScAIP jump where the set of neighbours changes? Random scans, the smooth and the published form.

    python benchmarks/escaip_smoothness.py --scans 10000          # appends to results/escaip_smoothness.csv

An atom moves along a random line through a random cluster. Where an edge enters or leaves, or another atom comes to count in a rank,
the place is found by bisection to 1e-9 Å; the energies 1e-7 Å to both sides, in float64, must differ by what the force explains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from equimol.bench import append_rows, describe_surroundings
from equimol.data.graph import AtomicGraph
from equimol.models.escaip import PRESETS, EScAIP, EScAIPConfig

RESULTS = Path(__file__).parent / "results" / "escaip_smoothness.csv"
ATOMS, BOX = 24, 8.0  # Å
SIDE = 1e-7  # Å from the event to both energies


class Scan:
    """A cluster and the line along which its first atom moves."""

    def __init__(self, model: EScAIP, rng: np.random.Generator) -> None:
        self.model = model
        positions = [rng.uniform(size=3) * BOX]
        while len(positions) < ATOMS:  # no closer than bonds
            candidate = rng.uniform(size=3) * BOX
            if min(np.linalg.norm(candidate - p) for p in positions) > 0.9:
                positions.append(candidate)
        self.positions, self.numbers = np.array(positions), rng.choice(model.elements, ATOMS)
        direction = rng.normal(size=3)
        self.direction = direction / np.linalg.norm(direction)

    def graph(self, at: float) -> AtomicGraph:
        positions = self.positions.copy()
        positions[0] += at * self.direction
        return AtomicGraph.build(positions, self.numbers, None, False, self.model.cutoff)

    def neighbors(self, at: float) -> tuple[frozenset, frozenset]:
        """Edges that count, and pairs of edges of which one counts in the rank of the other's."""
        graph = self.graph(at)
        found, edges = self.model.indices(graph), len(graph.senders)
        names = [*zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True), None]
        kept = frozenset(names[e] for e in found["kept"].tolist())
        ranked = frozenset(names[e] for e in found["nearest"].flatten().tolist() if e < edges)
        return kept, ranked

    def event(self, step: float, number: int) -> tuple[float, str] | None:
        """The first place on the line where neighbours change, and which kind of change it is."""
        before = self.neighbors(0.0)
        for n in range(1, number + 1):
            after = self.neighbors(n * step)
            if after == before:
                continue
            kind = 0 if after[0] != before[0] else 1
            low, high = (n - 1) * step, n * step
            while high - low > 1e-9:
                middle = (low + high) / 2
                low, high = (middle, high) if self.neighbors(middle)[kind] == before[kind] else (low, middle)
            return high, ("edge", "rank")[kind]
        return None

    def jump(self, at: float) -> float:
        """Difference of the energies on both sides that their slopes do not explain."""
        results = [self.model(self.graph(at + side)) for side in (-SIDE, SIDE)]
        slope = sum(-float(r["forces"][0].numpy() @ self.direction) for r in results) / 2
        return abs(float(results[1]["energy"] - results[0]["energy"]) - 2 * SIDE * slope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--forms", nargs="+", default=["smooth", "published"], choices=["smooth", "published"])
    args = parser.parse_args()
    rows = []
    for form in args.forms:
        rng = np.random.default_rng(0)
        jumps: dict[str, list[float]] = {"edge": [], "rank": []}
        for number in tqdm(range(args.scans if form == "smooth" else args.scans // 10), desc=form):
            if number % 100 == 0:  # other weights now and then
                torch.manual_seed(number)
                settings = {**PRESETS["tiny"], "neighbors": int(rng.integers(6, 16)), "smooth": form == "smooth"}
                model = EScAIP(EScAIPConfig(elements=(1, 6, 7, 8), **settings)).double().eval().requires_grad_(False)
            scan = Scan(model, rng)
            found = scan.event(0.05, 40)
            if found:
                jumps[found[1]].append(scan.jump(found[0]))
        for kind, values in jumps.items():
            row = {"form": form, "event": kind, "events": len(values), "largest_jump_ev": f"{max(values, default=0):.2e}"}
            rows.append(row | {"median_jump_ev": f"{np.median(values) if values else 0:.2e}"})
            print(rows[-1], flush=True)
    append_rows(RESULTS, [row | describe_surroundings(torch.float64) for row in rows])


if __name__ == "__main__":
    main()
