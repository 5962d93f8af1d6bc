"""Times mace-torch on request, as benchmarks/mace.py does ours. Runs in an environment of its own: torch, mace-torch==0.3.16.

    python mace_steps.py IRREPS FILE.model

Writes a model with random weights to the file, prints "ready", and answers lines "FRAMES.xyz;COUNT;MODE;CALLS": energies and forces for the
mode "values", else seconds of each call, and the peak memory in bytes before the first and until now.
"""

import resource
import sys
import time

import ase.io
import mace  # noqa: F401  (before e3nn, which PyTorch would not let load its constants)
import numpy as np
import torch
from e3nn import o3
from mace import modules
from mace.data import AtomicData, config_from_atoms
from mace.tools import AtomicNumberTable, torch_geometric

ELEMENTS = [1, 6, 7, 8]


def build(irreps: str) -> torch.nn.Module:
    """The sizes of mace-torch's command line, and of published models."""
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros((1, len(ELEMENTS))),
        avg_num_neighbors=20.0,
        atomic_numbers=ELEMENTS,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def main(irreps: str, path: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(irreps)
    torch.save(model, path)
    before = peak()
    print("ready", flush=True)
    for line in sys.stdin:
        frames, count, mode, calls = line.strip().split(";")
        table = AtomicNumberTable(ELEMENTS)
        structures = ase.io.read(frames, f":{count}", format="extxyz")
        data = [AtomicData.from_config(config_from_atoms(atoms), z_table=table, cutoff=5.0) for atoms in structures]
        batch = next(iter(torch_geometric.dataloader.DataLoader(data, batch_size=len(data)))).to_dict()
        training = mode == "training step"
        model.train(training).requires_grad_(training)
        if mode == "values":
            result = model(dict(batch))
            print(*result["energy"].tolist(), *result["forces"].flatten().tolist(), flush=True)
            continue
        seconds = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            result = model(dict(batch), training=training)
            if training:
                (result["energy"].square().sum() + result["forces"].square().sum()).backward()
                model.zero_grad()
            seconds.append(time.perf_counter() - begin)
        print(*seconds, before, peak(), flush=True)


def peak() -> int:
    """Memory in bytes that this process has had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
