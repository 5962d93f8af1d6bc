"""metatomic: a model in the file that its engines run, which holds the energy as TorchScript and is differentiated by them.

The energy is traced into PyTorch's operations, as for a package of AOTInductor; TorchScript takes these as they are. It reads annotations
too, so that those of this file are no strings.
"""

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Dict, List, Optional  # noqa: UP035  (TorchScript reads them)

import torch
from torch import Tensor, fx
from torch.fx.experimental import _config as fx_config
from torch.fx.experimental.proxy_tensor import make_fx

from equimol.interfaces.package import OpenStructure, check_model, example_graphs, size_facts
from equimol.models import ConservativePotential, Potential, core
from equimol.models.base import Edges


@contextlib.contextmanager
def _pytorch_of_its_own() -> Iterator[None]:
    """torch_geometric puts functions of Python in the place of two of PyTorch's, and TorchScript cannot read them."""
    replaced = {name: getattr(torch, name) for name in ("index_select", "select")}
    try:
        for name in replaced:
            setattr(torch, name, getattr(torch._C._VariableFunctions, name))
        yield
    finally:
        for name, function in replaced.items():
            setattr(torch, name, function)


try:
    with _pytorch_of_its_own():  # metatensor scripts its own functions when it is imported
        from metatensor.torch import Labels, TensorBlock, TensorMap
        from metatomic.torch import AtomisticModel, ModelCapabilities, ModelMetadata, ModelOutput, NeighborListOptions, System
except ImportError as error:
    raise ImportError("metatomic is not installed here; get it with: pip install 'equimol[metatomic]'") from error

_STRIPPED = ("layout", "device", "pin_memory", "memory_format")  # which TorchScript writes in another way, and which say nothing here
_ANY_STRIDES = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def export_metatomic(model: Potential, path: str | Path) -> Path:
    """Write a model for the engines of metatomic; on a CPU, in the model's dtype.

    Raises:
        ExportError: the model has inputs beside the structure, or forces that are no derivatives.
        ValueError: another ending than .pt.
    """
    path = Path(path)
    if path.suffix != ".pt":
        raise ValueError(f"a model of metatomic ends in .pt, got {path.name!r}; choose such a name")
    check_model(model)
    model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
    facts = size_facts(model, OpenStructure.of(example_graphs(model)[-1], model.elements))
    name = getattr(core(model), "name", type(model).__name__)
    capabilities = ModelCapabilities(
        outputs={"energy": ModelOutput(unit="eV", sample_kind="atom")},
        atomic_types=list(model.elements),
        interaction_range=float(model.cutoff * model.hops),
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",  # of geometry and energies, which a model of float32 has too
    )
    with warnings.catch_warnings(), _pytorch_of_its_own():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; metatomic has nothing else
        program = torch.jit.script(traced_energies(model))
        module = _Module(program, float(model.cutoff), [max(2, at["start"]) for at in facts]).eval()
        draft = path.with_name(f".{path.stem}.draft.pt")
        AtomisticModel(module, ModelMetadata(name=f"EquiMol {name}"), capabilities).save(str(draft))
    os.replace(draft, path)
    return path


def traced_energies(model: ConservativePotential) -> fx.GraphModule:
    """Energies [atoms] and the sizes needed, of displacements, numbers, senders, receivers, reverse edges, and a tensor of those sizes."""
    graph = example_graphs(model)[-1]
    structure = OpenStructure.of(graph, model.elements)
    sizes = [at["start"] for at in size_facts(model, structure)] or [2]

    def run(displacements, numbers, senders, receivers, reverse, like_sizes):
        edges = Edges(displacements.detach(), senders, receivers, reverse, numbers.shape[0])
        indices, needed = model.indices_within(edges, list(like_sizes.shape[: len(model.size_names)]))
        energies, _ = model.atomic_energies(displacements, numbers, senders, receivers, indices, torch.zeros_like(numbers))
        return energies.double(), torch.stack(needed) if needed else numbers[:0]

    arguments = graph.displacements().detach(), graph.numbers, graph.senders, graph.receivers, structure.reverse, torch.zeros(sizes)
    with fx_config.patch(use_duck_shape=False), torch.no_grad():
        traced = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*arguments)
    for node in traced.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            node.kwargs = {key: value for key, value in node.kwargs.items() if key not in _STRIPPED}
            if node.target is torch.ops.aten.sym_size.int:
                node.target = torch.ops.aten.size
            elif node.target in _ANY_STRIDES:  # strides of the engine's tensors may be others
                node.target = torch.ops.aten.reshape
            else:
                node.target = node.target.overloadpacket
    traced.recompile()
    return traced


class _Module(torch.nn.Module):
    """What metatomic scripts: neighbours of its systems, energies of the program, sums in its containers."""

    sizes: List[int]  # noqa: UP006  (may be empty, where its type cannot be told)

    def __init__(self, program: torch.jit.ScriptModule, cutoff: float, sizes: List[int]) -> None:  # noqa: UP006
        super().__init__()
        self.program, self.sizes = program, sizes
        self.options = NeighborListOptions(cutoff=cutoff, full_list=True, strict=True)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        return [self.options]

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels],  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        found: Dict[str, TensorMap] = {}  # noqa: UP006
        if "energy" not in outputs:
            return found
        by_atom = outputs["energy"].sample_kind == "atom"
        values: List[Tensor] = []  # noqa: UP006
        samples: List[Tensor] = []  # noqa: UP006
        for n, system in enumerate(systems):
            energies = self.energies(system)
            atoms = torch.arange(energies.shape[0])
            if selected_atoms is not None:
                atoms = selected_atoms.column("atom")[selected_atoms.column("system") == n].to(torch.int64)
                energies = energies[atoms]
            if by_atom:
                values.append(energies.unsqueeze(1))
                samples.append(torch.stack([torch.full_like(atoms, n), atoms], 1))
            else:
                values.append(energies.sum().reshape(1, 1))
                samples.append(torch.full((1, 1), n, dtype=torch.int64))
        names = ["system", "atom"] if by_atom else ["system"]
        rows = Labels(names, torch.cat(samples).to(torch.int32))
        block = TensorBlock(torch.cat(values), rows, [], Labels(["energy"], torch.zeros(1, 1, dtype=torch.int32)))
        found["energy"] = TensorMap(Labels(["_"], torch.zeros(1, 1, dtype=torch.int32)), [block])
        return found

    def energies(self, system: System) -> Tensor:
        """Energies [atoms], eV."""
        neighbours = system.get_neighbor_list(self.options)
        edges = neighbours.samples.values.to(torch.int64)  # of each: receiver, sender, images of the sender
        order = torch.argsort(edges[:, 0], stable=True)
        edges = edges[order]
        displacements, numbers = neighbours.values[:, :, 0][order], system.types.to(torch.int64)
        receivers, senders = edges[:, 0].contiguous(), edges[:, 1].contiguous()
        reverse = reverse_of(senders, receivers, edges[:, 2:], numbers.shape[0])
        enough, energies = False, displacements[:, 0]
        while not enough:
            like_sizes = torch.zeros(self.sizes if len(self.sizes) > 0 else [2])
            energies, needed = self.program(displacements, numbers, senders, receivers, reverse, like_sizes)
            enough = True
            for n in range(len(self.sizes)):
                need = int(needed[n].item())
                if need > self.sizes[n]:
                    self.sizes[n] = need
                    enough = False
        return energies


def reverse_of(senders: Tensor, receivers: Tensor, images: Tensor, atoms: int) -> Tensor:
    """The edge that runs the other way of each, as `reverse_edges`, in the words of TorchScript."""
    if senders.shape[0] == 0:
        return senders
    reach = int(images.abs().max().item())
    span = 2 * reach + 1
    here, there = images + reach, reach - images
    keys = (((receivers * atoms + senders) * span + here[:, 0]) * span + here[:, 1]) * span + here[:, 2]
    wanted = (((senders * atoms + receivers) * span + there[:, 0]) * span + there[:, 1]) * span + there[:, 2]
    ascending, order = torch.sort(keys)
    return order[torch.searchsorted(ascending, wanted).clamp(max=keys.shape[0] - 1)]
