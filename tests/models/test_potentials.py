"""Every model in the table obeys the laws of a potential energy, and learns nothing that breaks them."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from equimol.data.graph import AtomicGraph
from equimol.models import MODELS, DirectPotential, build, build_model, core
from equimol.models.composition import Shifted, Sum
from equimol.models.lennard_jones import LennardJones, LennardJonesConfig
from equimol.models.zbl import ZBL, ZBLConfig
from equimol.tensor_products import MANY_BODY_PRODUCTS
from equimol.testing import SINGLE, assert_is_potential, example_structures

# models with inputs beyond the structure have tests of their own
CASES = [(name, "clebsch_gordan") for name, entry in MODELS.items() if name != "mace" and not entry.model.inputs]
CASES += [("mace", product) for product in MANY_BODY_PRODUCTS]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def model(request):
    torch.manual_seed(0)
    name, product = request.param
    settings = {"product": product} if name == "mace" else {}
    return (
        build_model(name, "tiny", elements=[1, 6, 8], references={1: -13.6, 6: -1030.0, 8: -2042.0}, scale=0.7, shift=-3.0, **settings)
        .double()
        .eval()
    )


def graph(model, number=1, **changes):
    return AtomicGraph.build(**{**example_structures(model.elements)[number], **changes}, cutoff=model.cutoff)


def test_is_a_potential(model):
    if core(model).name.startswith("escaip_v1"):
        pytest.skip("as published: energies that are means over atoms, direct forces that do not turn with them")
    assert_is_potential(model)


def test_single_precision_agrees_with_double(model):
    g = graph(model)
    double, single = model(g), model.float()(g)
    assert all(value.dtype == torch.float64 for value in single.values())
    scale = float(double["forces"].abs().max())
    torch.testing.assert_close(single["forces"], double["forces"], rtol=0, atol=SINGLE * max(scale, 1.0))
    torch.testing.assert_close(single["energy"], double["energy"], rtol=1e-7, atol=1e-4)


def test_description_builds_the_same_model(model):
    again = build(model.description()).double().eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(graph(model))["forces"], model(graph(model))["forces"], rtol=0, atol=0)


def test_training_mode_gives_forces_that_can_be_trained(model):
    if not list(model.parameters()):
        pytest.skip("a model without parameters")
    model.train()
    model(graph(model))["forces"].square().sum().backward()
    with_slope = [name for name, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())]
    assert len(with_slope) > 0.7 * len(list(model.named_parameters())), with_slope


def test_edges_beyond_the_cutoff_change_nothing(model):
    structure = example_structures(model.elements)[1]
    near, far = (model(AtomicGraph.build(**structure, cutoff=c)) for c in (model.cutoff, model.cutoff + 1.0))
    torch.testing.assert_close(near["forces"], far["forces"], rtol=0, atol=1e-9)


def test_an_unknown_element_is_named(model):
    with pytest.raises(ValueError, match="the structure has Xe too"):
        model(graph(model, 0, numbers=np.array([1, 6, 54, 1, 6, 8])))


def test_isolated_atoms_have_no_forces(model):
    out = model(graph(model, 3))
    published = core(model).name == "escaip_v1_direct"  # an atom without neighbours has itself for one
    assert (published or bool((out["forces"] == 0).all())) and bool(out["energy"].isfinite().all())


def test_an_empty_batch_member_is_no_obstacle(model):
    single = graph(model, 3)
    both = model(Batch.from_data_list([single, single]))
    torch.testing.assert_close(both["energy"][0], model(single)["energy"][0])


@pytest.mark.parametrize("name", MODELS)
def test_unknown_settings_are_answered_with_the_nearest_one(name):
    with pytest.raises(ValueError, match="did you mean 'elements'|'elementz' is no"):
        build_model(name, elements=[1], elementz=[2])
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        build_model(name, "tinny", elements=[1])


def test_unknown_models_are_answered_with_the_nearest_one():
    with pytest.raises(ValueError, match="did you mean 'mace'"):
        build_model("mase", elements=[1])


def test_a_model_with_direct_forces_goes_without_core_repulsion():
    model = build_model("escaip_direct", elements=[1, 8], references={1: -13.6, 8: -2042.0})
    assert isinstance(model, DirectPotential) and not model.conservative
    assert core(model) is model.inner and core(build_model("escaip", elements=[1])).name == "escaip"


def test_lennard_jones_dimer_has_its_analytic_energy():
    model = LennardJones(LennardJonesConfig(elements=(18,), cutoff=50.0, epsilon=0.01, sigma=3.0))
    for r in (3.0, 3.0 * 2 ** (1 / 6), 4.0):
        g = AtomicGraph.build(positions=[[0, 0, 0], [0, 0, r]], numbers=[18, 18], cell=np.zeros((3, 3)), pbc=(False,) * 3, cutoff=50.0)
        x = (3.0 / r) ** 6
        torch.testing.assert_close(model(g)["energy"][0], torch.tensor(0.04 * (x * x - x), dtype=torch.float64), rtol=0, atol=1e-9)


def test_zbl_repels_close_atoms_and_leaves_bonded_ones_alone():
    model = ZBL(ZBLConfig(elements=(1, 6))).eval()
    energies = []
    for r in (0.2, 0.5, 0.9, 1.06, 1.1):
        g = AtomicGraph.build(positions=[[0, 0, 0], [0, 0, r]], numbers=[6, 1], cell=np.zeros((3, 3)), pbc=(False,) * 3, cutoff=2.0)
        energies.append(float(model(g)["energy"]))
    assert energies[0] > 100 and energies == sorted(energies, reverse=True) and energies[3] < 1e-3 and energies[4] == 0.0


def test_zbl_has_the_universal_screening_length():
    """Close in, the energy is Coulomb's times the universal function of r / 0.8854 a0 (Z1^0.23 + Z2^0.23)^-1 (Ziegler 1985)."""
    model, r = ZBL(ZBLConfig(elements=(14,), envelope_order=40)).eval(), 0.3
    g = AtomicGraph.build(positions=[[0, 0, 0], [0, 0, r]], numbers=[14, 14], cell=np.zeros((3, 3)), pbc=(False,) * 3, cutoff=2.0)
    x = r / (0.8854 * 0.529177 / (2 * 14**0.23))
    phi = 0.1818 * np.exp(-3.2 * x) + 0.5099 * np.exp(-0.9423 * x) + 0.2802 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.2016 * x)
    assert float(model(g)["energy"]) == pytest.approx(14.399645 * 14 * 14 / r * phi, rel=2e-4)


def test_a_sum_adds_and_a_shift_shifts():
    lj = LennardJones(LennardJonesConfig(elements=(18,)))
    g = AtomicGraph.build(positions=[[0, 0, 0], [0, 0, 3.5]], numbers=[18, 18], cell=np.zeros((3, 3)), pbc=(False,) * 3, cutoff=lj.cutoff)
    alone = lj(g)
    both = Sum(Shifted(lj, {18: -500.0}, scale=2.0, shift=-1.0), lj)(g)
    torch.testing.assert_close(both["energy"], 3 * alone["energy"] - 1002.0)
    torch.testing.assert_close(both["forces"], 3 * alone["forces"])


def test_references_must_cover_the_elements():
    with pytest.raises(ValueError, match=r"got none for \[8\]"):
        build_model("mace", elements=[1, 8], references={1: -13.6})


def test_a_frozen_model_gives_the_same_and_survives_a_change_of_dtype(model):
    before = model(graph(model))
    frozen = model.freeze()
    for _ in range(2):  # the second call uses what the first one kept
        torch.testing.assert_close(frozen(graph(model))["forces"], before["forces"], rtol=0, atol=1e-12)
    torch.testing.assert_close(frozen.float()(graph(model))["forces"], before["forces"], rtol=1e-4, atol=1e-4)


def test_a_model_without_references_gives_double_energies_too():
    model = MODELS["mace"].model(MODELS["mace"].config(elements=(1, 6, 8), **MODELS["mace"].presets["tiny"])).eval()
    assert model.dtype == torch.float32
    assert {value.dtype for value in model(graph(model)).values()} == {torch.float64}


def test_the_dtype_of_a_sum_is_that_of_its_parameters():
    zbl = ZBL(ZBLConfig(elements=(1, 6, 8)))
    assert Sum(zbl, build_model("mace", elements=[1, 6, 8], zbl=False)).dtype == torch.float32


def test_core_repulsion_reaches_as_far_as_it_is_told():
    structure = {"positions": [[0, 0, 0], [0, 0, 1.2]], "numbers": [1, 1]}
    near, far = (ZBL(ZBLConfig(elements=(1,), reach=reach)) for reach in ((), ((1, 1, 1.5),)))
    graph = AtomicGraph.build(**structure, cell=np.zeros((3, 3)), pbc=False, cutoff=2.0)
    assert near(graph)["energy"] == 0
    assert 0.05 < far(graph)["energy"] < 1.0


def test_build_model_takes_the_reach_of_pairs_by_their_symbols():
    model = build_model("mace", elements=[1, 8], zbl={"H-O": 1.4})
    assert build(model.description()).description() == model.description()
    assert model.description()["members"][1]["config"]["reach"] == ((1, 8, 1.4),)


@pytest.mark.parametrize(
    ("name", "more"), [("mace", {}), ("scale_shift_mace", {}), ("nequip", {}), ("dpa3", {}), ("escaip", {"neighbors": 3})]
)
def test_information_travels_as_many_edges_as_the_model_says(name, more):
    """No farther, or LAMMPS would have too few ghosts; and so far, or it would have too many. In a chain, where an edge is one atom."""
    torch.manual_seed(0)
    more = {"neighbors": 3} if name == "escaip" else {}
    model = build_model(name, elements=[1, 8], cutoff=3.0, zbl=False, **more).double().eval()
    where = np.arange(24)
    positions = np.stack([2.5 * where, 0.1 * np.sin(where), 0.1 * np.cos(3.0 * where)], 1)
    g = AtomicGraph.build(positions, np.where(where % 3 == 0, 8, 1), None, False, model.cutoff)
    displacements = g.displacements().requires_grad_()
    energies, _ = model.atomic_energies(displacements, g.numbers, g.senders, g.receivers, model.indices(g), g.system)
    (slope,) = torch.autograd.grad(energies[0], displacements)
    used = slope.abs().amax(1) > 0
    assert int(g.receivers[used].max()) == model.hops - 1
