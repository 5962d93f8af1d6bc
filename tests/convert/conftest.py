"""Weights from a formula, under the names of published modules: those of benchmarks/peers."""

import zlib

import pytest
import torch


def formula(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """`fill` of benchmarks/peers/fairchem_escaip.py."""
    t = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    x = torch.sin(t * 12.9898 + zlib.crc32(name.encode()) % 1000) * 43758.5453
    x = (x - x.floor() - 0.5).view(shape)
    norm = len(shape) == 1 and name.endswith("weight")
    return (x * (0.2 if len(shape) < 2 else 3.0 / shape[-1] ** 0.5) + norm).float()


@pytest.fixture(scope="session")
def published():
    """A function of a model, the pairs of names (ours, theirs) and the rows of published tables of elements."""

    def weights(model, pairs, rows: int) -> dict[str, torch.Tensor]:
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        found = {}
        for ours, theirs in pairs:
            names = (theirs,) if isinstance(theirs, str) else theirs
            first, *rest = shapes[ours] or (None,)
            first = rows if ours.endswith("element") else first
            shape = () if first is None else (first // len(names), *rest)
            found |= {name: formula(name, shape) for name in names}
        return found

    return weights
