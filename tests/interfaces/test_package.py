"""Programs without Python: the numbers of the model for structures of any size, and what cannot be exported says why."""

import json

import pytest
import torch

from equimol.data.graph import AtomicGraph
from equimol.interfaces.package import ExportError, OpenStructure, Package, Results, export_package, read_facts, trace_package
from equimol.models import build_model
from equimol.models.base import Edges
from equimol.testing import example_structures

SETTINGS = {
    "mace": {"channels": 2, "lmax_edge": 1, "radial_width": 4, "readout_width": 4},
    "scale_shift_mace": {"channels": 2, "lmax_edge": 1, "radial_widths": (4,), "readout_width": 4},
    "nequip": {"hidden": ("2x0e", "2x0e+2x1o", "2x0e"), "radial_hidden": (4,), "readout_width": 4},
    "escaip": {"width": 8, "layers": 1, "heads": 1, "legendre": (4, 2, 2), "radial_basis": 8, "radial_width": 8, "element_width": 4}
    | {"neighbors": 5},
    "dpa3": {"width": 8, "bond_width": 6, "angle_width": 4, "readout": (8, 32)} | {"threshold": 2.5},
}


def small(name, **more):
    torch.manual_seed(0)
    references = {1: -13.6, 6: -1030.0, 8: -2042.0}
    return build_model(name, elements=[1, 6, 8], references=references, **{**SETTINGS[name], **more}).double().eval()


@pytest.fixture(params=SETTINGS)
def model(request):
    return small(request.param)


def graphs(model):
    return [AtomicGraph.build(**structure, cutoff=model.cutoff) for structure in example_structures(model.elements)]


@pytest.mark.parametrize(
    ("name", "more"), [("dpa3", {}), ("dpa3", {"nearest": 6, "angle_nearest": 3}), ("escaip", {}), ("escaip", {"smooth": False})]
)
def test_indices_of_given_sizes_give_the_same(name, more):
    model = small(name, **more)
    for graph in graphs(model)[:3]:
        structure = OpenStructure.of(graph, model.elements)
        edges = Edges(graph.displacements(), graph.senders, graph.receivers, structure.reverse, len(graph.numbers))
        _, needed = model.indices_within(edges, [60] * len(model.size_names))
        for extra in (0, 3):
            sizes = [int(need) + extra for need in needed]
            indices, again = model.indices_within(edges, sizes)
            assert [int(need) for need in again] == [int(need) for need in needed]
            others = graph.numbers, graph.senders, graph.receivers, indices, graph.system
            energies, slope = model.energies_and_slope(edges.displacements, *others, create_graph=False)
            ours, plain = model.results(graph, edges.displacements, energies.detach(), slope), model(graph)
            for key in ("energies", "forces"):
                torch.testing.assert_close(ours[key], plain[key], rtol=1e-10, atol=1e-10)


def test_too_small_sizes_are_told():
    model = small("dpa3")
    graph = graphs(model)[1]
    edges = Edges(graph.displacements(), graph.senders, graph.receivers, graph.senders, len(graph.numbers))
    bonds, angles = model.indices_within(edges, [2, 2])[1]
    lengths = graph.displacements().norm(dim=1)
    assert int(bonds) == int(torch.bincount(graph.receivers).max()) > 2
    assert int(angles) == int(torch.bincount(graph.receivers[lengths < 4.0]).max()) > 2


@pytest.mark.slow
def test_a_program_is_made_of_operations_of_pytorch_and_serves_all_sizes(model):
    *others, first = sorted(graphs(model)[:3], key=lambda graph: len(graph.senders))
    sizes = [30] * len(model.size_names)
    program = trace_package(model, OpenStructure.of(first, model.elements), sizes)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)} == {"aten"}
    for graph in (first, *others):
        structure, plain = OpenStructure.of(graph, model.elements), model(graph)
        like = [torch.zeros(size + 1, dtype=torch.int64) for size in sizes]
        whole = Results(*program.module()(*structure, *like)[:4])
        torch.testing.assert_close(whole.energies, plain["energies"], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(whole.energy, plain["energy"][0], rtol=1e-12, atol=1e-10)
        torch.testing.assert_close(whole.forces, plain["forces"], rtol=1e-10, atol=1e-10)
        half = torch.arange(len(graph.numbers)) % 2 == 0
        parts = [Results(*program.module()(*structure._replace(local=local), *like)[:4]) for local in (half, ~half)]
        assert not parts[0].energies[~half].any()
        torch.testing.assert_close(parts[0].forces + parts[1].forces, plain["forces"], rtol=1e-10, atol=1e-10)
        if bool(graph.pbc.any()):
            volume = torch.linalg.det(graph.cell[0]).abs()
            torch.testing.assert_close(-(parts[0].virial + parts[1].virial) / volume, plain["stress"][0], rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler, about itself
def test_a_package_is_compared_with_the_model_and_read_again(tmp_path):
    model, told = small("mace"), []
    package = Package(export_package(model, tmp_path / "m.pt2", log=told.append))
    assert package.elements == (1, 6, 8) and package.cutoff == model.cutoff and package.facts["dtype"] == "float64"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"] and "off the model by" in told[-1]
    for graph in graphs(model)[:3]:
        torch.testing.assert_close(package(OpenStructure.of(graph, model.elements)).forces, model(graph)["forces"], rtol=1e-9, atol=1e-9)


def test_what_cannot_be_exported_says_why(tmp_path):
    with pytest.raises(ExportError, match=r"a package ends in \.pt2"):
        export_package(small("mace"), tmp_path / "m.pt")
    with pytest.raises(ExportError, match="forces that are derivatives of the energy"):
        export_package(build_model("escaip_direct", elements=[1]), tmp_path / "m.pt2")
    with pytest.raises(ExportError, match="this model needs charge, spin"):
        export_package(build_model("dpa3", elements=[1], charge_spin=True), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_packages_are_refused(tmp_path):
    with pytest.raises(ExportError, match="there is no package"):
        Package(tmp_path / "none.pt2")
    path = tmp_path / "m.pt2"
    path.write_bytes(b"something")
    with pytest.raises(ExportError, match="cannot be read as a package"):
        Package(path)
    with pytest.raises(ExportError, match="of no EquiMol model"):
        read_facts(path, {})
    with pytest.raises(ExportError, match="update with: pip install -U equimol"):
        read_facts(path, {"equimol": json.dumps({"format_version": 99})})
