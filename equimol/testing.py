"""The public battery: what every tensor product and every potential must pass, ours or yours, with named tolerances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from equimol.data.graph import AtomicGraph
from equimol.models.base import Potential
from equimol.o3 import Layout, layout_dim, rotate

EXACT = 1e-12  # float64, the same mathematics in another order
DERIVATIVE = 1e-6  # float64, against central differences
SINGLE = 2e-5  # float32 against float64, relative to the size of the result


def random_rotation(generator: torch.Generator, *, improper: bool = False) -> Tensor:
    """A rotation matrix [3, 3] in float64, uniform over SO(3); with ``improper`` its product with the inversion."""
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q = q * torch.sign(torch.diagonal(r))
    q = q * torch.sign(torch.linalg.det(q))
    return -q if improper else q


def assert_equivariant(
    function: Callable[..., Tensor],
    layouts: Sequence[Layout],
    out: Layout,
    *,
    batch: tuple[int, ...] = (4,),
    seed: int = 0,
    tolerance: float = EXACT,
) -> None:
    """Raises AssertionError unless ``function`` commutes with rotations and with inversion.

    Args:
        function: takes one float64 tensor [*batch, dim] per layout and gives [*batch, dim of out].
        layouts: of the inputs, made here at random.
        out: of the result.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(*batch, layout_dim(layout), dtype=torch.float64, generator=generator) for layout in layouts]
    expected = function(*inputs)
    for improper in (False, True):
        rotation = random_rotation(generator, improper=improper)
        turned = function(*(rotate(x, layout, rotation) for x, layout in zip(inputs, layouts, strict=True)))
        _close(turned, rotate(expected, out, rotation), tolerance, f"{'inversion and ' * improper}rotation of the inputs")


def example_structures(elements: Sequence[int], *, seed: int = 0) -> list[dict]:
    """Small structures of the given elements, as arguments of ``AtomicGraph.build``: a molecule, a crystal, a slab, one atom."""
    rng = np.random.default_rng(seed)
    elements = np.asarray(elements)

    def numbers(n: int) -> np.ndarray:
        return elements[np.arange(n) % len(elements)]

    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    chain = np.cumsum(rng.normal(size=(6, 3)) * 0.2 + [1.3, 0.3, 0.1], axis=0)
    return [
        {"positions": chain, "numbers": numbers(6), "cell": np.zeros((3, 3)), "pbc": (False,) * 3},
        {
            "positions": corners * 2.1 + rng.normal(size=(8, 3)) * 0.1,
            "numbers": numbers(8),
            "cell": np.array([[4.2, 0, 0], [0.5, 4.3, 0], [-0.3, 0.4, 4.1]]),
            "pbc": (True,) * 3,
        },
        {
            "positions": corners[:4] * [2.0, 2.1, 2.2] + rng.normal(size=(4, 3)) * 0.1,
            "numbers": numbers(4),
            "cell": np.diag([4.0, 4.2, 20.0]),
            "pbc": (True, True, False),
        },
        {"positions": np.zeros((1, 3)), "numbers": numbers(1), "cell": np.zeros((3, 3)), "pbc": (False,) * 3},
    ]


def assert_is_potential(model: Potential, *, seed: int = 0, tolerance: float = 1e-9) -> None:
    """Raises AssertionError, saying which law is broken, unless ``model`` behaves as a potential energy must.

    Checks invariance of the energy (forces and stress turn) under rotation, inversion, translation and permutation; forces and
    stress against central differences (where ``conservative``); a batch against its members; two distant molecules; continuity
    while an atom crosses the cutoff. Give a model in float64: ``model.double()``.
    """
    if model.dtype != torch.float64:
        raise ValueError(f"the battery compares to {tolerance}, the model has {model.dtype}; call model.double() first")
    model = model.eval()
    structures = example_structures(model.elements, seed=seed)
    for structure in structures:
        assert_moves_with_its_atoms(model, structure, seed=seed, tolerance=tolerance)
        if model.conservative:
            assert_forces_are_slopes(model, structure)
            assert_stress_is_a_slope(model, structure)
    assert_batch_is_one_by_one(model, structures, tolerance=tolerance)
    assert_distant_molecules_add(model, structures[0], tolerance=tolerance)
    assert_smooth_through_cutoff(model)


def assert_moves_with_its_atoms(model: Potential, structure: dict, *, seed: int = 0, tolerance: float = 1e-9) -> None:
    """Rotation, inversion, translation, permutation."""
    generator = torch.Generator().manual_seed(seed)
    before = _run(model, structure)
    for improper in (False, True):
        rotation = random_rotation(generator, improper=improper)
        q = rotation.numpy()
        after = _run(model, {**structure, "positions": structure["positions"] @ q.T, "cell": structure["cell"] @ q.T})
        _close(after["energy"], before["energy"], tolerance, "the energy under rotation")
        _close(after["forces"], before["forces"] @ rotation.T, tolerance, "forces under rotation")
        _close(after["stress"], rotation @ before["stress"] @ rotation.T, tolerance, "stress under rotation")
    after = _run(model, {**structure, "positions": structure["positions"] + np.array([0.37, -1.2, 5.1])})
    _close(after["forces"], before["forces"], tolerance, "forces under translation")
    order = torch.randperm(len(structure["numbers"]), generator=generator).numpy()
    after = _run(model, {**structure, "positions": structure["positions"][order], "numbers": structure["numbers"][order]})
    _close(after["forces"], before["forces"][order], tolerance, "forces under permutation")
    _close(after["energies"], before["energies"][order], tolerance, "atomic energies under permutation")


def assert_forces_are_slopes(model: Potential, structure: dict, *, step: float = 1e-4, tolerance: float = DERIVATIVE) -> None:
    """Forces against central differences of the energy, for three coordinates."""
    forces = _run(model, structure)["forces"]
    for atom, axis in [(0, 0), (len(forces) // 2, 1), (len(forces) - 1, 2)]:
        shift = np.zeros_like(structure["positions"])
        shift[atom, axis] = step
        up, down = (_run(model, {**structure, "positions": structure["positions"] + s * shift})["energy"] for s in (1, -1))
        _close(forces[atom, axis], -(up - down)[0] / (2 * step), tolerance, f"the force on atom {atom} along axis {axis}")


def assert_stress_is_a_slope(model: Potential, structure: dict, *, step: float = 1e-4, tolerance: float = DERIVATIVE) -> None:
    """Stress against central differences under strain; NaN where there is no volume or no periodic direction."""
    stress = _run(model, structure)["stress"][0]
    volume = abs(np.linalg.det(structure["cell"]))
    if volume == 0 or not any(structure["pbc"]):
        if not bool(stress.isnan().all()):
            raise AssertionError(f"stress must be NaN for a structure without volume, got {stress.tolist()}")
        return
    for i, j in [(0, 0), (0, 1), (1, 2)]:
        strain = np.zeros((3, 3))
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        up, down = (
            _run(model, {**structure, "positions": structure["positions"] @ f, "cell": structure["cell"] @ f})["energy"]
            for f in (np.eye(3) + strain, np.eye(3) - strain)
        )
        _close(stress[i, j], (up - down)[0] / (2 * step * volume), tolerance, f"stress component {i}{j}")


def assert_batch_is_one_by_one(model: Potential, structures: Sequence[dict], *, tolerance: float = 1e-9) -> None:
    """A batch of structures gives what its members give alone."""
    graphs = [AtomicGraph.build(**s, cutoff=model.cutoff) for s in structures]
    together = model(Batch.from_data_list(graphs))
    alone = [model(g) for g in graphs]
    for key in ("energy", "energies", "forces", "stress"):
        _close(together[key], torch.cat([a[key] for a in alone]), tolerance, f"{key} of a batch")


def assert_distant_molecules_add(model: Potential, structure: dict, *, tolerance: float = 1e-9) -> None:
    """Two molecules out of each other's reach have the sum of their energies."""
    far = structure["positions"] + np.array([2 * model.cutoff * max(model.hops, 1) + 50.0, 0, 0])
    pair = {
        **structure,
        "positions": np.concatenate([structure["positions"], far]),
        "numbers": np.concatenate([structure["numbers"], structure["numbers"]]),
    }
    _close(_run(model, pair)["energy"], 2 * _run(model, structure)["energy"], tolerance, "the energy of two distant molecules")


def assert_smooth_through_cutoff(model: Potential, *, step: float = 1e-3, tolerance: float = 1e-5) -> None:
    """While an atom leaves through the cutoff, energy and force change by no more than a smooth curve would."""
    distances = np.arange(model.cutoff - 5 * step, model.cutoff + 5 * step, step)
    z = np.asarray([model.elements[0]] * 3)
    results = []
    for d in distances:
        positions = np.array([[0, 0, 0], [1.6, 0.2, 0], [0, 0, d]], dtype=float)
        results.append(_run(model, {"positions": positions, "numbers": z, "cell": np.zeros((3, 3)), "pbc": (False,) * 3}))
    for a, b in pairwise(results):
        _close(a["energy"], b["energy"], tolerance, "the energy across the cutoff")
        _close(a["forces"], b["forces"], 100 * tolerance, "forces across the cutoff")


def _run(model: Potential, structure: dict) -> dict[str, Tensor]:
    return model(AtomicGraph.build(**structure, cutoff=model.cutoff))


def _close(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Relative to the largest expected number. NaN is right for a stress without a volume alone, where it must meet NaN."""
    if not what.startswith("stress") and not bool(got.isfinite().all()):
        raise AssertionError(f"{what} must be finite, got {got.tolist()}")
    scale = max(1.0, float(expected.detach().nan_to_num().abs().max()) if expected.numel() else 1.0)
    torch.testing.assert_close(
        got, expected, rtol=0, atol=tolerance * scale, equal_nan=True, msg=lambda text: f"{what} is wrong beyond {tolerance:g}: {text}"
    )
