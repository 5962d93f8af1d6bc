"""A model as a package of AOTInductor: one file of machine code that C++ runs without Python, for any number of atoms and edges.

What it is given are open structures: all atoms that matter are there as positions, those of other processors and images of the cell too,
and energies are counted of some of them. That is how LAMMPS sees its atoms.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from torch.fx.experimental.proxy_tensor import make_fx

from equimol.data.graph import AtomicGraph
from equimol.models import ConservativePotential, Potential
from equimol.models.base import Edges
from equimol.models.fingerprint import fingerprint_structures
from equimol.nn.soft_neighbors import reverse_edges
from equimol.ops import scatter_sum

FORMAT_VERSION = 1
SUFFIX = ".pt2"
UNITS = {"positions": "Å", "energy": "eV", "forces": "eV/Å", "virial": "eV"}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # eV/atom, eV/Å and eV/Å³, where forces are of the order of 1 eV/Å
#: without the compiler's rewriting of patterns, one of which makes derivatives of DPA3 wrong by up to 3 % (PyTorch 2.13)
SETTINGS = {"pattern_matcher": False, "cpp.dynamic_threads": True}


class ExportError(ValueError):
    """A model that cannot be exported, or a package that must not be used; says why, and what to do."""


class OpenStructure(NamedTuple):
    """What a package takes, in this order; after it a tensor [size] for each of its sizes, of which the length alone counts."""

    positions: Float[Tensor, "atoms 3"]  # Å, float64; all atoms, those that are not counted too
    types: Int[Tensor, " atoms"]  # places in the list of elements of the package, from 0
    senders: Int[Tensor, " edges"]
    receivers: Int[Tensor, " edges"]  # ascending
    offsets: Float[Tensor, "edges 3"]  # Å, added to positions of senders: images of the cell that are no atoms of their own
    reverse: Int[Tensor, " edges"]  # the edge that runs the other way
    local: Bool[Tensor, " atoms"]  # whose energies are counted

    @classmethod
    def of(cls, graph: AtomicGraph, elements: Sequence[int]) -> OpenStructure:
        """One structure, all of whose atoms count."""
        place = torch.full((max(elements) + 1,), -1)
        place[list(elements)] = torch.arange(len(elements))
        reverse = reverse_edges(graph.senders, graph.receivers, graph.shifts, len(graph.numbers))
        offsets, local = graph.shifts.double() @ graph.cell[0], torch.ones_like(graph.numbers, dtype=torch.bool)
        return cls(graph.positions, place[graph.numbers], graph.senders, graph.receivers, offsets, reverse, local)


class Results(NamedTuple):
    """What a package gives."""

    energy: Float[Tensor, ""]  # eV, of the atoms that count
    energies: Float[Tensor, " atoms"]  # eV, zero of the others
    forces: Float[Tensor, "atoms 3"]  # eV/Å, of all atoms: what those that count do to the others is there too
    virial: Float[Tensor, "3 3"]  # eV, minus volume times stress


class Package:
    """Runs the program of a file on the CPU. Raises ExportError for a file that is none, or that a newer version wrote."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise ExportError(f"there is no package {path}; write one with: equimol export MODEL {path.name}")
        try:
            self._program = torch._inductor.aoti_load_package(str(path))
            facts = self._program.loader.get_metadata()
        except Exception as error:
            raise ExportError(f"{path} cannot be read as a package of AOTInductor: {' '.join(str(error).split())[:200]}") from error
        self.facts = read_facts(path, facts)
        self.elements, self.cutoff = tuple(self.facts["elements"]), self.facts["cutoff"]
        self._sizes = [at["start"] for at in self.facts["sizes"]]

    def __call__(self, structure: OpenStructure) -> Results:
        while True:
            *results, needed = self._program(*structure, *(torch.zeros(size, dtype=torch.int64) for size in self._sizes))
            if all(need <= size for need, size in zip(needed.tolist(), self._sizes, strict=True)):
                return Results(*results)
            self._sizes = [max(need, size) for need, size in zip(needed.tolist(), self._sizes, strict=True)]


def read_facts(path: Path, texts: dict[str, str]) -> dict[str, Any]:
    """What is known of a package, from its metadata."""
    if "equimol" not in texts:
        raise ExportError(f"{path} is a package of AOTInductor, but of no EquiMol model; write one with: equimol export MODEL {path.name}")
    facts = json.loads(texts["equimol"])
    if facts["format_version"] > FORMAT_VERSION:
        raise ExportError(
            f"{path} has package format {facts['format_version']}, this equimol reads formats up to {FORMAT_VERSION}; "
            "update with: pip install -U equimol"
        )
    return facts


def export_package(model: Potential, path: str | Path, log: Callable[[str], Any] = print) -> Path:
    """Write a model as a package for the processor of this machine, which takes minutes, and compare it with the model itself before.

    Raises:
        ExportError: the model cannot be exported, or the package gives other numbers.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ExportError(f"a package ends in {SUFFIX}, got {path.name!r}; choose such a name")
    check_model(model)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    graphs = example_graphs(model)
    sizes = size_facts(model, OpenStructure.of(graphs[-1], model.elements))
    log(f"tracing {path.name}")
    program = trace_package(model, OpenStructure.of(graphs[-1], model.elements), [at["start"] for at in sizes])
    settings = SETTINGS | {"aot_inductor.metadata": _metadata(_describe(model, sizes))}
    log(f"compiling {len(program.graph.nodes)} operations, which takes minutes")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        draft = Path(folder) / f"draft{SUFFIX}"
        torch._inductor.aoti_compile_and_package(program, package_path=str(draft), inductor_configs=settings)
        worst = _compare(model, Package(draft), graphs)
        os.replace(draft, path)
    log(f"{path}: off the model by {worst:.1e} (eV/atom, eV/Å, eV/Å³)")
    return path


def trace_package(model: ConservativePotential, structure: OpenStructure, sizes: Sequence[int]) -> torch.export.ExportedProgram:
    """The program of a package, made of PyTorch's operations alone. Raises ExportError where a size would be a constant of it."""
    table = torch.tensor(model.elements)

    def run(positions, types, senders, receivers, offsets, reverse, local, *like_sizes):
        atoms, numbers = positions.shape[0], table[types]
        displacements = positions[senders] + offsets - positions[receivers]
        edges = Edges(displacements, senders, receivers, reverse, atoms)
        indices, needed = model.indices_within(edges, [like.shape[0] for like in like_sizes])
        others = numbers, senders, receivers, indices, torch.zeros_like(types)
        energies, slope = model.energies_and_slope(displacements, *others, create_graph=False, counted=local)
        forces = scatter_sum(slope, receivers, atoms) - scatter_sum(slope, senders, atoms)
        virial = torch.matmul(slope.mT, displacements)
        needed = torch.stack(needed) if needed else types[:0]
        return energies.sum(), energies, forces, -0.5 * (virial + virial.mT), needed

    arguments = *structure, *(torch.zeros(size, dtype=torch.int64) for size in sizes)
    try:
        with fx_config.patch(use_duck_shape=False):  # equal sizes of the example are a coincidence
            traced = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
        free = tuple(dict.fromkeys(range(x.ndim), torch.export.Dim.AUTO) for x in arguments)
        program = torch.export.export(traced, arguments, dynamic_shapes=free, strict=False)
    except Exception as error:  # PyTorch raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"this model cannot be traced into a program: {type(error).__name__}: {reason}") from error
    for node in program.graph.find_nodes(op="placeholder"):
        if node.name in program.graph_signature.user_inputs:
            constant = [size for size in node.meta["val"].shape if isinstance(size, int) and size != 3]
            if constant:
                raise ExportError(f"sizes must be free in a program, got {constant} of its argument {node.name} as constants")
    return program


def check_model(model: Potential) -> None:
    if not isinstance(model, ConservativePotential):
        raise ExportError(
            "a package needs forces that are derivatives of the energy, and those of this model are not; train a conservative one"
        )
    if model.inputs:
        raise ExportError(
            f"a package has no inputs beside the structure, this model needs {', '.join(model.inputs)}; "
            "choose one of its data sets with --data-set, or export a model without such inputs"
        )


def example_graphs(model: ConservativePotential) -> list[AtomicGraph]:
    """Clusters and a crystal with all elements, and last a crystal four times as large."""
    made = [tuple(np.array(s[name]) for name in ("positions", "numbers", "cell", "pbc")) for s in fingerprint_structures(model.elements)]
    positions, numbers, cell, pbc = made[-1]
    images = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]]) @ cell
    positions = (positions + images[:, None]).reshape(-1, 3)
    moved = positions + 0.02 * np.sin(7.0 * np.arange(positions.size)).reshape(positions.shape)
    made.append((moved, np.tile(numbers, 4), np.diag([2, 2, 1]) @ cell, pbc))
    return [AtomicGraph.build(*structure, model.cutoff) for structure in made]


def size_facts(model: ConservativePotential, structure: OpenStructure) -> list[dict[str, Any]]:
    """Names of sizes, and what an example needs of them: as a start, as a program can be asked for more."""
    many = max(int(torch.bincount(structure.receivers).max()) + 1, 200)
    displacements = structure.positions[structure.senders] + structure.offsets - structure.positions[structure.receivers]
    edges = Edges(displacements, structure.senders, structure.receivers, structure.reverse, len(structure.positions))
    _, needed = model.indices_within(edges, [many] * len(model.size_names))
    return [{"name": name, "start": max(2, int(need))} for name, need in zip(model.size_names, needed, strict=True)]


def _describe(model: ConservativePotential, sizes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "elements": [int(z) for z in model.elements],
        "symbols": [chemical_symbols[z] for z in model.elements],
        "cutoff": float(model.cutoff),
        "hops": int(model.hops),
        "dtype": str(model.dtype).removeprefix("torch."),
        "units": UNITS,
        "sizes": sizes,
        "description": model.description(),
        "versions": {"torch": torch.__version__},
        "machine": platform.machine(),
    }


def _metadata(facts: dict[str, Any]) -> dict[str, str]:
    """All of it as one text, and what C++ needs as plain words."""
    words = {"format": facts["format_version"], "symbols": " ".join(facts["symbols"]), "cutoff": repr(facts["cutoff"])}
    words |= {"hops": facts["hops"], "dtype": facts["dtype"], "sizes": " ".join(str(at["start"]) for at in facts["sizes"])}
    return {"equimol": json.dumps(facts)} | {f"equimol.{key}": str(value) for key, value in words.items()}


def _compare(model: ConservativePotential, package: Package, graphs: list[AtomicGraph]) -> float:
    """The largest difference of the package from the model; also of two halves of the atoms, counted one after the other."""
    worst = 0.0
    for graph in graphs:
        plain, structure = model(graph), OpenStructure.of(graph, model.elements)
        half = structure.local & (torch.arange(len(structure.local)) % 3 > 0)
        first, second = (package(structure._replace(local=local)) for local in (half, ~half))
        for ours in (package(structure), Results(*(a + b for a, b in zip(first, second, strict=True)))):
            scale = max(1.0, float(plain["forces"].abs().max()))
            errors = [(ours.energies - plain["energies"]).abs().max(), (ours.forces - plain["forces"]).abs().max()]
            if bool(plain["stress"].isfinite().all()):
                volume = torch.linalg.det(graph.cell[0]).abs()
                errors.append((ours.virial / volume + plain["stress"][0]).abs().max())
            worst = max(worst, *(float(error.nan_to_num(torch.inf)) / scale for error in errors))
    if worst > TOLERANCE[model.dtype]:
        raise ExportError(
            f"the package differs from the model by {worst:.1e} (eV/atom, eV/Å, eV/Å³; allowed {TOLERANCE[model.dtype]:.0e}) "
            "and was not written; export in float64 to see whether rounding is the reason"
        )
    return worst
