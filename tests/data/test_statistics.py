"""Reference energies and scales come out as they were put in."""

import math

import numpy as np
import pytest

from equimol.data.errors import DataError
from equimol.data.frame import Frame
from equimol.data.graph import AtomicGraph
from equimol.data.statistics import average_neighbors, core_reach, energy_std, force_rms, reference_energies

TRUE = {1: -13.6, 6: -1029.5, 8: -2042.0}


def frame(numbers, energy=None, pbc=False, cell=0.0, forces=None, **info) -> Frame:
    numbers = np.array(numbers, dtype=np.int64)
    labels = {} if energy is None else {"energy": np.array(float(energy))}
    if forces is not None:
        labels["forces"] = np.array(forces, dtype=float)
    positions = np.arange(3.0 * len(numbers)).reshape(-1, 3)
    return Frame(numbers, positions, cell * np.eye(3), np.full(3, pbc), labels, info, "test.xyz:0")


def molecules(count: int = 40, elements=(1, 6, 8), noise: float = 0.0) -> list[Frame]:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        numbers = np.repeat(elements, rng.integers(1, 6, len(elements)))
        made.append(frame(numbers, sum(TRUE[number] for number in numbers) + noise * len(numbers) * rng.normal()))
    return made


def test_regression_finds_the_energies_that_composition_determines():
    references = reference_energies(molecules())
    assert references.values == pytest.approx(TRUE, abs=1e-4)
    assert references.method == "ridge regression of 40 energies on composition (H, C, O)"


def test_regression_is_little_moved_by_binding_energies():
    assert reference_energies(molecules(400, noise=0.1)).values == pytest.approx(TRUE, abs=0.2)


def test_a_rare_element_is_not_pulled_to_the_mean():
    frames = [*molecules(1000, (1, 6)), frame([1, 6, 8], TRUE[1] + TRUE[6] + TRUE[8])]
    assert reference_energies(frames).values == pytest.approx(TRUE, abs=1e-2)


def test_one_composition_leaves_no_residual_and_stays_near_the_mean():
    water = [frame([8, 1, 1], -2069.2 + shift) for shift in (-0.1, 0.0, 0.1)]
    values = reference_energies(water).values
    assert values[8] + 2 * values[1] == pytest.approx(-2069.2, abs=1e-3)
    assert all(abs(value) < 2100 for value in values.values())


def test_isolated_atoms_go_before_regression():
    isolated = [frame([number], energy) for number, energy in TRUE.items()]
    references = reference_energies([*molecules(), *isolated])
    assert references.values == TRUE and references.method == "energies of isolated atoms (H, C, O)"
    assert reference_energies(molecules(), isolated).values == TRUE


def test_elements_without_an_isolated_atom_are_regressed():
    references = reference_energies([*molecules(), frame([1], -13.7, config_type="IsolatedAtom", pbc=True, cell=5.0)])
    assert references.values[1] == -13.7
    assert references.values[8] == pytest.approx(TRUE[8], abs=0.5)
    assert references.method.startswith("energies of isolated atoms (H); ridge regression")


def test_a_crystal_of_one_atom_and_an_ion_are_no_isolated_atoms():
    frames = [*molecules(), frame([6], -1037.0, pbc=True, cell=2.5), frame([8], -2043.5, charge=-1.0)]
    assert "isolated" not in reference_energies(frames).method


def test_the_lowest_spin_state_of_an_atom_counts():
    isolated = [frame([number], energy + extra) for number, energy in TRUE.items() for extra in (1.0, 0.0, 2.0)]
    assert reference_energies(molecules(), isolated).values == TRUE


@pytest.mark.parametrize(
    ("frames", "isolated", "message"),
    [
        (molecules(), [frame([1, 1], -31.0)], "isolated atoms must be single atoms with an energy"),
        (molecules(), [frame([1])], "isolated atoms must be single atoms with an energy"),
        ([frame([1, 1])], None, "no energies to find reference energies of H"),
        ([frame([6, 8], -11.0), *(frame([number], energy) for number, energy in TRUE.items())], None, "counts from another zero"),
    ],
)
def test_references_that_cannot_be_are_refused(frames, isolated, message):
    with pytest.raises(DataError, match=message):
        reference_energies(frames, isolated)


def test_scales():
    frames = [frame([1, 1], -27.0, forces=np.full((2, 3), 2.0)), frame([1, 1], -27.8), frame([1, 1])]
    assert force_rms(frames) == 2.0
    assert energy_std([*frames, frame([1], -13.6)], {1: -13.6}) == pytest.approx(0.2)  # the lone atom has no binding to scale
    assert math.isnan(force_rms(frames[1:])) and math.isnan(energy_std(frames[2:], {1: 0.0}))


def test_average_neighbors_counts_edges_per_atom():
    graphs = [frame([1, 1, 1]).graph(6.0), frame([1]).graph(6.0)]  # a chain with 5.2 Å between atoms, and a lone atom
    assert average_neighbors(graphs) == 1.0


def test_core_repulsion_ends_below_the_closest_approach_of_atoms_that_are_never_bonded():
    def graph(distance):
        positions = [[0, 0, 0], [0.97, 0, 0], [0, 0, distance], [0.97, 0, distance]]
        return AtomicGraph.build(positions, [8, 1, 8, 1], np.zeros((3, 3)), False, cutoff=6.0)

    reach = core_reach([graph(2.0), graph(3.0)])
    assert reach == {"H-H": pytest.approx(1.62), "O-O": pytest.approx(1.9)}  # H-H: covalent radii + 1 Å; O-H is a bond
    assert core_reach([graph(1.4)]) == {"H-H": pytest.approx(1.33), "O-O": pytest.approx(1.33)}
